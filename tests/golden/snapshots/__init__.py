"""Stored values of each schema version: `vN/KIND-NAME.bin`, and what is in it as `.json`.

A version's files are made once, when its schema is new, and never changed again:

    python -m tests.golden.snapshots
"""
