"""Which releases may open a store: the newest schema version that an owner of it writes.

The note is made together with the fence: an owner raises it, nobody lowers it. A release that
knows only older versions refuses the store as a whole, before it has changed anything; met one by
one, the newer values would put run after run into quarantine.
"""

from __future__ import annotations

from typing import Final

import msgspec

from pilotage import __version__
from pilotage.persistence import codec
from pilotage.persistence.port import NewerStoreError

_SHOWN: Final = 80


class StoreFormat(msgspec.Struct, frozen=True, kw_only=True):
    """`release` is the first one that owned the store with this schema version."""

    version: int
    release: str


def note() -> str:
    """What an owner of this release leaves in the store."""
    return f"{codec.SCHEMA_VERSION} {__version__}"


def noted(data: bytes | None) -> StoreFormat | None:
    """What the store says. None: it says nothing, a new one or one from before the note.

    `NewerStoreError` if this release must not open it.
    """
    if data is None:
        return None
    text = data.decode(errors="replace")
    version, _, release = text.partition(" ")
    if not (version.isascii() and version.isdecimal()):
        raise NewerStoreError(
            f"the format of this store cannot be read ({text[:_SHOWN]!r}): restore a backup, or "
            "use another namespace"
        )
    if int(version) > codec.SCHEMA_VERSION:
        raise NewerStoreError(
            f"this store has format {version}, of pilotage {release}; this release "
            f"({__version__}) reads up to {codec.SCHEMA_VERSION}: start pilotage {release} or "
            "newer, or restore a backup made before the upgrade. Nothing was changed"
        )
    return StoreFormat(version=int(version), release=release)
