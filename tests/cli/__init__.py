"""Tests of the command line: its parts, and the real thing against a real server."""
