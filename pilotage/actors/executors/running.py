"""An attempt in the hands of the Python executor, from its start to its one last report."""

from __future__ import annotations

from collections.abc import Callable

from pilotage.actors.executors.job_context import JobContext
from pilotage.actors.executors.port import (
    Attempt,
    Begun,
    Completed,
    Failed,
    Logged,
    ModeReporter,
    Progressed,
    Report,
)
from pilotage.actors.executors.python_jobs import PythonJob

News = Completed | Failed | Logged
"""What is passed on one by one; progress is not, see `Running.emit`."""

Post = Callable[["tuple[Running, News | None]"], None]


class Running:
    """`report`, `over` and `queued` (it waits for a worker) belong to the actors' loop; the rest
    may be used from any thread.

    Identity is what counts: the same attempt, stopped and started again, is another `Running`.
    """

    __slots__ = (
        "_post",
        "_progress",
        "_progress_posted",
        "attempt",
        "context",
        "job",
        "over",
        "queued",
        "report",
    )

    def __init__(self, attempt: Attempt, job: PythonJob, report: ModeReporter, post: Post) -> None:
        self.attempt = attempt
        self.job = job
        self.report = report
        self.over = False
        self.queued = False
        self._post = post
        self._progress: Progressed | None = None
        self._progress_posted = False
        self.context = JobContext(attempt, self.emit)

    @property
    def title(self) -> str:
        """For logs and for the names of tasks and threads."""
        attempt = self.attempt
        return (
            f"job {self.job.name!r} (run {attempt.run_id}, step {attempt.step_ref!r}, "
            f"attempt {attempt.attempt})"
        )

    def emit(self, report: Report) -> None:
        """Pass a report on to the actors' loop. Any number of `Progressed` is one item there."""
        if isinstance(report, Progressed):
            # Value before flag here, flag before value there: the newest is never lost.
            self._progress = report
            if not self._progress_posted:
                self._progress_posted = True
                self._post((self, None))
        elif isinstance(report, (Completed, Failed, Logged)):
            self._post((self, report))

    def leave_queue(self) -> None:
        """A worker takes it. On the actors' loop."""
        if self.queued:
            self.queued = False
            self.report(Begun())

    def newest_progress(self) -> Progressed | None:
        self._progress_posted = False
        progress, self._progress = self._progress, None
        return progress
