"""Jobs that run on the actors' loop itself: for tiny, trusted functions that opted in.

Nothing here leaves the loop: no thread, no wake-up, no lock. All that is started in one turn of
the loop is run together in the next, a bounded number per turn; what is started within `at_once`
is run at its end.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import copy_context

from pilotage.actors.executors.invoke import Outcome, call, call_async
from pilotage.actors.executors.running import Running

CALLS_PER_TURN = 64
CLOSE_SECS = 1.0


class InlineRunner:
    """`finished` is called on the loop with what came out; not for attempts that were stopped."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, finished: Callable[[Running, Outcome], None]
    ) -> None:
        self._loop = loop
        self._finished = finished
        self._ready: deque[Running] = deque()
        self._woken = False
        self._tasks: dict[Running, asyncio.Task[None]] = {}

    def start(self, running: Running) -> None:
        self._ready.append(running)
        if not self._woken:
            self._woken = True
            self._loop.call_soon(self._run_ready)

    def at_once(self, action: Callable[[], object]) -> None:
        """Do `action`, and call what it starts before this returns, a turn's worth of it."""
        if self._woken:
            action()
            return
        self._woken = True
        try:
            action()
        finally:  # what a job sets in its context is not seen by whoever calls here
            copy_context().run(self._run_ready)

    def stop(self, running: Running) -> None:
        """A plain function cannot be under way here: it is over, or not begun and `over` by now."""
        task = self._tasks.get(running)
        if task is not None:
            # A task that is cancelled before its first step never gets to its own clean-up.
            task.add_done_callback(lambda _: self._tasks.pop(running, None))
            task.cancel()

    async def aclose(self) -> None:
        """Called when everything has been stopped: let the tasks see their cancellation."""
        self._ready.clear()
        if self._tasks:
            # One that swallows its cancellation is left alone: it may never end.
            await asyncio.wait(tuple(self._tasks.values()), timeout=CLOSE_SECS)

    def _run_ready(self) -> None:
        self._woken = False
        ready = self._ready
        for _ in range(min(len(ready), CALLS_PER_TURN)):
            running = ready.popleft()
            if running.over:
                continue
            if running.job.is_async:
                self._tasks[running] = self._loop.create_task(
                    self._do(running), name=running.job.name
                )
            else:
                self._finished(running, call(running.job, running.attempt, running.context))
        if ready and not self._woken:
            self._woken = True
            self._loop.call_soon(self._run_ready)

    async def _do(self, running: Running) -> None:
        try:
            outcome = await call_async(running.job, running.attempt, running.context)
        finally:
            self._tasks.pop(running, None)
        self._finished(running, outcome)
