"""What the world has to do for a run that was loaded: derived from its state alone.

Together with the stored messages this is everything that a crash may have lost between a stored
transition and its effects. Doing any of it twice is harmless: attempts carry their number,
children are created if absent, timers and subscriptions are keyed.
"""

from __future__ import annotations

from pilotage.runtime import inputs
from pilotage.runtime.backoff import policy_of, timeout_secs
from pilotage.runtime.draft import Draft
from pilotage.runtime.effects import (
    Effect,
    ParkEvent,
    QueueRun,
    RequestSlot,
    ScheduleTimer,
    StartAttempt,
    StartChild,
)
from pilotage.runtime.graph import bits
from pilotage.runtime.machine import run_due_ms
from pilotage.runtime.state import RunState
from pilotage.runtime.status import RunStatus, StepStatus, StepType, WaitingFor


def recovery_effects(state: RunState, now: int) -> list[Effect]:
    """Timers, subscriptions, queue places, attempts and children of an active run.

    An attempt that a remote job has accepted is not dispatched again: it reports by callback or
    runs into its timeout. Every other attempt in progress is, under the same number.
    Raises `TemplateError` if an input cannot be built again (the state is not what it was).
    """
    if state.status.is_terminal:
        return []
    effects: list[Effect] = []
    due = run_due_ms(state.head, state.vitals, now)
    if due is not None:
        effects.append(ScheduleTimer(step=None, due_ms=due))
    if state.status is RunStatus.PENDING:
        delay = state.head.delay_until_ms
        if delay is None or delay <= now:
            since = max(state.vitals.queued_at_ms, delay or 0)
            effects.append(QueueRun(since_ms=since, held=state.vitals.held))
    d = Draft(state, now)
    for i in bits(state.masks.open):
        _step_effects(d, i, effects)
    return effects


def _step_effects(d: Draft, i: int, effects: list[Effect]) -> None:
    step, spec = d.step(i), d.graph.steps[i]
    if step.due_ms is not None:
        effects.append(ScheduleTimer(step=i, due_ms=step.due_ms))
    if step.wait is WaitingFor.EVENT and step.event_key is not None:
        effects.append(ParkEvent(step=i, attempt=step.attempt, event_key=step.event_key))
    elif step.wait is WaitingFor.JOB_LIMIT:
        since = step.ready_since_ms or 0
        effects.append(RequestSlot(step=i, job=spec.job_id or "", since_ms=since))
    elif step.status is StepStatus.RUNNING:
        if spec.step_type is StepType.SUB_WORKFLOW:
            effects.append(child_start(d, i))
        elif not step.accepted:
            effects.append(
                StartAttempt(
                    step=i,
                    attempt=step.attempt,
                    job=spec.job_id or "",
                    input=inputs.build_input(d, i),
                    timeout_secs=timeout_secs(spec, policy_of(spec, d.head.policies)),
                )
            )


def child_start(d: Draft, i: int) -> StartChild:
    """The creation of the child that step i waits for."""
    step = d.step(i)
    return StartChild(
        step=i,
        attempt=step.attempt,
        child_run_id=step.child_run_id or "",
        workflow=d.graph.steps[i].sub_workflow_id or "",
        payload=inputs.build_input(d, i),
    )


def start_of_child(state: RunState, i: int, now: int) -> StartChild:
    """`child_start` for a state: what a child that does not exist yet is created from."""
    return child_start(Draft(state, now), i)
