"""What may be asked of a run. Steps are named by index; who asks is `actor`.

Commands of operators are decided by the table in `pilotage.runtime.rules`; the others report what
happened outside (a result, a timer, a child's end). Inputs that would make a decision
non-deterministic (slots, ids) are in the command.
"""

from __future__ import annotations

import msgspec

from pilotage.runtime.state import RunHead, StepState
from pilotage.runtime.status import RunStatus

SYSTEM = "system"
CALLBACK = "job"
"""Who reports through the callback API."""


class Command(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    actor: str = SYSTEM


# --- creation and admission -----------------------------------------------------------------


class CreateRun(Command, frozen=True, kw_only=True, tag=True):
    """Make the run. `slot`: it may start at once; otherwise it is queued (or delayed).

    carried: (step index, state) of the steps a retry takes over as they are.
    disabled: indices of steps switched off by `step_overrides`.
    """

    head: RunHead
    slot: bool = True
    carried: tuple[tuple[int, StepState], ...] = ()
    disabled: tuple[int, ...] = ()
    parent_attempt: int = 0
    held: bool = False


class AdmitRun(Command, frozen=True, kw_only=True, tag=True):
    """A slot came free (or the delay is over): pending -> running."""


class HoldRun(Command, frozen=True, kw_only=True, tag=True):
    """The parent was paused (`held`) or resumed; only a pending run keeps it."""

    held: bool


# --- operators --------------------------------------------------------------------------------


class CancelRun(Command, frozen=True, kw_only=True, tag=True):
    reason: str | None = None


class PauseRun(Command, frozen=True, kw_only=True, tag=True):
    pass


class ResumeRun(Command, frozen=True, kw_only=True, tag=True):
    pass


class ApproveStep(Command, frozen=True, kw_only=True, tag=True):
    step: int
    comment: str | None = None


class RejectStep(Command, frozen=True, kw_only=True, tag=True):
    step: int
    reason: str | None = None


class SkipStep(Command, frozen=True, kw_only=True, tag=True):
    step: int
    reason: str | None = None
    slot: bool = True


class ForceCompleteStep(Command, frozen=True, kw_only=True, tag=True):
    """`result` is JSON text; None without a result. `slot` as in `RetryStep`."""

    step: int
    result: bytes | None = None
    slot: bool = True


class RetryStep(Command, frozen=True, kw_only=True, tag=True):
    """`slot`: a reopened run may run at once, otherwise it joins the queue of its workflow."""

    step: int
    slot: bool = True


class ReplaySubtree(Command, frozen=True, kw_only=True, tag=True):
    step: int
    slot: bool = True


# --- what happened outside -----------------------------------------------------------------------


class AttemptAccepted(Command, frozen=True, kw_only=True, tag=True):
    """`due_ms`: when its time is up, if that is not when it was to be at its start."""

    step: int
    attempt: int
    due_ms: int | None = None


class AttemptCompleted(Command, frozen=True, kw_only=True, tag=True):
    """`output` is JSON text after `output_transform`; None for no output."""

    step: int
    attempt: int
    output: bytes | None = None


class AttemptFailed(Command, frozen=True, kw_only=True, tag=True):
    """`final`: no further attempt; `retry_after_secs`: asked for by the job."""

    step: int
    attempt: int
    error: str
    error_class: str = "error"
    final: bool = False
    retry_after_secs: float | None = None


class TimerFired(Command, frozen=True, kw_only=True, tag=True):
    """The timer of a step, or of the run itself (`step` None: deadline or delay).

    `attempt`: the time of this attempt is up, whatever the wall clock says: it may have been set.
    """

    step: int | None = None
    attempt: int | None = None


class MoveTimeout(Command, frozen=True, kw_only=True, tag=True):
    """The wall clock was set: the time of an attempt in progress is up at `due_ms` by now. Its
    timer knows that already.
    """

    step: int
    attempt: int
    due_ms: int


class SlotGranted(Command, frozen=True, kw_only=True, tag=True):
    """Admission gives the step one of its job's slots; the reply tells if it was taken.

    `since_ms` is that of the request it answers: a grant that crossed the withdrawal of its
    request is not taken for the answer to the next one. None: whichever request stands.
    """

    step: int
    since_ms: int | None = None


class EventReceived(Command, frozen=True, kw_only=True, tag=True):
    """The event the step is parked on; `payload` is JSON text."""

    step: int
    attempt: int
    payload: bytes | None = None


class ChildEnded(Command, frozen=True, kw_only=True, tag=True):
    """The child run of a step ended. `output`: JSON map of child step_ref to output."""

    step: int
    attempt: int
    child_run_id: str
    status: RunStatus
    output: bytes | None = None
    error: str | None = None


class ReopenChild(Command, frozen=True, kw_only=True, tag=True):
    """The parent's step was retried: run again what failed, under this parent attempt."""

    parent_attempt: int
    slot: bool = True


class PinRun(Command, frozen=True, kw_only=True, tag=True):
    pinned: bool
