"""What happened outside: results of attempts, timers, slots, events, children that ended.

A report about something that is over changes nothing and is answered with `Late`.
"""

from __future__ import annotations

from pilotage.runtime.backoff import policy_of, seconds, timeout_secs
from pilotage.runtime.commands import (
    AttemptAccepted,
    AttemptCompleted,
    AttemptFailed,
    ChildEnded,
    EventReceived,
    MoveTimeout,
    SlotGranted,
    TimerFired,
)
from pilotage.runtime.decide_run import run_timer
from pilotage.runtime.draft import Draft
from pilotage.runtime.effects import ReleaseSlot, ScheduleTimer
from pilotage.runtime.events import SlotDeclined, StepAccepted, StepTimeoutMoved, StepUnready
from pilotage.runtime.replies import Done, Late, Reply, SlotTaken
from pilotage.runtime.settle import attempt_failed, complete, fail, has_room, start
from pilotage.runtime.status import RunStatus, StepStatus, StepType, WaitingFor


def _late(d: Draft, i: int, attempt: int) -> Late | None:
    """None if `attempt` of a job is the one in progress."""
    step = d.step(i)
    if step.status is StepStatus.RUNNING and step.attempt == attempt and step.child_run_id is None:
        return None
    return Late(superseded=step.attempt > attempt)


def accepted(d: Draft, c: AttemptAccepted) -> Reply:
    late = _late(d, c.step, c.attempt)
    if late is not None:
        return late
    if d.step(c.step).accepted:
        return Done(changed=False)
    d.emit(
        StepAccepted(at_ms=d.now, actor=c.actor, step=c.step, attempt=c.attempt, due_ms=c.due_ms)
    )
    return Done()


def completed(d: Draft, c: AttemptCompleted) -> Reply:
    late = _late(d, c.step, c.attempt)
    if late is not None:
        return late
    d.reported = c.step
    complete(d, c.step, c.output)
    return Done()


def failed(d: Draft, c: AttemptFailed) -> Reply:
    late = _late(d, c.step, c.attempt)
    if late is not None:
        return late
    d.reported = c.step
    attempt_failed(
        d, c.step, c.error, c.error_class, final=c.final, retry_after_secs=c.retry_after_secs
    )
    return Done()


def child_ended(d: Draft, c: ChildEnded) -> Reply:
    step = d.step(c.step)
    if step.attempt != c.attempt or step.child_run_id != c.child_run_id:
        return Late(superseded=True)
    if step.status is not StepStatus.RUNNING:
        return Late(superseded=False)
    d.reported = c.step
    if c.status is RunStatus.COMPLETED and c.error is None:
        complete(d, c.step, c.output)
    elif c.status is RunStatus.COMPLETED:
        fail(d, c.step, c.error or "", "output_too_large")
    else:
        error = c.error or f"child run {c.child_run_id} is {c.status}"
        # whoever canceled the child does not want to see it again
        final = c.status is RunStatus.CANCELED
        attempt_failed(d, c.step, error, f"child_{c.status}", final=final)
    return Done()


def event_received(d: Draft, c: EventReceived) -> Reply:
    step = d.step(c.step)
    if step.wait is not WaitingFor.EVENT or step.attempt != c.attempt:
        return Late(superseded=step.attempt > c.attempt)
    complete(d, c.step, c.payload)
    return Done()


def slot_granted(d: Draft, c: SlotGranted) -> Reply:
    if not d.requested >> c.step & 1:
        return _unasked_grant(d, c.step)
    if c.since_ms is not None and c.since_ms != d.step(c.step).ready_since_ms:
        return SlotTaken(taken=False)  # the request that stands is another one
    if not has_room(d, c.step):
        d.emit(SlotDeclined(at_ms=d.now, actor=c.actor, step=c.step))
        return SlotTaken(taken=False)
    start(d, c.step)
    return SlotTaken(taken=d.step(c.step).status is StepStatus.RUNNING)


def _unasked_grant(d: Draft, i: int) -> Reply:
    """A second grant, or one that crossed a withdrawal: only the first is of use."""
    spec = d.graph.steps[i]
    limited = policy_of(spec, d.head.policies).limited
    if limited and d.step(i).status is StepStatus.RUNNING:
        return SlotTaken(taken=True)
    d.effects.append(ReleaseSlot(step=i, job=spec.job_id or ""))
    return SlotTaken(taken=False)


def timer_fired(d: Draft, c: TimerFired) -> Reply:
    """Whatever is due at `now`. A timer that comes too late, when the step waits for something else
    or its next attempt runs, changes nothing; one that comes early (the clock was set back) is
    armed again. One that measures an attempt is always in time.
    """
    if c.step is None:
        return run_timer(d)
    step = d.step(c.step)
    measured = step.attempt if step.status is StepStatus.RUNNING else None
    if step.due_ms is None or c.attempt != measured:
        return Done(changed=False)
    if measured is None and d.now < step.due_ms:
        d.effects.append(ScheduleTimer(step=c.step, due_ms=step.due_ms))
        return Done(changed=False)
    d.fired = c.step
    if step.status is StepStatus.RUNNING:
        d.timed_out = c.step
        spec = d.graph.steps[c.step]
        secs = timeout_secs(spec, policy_of(spec, d.head.policies))
        attempt_failed(d, c.step, f"timed out after {seconds(secs)} s", "timeout")
    elif step.wait is WaitingFor.TIMER:
        complete(d, c.step, None)
    elif step.wait is WaitingFor.RETRY:
        _retry_due(d, c.step)
    else:
        _wait_timed_out(d, c.step)
    return Done()


def timeout_moved(d: Draft, c: MoveTimeout) -> Reply:
    """The attempt has the time that it had: what is stored and shown follows the clock."""
    step = d.step(c.step)
    if _late(d, c.step, c.attempt) is not None or step.due_ms == c.due_ms:
        return Done(changed=False)
    d.emit(
        StepTimeoutMoved(
            at_ms=d.now, actor=c.actor, step=c.step, attempt=c.attempt, due_ms=c.due_ms
        )
    )
    return Done()


def _retry_due(d: Draft, i: int) -> None:
    if d.graph.deps_mask[i] & ~d.satisfied:
        # a dependency is being run again: the attempt waits for it like any other step
        d.emit(StepUnready(at_ms=d.now, actor=d.actor, step=i))
    else:
        d.want |= 1 << i


def _wait_timed_out(d: Draft, i: int) -> None:
    spec = d.graph.steps[i]
    if spec.step_type is StepType.APPROVAL:
        fail(d, i, "approval timed out", "timeout")
    else:
        fail(d, i, f"event {d.step(i).event_key!r} timed out", "timeout")
