"""Group commit: the changes of all runs of the moment go to the store in one round trip.

A run actor marks itself dirty; as soon as the batch before has been answered the writer asks the
dirty ones for their newest state and sends it. There is no timer: while the store is busy the next
batch fills by itself. Each run gets the store's verdict; nothing is reported before that.

While the store's memory is full, what ends runs goes first and alone, which the store takes and
which makes room; then the others, the small ones before the large ones that may not fit. A run that
was to be made is refused; what else there is no room for is `held` here, up to `MAX_HELD_RUNS`, and
tried again. It answers and takes what is small, so it is not away: commands may make room.

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
from contextlib import suppress
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

    def no_room(self, error: Exception) -> None:
        """It was to be made, and the store has no room for it."""
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
        self._clock = asyncio.get_running_loop().time
        self._held: Batch = []
        self._held_bytes = 0
        self._full_pause = FIRST_PAUSE_SECS
        self._retry_at = 0.0
        self.full = False
        """Whether something is held that the store has no room for."""
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
    def held(self) -> int:
        """How many runs have something to write that the store has no room for."""
        return len(self._held)

    @property
    def busy(self) -> bool:
        """Whether something is dirty or on its way; what is held is neither."""
        return not self._idle.is_set()

    def submit(self, dirty: Dirty) -> None:
        """Note that `dirty` has something to write; once until it was collected."""
        self._dirty.append(dirty)
        self._wake.set()
        self._idle.clear()

    async def flushed(self) -> None:
        """Wait until everything that is dirty now is stored, or waits for room."""
        await self._idle.wait()

    async def close(self) -> None:
        """Stop; what could not be written is left (the store has the state before)."""
        if self._task is not None:
            await end_all([self._task])
            self._task = None

    async def _run(self) -> None:
        while not self._fenced:
            if self._held and self._clock() >= self._retry_at:
                await self._try_again()
            elif not self._dirty or self._is_laden:
                await self._rest()
            else:
                if self.batches % YIELD_EVERY == 0:
                    await asyncio.sleep(0)
                await self._write_new(self._take())

    async def _rest(self) -> None:
        """Until something is dirty, or it is time for what is held."""
        self._wake.clear()
        self._idle.set()
        if not self._held:
            await self._wake.wait()
            return
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._retry_at):
                await self._wake.wait()

    @property
    def _is_laden(self) -> bool:
        """Whether no more can be held: what is dirty stays where it is."""
        return len(self._held) >= MAX_HELD_RUNS or self._held_bytes >= MAX_HELD_BYTES

    async def _write_new(self, batch: Batch) -> None:
        left = batch if self.full else await self._write(batch)
        if not left:
            return
        began = not self._held
        left = await self._left_of(left)
        self._hold(self._held + left)
        if began:
            self._pause_held(FIRST_PAUSE_SECS)

    async def _try_again(self) -> None:
        """One round with what the store had no room for."""
        batch = self._held
        self._hold(await self._left_of(batch))
        if len(self._held) < len(batch):
            self._pause_held(FIRST_PAUSE_SECS)
        else:
            self._pause_held(min(self._full_pause * 2, MAX_PAUSE_SECS))
        if not self.full:
            logger.warning("the store has taken all that it had no room for")

    def _hold(self, batch: Batch) -> None:
        self._held, self._held_bytes = batch, _sizes(batch)
        self.full = bool(batch)

    def _pause_held(self, secs: float) -> None:
        self._full_pause = secs
        self._retry_at = self._clock() + _spread(secs)

    async def _left_of(self, batch: Batch) -> Batch:
        """Write what there is room for: what ends runs, then the others, small ones first."""
        batch = sorted(batch, key=lambda one: _size(one[1]))
        left = await self._write_what_fits([one for one in batch if _ends(one[1])])
        left += await self._write_what_fits([one for one in batch if not _ends(one[1])])
        return self._refuse_new(left)

    async def _write_what_fits(self, batch: Batch) -> Batch:
        """Smaller and smaller parts, until not even the first write is taken. Gives the rest."""
        count = MAX_RUNS
        while batch and count and not self._fenced:
            part = _first(batch, count)
            left = await self._write(part)
            batch = left + batch[len(part) :]
            if left:
                count = len(part) // 2
        return batch

    def _refuse_new(self, batch: Batch) -> Batch:
        """Whoever wanted a run made is told now. Gives those of the runs that are there."""
        for dirty, write in batch:
            if not write.follows:
                dirty.no_room(StoreFullError(self.last_error or "the store has no room"))
        return [one for one in batch if one[1].follows]

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

    async def _write(self, batch: Batch) -> Batch:
        """One round trip; if the batch as a whole cannot be taken, each of its writes by itself.
        Gives what the store has no room for.
        """
        if not batch:
            return []
        try:
            verdicts = await self._commit([write for _, write in batch])
        except StoreFullError:
            return batch
        except Exception as error:
            if len(batch) > 1:
                logger.exception("a batch of %d runs is written one by one", len(batch))
                return [left for one in batch for left in await self._write([one])]
            logger.exception("run %s could not be written", batch[0][1].run_id)
            batch[0][0].failed(error)
            return []
        self.at_once(lambda: _give(batch, verdicts))
        return []

    async def _commit(self, writes: list[RunWrite]) -> list[Verdict]:
        pause = FIRST_PAUSE_SECS
        while True:
            try:
                verdicts = await self._store.commit(writes, self._fence())
            except StoreFullError as error:
                if not self.full:
                    logger.warning("the store has no room, small writes go first: %s", error)
                self.full, self.last_error = True, str(error)
                self._answers()
                raise
            except (StoreUnavailableError, UnsuitableStoreError) as error:
                self._retrying = True
                self.is_away(str(error))
                await asyncio.sleep(_spread(pause))
                pause = min(pause * 2, MAX_PAUSE_SECS)
                continue
            except FencedError:
                verdicts = [Verdict.FENCED] * len(writes)
            self._answers()
            self.batches += 1
            self.writes += len(writes)
            if self.on_batch is not None:
                self.on_batch(len(writes))
            if Verdict.FENCED in verdicts and not self._fenced:
                self._fenced = True
                self._on_fenced()
            return verdicts

    def _answers(self) -> None:
        self._retrying = False
        self.is_back()

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


def _spread(secs: float) -> float:
    return secs * (0.5 + random.random())  # noqa: S311  spreads retries


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
