"""Attempts of Python jobs, each where its kind says: job loop, thread, process, or inline."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from pilotage.actors.executors.handover import Handover
from pilotage.actors.executors.inline import InlineRunner
from pilotage.actors.executors.invoke import Outcome
from pilotage.actors.executors.job_loop import BLOCKED_SECS, FIRST_PAUSE_SECS, JobLoop
from pilotage.actors.executors.port import Attempt, AttemptKey, Logged, ModeReporter
from pilotage.actors.executors.process_pool import ProcessPool
from pilotage.actors.executors.python_jobs import JobKind, PythonJob
from pilotage.actors.executors.running import News, Running
from pilotage.actors.executors.thread_pool import MAX_ABANDONED, MAX_THREADS, ThreadPool

_LOG = logging.getLogger("pilotage.jobs")


class PythonSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds. `max_processes` None: as many as the machine has processors, at most 16."""

    max_threads: int = MAX_THREADS
    max_abandoned_threads: int = MAX_ABANDONED
    max_processes: int | None = None
    blocked_secs: float = BLOCKED_SECS
    first_pause_secs: float = FIRST_PAUSE_SECS


class PythonExecutor:
    """Made and used on the actors' loop; a `ModeExecutor` for `PythonJob`s.

    `vacated(project_id, job)` is called when a thread that ran a stopped attempt has come back:
    the job may have a slot to give.
    """

    def __init__(
        self,
        settings: PythonSettings | None = None,
        *,
        vacated: Callable[[str, str], None] | None = None,
    ) -> None:
        settings = settings or PythonSettings()
        loop = asyncio.get_running_loop()
        self._vacated = vacated
        self._attempts: dict[AttemptKey, Running] = {}
        self._news: Handover[tuple[Running, News | None]] = Handover(loop, self._receive)
        self._inline = InlineRunner(loop, self._finished_inline)
        self._job_loop = JobLoop(
            blocked_secs=settings.blocked_secs,
            first_pause_secs=settings.first_pause_secs,
            vacated=vacated,
        )
        self._threads = ThreadPool(
            max_threads=settings.max_threads, max_abandoned=settings.max_abandoned_threads
        )
        self._processes = ProcessPool(max_processes=settings.max_processes)
        self._runners: dict[JobKind, InlineRunner | JobLoop | ThreadPool | ProcessPool] = {
            JobKind.INLINE: self._inline,
            JobKind.ASYNC: self._job_loop,
            JobKind.THREAD: self._threads,
            JobKind.PROCESS: self._processes,
        }

    @property
    def active(self) -> int:
        return len(self._attempts)

    @property
    def abandoned_threads(self) -> int:
        return self._threads.abandoned + self._job_loop.given_up

    def start(self, attempt: Attempt, job: PythonJob, report: ModeReporter) -> None:
        running = Running(attempt, job, report, self._news.post)
        self._attempts[attempt.key] = running
        self._runners[job.kind].start(running)

    def at_once(self, action: Callable[[], object]) -> None:
        """Do `action`; the inline jobs that it starts are called before this returns."""
        self._inline.at_once(action)

    def stop(self, key: AttemptKey, *, timed_out: bool) -> None:
        """For a timeout and a withdrawal alike: the result is no longer wanted."""
        running = self._attempts.pop(key, None)
        if running is not None:
            running.over = True
            running.context.cancel()
            running.context.detach()
            self._runners[running.job.kind].stop(running)
            if timed_out:
                _LOG.warning(
                    "%s did not end within %g s", running.title, running.attempt.timeout_secs
                )

    def occupied(self, project_id: str, job: str) -> int:
        """Threads that still run stopped attempts of the job (as the attempts name it)."""
        in_loops = self._job_loop.occupied(project_id, job)
        return self._threads.occupied(project_id, job) + in_loops

    def held_back(self, job: str) -> str | None:
        """Why attempts of this job wait although it is not at its limits."""
        return self._threads.held_back(job)

    def why_held(self, key: AttemptKey) -> str | None:
        running = self._attempts.get(key)
        if running is not None and running.job.kind is JobKind.THREAD:
            return self._threads.why_waiting(running)
        if running is not None and running.job.kind is JobKind.PROCESS:
            return self._processes.why_waiting(running)
        if running is not None and running.job.kind is JobKind.ASYNC:
            return self._job_loop.why_waiting(running)
        return None

    def held_until_ms(self, key: AttemptKey) -> int | None:  # noqa: ARG002 - nobody knows
        """A worker comes free when its attempt ends."""
        return None

    async def aclose(self) -> None:
        for key in tuple(self._attempts):
            self.stop(key, timed_out=False)
        self._threads.close()
        await self._inline.aclose()
        await self._job_loop.aclose()
        await self._processes.aclose()

    # --- what comes back, on the actors' loop -----------------------------------------------------

    def _receive(self, item: tuple[Running, News | None]) -> None:
        running, news = item
        if news is None:
            progress = running.newest_progress()
            if progress is not None and not running.over:
                running.report(progress)
        elif isinstance(news, Logged):
            if not running.over:
                running.report(news)
        else:
            was_over = running.over
            if running.job.kind is JobKind.THREAD:
                self._threads.ended(running)
            elif running.job.kind is JobKind.ASYNC:
                self._job_loop.ended(running)
            self._finished(running, news)
            if was_over and running.job.kind is JobKind.THREAD and self._vacated is not None:
                self._vacated(running.attempt.project_id, running.attempt.job)

    def _finished_inline(self, running: Running, outcome: Outcome) -> None:
        """No detour, unless the job's log is still on its way: that comes before the end."""
        if self._news.is_empty:
            self._finished(running, outcome)
        else:
            self._news.post((running, outcome))

    def _finished(self, running: Running, outcome: Outcome) -> None:
        if not running.over:
            running.over = True
            del self._attempts[running.attempt.key]
            # What was shown last must not come after the end, nor be lost.
            progress = running.newest_progress()
            if progress is not None:
                running.report(progress)
            running.report(outcome)
            running.context.detach()
