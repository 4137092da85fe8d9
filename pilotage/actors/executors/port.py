"""What the run actor knows of those who do attempts: one order, five kinds of report.

Guarantees of every `Executor`:

- `start` and `stop` return at once; all reports come later, never from within `start`, and always
  on the thread of the actors' event loop.
- An attempt that was not stopped is reported over exactly once: by `Completed`, `Failed`, or
  `Accepted` (202: the job itself reports the end through the callback API). `Progressed` and
  `Logged` come only before that.
- After `stop`, and after `aclose`, nothing more is reported, whatever the job still does.
- Starting an attempt that is still in progress does not start it twice: its reports go to the new
  `report` from then on. So a run actor that was restarted may simply dispatch again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, TypeAlias, TypeVar

import msgspec

MAX_OUTPUT_BYTES = 1 << 20
"""The largest output that is kept, as JSON text (runs.md, Data)."""

AttemptKey: TypeAlias = tuple[str, int, int]
"""(run id, step index, attempt number): names an attempt everywhere."""


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One order. `input` is JSON text (an object), `timeout_secs` is watched by the run itself."""

    project_id: str
    run_id: str
    step: int
    step_ref: str
    attempt: int
    job: str
    job_run_id: str
    input: bytes
    timeout_secs: float
    output_transform: str | None = None
    traceparent: str | None = None

    @property
    def key(self) -> AttemptKey:
        return (self.run_id, self.step, self.attempt)

    @property
    def idempotency_key(self) -> str:
        """Handed to the outside, so that a repeated delivery can be recognised."""
        return f"{self.run_id}/{self.step_ref}/{self.attempt}"


class JobHeldError(Exception):
    """The job is not done at present: `why`. It is to be looked up again after the next `change`,
    which many may wait for.
    """

    def __init__(self, why: str, change: asyncio.Future[None]) -> None:
        super().__init__(why)
        self.why = why
        self.change = change


class Completed(msgspec.Struct, frozen=True, tag=True):
    """Done. `output` is JSON text after the transform, ≤ 1 MiB; None without one (or `null`)."""

    output: bytes | None = None


class Failed(msgspec.Struct, frozen=True, tag=True):
    """Not done. `final`: trying again is of no use; `retry_after_secs`: when the job wants it.

    `error_class` is the name of the exception a Python job raised, or a word of ours in
    lower_case: `timeout`, `unreachable`, `http_503`, `bad_output` and so on.
    """

    error: str
    error_class: str
    final: bool = False
    retry_after_secs: float | None = None


class Accepted(msgspec.Struct, frozen=True, tag=True):
    """The job has taken the order and reports its end through the callback API.

    `times_out_ms`: when its time is up, if it was held back before it was begun.
    """

    times_out_ms: int | None = None


class Progressed(msgspec.Struct, frozen=True, tag=True):
    """How far the job is, 0 to 100. Of several in short order only the newest is reported."""

    percent: float
    message: str | None = None


class Logged(msgspec.Struct, frozen=True, tag=True):
    """A line for the job run's log. `data` is JSON text."""

    level: str
    message: str
    data: bytes | None = None


class Begun(msgspec.Struct, frozen=True, tag=True):
    """An attempt that was held back is begun now: its time counts from here. Between executors
    and `Executors` only; the run is told nothing.
    """


Report: TypeAlias = Completed | Failed | Accepted | Progressed | Logged
Reporter: TypeAlias = Callable[[Report], None]
ModeReport: TypeAlias = Report | Begun
ModeReporter: TypeAlias = Callable[[ModeReport], None]
"""What a `ModeExecutor` reports to."""

JobT_contra = TypeVar("JobT_contra", contravariant=True)


class Executor(Protocol):
    """What the run actor uses. Everything is called on the actors' loop."""

    @property
    def active(self) -> int:
        """Attempts that were started and are neither reported over nor stopped."""
        ...

    def start(self, attempt: Attempt, report: Reporter) -> None: ...

    def stop(
        self,
        run_id: str,
        step: int,
        attempt: int,
        timed_out: bool = False,  # noqa: FBT001, FBT002 - the last of the effect's fields
    ) -> None:
        """Tell the attempt to stop; without effect if it is not in progress."""
        ...

    def why_held(self, run_id: str, step: int, attempt: int) -> str | None:
        """Why this attempt, though dispatched, has not begun; None if nothing holds it back."""
        ...

    def held_until_ms(self, run_id: str, step: int, attempt: int) -> int | None:
        """When that ends, if it is known."""
        ...

    def times_out_ms(self, run_id: str, step: int, attempt: int) -> int | None:
        """When the time of an attempt that is or was held back is up: at the earliest, as long as
        it is held back. None for one that was begun as soon as it was started.
        """
        ...

    async def aclose(self, grace_secs: float) -> None:
        """Take no more; let attempts in progress finish for the grace, hand back the rest."""
        ...


class ModeExecutor(Protocol[JobT_contra]):
    """Does the attempts of one kind of job. `Executors` calls it once per attempt key. An attempt
    that was held back and is begun later is reported `Begun`.
    """

    def start(self, attempt: Attempt, job: JobT_contra, report: ModeReporter) -> None: ...

    def stop(self, key: AttemptKey, *, timed_out: bool) -> None: ...

    def why_held(self, key: AttemptKey) -> str | None:
        """Why this attempt was taken but not begun yet; None if nothing holds it back."""
        ...

    def held_until_ms(self, key: AttemptKey) -> int | None:
        """When that ends, if it is known."""
        ...

    async def aclose(self) -> None:
        """Abandon whatever is still in progress, without reports; free all resources."""
        ...
