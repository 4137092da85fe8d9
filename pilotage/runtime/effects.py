"""What the world has to do after a transition is stored. Values only.

Effects that can be derived from the state (attempts, timers, subscriptions, children) are derived
again by `pilotage.runtime.recovery` after a crash. The messages to others (`Message`s) cannot:
they are stored with the transition and removed when the receiver has acknowledged them.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from pilotage.runtime.state import StepState
from pilotage.runtime.status import RunStatus, StepStatus


class Effect(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    pass


class StartAttempt(Effect, frozen=True, kw_only=True, tag=True):
    """Dispatch attempt `attempt` of `step`; `input` is JSON text (an object), ≤ 8 MiB."""

    step: int
    attempt: int
    job: str
    input: bytes
    timeout_secs: float


class StopAttempt(Effect, frozen=True, kw_only=True, tag=True):
    """Tell the attempt to stop; `timed_out`: because its time was up. `reported`: its end came by
    callback, so it is withdrawn only if this order for it is still held back.
    """

    step: int
    attempt: int
    timed_out: bool = False
    reported: bool = False


class RequestSlot(Effect, frozen=True, kw_only=True, tag=True):
    """Ask for a slot of the job. Asking again while a request stands changes nothing.

    `again`: it has been ready since before.
    """

    step: int
    job: str
    since_ms: int
    again: bool = False


class ReleaseSlot(Effect, frozen=True, kw_only=True, tag=True):
    """Give back the job slot that the step holds, or withdraw its request.

    It comes with every end of either, a declined grant included.
    """

    step: int
    job: str


class ReleaseRunSlot(Effect, frozen=True, kw_only=True, tag=True):
    """The run has ended: its place in the workflow's `max_concurrent_runs` is free."""


class QueueRun(Effect, frozen=True, kw_only=True, tag=True):
    """The run waits for a slot of its workflow; `held`: it keeps its place and gets none.

    `again`: it has waited before.
    """

    since_ms: int
    held: bool = False
    again: bool = False


class ScheduleTimer(Effect, frozen=True, kw_only=True, tag=True):
    """Arm or move the one timer of a step, or of the run (`step` None).

    With `attempt` it bounds that attempt, which has `left_ms` from now on: `due_ms` is when that
    is over, as long as nobody sets the wall clock.
    """

    step: int | None
    due_ms: int
    attempt: int | None = None
    left_ms: int | None = None


def timer_of(i: int, due_ms: int, step: StepState, now: int) -> ScheduleTimer:
    """The timer of step i in this state; a running step's bounds its attempt."""
    if step.status is not StepStatus.RUNNING:
        return ScheduleTimer(step=i, due_ms=due_ms)
    return ScheduleTimer(step=i, due_ms=due_ms, attempt=step.attempt, left_ms=due_ms - now)


class CancelTimer(Effect, frozen=True, kw_only=True, tag=True):
    step: int | None


class StartChild(Effect, frozen=True, kw_only=True, tag=True):
    """Create the child run if it is absent. `payload` is JSON text; without it, `lost` says why it
    cannot be created any more: the step is told if the child does not exist.
    """

    step: int
    attempt: int
    child_run_id: str
    workflow: str
    payload: bytes
    lost: str = ""


class ParkEvent(Effect, frozen=True, kw_only=True, tag=True):
    step: int
    attempt: int
    event_key: str


class UnparkEvent(Effect, frozen=True, kw_only=True, tag=True):
    step: int
    event_key: str


class TellChild(Effect, frozen=True, kw_only=True, tag=True):
    """`parent_attempt` goes with reopen: what the child answers to from now on."""

    child_run_id: str
    what: Literal["cancel", "pause", "resume", "reopen"]
    parent_attempt: int = 0
    step: int = 0


class TellParent(Effect, frozen=True, kw_only=True, tag=True):
    parent_run_id: str
    step: int
    attempt: int
    status: RunStatus
    output: bytes | None = None
    error: str | None = None


class EmitEvent(Effect, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """`at_ms`: when it was sent; a repeated delivery is for those only who waited by then."""

    event_key: str
    payload: bytes | None = None
    at_ms: int | None = None


Message = TellChild | TellParent | EmitEvent
MESSAGE_TYPES = (TellChild, TellParent, EmitEvent)
