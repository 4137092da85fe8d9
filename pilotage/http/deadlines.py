"""The time that requests may take: one timer for all of them.

A timer a request would be made and canceled a thousand times for each that rings. All requests
have the same time, so they end in the order in which they began, and looking at the first is
enough. A deadline is kept to within half a second, in practice much better: the timer is set for
the first one that is due.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LOOK_SECS = 0.5
"""How often requests that wait are looked at."""


class Waiting:
    """A request whose answer has not begun."""

    __slots__ = ("_canceled_before", "due", "expired", "task")

    def __init__(self, task: asyncio.Task[object], due: float) -> None:
        self.task = task
        self.due = due
        self.expired = False
        self._canceled_before = task.cancelling()

    def expire(self) -> None:
        self.expired = True
        self.task.cancel()

    def timed_out(self) -> bool:
        """Whether a cancellation was for the time alone; takes it back. To be asked once."""
        return self.expired and self.task.uncancel() <= self._canceled_before


class Deadlines:
    """Cancels the tasks of requests that take too long.

    Args:
        limit_secs: what a request has.
        hurry_secs: what those have that wait already, while `hurry` says so.
        hurry: whether it is known that waiting is of no use.
    """

    def __init__(self, limit_secs: float, hurry_secs: float, hurry: Callable[[], bool]) -> None:
        self._limit = limit_secs
        self._hurry_secs = hurry_secs
        self._hurry = hurry
        self._pause = min(LOOK_SECS, limit_secs)
        self._waiting: dict[Waiting, None] = {}  # in the order in which they are due
        self._looking = False

    def __len__(self) -> int:
        return len(self._waiting)

    def begin(self) -> Waiting:
        """The calling task has the time limit from now on, until `end`."""
        task = asyncio.current_task()
        assert task is not None
        loop = task.get_loop()
        waiting = Waiting(task, loop.time() + self._limit)
        self._waiting[waiting] = None
        if not self._looking:
            self._looking = True
            loop.call_later(self._pause, self._look, loop)
        return waiting

    def end(self, waiting: Waiting) -> None:
        """It is not canceled any more. May be called again."""
        self._waiting.pop(waiting, None)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        if self._hurry():
            latest = now + self._hurry_secs
            for waiting in self._waiting:
                waiting.due = min(waiting.due, latest)
        late: list[Waiting] = []
        next_look = now + self._pause
        for waiting in self._waiting:
            if waiting.due > now:
                next_look = min(next_look, waiting.due)
                break
            late.append(waiting)
        for waiting in late:
            self.end(waiting)
            waiting.expire()
        self._looking = bool(self._waiting)
        if self._looking:
            loop.call_at(next_look, self._look, loop)
