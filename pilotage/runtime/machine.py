"""The run machine: `decide`, `evolve` and `step`. Pure; the same inputs give the same outputs.

    step(state, command, now)  -> Transition | Rejection    one command, every consequence settled
    decide(state, command, now) -> Decision | Rejection     the events and the reply alone
    evolve(state, event)       -> RunState                  one event

`step` is what the actors use: it works on one draft and gives state, events and effects at once;
folding `evolve` over its events gives the same state (but for the sequence numbers, which count
transitions). Effects come in the order in which they are to be done: what is taken back first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from pilotage.runtime import decide_report, decide_run, decide_step
from pilotage.runtime.backoff import policy_of
from pilotage.runtime.commands import (
    CALLBACK,
    AdmitRun,
    ApproveStep,
    AttemptAccepted,
    AttemptCompleted,
    AttemptFailed,
    CancelRun,
    ChildEnded,
    Command,
    CreateRun,
    EventReceived,
    ForceCompleteStep,
    HoldRun,
    MoveTimeout,
    PauseRun,
    PinRun,
    RejectStep,
    ReopenChild,
    ReplaySubtree,
    ResumeRun,
    RetryStep,
    SkipStep,
    SlotGranted,
    TimerFired,
)
from pilotage.runtime.draft import Draft
from pilotage.runtime.effects import (
    CancelTimer,
    Effect,
    ParkEvent,
    ReleaseSlot,
    RequestSlot,
    ScheduleTimer,
    StartAttempt,
    StartChild,
    StopAttempt,
    TellChild,
    UnparkEvent,
    timer_of,
)
from pilotage.runtime.events import Event, RunCreated
from pilotage.runtime.graph import StepGraph
from pilotage.runtime.replies import Reply
from pilotage.runtime.rules import Rejection
from pilotage.runtime.settle import settle
from pilotage.runtime.state import (
    Masks,
    RunHead,
    RunState,
    RunVitals,
    StepState,
    blank_chunks,
    run_due_ms,
)
from pilotage.runtime.status import StepStatus, StepType, WaitingFor

HISTORY_LIMIT = 50_000
"""Items of history a run keeps; then one `truncated` item and no more (runs.md §10)."""


class Transition(msgspec.Struct, frozen=True, kw_only=True):
    """What a command did. `changed`: indices of the steps that differ from before."""

    state: RunState
    events: tuple[Event, ...]
    effects: tuple[Effect, ...]
    reply: Reply
    changed: tuple[int, ...]


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    events: tuple[Event, ...]
    reply: Reply


def blank_run(head: RunHead, graph: StepGraph) -> RunState:
    """A run before its first event: every step waiting, nothing decided, sequence 0."""
    return RunState(
        head=head,
        graph=graph,
        vitals=RunVitals(),
        chunks=blank_chunks(graph.size),
        masks=Masks(open=graph.all_mask),
    )


def create(graph: StepGraph, command: CreateRun, now: int) -> Transition:
    """The first transition of a run."""
    result = step(blank_run(command.head, graph), command, now)
    assert isinstance(result, Transition)  # creation is never refused
    return result


def step(state: RunState, command: Command, now: int) -> Transition | Rejection:
    """Decide a command and settle every consequence. `now`: Unix milliseconds.

    Raises `IllegalEventError` only if the machine itself is wrong.
    """
    d = Draft(state, now, command.actor)
    reply = _HANDLERS[type(command)](d, command)
    if isinstance(reply, Rejection):
        return reply
    if d.events or d.want:
        settle(d)
    if not d.events:
        return Transition(state=state, events=(), effects=tuple(d.effects), reply=reply, changed=())
    seen = d.vitals.history_seq
    if seen < HISTORY_LIMIT + 1:
        seen = min(seen + len(d.events), HISTORY_LIMIT + 1)
    d.set_vitals(seq=state.vitals.seq + 1, history_seq=seen)
    effects = _effects(d, state)
    return Transition(
        state=d.freeze(),
        events=tuple(d.events),
        effects=effects,
        reply=reply,
        changed=tuple([i for i, before in d.before.items() if d.step(i) != before]),
    )


def decide(state: RunState, command: Command, now: int) -> Decision | Rejection:
    """The events a command leads to, and its reply."""
    result = step(state, command, now)
    if isinstance(result, Rejection):
        return result
    return Decision(events=result.events, reply=result.reply)


def evolve(state: RunState, event: Event) -> RunState:
    """The state after one event; `IllegalEventError` if it does not fit."""
    d = Draft(state, event.at_ms, event.actor)
    d.apply(event)
    return d.freeze()


def replay(graph: StepGraph, events: tuple[Event, ...]) -> RunState:
    """Fold events from the first (`RunCreated`) on."""
    first = events[0]
    assert isinstance(first, RunCreated)
    state = blank_run(first.head, graph)
    for event in events:
        state = evolve(state, event)
    return state


# --- effects -----------------------------------------------------------------------------------


def _effects(d: Draft, state: RunState) -> tuple[Effect, ...]:
    """First what is taken back, as the step states before and after differ; then what starts."""
    out: list[Effect] = []
    timers: list[Effect] = []
    for i, before in d.before.items():
        after = d.step(i)
        _taken_back(d, i, before, after, out)
        if after.due_ms is None:
            if before.due_ms is not None:
                timers.append(CancelTimer(step=i))
        elif i == d.fired or not _timer_stands(before, after):
            timers.append(timer_of(i, after.due_ms, after, d.now))
    out += [effect for effect in d.effects if _still_meant(d, effect)]
    out.extend(timers)
    _run_timer(d, state, out)
    return tuple(out)


def _timer_stands(before: StepState, after: StepState) -> bool:
    """Whether the timer that is armed is the one that is wanted. One that measures an attempt ends
    nothing else, though it may be due at the same instant; as long as it is the same attempt, the
    state only hears of what it measures from its dispatch on.
    """
    measured = after.attempt if after.status is StepStatus.RUNNING else None
    if measured != (before.attempt if before.status is StepStatus.RUNNING else None):
        return False
    return measured is not None or after.due_ms == before.due_ms


def _taken_back(d: Draft, i: int, before: StepState, after: StepState, out: list[Effect]) -> None:
    same_attempt = after.attempt == before.attempt and after.status is before.status
    spec = d.graph.steps[i]
    if before.status is StepStatus.RUNNING and not same_attempt:
        if spec.step_type is StepType.JOB:
            if d.reported != i:
                out.append(StopAttempt(step=i, attempt=before.attempt, timed_out=d.timed_out == i))
            elif d.actor == CALLBACK:  # after a crash another order for it may be on its way
                out.append(StopAttempt(step=i, attempt=before.attempt, reported=True))
            if policy_of(spec, d.head.policies).limited:
                out.append(ReleaseSlot(step=i, job=spec.job_id or ""))
        elif d.reported != i and before.child_run_id is not None:
            out.append(TellChild(child_run_id=before.child_run_id, what="cancel", step=i))
    elif before.wait is WaitingFor.JOB_LIMIT:
        stands = after.wait is before.wait and after.ready_since_ms == before.ready_since_ms
        if not stands and after.status is not StepStatus.RUNNING:
            out.append(ReleaseSlot(step=i, job=spec.job_id or ""))
    elif (
        before.wait is WaitingFor.EVENT
        and before.event_key is not None
        and not (after.wait is WaitingFor.EVENT and same_attempt)
    ):
        out.append(UnparkEvent(step=i, event_key=before.event_key))


def _still_meant(d: Draft, effect: Effect) -> bool:
    """False for a start that the same transition took back (the run ended in it)."""
    if isinstance(effect, _OF_RUNNING):
        return d.step(effect.step).status is StepStatus.RUNNING
    if isinstance(effect, ParkEvent):
        return d.step(effect.step).wait is WaitingFor.EVENT
    if isinstance(effect, RequestSlot):
        return d.step(effect.step).wait is WaitingFor.JOB_LIMIT
    return True


_OF_RUNNING = (StartAttempt, StartChild, TellChild)
"""Effects that are meant while their step runs."""


def _run_timer(d: Draft, state: RunState, out: list[Effect]) -> None:
    created = isinstance(d.events[0], RunCreated)
    if not created and d.vitals.status is state.vitals.status:
        return
    due = run_due_ms(d.head, d.vitals, d.now)
    if due is not None:
        out.append(ScheduleTimer(step=None, due_ms=due))
    elif not created and run_due_ms(d.head, state.vitals, d.now) is not None:
        out.append(CancelTimer(step=None))


_HANDLERS: dict[type[Command], Callable[[Draft, Any], Reply | Rejection]] = {
    CreateRun: decide_run.create,
    AdmitRun: decide_run.admit,
    HoldRun: decide_run.hold,
    CancelRun: decide_run.cancel,
    PauseRun: decide_run.pause,
    ResumeRun: decide_run.resume,
    PinRun: decide_run.pin,
    ReopenChild: decide_run.reopen_child,
    ApproveStep: decide_step.approve,
    RejectStep: decide_step.reject,
    SkipStep: decide_step.skip,
    ForceCompleteStep: decide_step.force_complete,
    RetryStep: decide_step.retry_step,
    ReplaySubtree: decide_step.replay_subtree,
    AttemptAccepted: decide_report.accepted,
    AttemptCompleted: decide_report.completed,
    AttemptFailed: decide_report.failed,
    ChildEnded: decide_report.child_ended,
    EventReceived: decide_report.event_received,
    SlotGranted: decide_report.slot_granted,
    TimerFired: decide_report.timer_fired,
    MoveTimeout: decide_report.timeout_moved,
}
