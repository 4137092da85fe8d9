"""Commands about a run as a whole: create, admit, cancel, pause, resume, deadline, reopen."""

from __future__ import annotations

from pilotage.runtime.backoff import seconds
from pilotage.runtime.commands import (
    AdmitRun,
    CancelRun,
    CreateRun,
    HoldRun,
    PauseRun,
    PinRun,
    ReopenChild,
    ResumeRun,
)
from pilotage.runtime.draft import Draft
from pilotage.runtime.effects import QueueRun, ScheduleTimer, TellChild
from pilotage.runtime.events import (
    ParentAttemptChanged,
    RunCreated,
    RunHeldChanged,
    RunPaused,
    RunPinned,
    RunReopened,
    RunResumed,
    RunStarted,
    StepReset,
    StepSkipped,
)
from pilotage.runtime.graph import bits
from pilotage.runtime.replies import Done, Reply
from pilotage.runtime.rules import RUN_MOVES, Move, Rejection, refuse_run
from pilotage.runtime.settle import clipped, consider, end_run, skip_dependents, tell_parent
from pilotage.runtime.state import StepState, delay_ms, run_due_ms
from pilotage.runtime.status import RunStatus, SkippedBy, StepStatus, StepType


def create(d: Draft, c: CreateRun) -> Reply:
    head = c.head
    delay = head.delay_until_ms
    base = max(d.now, delay or 0)
    d.emit(
        RunCreated(
            at_ms=d.now,
            actor=c.actor,
            head=head,
            carried=c.carried,
            parent_attempt=c.parent_attempt,
            held=c.held,
            expires_at_ms=_deadline(base, head.timeout_secs),
        )
    )
    for i in c.disabled:
        d.emit(StepSkipped(at_ms=d.now, actor=c.actor, step=i, by=SkippedBy.OVERRIDE))
    for i in bits(d.open if c.carried else d.graph.roots):
        consider(d, i)
    if delay is not None and delay > d.now:
        return Done()
    if c.slot and not c.held:
        d.emit(RunStarted(at_ms=d.now, actor=c.actor))
    else:
        d.effects.append(QueueRun(since_ms=d.now, held=c.held))
    return Done()


def _deadline(base_ms: int, timeout_secs: float) -> int | None:
    return base_ms + round(timeout_secs * 1000) if timeout_secs else None


def admit(d: Draft, c: AdmitRun) -> Reply:
    """Take the slot: `changed` False means that the run has no use for it."""
    if d.status is not RunStatus.PENDING or d.vitals.held:
        return Done(changed=False)
    d.emit(RunStarted(at_ms=d.now, actor=c.actor))
    return Done()


def hold(d: Draft, c: HoldRun) -> Reply | Rejection:
    """The parent was paused or resumed; whatever the status, the child follows if it can. Not one
    that was reopened by hand: what was meant for its earlier life would hold it for good.
    """
    if d.vitals.parent_attempt < 0:
        return Done(changed=False)
    if d.status is RunStatus.PENDING and d.vitals.held is not c.held:
        d.emit(RunHeldChanged(at_ms=d.now, actor=c.actor, held=c.held))
        if delay_ms(d.head, d.vitals, d.now) is None:
            d.effects.append(QueueRun(since_ms=d.vitals.queued_at_ms, held=c.held))
        return Done()
    if c.held and d.status is RunStatus.RUNNING:
        return pause(d, PauseRun(actor=c.actor))
    if not c.held and d.status is RunStatus.PAUSED:
        return resume(d, ResumeRun(actor=c.actor))
    return Done(changed=False)


def cancel(d: Draft, c: CancelRun) -> Reply | Rejection:
    move = RUN_MOVES[CancelRun]
    if (stop := _blocked(d, move)) is not None:
        return stop
    text = f"canceled by {c.actor}"
    end_run(d, RunStatus.CANCELED, clipped(f"{text}: {c.reason}" if c.reason else text))
    return Done()


def pause(d: Draft, c: PauseRun) -> Reply | Rejection:
    if (stop := _blocked(d, RUN_MOVES[PauseRun])) is not None:
        return stop
    d.emit(RunPaused(at_ms=d.now, actor=c.actor))
    _tell_children(d, pause_them=True)
    return Done()


def resume(d: Draft, c: ResumeRun) -> Reply | Rejection:
    if (stop := _blocked(d, RUN_MOVES[ResumeRun])) is not None:
        return stop
    d.emit(RunResumed(at_ms=d.now, actor=c.actor))
    _tell_children(d, pause_them=False)
    return Done()


def _blocked(d: Draft, move: Move) -> Reply | Rejection | None:
    if d.status in move.already:
        return Done(changed=False)
    if d.status not in move.allowed:
        return refuse_run(move, d.status)
    return None


def _tell_children(d: Draft, *, pause_them: bool) -> None:
    for i in bits(d.running):
        child = d.step(i).child_run_id
        if child is not None:
            d.effects.append(
                TellChild(child_run_id=child, what="pause" if pause_them else "resume", step=i)
            )


def pin(d: Draft, c: PinRun) -> Reply:
    if d.vitals.pinned is c.pinned:
        return Done(changed=False)
    d.emit(RunPinned(at_ms=d.now, actor=c.actor, pinned=c.pinned))
    return Done()


def run_timer(d: Draft) -> Reply:
    """The run's own timer: its deadline has passed, or its delay is over."""
    if d.status.is_terminal:
        return Done(changed=False)
    expires = d.vitals.expires_at_ms
    if expires is not None and d.now >= expires:
        text = f"run timed out after {seconds(d.head.timeout_secs)} s"
        end_run(d, RunStatus.TIMED_OUT, text)
        return Done()
    if d.status is RunStatus.PENDING and delay_ms(d.head, d.vitals, d.now) is None:
        d.effects.append(QueueRun(since_ms=d.vitals.queued_at_ms, held=d.vitals.held))
    due = run_due_ms(d.head, d.vitals, d.now)
    if due is not None:  # the deadline after the delay, or a timer that came early
        d.effects.append(ScheduleTimer(step=None, due_ms=due))
    return Done(changed=False)


# --- reopening -----------------------------------------------------------------------------------


def reopen(d: Draft, *, slot: bool, parent_attempt: int | None = None) -> None:
    """Terminal -> running, or pending at the end of the queue when no slot is free.

    The caller resets the step it is about and calls `repair` afterwards. `parent_attempt`: what a
    child answers to from now on; without it nothing of its parent waits for it.
    """
    d.emit(
        RunReopened(
            at_ms=d.now,
            actor=d.actor,
            status=RunStatus.RUNNING if slot else RunStatus.PENDING,
            expires_at_ms=_deadline(d.now, d.head.timeout_secs),
            parent_attempt=-abs(d.vitals.parent_attempt)
            if parent_attempt is None
            else parent_attempt,
        )
    )
    if not slot:
        d.effects.append(QueueRun(since_ms=d.now))


def repair(d: Draft) -> None:
    """Bring the rest of the run in line after a reopen or after a step was taken back.

    What a run's end canceled is reset; what was skipped because of a failure that is no more is
    reset; what hangs on a failure that still stands is skipped (runs.md §10).
    """
    stuck = set(bits(d.blocking))
    if stuck:
        for i in d.graph.order:
            if i in stuck:
                _repair_step(d, i)
    for i in list(bits(d.blocking)):
        skip_dependents(d, i)


def _repair_step(d: Draft, i: int) -> None:
    step = d.step(i)
    if step.status is StepStatus.CANCELED:
        reset_step(d, i, keep_child=can_reopen_child(d, i, step))
    elif step.skipped_by is SkippedBy.DEPENDENCY and not d.graph.deps_mask[i] & d.blocking:
        reset_step(d, i)


def can_reopen_child(d: Draft, i: int, step: StepState) -> bool:
    """Whether the step's child ended badly: a retry then goes on with that child."""
    return (
        d.graph.steps[i].step_type is StepType.SUB_WORKFLOW
        and step.child_run_id is not None
        and step.status in (StepStatus.FAILED, StepStatus.CANCELED)
    )


def reset_step(d: Draft, i: int, *, checked: bool = False, keep_child: bool = False) -> None:
    """Back to waiting, with a fresh budget of attempts; ready again if its dependencies are."""
    d.emit(StepReset(at_ms=d.now, actor=d.actor, step=i, checked=checked, keep_child=keep_child))
    consider(d, i)


def reopen_child(d: Draft, c: ReopenChild) -> Reply:
    """The parent's step was retried: what failed here runs again, under the new parent attempt."""
    if c.parent_attempt <= abs(d.vitals.parent_attempt):  # told twice
        return Done(changed=False)
    if d.status is RunStatus.COMPLETED or not d.status.is_terminal:
        d.emit(ParentAttemptChanged(at_ms=d.now, actor=d.actor, parent_attempt=c.parent_attempt))
        if d.status.is_terminal:
            tell_parent(d)
        return Done()
    reopen(d, slot=c.slot, parent_attempt=c.parent_attempt)
    for i in list(bits(d.blocking)):
        step = d.step(i)
        if step.status is StepStatus.FAILED:
            # a condition that could not be evaluated is evaluated now
            ran = step.attempt > step.budget_start
            reset_step(d, i, checked=ran, keep_child=can_reopen_child(d, i, step))
    repair(d)
    return Done()
