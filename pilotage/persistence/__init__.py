"""Where a run stays: the store port, Redis, the embedded server, codec and keys."""
