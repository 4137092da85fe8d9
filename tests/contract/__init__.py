"""One suite a port, run against each implementation of it."""
