"""Group commit: the changes of all runs of the moment go to the store in one round trip.

A run actor marks itself dirty; as soon as the batch before has been answered the writer asks the
dirty ones for their newest state and sends it. There is no timer: while the store is busy the next
batch fills by itself. Each run gets the store's verdict; nothing is reported before that.

While the store is away the writer keeps the batch and sends it again, with growing pauses: writes
are absolute, so sending twice is harmless. `healthy` is False meanwhile. What is dirty is bounded
by the number of runs in memory.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable
from typing import Protocol

from pilotage.persistence.port import (
    FencedError,
    RunWrite,
    Store,
    StoreUnavailableError,
    Verdict,
)

logger = logging.getLogger(__name__)

MAX_RUNS = 256
MAX_BYTES = 1_000_000
"""A batch is cut at these: a longer one would hold everybody up, the server included."""
FIRST_PAUSE_SECS = 0.05
MAX_PAUSE_SECS = 2.0


class Dirty(Protocol):
    """Who has something to write."""

    def collect(self) -> RunWrite:
        """The newest state; until `stored` nothing more may change."""
        ...

    def stored(self, verdict: Verdict) -> None: ...


class Writer:
    """`on_fenced` is called once, when the store refuses this process's fencing token."""

    def __init__(
        self, store: Store, fence: Callable[[], int], on_fenced: Callable[[], None]
    ) -> None:
        self._store = store
        self._fence = fence
        self._on_fenced = on_fenced
        self._dirty: deque[Dirty] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self._fenced = False
        self.healthy = True
        self.batches = 0
        self.writes = 0
        self.last_error: str | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="writer")

    @property
    def fenced(self) -> bool:
        return self._fenced

    def submit(self, dirty: Dirty) -> None:
        """Note that `dirty` has something to write; once until it was collected."""
        self._dirty.append(dirty)
        self._wake.set()
        self._idle.clear()

    async def flushed(self) -> None:
        """Wait until everything that is dirty now is stored."""
        await self._idle.wait()

    async def close(self) -> None:
        """Stop; what could not be written is left (the store has the state before)."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        while not self._fenced:
            if not self._dirty:
                self._wake.clear()
                self._idle.set()
                await self._wake.wait()
                continue
            batch, writes = self._take()
            if not batch:
                continue
            verdicts = await self._commit(writes)
            for dirty, verdict in zip(batch, verdicts, strict=True):
                try:
                    dirty.stored(verdict)
                except Exception:
                    logger.exception("a run could not take the verdict %s", verdict)

    def _take(self) -> tuple[list[Dirty], list[RunWrite]]:
        batch: list[Dirty] = []
        writes: list[RunWrite] = []
        size = 0
        while self._dirty and len(batch) < MAX_RUNS and size < MAX_BYTES:
            dirty = self._dirty.popleft()
            try:
                write = dirty.collect()
            except Exception:
                logger.exception("a run could not be written")
                continue
            batch.append(dirty)
            writes.append(write)
            size += _size(write)
        return batch, writes

    async def _commit(self, writes: list[RunWrite]) -> list[Verdict]:
        pause = FIRST_PAUSE_SECS
        while True:
            try:
                verdicts = await self._store.commit(writes, self._fence())
            except StoreUnavailableError as error:
                if self.healthy:
                    logger.warning("the store is away, runs keep their place: %s", error)
                self.healthy = False
                self.last_error = str(error)
                await asyncio.sleep(pause * (0.5 + random.random()))  # noqa: S311  spreads retries
                pause = min(pause * 2, MAX_PAUSE_SECS)
                continue
            except FencedError:
                verdicts = [Verdict.FENCED] * len(writes)
            if not self.healthy:
                logger.warning("the store is back")
            self.healthy = True
            self.batches += 1
            self.writes += len(writes)
            if Verdict.FENCED in verdicts and not self._fenced:
                self._fenced = True
                self._on_fenced()
            return verdicts


def _size(write: RunWrite) -> int:
    size = len(write.vitals) + len(write.blob or b"") + len(write.head or b"")
    size += sum(map(len, write.steps.values())) + sum(map(len, write.job_runs.values()))
    return size + sum(map(len, write.outbox_add.values()))
