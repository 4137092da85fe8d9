"""What happened to a run. Folding the events gives the state; history is made from them."""

from __future__ import annotations

import msgspec

from pilotage.runtime.state import Resolution, RunHead, StepState
from pilotage.runtime.status import RunStatus, SkippedBy, WaitingFor


class Event(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """`at_ms`: Unix milliseconds; `actor`: the principal, or `system`."""

    at_ms: int
    actor: str = "system"


class RunCreated(Event, frozen=True, kw_only=True, tag=True):
    head: RunHead
    carried: tuple[tuple[int, StepState], ...] = ()
    parent_attempt: int = 0
    held: bool = False
    expires_at_ms: int | None = None


class RunStarted(Event, frozen=True, kw_only=True, tag=True):
    pass


class RunHeldChanged(Event, frozen=True, kw_only=True, tag=True):
    held: bool


class RunPaused(Event, frozen=True, kw_only=True, tag=True):
    pass


class RunResumed(Event, frozen=True, kw_only=True, tag=True):
    pass


class RunEnded(Event, frozen=True, kw_only=True, tag=True):
    status: RunStatus
    error: str | None = None


class RunReopened(Event, frozen=True, kw_only=True, tag=True):
    """`status` is running, or pending when no slot was free."""

    status: RunStatus
    expires_at_ms: int | None = None
    parent_attempt: int = 0


class ParentAttemptChanged(Event, frozen=True, kw_only=True, tag=True):
    """The parent's step was retried while this child was not ended badly: it answers that now."""

    parent_attempt: int


class RunPinned(Event, frozen=True, kw_only=True, tag=True):
    pinned: bool


class StepEvent(Event, frozen=True, kw_only=True, tag=True):
    step: int


class StepHeld(StepEvent, frozen=True, kw_only=True, tag=True):
    """Ready but not started: waiting/pending -> pending. `checked`: condition was true."""

    checked: bool


class StepUnready(StepEvent, frozen=True, kw_only=True, tag=True):
    """A dependency is being run again: pending -> waiting."""


class SlotRequested(StepEvent, frozen=True, kw_only=True, tag=True):
    job: str


class SlotDeclined(StepEvent, frozen=True, kw_only=True, tag=True):
    """The grant came when a limit of the run was full; the step asks again later."""


class StepStarted(StepEvent, frozen=True, kw_only=True, tag=True):
    attempt: int
    due_ms: int | None = None
    child_run_id: str | None = None


class StepAccepted(StepEvent, frozen=True, kw_only=True, tag=True):
    """`due_ms`: its timeout has moved to then."""

    attempt: int
    due_ms: int | None = None


class StepTimeoutMoved(StepEvent, frozen=True, kw_only=True, tag=True):
    """The wall clock was set; the attempt in progress has the time that it had."""

    attempt: int
    due_ms: int


class StepParked(StepEvent, frozen=True, kw_only=True, tag=True):
    attempt: int
    wait: WaitingFor
    due_ms: int | None = None
    event_key: str | None = None


class StepRetryScheduled(StepEvent, frozen=True, kw_only=True, tag=True):
    attempt: int
    due_ms: int
    error: str
    error_class: str = "error"


class StepCompleted(StepEvent, frozen=True, kw_only=True, tag=True):
    """`attempt`: the step's newest; 0 if it never started (an operator decided)."""

    attempt: int = 0
    output: bytes | None = None
    resolution: Resolution | None = None
    reason: str | None = None


class StepFailed(StepEvent, frozen=True, kw_only=True, tag=True):
    """`attempt`: the step's newest; 0 if it failed before the first."""

    attempt: int = 0
    error: str
    error_class: str = "error"
    resolution: Resolution | None = None


class StepSkipped(StepEvent, frozen=True, kw_only=True, tag=True):
    by: SkippedBy
    reason: str | None = None


class StepCanceled(StepEvent, frozen=True, kw_only=True, tag=True):
    """`unstarted`: its child run was named in this transition only and is never created."""

    unstarted: bool = False


class StepReset(StepEvent, frozen=True, kw_only=True, tag=True):
    """Back to waiting, everything but `attempt` cleared. `keep_child`: a retry reopens it."""

    checked: bool = False
    keep_child: bool = False
