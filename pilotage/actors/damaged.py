"""Runs that cannot be read: what can still be told of them."""

from __future__ import annotations

from pilotage.persistence import codec
from pilotage.persistence.port import StoredRun
from pilotage.runtime.state import RunHead


def readable_head(stored: StoredRun) -> RunHead | None:
    """The head, which has a checksum of its own, if that part is whole."""
    try:
        head = codec.salvaged_head(stored.blob) if stored.blob is not None else stored.head
        return None if head is None else codec.decode_head(head)
    except codec.SnapshotError:
        return None
