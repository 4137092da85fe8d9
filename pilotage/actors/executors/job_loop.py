"""The job loop, for all `async` jobs: one event loop in a thread, and another when it is lost.

The actors' loop and the job loop exchange batches, so that a busy server pays for one wake-up per
batch and not per attempt. Stopping the loop does nothing to it (see `job_thread`). A loop that
breaks, or that a job blocks for good, is given up: the attempts on it fail at once, retryable, with
the reason, and a new loop takes those to come. Loops that break one after the other are replaced
with growing pauses, in which attempts wait and are told why. Like a worker thread that does not
stop, a blocked one cannot be killed; of those there are only so many, then jobs that block are
held back, and in the end all.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable

from pilotage.actors.executors.handover import Handover
from pilotage.actors.executors.invoke import bounded_error
from pilotage.actors.executors.job_thread import Blocked, Condition, Ended, JobThread, named
from pilotage.actors.executors.port import Failed
from pilotage.actors.executors.running import Running

BLOCKED_SECS = 1.0
"""A job loop without a turn for so long is reported; for ten times as long it is given up."""

MAX_GUILTY_LOOPS = 4
"""So many given-up loops whose jobs still block, and such jobs are held back."""
MAX_GIVEN_UP_LOOPS = 16
"""So many, and all are."""

FIRST_PAUSE_SECS = 0.5
MAX_PAUSE_SECS = 30.0
_REMEMBERED_SECS = 120.0

_LOG = logging.getLogger("pilotage.jobs")


class JobLoop:
    """Runs coroutine jobs. Made and used on the actors' loop; its thread starts with the first job.

    `ended` must be told of every result. What comes out is emitted from the job loop's thread;
    attempts that were stopped end silently. `vacated(project_id, job)` is called when a loop that
    was blocked by a stopped attempt has come back.
    """

    def __init__(
        self,
        *,
        blocked_secs: float = BLOCKED_SECS,
        first_pause_secs: float = FIRST_PAUSE_SECS,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
        vacated: Callable[[str, str], None] | None = None,
    ) -> None:
        self._blocked_secs = blocked_secs
        self._first_pause_secs = first_pause_secs
        self._loop_factory = loop_factory
        self._vacated = vacated
        self._ours = asyncio.get_running_loop()
        self._told: Handover[tuple[JobThread, Condition]] = Handover(self._ours, self._hear)
        self._current: JobThread | None = None
        self._given_up: dict[JobThread, Running | None] = {}
        self._places: dict[Running, JobThread] = {}
        self._queue: OrderedDict[Running, None] = OrderedDict()
        self._broken_at: deque[float] = deque(maxlen=16)
        self._broken_by = ""
        self._pause: asyncio.TimerHandle | None = None

    @property
    def given_up(self) -> int:
        """Loops whose threads are still blocked."""
        return len(self._given_up)

    def start(self, running: Running) -> None:
        if self._current is not None and not self._given_up:
            self._places[running] = self._current
            self._current.start(running)
            return
        if self.held_back(running.job.name) is not None:
            self._queue[running] = None
            running.queued = True
        else:
            self._begin(running)

    def stop(self, running: Running) -> None:
        self._queue.pop(running, None)
        thread = self._places.pop(running, None)
        if thread is None:
            return
        thread.stop(running)
        if thread.blocked is not None and thread.blocked.by is running:
            self._give_up(thread)

    def ended(self, running: Running) -> None:
        """Its result is here."""
        self._places.pop(running, None)

    def occupied(self, project_id: str, job: str) -> int:
        """Loops that stopped attempts of the job still block for the project."""
        slots = (_slot(by) for by in self._given_up.values() if by is not None and by.over)
        return sum(slot == (project_id, job) for slot in slots)

    def held_back(self, job: str) -> str | None:
        """Why no attempt of the job is begun at present."""
        if self._pause is not None:
            return (
                f"the job loop broke {len(self._broken_at)} times in a short while, last so: "
                f"{self._broken_by}; a new one takes over in some seconds"
            )
        count = len(self._given_up)
        if count < MAX_GUILTY_LOOPS:
            return None
        guilty = sorted({by.job.name for by in self._given_up.values() if by is not None})
        if job in guilty or count >= MAX_GIVEN_UP_LOOPS:
            return (
                f"{count} threads are blocked by async jobs that neither await nor return "
                f"({', '.join(guilty) or 'unknown'}); it goes on when one of them does. "
                "Make such a job a plain function, and restart the server"
            )
        return None

    def why_waiting(self, running: Running) -> str | None:
        return self.held_back(running.job.name) if running in self._queue else None

    async def aclose(self) -> None:
        """Cancel everything and end the thread; one that a job blocks is left behind."""
        self._queue.clear()
        self._places.clear()
        if self._pause is not None:
            self._pause.cancel()
        thread, self._current = self._current, None
        for each in self._given_up:
            each.close()
        self._given_up.clear()
        if thread is not None:
            thread.close()
            await self._ours.run_in_executor(None, thread.join)

    # --- one loop after the other -----------------------------------------------------------------

    def _begin(self, running: Running) -> None:
        try:
            thread = self._current or self._open()
        except (RuntimeError, OSError) as error:  # no thread, no file descriptors left
            running.emit(Failed(f"the job loop cannot be started: {error}", "no_resources"))
        else:
            self._places[running] = thread
            running.leave_queue()
            thread.start(running)

    def _open(self) -> JobThread:
        thread = JobThread(self._loop_factory(), self._blocked_secs, self._told.post)
        thread.open()
        self._current = thread
        return thread

    def _hear(self, news: tuple[JobThread, Condition]) -> None:
        thread, condition = news
        if isinstance(condition, Ended):
            self._lost(thread, condition.error)
        elif isinstance(condition, Blocked):
            thread.blocked = condition
            if condition.stuck or (condition.by is not None and condition.by.over):
                self._give_up(thread)
        else:
            thread.blocked = None

    def _give_up(self, thread: JobThread) -> None:
        """The attempt that blocks it stays until its time is up, the others need not wait."""
        if thread is not self._current or thread.blocked is None:
            return
        who, by, _ = thread.blocked
        self._current = None
        self._given_up[thread] = by
        _LOG.error("the job loop is given up: %s blocks it for good; a new one takes over", who)
        self._fail_all(thread, f"the job loop was blocked for good by {who}", spared=by)
        thread.retire()

    def _lost(self, thread: JobThread, error: str | None) -> None:
        """Its thread has ended."""
        if thread is self._current:
            self._current = None
            self._note_broken(thread, error or "it was closed")
        self._fail_all(thread, f"the job loop broke ({error})")
        by = self._given_up.pop(thread, None)
        if by is not None and by.over and self._vacated is not None:
            self._vacated(*_slot(by))
        self._resume()

    def _note_broken(self, thread: JobThread, error: str) -> None:
        """The first time another takes over at once, then after pauses."""
        now = self._ours.time()
        while self._broken_at and now - self._broken_at[0] > _REMEMBERED_SECS:
            self._broken_at.popleft()
        self._broken_at.append(now)
        jobs = named(each for each, its in self._places.items() if its is thread)
        self._broken_by = f"{error}; jobs on it: {jobs}"
        pause_secs = 0.0
        if len(self._broken_at) > 1:
            pause_secs = self._first_pause_secs * 2 ** (len(self._broken_at) - 2)
            pause_secs = min(pause_secs, MAX_PAUSE_SECS)
            self._pause = self._ours.call_later(pause_secs, self._end_pause)
        _LOG.error(
            "the job loop broke: %s; a new one takes over in %g s", self._broken_by, pause_secs
        )

    def _end_pause(self) -> None:
        self._pause = None
        self._resume()

    def _fail_all(self, thread: JobThread, why: str, *, spared: Running | None = None) -> None:
        """All that were given to it, whether begun or not."""
        lost = [each for each, its in self._places.items() if its is thread and each is not spared]
        jobs = named(lost)
        for running in lost:
            del self._places[running]
            running.context.cancel()
            thread.stop(running)
            running.emit(Failed(bounded_error(f"{why}; jobs on it: {jobs}"), "job_loop"))

    def _resume(self) -> None:
        """Those that may go on, in their order."""
        for running in [each for each in self._queue if self.held_back(each.job.name) is None]:
            del self._queue[running]
            self._begin(running)


def _slot(running: Running) -> tuple[str, str]:
    return (running.attempt.project_id, running.attempt.job)
