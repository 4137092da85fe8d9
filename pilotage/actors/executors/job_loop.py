"""The job loop: one event loop in a thread of its own, for all `async` jobs.

The actors' loop and the job loop exchange batches, so that a busy server pays for one wake-up per
batch and not per attempt. A job that blocks the job loop holds up the other async jobs (never the
actors); a watchdog names it in the log, with the place where it stands.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable

from pilotage.actors.executors.handover import Handover
from pilotage.actors.executors.invoke import call_async
from pilotage.actors.executors.port import Failed
from pilotage.actors.executors.running import Running

BLOCKED_SECS = 1.0
"""A job loop without a turn for so long is reported."""

_LOG = logging.getLogger("pilotage.jobs")
_JOIN_SECS = 2.0


class JobLoop:
    """Runs coroutine jobs. Made on the actors' loop; its thread starts with the first job.

    What comes out is emitted from the job loop's thread; attempts that were stopped end silently.
    """

    def __init__(
        self,
        *,
        blocked_secs: float = BLOCKED_SECS,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
    ) -> None:
        self._blocked_secs = blocked_secs
        self._loop_factory = loop_factory
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._watch: Watchdog | None = None
        self._orders: Handover[tuple[Running, bool]] | None = None
        self._tasks: dict[Running, asyncio.Task[None]] = {}

    def start(self, running: Running) -> None:
        """Called on the actors' loop."""
        try:
            orders = self._orders or self._open()
        except (RuntimeError, OSError) as error:  # no thread, no file descriptors left
            running.emit(Failed(f"the job loop cannot be started: {error}", "no_resources"))
        else:
            orders.post((running, True))

    def stop(self, running: Running) -> None:
        """Called on the actors' loop: cancel the task at its next await."""
        if self._orders is not None:
            self._orders.post((running, False))

    async def aclose(self) -> None:
        """Cancel everything and end the thread; a thread that a job blocks is left behind."""
        loop, thread, watch = self._loop, self._thread, self._watch
        if loop is None or thread is None or watch is None:
            return
        self._loop = self._orders = self._thread = None
        watch.close()
        with contextlib.suppress(RuntimeError):  # closed already
            loop.call_soon_threadsafe(loop.stop)
        await asyncio.get_running_loop().run_in_executor(None, thread.join, _JOIN_SECS)

    # --- in the job loop's thread ---------------------------------------------------------------

    def _open(self) -> Handover[tuple[Running, bool]]:
        loop = self._loop_factory()
        watch = Watchdog(loop, self._blocked_secs, lambda: bool(self._tasks))
        thread = threading.Thread(
            target=self._run, args=(loop, watch), name="pilotage-job-loop", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:
            loop.close()
            raise
        self._loop, self._watch, self._thread = loop, watch, thread
        self._orders = Handover(loop, self._take)
        return self._orders

    def _run(self, loop: asyncio.AbstractEventLoop, watch: Watchdog) -> None:
        asyncio.set_event_loop(loop)
        watch.open(threading.get_ident())
        try:
            loop.run_forever()
            self._cancel_all(loop)
        finally:
            asyncio.set_event_loop(None)
            loop.close()

    def _take(self, order: tuple[Running, bool]) -> None:
        running, begin = order
        if not begin:
            # A task that is cancelled before its first step never gets to its own clean-up.
            task = self._tasks.pop(running, None)
            if task is not None:
                task.cancel()
        elif not running.context.cancelled:
            loop = asyncio.get_running_loop()
            self._tasks[running] = loop.create_task(self._do(running), name=running.title)
            if self._watch is not None:
                self._watch.wake()

    async def _do(self, running: Running) -> None:
        try:
            running.emit(await call_async(running.job, running.attempt, running.context))
        finally:
            self._tasks.pop(running, None)

    def _cancel_all(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let every task see its cancellation; one that refuses is left to the closed loop."""
        for running in self._tasks:
            running.context.cancel()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            with contextlib.suppress(BaseException):
                loop.run_until_complete(asyncio.wait(tasks, timeout=_JOIN_SECS / 2))
        with contextlib.suppress(BaseException):
            loop.run_until_complete(loop.shutdown_asyncgens())


class Watchdog:
    """Notices when the loop takes no turn while it has jobs, and says which job is at fault.

    A thread asks the loop for a turn every half `blocked_secs` and waits for it. It rests while
    no job runs.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, blocked_secs: float, busy: Callable[[], bool]
    ) -> None:
        self._loop = loop
        self._blocked_secs = blocked_secs
        self._busy = busy
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
        """There is a job now. Called on the loop."""
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
            except RuntimeError:  # the loop is closed
                return
            if not self._turn.wait(self._blocked_secs):
                self._report(time.monotonic() - asked)
                self._turn.wait()  # for the loop, or for `close`
            self._closed.wait(self._blocked_secs / 2)

    def _answer(self) -> None:
        """On the loop, as is `wake`: so between the two nothing is missed."""
        if not self._busy() and not self._closed.is_set():
            self._awake.clear()
        self._turn.set()

    def _report(self, blocked_secs: float) -> None:
        if self._closed.is_set():
            return
        task = asyncio.current_task(self._loop)
        frame = sys._current_frames().get(self._thread_id)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
        _LOG.warning(
            "%s has blocked the job loop for %.1f s; other async jobs wait. Await instead of "
            "blocking, or make it a plain function. It stands at:\n%s",
            task.get_name() if task is not None else "a callback",
            blocked_secs,
            stack,
        )
