"""`Timers`: everything that is due on one event loop, in one heap, one timer per key.

Guarantees:

- `set` replaces the timer of its key, `cancel` removes it: O(log n) amortised. What was replaced
  or cancelled stays in the heap as a dead entry until more than a quarter of it is dead, then it is
  swept.
- Timers fire in the order they are due, equal ones in the order they were set, never early.
- A burst of due timers holds the loop for about `SLICE_SECS` or `BUDGET` timers at a time.
- Due times are wall-clock milliseconds, because they survive restarts. While a timer is pending the
  wall clock is looked at every `RECHECK_SECS` at least: after a jump forward what became due fires
  then, after a jump back timers wait for their time; none is lost.
- A timer that measures a duration (`set` with `left_ms`) keeps that duration: when the wall clock
  is found to be set, against the clock that never jumps, its due time is moved by as much, before
  it could fire, and who listens (`on_jump`) is told.
- One call is pending at the loop, whatever the number of timers.

For the loop's thread only. Without a loop (`loop=None`) nothing fires by itself: the owner of time,
a test or a simulation, calls `fire_due`.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import logging
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeAlias, TypeVar

from pilotage.actors.kernel.clock import Clock

K = TypeVar("K", bound=Hashable)

BUDGET: Final = 2_000
"""Heap entries looked at before the loop gets its turn."""
SLICE_SECS: Final = 0.02
"""How long due timers fire before the loop gets its turn; looked at every `CHECK_EVERY` timers."""
CHECK_EVERY: Final = 32
RECHECK_SECS: Final = 2.0
"""The longest sleep while a timer is pending: how late a jump of the wall clock is noticed."""
SWEEP_MIN: Final = 64
"""Below this many dead entries a sweep saves nothing."""

DEAD_PART: Final = 4
"""A sweep costs 0.3 µs an entry that lives; a dead entry is 200 bytes."""

JUMP_MS: Final = 1_000
"""By how much the two clocks must differ for the wall clock to have been set. What slowly adds up
to that, as one of them is faster, is made up for in the same way.
"""
_STALL_SECS: Final = 0.1
"""Two looks that take longer tell nothing about the difference of the clocks: look again."""
_LOOKS: Final = 10

_SEQ_BITS: Final = 48  # 2**47 timers set: 4,400 years at 1,000 a second

# (due_ms << _SEQ_BITS | sequence number << 1 | whether it measures a duration, key, callback): one
# int orders by due time and then age. An entry is alive while `Timers._live` maps its key to it.
_Entry: TypeAlias = tuple[int, K, Callable[[K], object]]

Moved: TypeAlias = list[tuple[K, Callable[[K], object], int]]
"""Timers that measure durations, with their callbacks and new due times."""

logger = logging.getLogger("pilotage.actors")


class Timers(Generic[K]):
    """See the module. `K` is the type of the keys, such as `(run_id, step)` tuples."""

    def __init__(self, clock: Clock, loop: asyncio.AbstractEventLoop | None) -> None:
        self._clock = clock
        self._loop = loop
        self._heap: list[_Entry[K]] = []
        self._live: dict[K, _Entry[K]] = {}
        self._seq = 0
        # Callbacks run in the context of the owner, not in that of whoever set the first timer.
        self._context = contextvars.copy_context()
        self._handle: asyncio.Handle | None = None
        self._wake_at_ms = 0
        self._firing = False
        self._closed = False
        self._apart_ms = self._look_twice()[1]  # the wall clock less the one that never jumps
        self.jumps = 0
        """How often the wall clock was found to be set."""
        self.on_jump: list[Callable[[int, Moved[K]], object]] = []
        """Told by how many milliseconds the wall clock was set, and what was moved with it."""
        self.failed = 0
        """Callbacks that raised; each is logged, and the others fire all the same."""
        self.on_late: Callable[[int], object] | None = None
        """Told of each timer that fires by how many milliseconds it is late."""

    def __len__(self) -> int:
        """How many timers are pending."""
        return len(self._live)

    def __contains__(self, key: object) -> bool:
        """Whether a timer with this key is pending."""
        return key in self._live

    def due_ms(self, key: K) -> int | None:
        """When the timer of `key` is due, None if there is none."""
        entry = self._live.get(key)
        return None if entry is None else entry[0] >> _SEQ_BITS

    def callback(self, key: K) -> Callable[[K], object] | None:
        """What the timer of `key` will call, None if there is none."""
        entry = self._live.get(key)
        return None if entry is None else entry[2]

    def next_due_ms(self) -> int | None:
        """When the earliest timer is due, None if there is none."""
        self._drop_dead_head()
        return self._heap[0][0] >> _SEQ_BITS if self._heap else None

    def set(
        self, key: K, due_ms: int, callback: Callable[[K], object], left_ms: int | None = None
    ) -> None:
        """Call `callback(key)` when the wall clock reaches `due_ms`, in place of what `key` had.

        `due_ms` is milliseconds since the epoch, past times included: those fire in the next turn
        of the loop, never inside this call. One bound method for all keys costs the least memory.

        `left_ms`: what is measured is a duration, of which so much is left now. `due_ms` is when it
        ends, as far as the wall clock was not set after that was worked out; if it was, the timer
        is due in `left_ms`.
        """
        if self._closed:
            raise RuntimeError("these timers are closed; nothing would ever fire")
        self._seq += 2
        order = self._seq
        if left_ms is not None:
            order += 1
            ends_ms = self._look() + left_ms
            if not -JUMP_MS < ends_ms - due_ms < JUMP_MS:
                due_ms = ends_ms
        entry = (max(0, due_ms) << _SEQ_BITS | order, key, callback)
        replaced = key in self._live
        self._live[key] = entry
        heapq.heappush(self._heap, entry)
        if replaced:
            self._sweep_if_due()
        if self._handle is None or due_ms < self._wake_at_ms:
            self._arm()

    def cancel(self, key: K) -> bool:
        """Forget the timer of `key`. False: there was none (it may have fired)."""
        if self._live.pop(key, None) is None:
            return False
        self._sweep_if_due()
        return True

    def fire_due(self, limit: int = BUDGET) -> int:
        """Fire what is due now, looking at up to `limit` entries; gives how many fired.

        0 means that nothing was due, unless `limit` entries were dead.
        """
        now_ms = self._look()
        monotonic, jumps = self._clock.monotonic, self.jumps
        until = monotonic() + SLICE_SECS
        beyond = (now_ms + 1) << _SEQ_BITS
        on_late = self.on_late
        fired = 0
        self._firing = True
        try:
            for looked_at in range(1, limit + 1):
                heap = self._heap  # a callback may have caused a sweep
                if not heap or heap[0][0] >= beyond or self.jumps != jumps:
                    break  # after a jump nothing is due by the old time
                entry = heapq.heappop(heap)
                key = entry[1]
                if self._live.get(key) is entry:
                    del self._live[key]
                    fired += 1
                    if on_late is not None:
                        on_late(now_ms - (entry[0] >> _SEQ_BITS))
                    self._fire(key, entry[2])
                if looked_at % CHECK_EVERY == 0 and monotonic() > until:
                    break
        finally:  # also when a callback raises an exit to the loop: the rest must not be lost
            self._firing = False
            self._arm()
        return fired

    def close(self) -> None:
        """Forget all timers and the pending call at the loop."""
        self._closed = True
        self._heap.clear()
        self._live.clear()
        self._arm()

    # --- the wall clock is set --------------------------------------------------------------------

    def _look(self) -> int:
        """The wall clock's time; durations are kept if it was set since somebody looked."""
        clock = self._clock
        now_ms = clock.now_ms()
        set_by = now_ms - int(clock.monotonic() * 1000) - self._apart_ms
        return now_ms if -JUMP_MS < set_by < JUMP_MS else self._jumped()

    def _look_twice(self) -> tuple[int, int]:
        """The wall clock's time, and what it has more than the other clock. The process may stand
        still between two looks: that is no difference.
        """
        clock = self._clock
        before, now_ms = clock.monotonic(), clock.now_ms()
        for _ in range(_LOOKS):
            if clock.monotonic() - before < _STALL_SECS:
                break
            before, now_ms = clock.monotonic(), clock.now_ms()
        return now_ms, now_ms - int(before * 1000)

    def _jumped(self) -> int:
        now_ms, apart_ms = self._look_twice()
        set_by = apart_ms - self._apart_ms
        if -JUMP_MS < set_by < JUMP_MS:
            return now_ms  # the process stood still
        self._apart_ms = apart_ms
        self.jumps += 1
        moved = self._move(set_by)
        logger.warning(
            "The wall clock was set %s by %.1f s; timers that measure durations and go with it: %d",
            "forward" if set_by > 0 else "back",
            abs(set_by) / 1000,
            len(moved),
        )
        for heard in self.on_jump:
            try:
                heard(set_by, moved)
            except Exception:
                self.failed += 1
                logger.exception("Who listens for jumps of the wall clock failed")
        self._arm()
        return now_ms

    def _move(self, by_ms: int) -> Moved[K]:
        """Move what measures a duration. O(n), once a jump."""
        live, moved = self._live, list[tuple[K, Callable[[K], object], int]]()
        for key, (order, _, callback) in live.items():
            if order & 1:
                later = order + (by_ms << _SEQ_BITS)
                live[key] = (later, key, callback)
                moved.append((key, callback, later >> _SEQ_BITS))
        if moved:
            self._heap = list(live.values())
            heapq.heapify(self._heap)
        return moved

    # --- firing -----------------------------------------------------------------------------------

    def _fire(self, key: K, callback: Callable[[K], object]) -> None:
        try:
            callback(key)
        except Exception:
            self.failed += 1
            logger.exception("The callback of timer %r failed", key)

    def _on_wake(self) -> None:
        self._handle = None
        self.fire_due()

    def _arm(self) -> None:
        """Have one call pending at the loop: for the earliest timer, or to look at the clock."""
        if self._loop is None or self._firing:
            return
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        due_ms = self.next_due_ms()
        if due_ms is None:
            return
        self._wake_at_ms = due_ms
        delay_secs = (due_ms - self._clock.now_ms()) / 1000
        if delay_secs <= 0:
            self._handle = self._loop.call_soon(self._on_wake, context=self._context)
        else:
            self._handle = self._loop.call_later(
                min(delay_secs, RECHECK_SECS), self._on_wake, context=self._context
            )

    def _drop_dead_head(self) -> None:
        heap, live = self._heap, self._live
        while heap and live.get(heap[0][1]) is not heap[0]:
            heapq.heappop(heap)

    def _sweep_if_due(self) -> None:
        dead = len(self._heap) - len(self._live)
        if dead > SWEEP_MIN and dead * DEAD_PART > len(self._heap):
            self._heap = list(self._live.values())
            heapq.heapify(self._heap)
