"""Several parts together, with a real server."""
