"""The runtime on a real store."""
