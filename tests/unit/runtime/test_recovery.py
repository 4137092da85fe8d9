"""What a loaded run has to do again, and what it cannot (runs.md §5 and §9)."""

from __future__ import annotations

import pytest

from pilotage.runtime import commands as c
from pilotage.runtime.effects import (
    Effect,
    ParkEvent,
    QueueRun,
    RequestSlot,
    ScheduleTimer,
    StartAttempt,
    StartChild,
)
from pilotage.runtime.errors import TemplateError
from pilotage.runtime.recovery import (
    attempts_in_progress,
    moved_timeouts,
    recovery_effects,
    start_of_child,
    undeliverable,
)
from pilotage.runtime.state import rebuild
from tests.support.run_story import LIMITED, START, Run, approval, event, job, sleep, sub


def recovered(run: Run) -> list[Effect]:
    """The effects of the run as it would be read from the store."""
    state = run.state
    return recovery_effects(rebuild(state.head, state.graph, state.vitals, state.chunks), run.now)


def test_everything_in_progress_is_taken_up_again() -> None:
    run = Run(
        job("a"), approval("b", approval_timeout_secs=9.0), event("c"), sleep("d"), sub("e"),
        job("f", job_id=LIMITED), job("g", retry_max_attempts=2), job("h", after="a"),
        timeout_secs=99.0,
    )  # fmt: skip
    run.fails("g")
    created = run.world.children
    kinds = [type(e).__name__ for e in recovered(run)]
    assert sorted(kinds) == sorted(
        ["ScheduleTimer"] * 6 + ["StartAttempt", "ParkEvent", "StartChild", "RequestSlot"]
    )
    (attempt,) = [e for e in recovered(run) if isinstance(e, StartAttempt)]
    assert (attempt.step, attempt.attempt, attempt.timeout_secs) == (0, 1, 300.0)
    (park,) = [e for e in recovered(run) if isinstance(e, ParkEvent)]
    assert (park.step, park.event_key) == (2, "k")
    (child,) = [e for e in recovered(run) if isinstance(e, StartChild)]
    assert child.child_run_id in created
    (request,) = [e for e in recovered(run) if isinstance(e, RequestSlot)]
    assert request.since_ms == run.step("f").ready_since_ms
    due = {e.due_ms for e in recovered(run) if isinstance(e, ScheduleTimer) and e.step is None}
    assert due == {run.state.vitals.expires_at_ms}


def test_an_attempt_is_dispatched_again_with_the_same_number_and_input() -> None:
    run = Run(job("a", retry_max_attempts=2, payload={"x": 1})).fails("a").fires("a")
    assert [e for e in recovered(run) if isinstance(e, StartAttempt)] == run.effects(StartAttempt)
    assert attempts_in_progress(run.state) == run.effects(StartAttempt)


def test_an_accepted_attempt_is_not_dispatched_again_but_its_timeout_is_armed() -> None:
    run = Run(job("a"))
    run.give(c.AttemptAccepted(step=0, attempt=1))
    assert [type(e) for e in recovered(run)] == [ScheduleTimer]
    assert len(attempts_in_progress(run.state)) == 1


def test_a_run_that_is_over_has_nothing_to_do() -> None:
    assert recovered(Run(job("a"), timeout_secs=9.0).completes("a")) == []


def test_a_queued_run_takes_its_place_again() -> None:
    run = Run(job("a"), held=True)
    assert recovered(run) == [QueueRun(since_ms=run.now, held=True, again=True)]


def test_a_delayed_run_waits_for_its_delay_and_then_queues() -> None:
    run = Run(job("a"), delay_until_ms=START + 5_000)
    assert recovered(run) == [ScheduleTimer(step=None, due_ms=START + 5_000)]
    run.after_secs(6.0)
    assert recovered(run) == [QueueRun(since_ms=START + 5_000, again=True)]


def test_an_attempt_whose_input_is_gone_has_failed_retryable() -> None:
    b = job("b", after="a", payload={"x": "{{ steps.a.output.x }}"}, retry_max_attempts=2)
    run = Run(job("a"), b, job("c")).completes("a", output={"x": 1}).does(c.RetryStep, "a")
    assert [e.step for e in recovered(run) if isinstance(e, StartAttempt)] == [0, 2]
    assert [e.step for e in attempts_in_progress(run.state)] == [0, 2]
    (report,) = undeliverable(run.state)
    assert (report.step, report.attempt, report.final) == (1, 1, False)
    assert report.error.startswith("the attempt was lost and cannot be delivered again: ")
    assert "steps.a.output.x" in report.error
    run.give(report)
    assert run.waits == {"b": "retry"}


def test_what_can_be_delivered_is_not_reported_as_lost() -> None:
    run = Run(job("a"), job("b"), sub("s"))
    run.give(c.AttemptAccepted(step=0, attempt=1))
    assert undeliverable(run.state) == []
    assert [e.step for e in attempts_in_progress(run.state)] == [0, 1]


def test_a_child_is_made_from_the_state_or_not_at_all() -> None:
    needs = sub("b", after="a", payload={"x": "{{ steps.a.output.x }}"})
    run = Run(job("a"), needs).completes("a", output={"x": 1})
    assert [start_of_child(run.state, 1, run.now)] == run.effects(StartChild)
    run.does(c.RetryStep, "a")
    (lost,) = [e for e in recovered(run) if isinstance(e, StartChild)]
    assert (lost.child_run_id, lost.payload) == (run.step("b").child_run_id, b"")
    assert lost.lost.startswith("it was not created, and cannot be any more: ")
    assert "steps.a.output.x" in lost.lost
    with pytest.raises(TemplateError, match=r"steps\.a\.output\.x"):
        start_of_child(run.state, 1, run.now)


def test_an_attempt_that_is_dispatched_again_gets_its_whole_time_again() -> None:
    run = Run(job("a", timeout_secs_override=10), sleep("b", secs=5))
    late = run.now + 60_000
    timers = [e for e in recovery_effects(run.state, late) if isinstance(e, ScheduleTimer)]
    assert {t.step: t.due_ms for t in timers} == {0: late + 10_000, 1: run.now + 5_000}


def test_an_attempt_that_is_dispatched_again_has_no_more_than_that_if_the_clock_was_set_back() -> (
    None
):
    run = Run(job("a", timeout_secs_override=10))
    back = run.now - 3_600_000
    (timer,) = [e for e in recovery_effects(run.state, back) if isinstance(e, ScheduleTimer)]
    assert timer == ScheduleTimer(step=0, due_ms=back + 10_000, attempt=1, left_ms=10_000)


def test_an_accepted_attempt_never_has_more_than_its_whole_time_left() -> None:
    run = Run(job("a", timeout_secs_override=10), job("b", timeout_secs_override=10), sub("s"))
    run.give(c.AttemptAccepted(step=0, attempt=1))
    back = run.now - 3_600_000
    assert moved_timeouts(run.state, back) == [
        c.MoveTimeout(step=0, attempt=1, due_ms=back + 10_000)
    ]
    for now in (run.now, run.now + 4_000, run.now + 60_000):
        assert moved_timeouts(run.state, now) == []
