"""One event loop in a thread of its own, for `async` jobs, and who watches it.

Whatever a job does to the loop, the loop goes on: it is entered again when a job has stopped it or
let an exit through. Only a loop that does not work any more (closed, its selector gone) ends, and
then it says so. What a job does to a task of another job ends that attempt, never silently.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from pilotage.actors.executors.handover import Handover
from pilotage.actors.executors.invoke import call_async, failure_of
from pilotage.actors.executors.port import Failed
from pilotage.actors.executors.running import Running

STUCK_TICKS = 10
"""A loop that has missed so many turns of `blocked_secs` is taken for blocked for good."""

JOIN_SECS = 2.0
_MAX_NAMED = 5
_SAID_EVERY_SECS = 10.0
_LOG = logging.getLogger("pilotage.jobs")


class Blocked(NamedTuple):
    """The loop takes no turns because of `who`, a task; `by` is its attempt, None if it is not one
    that is in progress. `stuck`: for long now.
    """

    who: str
    by: Running | None
    stuck: bool


class Free(NamedTuple):
    """It takes turns again."""


class Ended(NamedTuple):
    """Its thread has ended; `error` None: as it was told to."""

    error: str | None


Condition = Blocked | Free | Ended


class JobThread:
    """`tell` is called from the threads of the loop and its watchdog, the rest on the actors' loop.

    `blocked` is for who is told: the last `Blocked`, while it holds.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        blocked_secs: float,
        tell: Callable[[tuple[JobThread, Condition]], None],
    ) -> None:
        self.blocked: Blocked | None = None
        self._loop = loop
        self._tell = tell
        self._tasks: dict[Running, asyncio.Task[None]] = {}
        self._orders: Handover[tuple[Running, bool]] = Handover(loop, self._take)
        self._watch = Watchdog(loop, blocked_secs, self._is_busy, self._culprit, self._say)
        self._closing = False
        self._retired = False
        self._fault: str | None = None
        self._stops = 0
        self._said_at = -_SAID_EVERY_SECS
        self._thread = threading.Thread(target=self._run, name="pilotage-job-loop", daemon=True)

    def open(self) -> None:
        """Raises RuntimeError when there are no threads left."""
        try:
            self._thread.start()
        except RuntimeError:
            self._loop.close()
            raise

    def start(self, running: Running) -> None:
        self._orders.post((running, True))
        self._watch.wake()

    def stop(self, running: Running) -> None:
        """Cancel the task at its next await."""
        self._orders.post((running, False))

    def retire(self) -> None:
        """End as soon as nothing is in progress."""
        with contextlib.suppress(RuntimeError):  # closed already
            self._loop.call_soon_threadsafe(self._retire)

    def close(self) -> None:
        """Cancel everything and end; a thread that a job blocks is left behind."""
        self._closing = True
        self._watch.close()
        with contextlib.suppress(RuntimeError):  # closed already
            self._loop.call_soon_threadsafe(self._loop.stop)

    def join(self) -> None:
        self._thread.join(JOIN_SECS)

    # --- in the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        error: str | None = "its thread ended"
        try:
            asyncio.set_event_loop(self._loop)
            self._watch.open(threading.get_ident())
            error = self._turn_for_good()
            if error is None:
                self._cancel_all()
            asyncio.set_event_loop(None)
            with contextlib.suppress(Exception):
                self._loop.close()
        finally:
            self._watch.close()
            self._say(Ended(error))

    def _turn_for_good(self) -> str | None:
        """None when it was told to end, else why the loop cannot go on."""
        while True:
            try:
                self._loop.run_forever()
                how = "stopped"
            except (SystemExit, KeyboardInterrupt) as error:
                how = f"left with {type(error).__name__}"
            except BaseException as error:  # noqa: BLE001 - nothing of a job's comes this way
                return failure_of(error).error
            if self._closing or self._fault is not None:
                return self._fault
            self._note_stop(how)

    def _note_stop(self, how: str) -> None:
        """A job may do it at every turn, so not every time is worth a line."""
        self._stops += 1
        if time.monotonic() - self._said_at < _SAID_EVERY_SECS:
            return
        self._said_at = time.monotonic()
        _LOG.warning(
            "the job loop was %s by a job (%d times so far) and goes on; jobs on it: %s",
            how,
            self._stops,
            named(self._tasks),
        )

    def _take(self, order: tuple[Running, bool]) -> None:
        running, begin = order
        if not begin:
            # A task that is cancelled before its first step never gets to its own clean-up.
            task = self._tasks.pop(running, None)
            if task is not None:
                task.cancel()
        elif not running.context.cancelled:
            self._begin(running)
            self._watch.wake()  # it may have gone to rest since `start`

    def _begin(self, running: Running) -> None:
        doing = self._do(running)
        try:
            task = self._loop.create_task(doing, name=running.title)
            task.add_done_callback(partial(self._done, running))
        except Exception as error:  # noqa: BLE001 - a task factory that a job has left here
            doing.close()
            self._fault = f"it takes no tasks: {failure_of(error).error}"
            self._loop.stop()
        else:
            self._tasks[running] = task

    async def _do(self, running: Running) -> None:
        outcome = await call_async(running.job, running.attempt, running.context)
        if self._tasks.pop(running, None) is not None:
            running.emit(outcome)

    def _done(self, running: Running, task: asyncio.Task[None]) -> None:
        """The task's end, if it did not come to its own."""
        error = None if task.cancelled() else task.exception()
        if self._tasks.pop(running, None) is not None:
            cancelled = Failed("the job was cancelled by another on its loop", "CancelledError")
            running.emit(cancelled if error is None else failure_of(error))
        if self._retired:
            self._retire()

    def _retire(self) -> None:
        self._retired = True
        if not self._tasks:
            self.close()

    def _cancel_all(self) -> None:
        """Let every task see its cancellation; one that refuses is left to the closed loop."""
        loop = self._loop
        for running in self._tasks:
            running.context.cancel()
        with contextlib.suppress(BaseException):
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            if tasks:
                loop.run_until_complete(asyncio.wait(tasks, timeout=JOIN_SECS / 2))
        with contextlib.suppress(BaseException):
            loop.run_until_complete(loop.shutdown_asyncgens())

    def _is_busy(self) -> bool:
        return bool(self._tasks) or not self._orders.is_empty

    # --- in the watchdog's thread -----------------------------------------------------------------

    def _culprit(self) -> tuple[str, Running | None]:
        """Who has the loop at this moment."""
        task = asyncio.current_task(self._loop)
        if task is None:
            return "a callback", None
        running = None
        with contextlib.suppress(RuntimeError):  # the loop has just begun another
            running = next((each for each, its in self._tasks.items() if its is task), None)
        return task.get_name(), running

    def _say(self, condition: Condition) -> None:
        self._tell((self, condition))


class Watchdog:
    """Notices when the loop takes no turn while it has jobs, and says which job is at fault.

    A thread asks the loop for a turn every half `blocked_secs` and waits for it. It rests while
    no job runs. It counts its own turns, not seconds: while the process stands still nobody is at
    fault.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        blocked_secs: float,
        is_busy: Callable[[], bool],
        culprit: Callable[[], tuple[str, Running | None]],
        say: Callable[[Condition], None],
    ) -> None:
        self._loop = loop
        self._blocked_secs = blocked_secs
        self._is_busy = is_busy
        self._culprit = culprit
        self._say = say
        self._thread_id = 0
        self._awake = threading.Event()
        self._turn = threading.Event()
        self._closed = threading.Event()

    def open(self, thread_id: int) -> None:
        self._thread_id = thread_id
        try:
            threading.Thread(target=self._run, name="pilotage-job-watchdog", daemon=True).start()
        except RuntimeError as error:
            _LOG.warning("jobs that block the job loop will not be named: %s", error)

    def wake(self) -> None:
        """There is a job now. From any thread."""
        if not self._awake.is_set():
            self._awake.set()

    def close(self) -> None:
        self._closed.set()
        self._awake.set()
        self._turn.set()

    def _run(self) -> None:
        while not self._closed.is_set():
            self._awake.wait()
            self._turn.clear()
            if self._closed.is_set():  # `close` may have come before the line above
                return
            asked = time.monotonic()
            try:
                self._loop.call_soon_threadsafe(self._answer)
            except (RuntimeError, OSError):  # the loop is closed, or broken
                return
            if not self._turn.wait(self._blocked_secs):
                self._blocked(asked)
            self._closed.wait(self._blocked_secs / 2)

    def _blocked(self, asked: float) -> None:
        """Say so at once, again when it is for good, and when it is over."""
        who, by = self._culprit()
        self._report(who, time.monotonic() - asked)
        self._say(Blocked(who, by, stuck=False))
        for _ in range(STUCK_TICKS - 1):
            if self._turn.wait(self._blocked_secs):
                break
        else:
            self._say(Blocked(who, by, stuck=True))
            self._turn.wait()  # for the loop, or for `close`
        self._say(Free())

    def _answer(self) -> None:
        """On the loop: so nothing is missed that is begun there."""
        if not self._is_busy() and not self._closed.is_set():
            self._awake.clear()
        self._turn.set()

    def _report(self, who: str, blocked_secs: float) -> None:
        if self._closed.is_set():
            return
        frame = sys._current_frames().get(self._thread_id)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
        _LOG.warning(
            "%s has blocked the job loop for %.1f s; other async jobs wait. Await instead of "
            "blocking, or make it a plain function. It stands at:\n%s",
            who,
            blocked_secs,
            stack,
        )


def named(attempts: Iterable[Running]) -> str:
    """For people: which attempts, the first of them."""
    titles = [running.title for running in attempts]
    if not titles:
        return "none"
    more = f" and {len(titles) - _MAX_NAMED} more" if len(titles) > _MAX_NAMED else ""
    return ", ".join(titles[:_MAX_NAMED]) + more
