"""`SimLoop`: an event loop whose time is a number, and `Process`es that can be stopped on it.

When nothing is ready the clock jumps to the next timer. There are no sockets and no threads, so
the same calls give the same order, always. The order of ready callbacks is asyncio's own (first
in, first out): that is promised to programs; variety comes from latencies.

Every callback belongs to the process whose context it was scheduled in. A dead process's callbacks
are dropped, exactly as after `kill -9`: what it had sent is on its way, everything else is gone. A
frozen one's are kept (SIGSTOP, a long pause of the machine) and run when it is thawed.
"""

from __future__ import annotations

import asyncio
import heapq
import warnings
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from types import CoroutineType
from typing import Any, TypeVar

T = TypeVar("T")

MAX_CALLBACKS = 2_000_000
"""More than a hundred times what a seed needs: something goes round in circles."""


class SimulationStuckError(Exception):
    """Nothing is ready and no timer is pending, or callbacks never cease."""


class Process:
    """One life of a server process: what runs in `context` runs in it."""

    def __init__(self, loop: SimLoop, name: str) -> None:
        self.loop = loop
        self.name = name
        self.alive = True
        self.frozen = False
        self.backlog: list[asyncio.Handle] = []
        self.tasks: set[asyncio.Task[Any]] = set()
        self.context: Context = copy_context()
        self.context.run(PROCESS.set, self)

    def begin(self, work: Coroutine[Any, Any, object]) -> None:
        """Start a task in this process; the loop keeps it."""
        self.tasks.add(self.loop.create_task(work, context=self.context))

    def call_later(self, delay_secs: float, callback: Callable[..., object], *args: object) -> None:
        self.loop.call_later(delay_secs, callback, *args, context=self.context)

    def die(self) -> None:
        """At once, without a word. Callable from anywhere, its own code included."""
        self.alive = False
        self.backlog.clear()

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self) -> None:
        self.frozen = False
        backlog, self.backlog = self.backlog, []
        self.loop.ready_again(backlog)


PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)


class SimTask(asyncio.Task[Any]):
    """Hashed by number, so that sets of tasks have the same order in every run."""

    _serial = 0

    def __init__(self, *args: Any, loop: SimLoop, **kwargs: Any) -> None:
        super().__init__(*args, loop=loop, **kwargs)
        loop.tasks_made += 1
        self._serial = loop.tasks_made

    def __hash__(self) -> int:
        return self._serial

    def __eq__(self, other: object) -> bool:
        return self is other


class SimLoop(asyncio.BaseEventLoop):
    """`failures`: what callbacks and tasks raised and nobody took."""

    _ready: deque[Any]  # handles; what is used of them is private
    _scheduled: list[Any]

    def __init__(self) -> None:
        super().__init__()
        self.set_debug(False)
        self.now = 0.0
        self.tasks_made = 0
        self.callbacks = 0
        self.failures: list[str] = []
        self._all_tasks: list[asyncio.Task[Any]] = []
        self.set_task_factory(self._make_task)
        self.set_exception_handler(self._note_failure)

    def time(self) -> float:
        return self.now

    @staticmethod
    def _make_task(
        loop: asyncio.AbstractEventLoop, coro: Any, context: Context | None = None
    ) -> asyncio.Task[Any]:
        assert isinstance(loop, SimLoop)
        task = SimTask(coro, loop=loop, context=context)
        loop._all_tasks.append(task)
        return task

    def _note_failure(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.failures.append(f"{context.get('message')}: {error!r}")

    def ready_again(self, handles: list[asyncio.Handle]) -> None:
        self._ready.extend(handles)

    def _run_once(self) -> None:
        ready, scheduled = self._ready, self._scheduled
        while not ready:
            if not scheduled:
                raise SimulationStuckError("nothing is ready and no timer is pending")
            self._take_due(scheduled)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(PROCESS)
            if process is not None and not process.alive:
                continue
            if process is not None and process.frozen:
                process.backlog.append(handle)
                continue
            self.callbacks += 1
            handle._run()
        if self.callbacks > MAX_CALLBACKS:
            raise SimulationStuckError(f"{MAX_CALLBACKS} callbacks and no end")

    def _take_due(self, scheduled: list[Any]) -> None:
        """The clock goes to the next timer, and everything due then is ready."""
        while scheduled:
            handle = scheduled[0]
            process = handle._context.get(PROCESS)
            if handle._cancelled or (process is not None and not process.alive):
                heapq.heappop(scheduled)
                handle._scheduled = False
                continue
            self.now = max(self.now, handle._when)
            break
        while scheduled and scheduled[0]._when <= self.now:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            self._ready.append(handle)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """They are thrown away when they come up."""

    def _process_events(self, event_list: Any) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """There is no other thread to wake."""

    def bury(self) -> None:
        """The end: what dead processes left half done is closed without a sound, then the loop."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # what was never begun, never will be
            self._close_tasks(list(self._all_tasks))
        for handle in self._scheduled:
            for argument in handle._args or ():
                if isinstance(argument, CoroutineType):  # a request that never arrives
                    argument.close()
        self._ready.clear()
        self._scheduled.clear()
        self._all_tasks.clear()
        self.close()

    @staticmethod
    def _close_tasks(tasks: list[Any]) -> None:
        for task in tasks:
            if not task.done():
                task._log_destroy_pending = False
                try:
                    task.get_coro().close()
                except BaseException:  # noqa: BLE001  it was killed: nothing of it matters any more
                    continue
