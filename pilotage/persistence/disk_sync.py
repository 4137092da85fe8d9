"""What the embedded server has written is forced to disk once a second, by us.

Its own `appendfsync everysec` does more than that: while an earlier write is being forced to a busy
disk it holds new ones back, up to two seconds, and answers nevertheless. Killed then, it loses what
it had answered (measured: thousands of writes on a slow disk). So it runs with `appendfsync no`,
which writes before each answer, and a thread of ours does the forcing. A kill of any process then
costs nothing, a crash of the machine what was answered in the last second or so.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

SYNC_SECS: Final = 1.0

# macOS has no fdatasync.
_force_fd: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)
_log = logging.getLogger("pilotage.store")


class DiskSync:
    """A thread that goes on until `end`."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._over = threading.Event()
        # Not waited for at the end of the process: a disk may hang, and the server forces too.
        self._thread = threading.Thread(target=self._run, name="pilotage-sync", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def end(self) -> None:
        self._over.set()

    def _run(self) -> None:
        forced: Mapping[Path, int] = {}
        failing = False
        while not self._over.wait(SYNC_SECS):
            try:
                forced = force(self._data_dir, forced)
                failing = False
            except OSError as error:
                if not failing:
                    _log.error(
                        "what the store writes cannot be forced to disk (%s): a crash of the "
                        "machine may lose it; look at the disk",
                        error,
                    )
                failing, forced = True, {}


def force(data_dir: Path, forced: Mapping[Path, int]) -> dict[Path, int]:
    """Force the append-only files that have grown. `forced`: the sizes that were; gives the new."""
    sizes: dict[Path, int] = {}
    # Before Redis 7 there is one file, in the directory itself.
    for path in (data_dir / "appendonly.aof", *(data_dir / "appendonlydir").glob("*.incr.aof")):
        try:
            fd = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # a rewrite has replaced it
            continue
        try:
            size = os.fstat(fd).st_size
            if forced.get(path) != size:
                _force_fd(fd)
            sizes[path] = size
        finally:
            os.close(fd)
    return sizes
