"""Who moves runs: mailboxes, supervisor, run actors, executors, catalog, gateway."""
