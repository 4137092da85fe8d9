"""Events and the state: what fits, what is a bug, and that folding gives the state."""

from __future__ import annotations

import msgspec
import pytest

from pilotage.runtime import commands as c, events as e
from pilotage.runtime.errors import IllegalEventError
from pilotage.runtime.machine import evolve, replay, step
from pilotage.runtime.state import RunState, RunVitals, StepState, blank_chunks, chunked, rebuild
from pilotage.runtime.status import RunStatus as R, SkippedBy, StepStatus as S, WaitingFor
from tests.support.run_story import START, Run, approval, job

ACTIVE, ENDED = (R.PENDING, R.RUNNING, R.PAUSED), (R.COMPLETED, R.FAILED, R.TIMED_OUT, R.CANCELED)
OPEN = (S.WAITING, S.PENDING, S.RUNNING)

# In which status of the run, or of the step, an event fits; in every other it is a bug.
RUN_EVENTS: list[tuple[e.Event, tuple[R, ...]]] = [
    (e.RunStarted(at_ms=1), (R.PENDING,)),
    (e.RunHeldChanged(at_ms=1, held=True), (R.PENDING,)),
    (e.RunPaused(at_ms=1), (R.RUNNING,)),
    (e.RunResumed(at_ms=1), (R.PAUSED,)),
    (e.RunEnded(at_ms=1, status=R.COMPLETED), ACTIVE),
    (e.RunReopened(at_ms=1, status=R.RUNNING), ENDED),
    (e.ParentAttemptChanged(at_ms=1, parent_attempt=2), tuple(R)),
    (e.RunPinned(at_ms=1, pinned=True), tuple(R)),
]
STEP_EVENTS: list[tuple[e.StepEvent, tuple[S, ...]]] = [
    (e.StepHeld(at_ms=1, step=0, checked=True), (S.WAITING, S.PENDING)),
    (e.StepUnready(at_ms=1, step=0), (S.WAITING, S.PENDING)),
    (e.SlotRequested(at_ms=1, step=0, job="j"), (S.WAITING, S.PENDING)),
    (e.SlotDeclined(at_ms=1, step=0), (S.PENDING,)),
    (e.StepStarted(at_ms=1, step=0, attempt=1), (S.WAITING, S.PENDING)),
    (e.StepAccepted(at_ms=1, step=0, attempt=1), (S.RUNNING,)),
    (e.StepTimeoutMoved(at_ms=1, step=0, attempt=1, due_ms=9), (S.RUNNING,)),
    (
        e.StepParked(at_ms=1, step=0, attempt=1, wait=WaitingFor.APPROVAL),
        (S.WAITING, S.PENDING),
    ),
    (e.StepRetryScheduled(at_ms=1, step=0, attempt=1, due_ms=5, error="x"), (S.RUNNING,)),
    (e.StepCompleted(at_ms=1, step=0), (*OPEN, S.FAILED)),
    (e.StepFailed(at_ms=1, step=0, error="x"), OPEN),
    (e.StepSkipped(at_ms=1, step=0, by=SkippedBy.OPERATOR), (*OPEN, S.FAILED)),
    (e.StepCanceled(at_ms=1, step=0), OPEN),
    (e.StepReset(at_ms=1, step=0), tuple(S)),
]


def state_with(run: R, first: S) -> RunState:
    base = Run(job("a"), job("b")).state
    chunks = chunked([StepState(status=first), StepState(status=S.COMPLETED)])
    return rebuild(base.head, base.graph, RunVitals(status=run), chunks)


@pytest.mark.parametrize(("event", "fits"), RUN_EVENTS)
@pytest.mark.parametrize("status", list(R))
def test_an_event_of_a_run_fits_or_is_a_bug(event: e.Event, fits: tuple[R, ...], status: R) -> None:
    state = state_with(status, S.COMPLETED)
    if status in fits:
        evolve(state, event)
        return
    with pytest.raises(IllegalEventError, match=f"does not fit a run that is {status}"):
        evolve(state, event)


@pytest.mark.parametrize(("event", "fits"), STEP_EVENTS)
@pytest.mark.parametrize("status", list(S))
def test_an_event_of_a_step_fits_or_is_a_bug(
    event: e.StepEvent, fits: tuple[S, ...], status: S
) -> None:
    state = state_with(R.RUNNING, status)
    if status in fits:
        after = evolve(state, event)
        assert rebuild(after.head, after.graph, after.vitals, after.chunks) == after
        return
    with pytest.raises(IllegalEventError, match=f"does not fit a step that is {status}"):
        evolve(state, event)


def test_the_first_event_fits_a_pending_run_alone() -> None:
    run = Run(job("a"))
    with pytest.raises(IllegalEventError, match="does not fit a run that is running"):
        evolve(run.state, e.RunCreated(at_ms=1, head=run.state.head))


@pytest.mark.parametrize("status", [R.COMPLETED, R.PAUSED])
def test_an_end_that_leaves_steps_open_or_names_no_end_is_a_bug(status: R) -> None:
    state = state_with(R.RUNNING, S.RUNNING if status is R.COMPLETED else S.COMPLETED)
    with pytest.raises(IllegalEventError, match="leaves steps open or names no end"):
        evolve(state, e.RunEnded(at_ms=1, status=status))


@pytest.mark.parametrize("attempt", [0, 2])
@pytest.mark.parametrize(
    "event",
    [
        e.StepStarted(at_ms=1, step=0, attempt=1),
        e.StepParked(at_ms=1, step=0, attempt=1, wait=WaitingFor.TIMER),
    ],
)
def test_an_attempt_number_that_does_not_follow_is_a_bug(
    event: e.StepStarted | e.StepParked, attempt: int
) -> None:
    wrong = msgspec.structs.replace(event, attempt=attempt)
    with pytest.raises(IllegalEventError, match="does not follow attempt 0"):
        evolve(state_with(R.RUNNING, S.WAITING), wrong)


def test_replaying_all_events_gives_the_state() -> None:
    run = Run(*(job(f"s{i}", after=f"s{i - 1}" if i else ()) for i in range(70)), approval("z"))
    events = list(run.last.events)
    for i in range(70):
        run.completes(f"s{i}", output=i)
        events += run.last.events
    run.does(c.ApproveStep, "z")
    events += run.last.events
    state = replay(run.state.graph, tuple(events))
    assert state.chunks == run.state.chunks
    assert state.masks == run.state.masks
    assert state.status is R.COMPLETED


def test_a_transition_copies_only_the_chunks_it_touches() -> None:
    run = Run(*(job(f"s{i}") for i in range(100)))
    before = run.state
    run.completes("s40")
    same = [old is new for old, new in zip(before.chunks, run.state.chunks, strict=True)]
    assert same == [True, False, True, True]
    assert run.last.changed == (40,)


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 64, 70])
def test_chunks_hold_every_step_once(size: int) -> None:
    assert sum(map(len, blank_chunks(size))) == size
    steps = [StepState(attempt=i) for i in range(size)]
    assert [s for chunk in chunked(steps) for s in chunk] == steps


def test_the_same_inputs_give_the_same_outputs() -> None:
    run = Run(job("a", retry_max_attempts=3))
    command = c.AttemptFailed(step=0, attempt=1, error="x")
    assert step(run.state, command, START) == step(run.state, command, START)
