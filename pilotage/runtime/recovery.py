"""What the world has to do for a run that was loaded: derived from its state alone.

Together with the stored messages this is everything that a crash may have lost between a stored
transition and its effects. Doing any of it twice is harmless: attempts carry their number,
children are created if absent, timers and subscriptions are keyed.
"""

from __future__ import annotations

from contextlib import suppress

from pilotage.runtime import inputs
from pilotage.runtime.backoff import policy_of, timeout_secs
from pilotage.runtime.commands import AttemptFailed, MoveTimeout
from pilotage.runtime.draft import Draft
from pilotage.runtime.effects import (
    Effect,
    ParkEvent,
    QueueRun,
    RequestSlot,
    ScheduleTimer,
    StartAttempt,
    StartChild,
    timer_of,
)
from pilotage.runtime.errors import TemplateError
from pilotage.runtime.graph import bits
from pilotage.runtime.state import RunState, RunVitals, delay_ms, run_due_ms
from pilotage.runtime.status import RunStatus, StepStatus, StepType, WaitingFor


def recovery_effects(state: RunState, now: int) -> list[Effect]:
    """Timers, subscriptions, queue places, attempts and children of an active run.

    An attempt that a remote job has accepted is not dispatched again: it reports by callback or
    runs into its timeout. Every other attempt in progress is, under the same number, but for
    those of `undeliverable`.
    """
    if state.status.is_terminal:
        return []
    effects: list[Effect] = []
    due = run_due_ms(state.head, state.vitals, now)
    if due is not None:
        effects.append(ScheduleTimer(step=None, due_ms=due))
    if state.status is RunStatus.PENDING and delay_ms(state.head, state.vitals, now) is None:
        effects.append(_queue_again(state.vitals))
    d = Draft(state, now)
    for i in bits(state.masks.open):
        _step_effects(d, i, effects)
    return effects


def _queue_again(vitals: RunVitals) -> QueueRun:
    return QueueRun(since_ms=vitals.queued_at_ms, held=vitals.held, again=True)


def _step_effects(d: Draft, i: int, effects: list[Effect]) -> None:
    step, spec = d.step(i), d.graph.steps[i]
    if step.due_ms is not None:
        effects.append(timer_of(i, _due_ms(d, i, step.due_ms), step, d.now))
    if step.wait is WaitingFor.EVENT and step.event_key is not None:
        effects.append(ParkEvent(step=i, attempt=step.attempt, event_key=step.event_key))
    elif step.wait is WaitingFor.JOB_LIMIT:
        since = step.ready_since_ms or 0
        effects.append(RequestSlot(step=i, job=spec.job_id or "", since_ms=since, again=True))
    elif step.status is StepStatus.RUNNING:
        if step.accepted:
            return
        if spec.step_type is StepType.SUB_WORKFLOW:
            effects.append(_child_again(d, i))
            return
        with suppress(TemplateError):  # see `undeliverable`
            effects.append(_attempt(d, i))


def _due_ms(d: Draft, i: int, due_ms: int) -> int:
    """When the step's timer fires. An attempt that is dispatched again gets its whole time again:
    it must not run into a timeout that passed while nobody was there to run it. One that was
    accepted has no more than that, though the clock may have been set back.
    """
    step = d.step(i)
    if step.status is not StepStatus.RUNNING:
        return due_ms
    latest_ms = d.now + _timeout_ms(d, i)
    return min(due_ms, latest_ms) if step.accepted else latest_ms


def _timeout_ms(d: Draft, i: int) -> int:
    spec = d.graph.steps[i]
    return round(timeout_secs(spec, policy_of(spec, d.head.policies)) * 1000)


def moved_timeouts(state: RunState, now: int) -> list[MoveTimeout]:
    """What to tell a run that was loaded: when the time of accepted attempts is up, if that is not
    what is stored, as the clock was set back while nobody was there to see it.
    """
    d = Draft(state, now)
    found: list[MoveTimeout] = []
    for i in bits(state.masks.running):
        step = state.step(i)
        if step.accepted and step.due_ms is not None:
            due_ms = _due_ms(d, i, step.due_ms)
            if due_ms != step.due_ms:
                found.append(MoveTimeout(step=i, attempt=step.attempt, due_ms=due_ms))
    return found


def _attempt(d: Draft, i: int) -> StartAttempt:
    spec = d.graph.steps[i]
    return StartAttempt(
        step=i,
        attempt=d.step(i).attempt,
        job=spec.job_id or "",
        input=inputs.build_input(d, i),
        timeout_secs=timeout_secs(spec, policy_of(spec, d.head.policies)),
    )


def attempts_in_progress(state: RunState) -> list[StartAttempt]:
    """The attempts of all running job steps, accepted ones included, as they were dispatched;
    without those whose input cannot be built any more.
    """
    d = Draft(state)
    found: list[StartAttempt] = []
    for i in bits(state.masks.running):
        if state.graph.steps[i].step_type is StepType.JOB:
            with suppress(TemplateError):
                found.append(_attempt(d, i))
    return found


def undeliverable(state: RunState) -> list[AttemptFailed]:
    """What to tell a run that was loaded, after its recovery effects: attempts in progress that
    cannot be dispatched again because a dependency has been taken back since (its retry cleared
    the output that the input was made from). They have failed, retryable: the next attempt waits
    for the dependency.
    """
    d = Draft(state)
    found: list[AttemptFailed] = []
    for i in bits(state.masks.running):
        step = d.step(i)
        if state.graph.steps[i].step_type is not StepType.JOB or step.accepted:
            continue
        try:
            inputs.build_input(d, i)
        except TemplateError as error:
            text = f"the attempt was lost and cannot be delivered again: {error}"
            found.append(
                AttemptFailed(step=i, attempt=step.attempt, error=text, error_class="lost")
            )
    return found


def _child_start(d: Draft, i: int) -> StartChild:
    step = d.step(i)
    return StartChild(
        step=i,
        attempt=step.attempt,
        child_run_id=step.child_run_id or "",
        workflow=d.graph.steps[i].sub_workflow_id or "",
        payload=inputs.build_input(d, i),
    )


def _child_again(d: Draft, i: int) -> StartChild:
    """It may not have been created before the crash, and its input may have changed since."""
    try:
        return _child_start(d, i)
    except TemplateError as error:
        step = d.step(i)
        return StartChild(
            step=i,
            attempt=step.attempt,
            child_run_id=step.child_run_id or "",
            workflow=d.graph.steps[i].sub_workflow_id or "",
            payload=b"",
            lost=f"it was not created, and cannot be any more: {error}",
        )


def start_of_child(state: RunState, i: int, now: int) -> StartChild:
    """The creation of the child that step i waits for, if it does not exist (any more).

    Raises `TemplateError` if its input cannot be built from the state.
    """
    return _child_start(Draft(state, now), i)
