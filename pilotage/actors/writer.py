"""Group commit: the changes of all runs of the moment go to the store in one round trip.

A run actor marks itself dirty; as soon as the batch before has been answered the writer asks the
dirty ones for their newest state and sends it. There is no timer: while the store is busy the next
batch fills by itself. Each run gets the store's verdict; nothing is reported before that.

While the store's memory is full, what ends runs goes first and alone, which the store takes and
which makes room; then the others, the small ones before the large ones that may not fit. What it
has no room for is held here, up to `MAX_HELD_RUNS`, and tried again.

While the store is away, or has become one that cannot be used (credentials changed, another kind of
server behind the address), the writer keeps the batch and sends it again, with growing pauses:
writes are absolute, so sending twice is harmless. `healthy` is False meanwhile. What is dirty is
bounded by the number of runs in memory.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from pilotage.actors.endings import end_all
from pilotage.persistence.port import (
    FencedError,
    RunWrite,
    Store,
    StoreFullError,
    StoreUnavailableError,
    UnsuitableStoreError,
    Verdict,
)

logger = logging.getLogger(__name__)

MAX_RUNS = 256
MAX_BYTES = 1_000_000
"""A batch is cut at these: a longer one would hold everybody up, the server included."""
MAX_HELD_RUNS, MAX_HELD_BYTES = 4 * MAX_RUNS, 16 * MAX_BYTES
"""What is looked through for something that fits while the store is full."""
YIELD_EVERY = 8
"""Batches after which others get the loop in any case: a store in memory answers without that, and
a run whose steps follow at once would have the writer go on and on.
"""
FIRST_PAUSE_SECS = 0.05
MAX_PAUSE_SECS = 2.0


class Dirty(Protocol):
    """Who has something to write."""

    def collect(self) -> RunWrite | None:
        """The newest state; until `stored` nothing more may change. None: nothing any more."""
        ...

    def stored(self, verdict: Verdict) -> None: ...

    def failed(self, error: Exception) -> None:
        """Its write cannot be made, or the answer not be taken."""
        ...


Batch = list[tuple[Dirty, RunWrite]]


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
        self._retrying = False
        self._full = False
        self._held: Batch = []
        self._full_pause = 0.0
        self.healthy = True
        self.batches = 0
        self.writes = 0
        self.on_batch: Callable[[int], object] | None = None
        """Told of each batch that was answered how many runs were in it."""
        self.at_once: Callable[[Callable[[], object]], object] = _do
        """Gives the verdicts of a batch, and lets what follows from them happen before the next
        batch is taken, so that it becomes part of that.
        """
        self.last_error: str | None = None
        self.away_since = 0.0

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="writer")

    @property
    def fenced(self) -> bool:
        return self._fenced

    @property
    def busy(self) -> bool:
        """Whether something is dirty or on its way."""
        return not self._idle.is_set()

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
            await end_all([self._task])
            self._task = None

    async def _run(self) -> None:
        while not self._fenced:
            if self._held:
                await self._while_full()
                continue
            if not self._dirty:
                self._wake.clear()
                self._idle.set()
                await self._wake.wait()
                continue
            if self.batches % YIELD_EVERY == 0:
                await asyncio.sleep(0)
            batch = self._take()
            if batch and not await self._write(batch):
                self._held += batch

    async def _while_full(self) -> None:
        """One round with what the store has no room for, and what has become dirty since."""
        batch, self._held = self._held, []
        while self._dirty and len(batch) < MAX_HELD_RUNS and _sizes(batch) < MAX_HELD_BYTES:
            batch += self._take()
        count = len(batch)
        batch.sort(key=lambda one: _size(one[1]))
        ends = [one for one in batch if _ends(one[1])]
        others = [one for one in batch if not _ends(one[1])]
        self._held += await self._write_what_fits(ends)
        self._held += await self._write_what_fits(others)
        if not self._held:
            self._full = self._retrying = False
            self._full_pause = 0.0
            self.is_back()
            return
        longer = min(max(self._full_pause * 2, FIRST_PAUSE_SECS), MAX_PAUSE_SECS)
        self._full_pause = longer if len(self._held) == count else FIRST_PAUSE_SECS
        await _pause(self._full_pause)

    async def _write_what_fits(self, batch: Batch) -> Batch:
        """Smaller and smaller parts, until not even the first write is taken. Gives the rest."""
        count = MAX_RUNS
        while batch and count and not self._fenced:
            part = _first(batch, count)
            if await self._write(part):
                batch = batch[len(part) :]
            else:
                count = len(part) // 2
        return batch

    def _take(self) -> Batch:
        batch: Batch = []
        size = 0
        while self._dirty and len(batch) < MAX_RUNS and size < MAX_BYTES:
            dirty = self._dirty.popleft()
            try:
                write = dirty.collect()
            except Exception as error:
                logger.exception("a run could not be written")
                dirty.failed(error)
                continue
            if write is not None:
                batch.append((dirty, write))
                size += _size(write)
        return batch

    async def _write(self, batch: Batch) -> bool:
        """One round trip; if the batch as a whole cannot be taken, each of its writes by itself.
        False: the store has no room for it.
        """
        try:
            verdicts = await self._commit([write for _, write in batch])
        except StoreFullError:
            return False
        except Exception as error:
            if len(batch) > 1:
                logger.exception("a batch of %d runs is written one by one", len(batch))
                for one in batch:
                    if not await self._write([one]):
                        self._held.append(one)
                return True
            logger.exception("run %s could not be written", batch[0][1].run_id)
            batch[0][0].failed(error)
            return True
        self.at_once(lambda: _give(batch, verdicts))
        return True

    async def _commit(self, writes: list[RunWrite]) -> list[Verdict]:
        pause = FIRST_PAUSE_SECS
        while True:
            try:
                verdicts = await self._store.commit(writes, self._fence())
            except StoreFullError as error:
                self._full = self._retrying = True
                self.is_away(str(error))
                raise
            except (StoreUnavailableError, UnsuitableStoreError) as error:
                self._retrying = True
                self.is_away(str(error))
                await _pause(pause)
                pause = min(pause * 2, MAX_PAUSE_SECS)
                continue
            except FencedError:
                verdicts = [Verdict.FENCED] * len(writes)
            self._retrying = self._full
            self.is_back()
            self.batches += 1
            self.writes += len(writes)
            if self.on_batch is not None:
                self.on_batch(len(writes))
            if Verdict.FENCED in verdicts and not self._fenced:
                self._fenced = True
                self._on_fenced()
            return verdicts

    def is_away(self, why: str) -> None:
        """The store does not answer; also for those who notice it while nothing is written."""
        if self.healthy:
            logger.warning("the store is away, runs keep their place: %s", why)
            self.away_since = time.monotonic()
        self.healthy = False
        self.last_error = why

    def is_back(self) -> None:
        """It answers. That is not enough while it refuses what is to be written."""
        if self._retrying:
            return
        if not self.healthy:
            logger.warning("the store is back")
        self.healthy = True


def _do(action: Callable[[], object]) -> None:
    action()


def _give(batch: Batch, verdicts: list[Verdict]) -> None:
    for (dirty, write), verdict in zip(batch, verdicts, strict=True):
        try:
            dirty.stored(verdict)
        except Exception as error:
            logger.exception("run %s could not take its verdict %s", write.run_id, verdict)
            dirty.failed(error)


async def _pause(secs: float) -> None:
    await asyncio.sleep(secs * (0.5 + random.random()))  # noqa: S311  spreads retries


def _ends(write: RunWrite) -> bool:
    """Whether it ends a run that is in the store: what then is kept of it is less."""
    return write.finished and write.follows > 0 and write.blob is not None


def _first(batch: Batch, count: int) -> Batch:
    """At most `count` of them, and `MAX_BYTES`."""
    size = 0
    for n, (_, write) in enumerate(batch[:count]):
        size += _size(write)
        if n and size > MAX_BYTES:
            return batch[:n]
    return batch[:count]


def _sizes(batch: Batch) -> int:
    return sum([_size(write) for _, write in batch])


def _size(write: RunWrite) -> int:
    size = len(write.vitals) + len(write.blob or b"") + len(write.head or b"")
    size += sum([len(item.data) for item in write.history])
    size += sum(map(len, write.steps.values())) + sum(map(len, write.job_runs.values()))
    return size + sum(map(len, write.outbox_add.values()))
