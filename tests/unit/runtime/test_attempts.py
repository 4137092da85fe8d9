"""Attempts, retries, timeouts and late results (runs.md §5)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from pilotage.runtime import commands as c
from pilotage.runtime.backoff import retry_delay_ms, seconds
from pilotage.runtime.definition import JobPolicy, StepSpec
from pilotage.runtime.effects import CancelTimer, ScheduleTimer, StartAttempt, StopAttempt
from pilotage.runtime.ids import MAX_ATTEMPT
from pilotage.runtime.replies import Done, Late
from pilotage.runtime.settle import MAX_ERROR_CHARS
from pilotage.runtime.state import StepState, chunked, rebuild
from pilotage.runtime.status import Backoff, RunStatus, StepStatus
from tests.support.run_story import LIMITED, SKIP, Run, approval, job, sleep, sub

PLAIN = StepSpec(step_ref="a", job_id="j")


def delays(spec: StepSpec, policy: JobPolicy, count: int = 6) -> list[int]:
    return [retry_delay_ms(spec, policy, used=n, seed=f"run/a/{n}") for n in range(1, count + 1)]


@pytest.mark.parametrize(
    ("backoff", "secs"),
    [
        (Backoff.EXPONENTIAL, [1, 2, 4, 8, 16, 32]),
        (Backoff.LINEAR, [1, 2, 3, 4, 5, 6]),
        (Backoff.FIXED, [1, 1, 1, 1, 1, 1]),
    ],
)
def test_the_delay_follows_its_formula_within_the_jitter(backoff: Backoff, secs: list[int]) -> None:
    found = delays(PLAIN, JobPolicy(retry_backoff=backoff))
    for delay, plain in zip(found, secs, strict=True):
        assert 800 * plain <= delay <= 1200 * plain
    assert found != [1000 * s for s in secs], "there is jitter"
    assert found == delays(PLAIN, JobPolicy(retry_backoff=backoff)), "and it is repeatable"


def test_jitter_spreads_over_its_whole_range() -> None:
    fixed = JobPolicy(retry_backoff=Backoff.FIXED)
    found = [retry_delay_ms(PLAIN, fixed, used=1, seed=f"{n}/a/1") for n in range(2_000)]
    assert min(found) < 810
    assert max(found) > 1190
    assert 980 < sum(found) / len(found) < 1020


def test_the_cap_is_applied_after_the_jitter() -> None:
    policy = JobPolicy(retry_max_delay_secs=4.0)
    assert max(delays(PLAIN, policy, 100)) == 4_000


@pytest.mark.parametrize(("asked", "wait"), [(3.0, 3_000), (9_999.0, 3_600_000), (-5.0, 0)])
def test_retry_after_is_honoured_up_to_the_cap(asked: float, wait: int) -> None:
    run = Run(job("a", retry_max_attempts=2)).fails("a", retry_after_secs=asked)
    assert run.step("a").due_ms == run.now + wait


def test_a_step_overrides_each_part_of_the_policy() -> None:
    spec = StepSpec(
        step_ref="a",
        retry_backoff=Backoff.FIXED,
        retry_initial_delay_secs=0.0,
        retry_max_delay_secs=0.0,
    )
    assert delays(spec, JobPolicy(retry_initial_delay_secs=50.0), 3) == [0, 0, 0]


def test_a_failed_attempt_is_retried_after_its_backoff_with_the_next_number() -> None:
    run = Run(job("a", retry_max_attempts=2)).fails("a", "flaky")
    assert run.waits == {"a": "retry"}
    assert run.view("a").error == "flaky"
    assert run.view("a").due_at is not None
    assert run.effects(ScheduleTimer)[0].due_ms == run.step("a").due_ms
    run.fires("a")
    assert run.step("a").attempt == 2
    assert run.step("a").error is None
    assert [e.attempt for e in run.effects(StartAttempt)] == [2]


def test_three_attempts_are_the_default_and_then_the_step_fails() -> None:
    run = Run(job("a", retry_max_attempts=None))
    for _ in range(2):
        run.fails("a").fires("a")
    run.fails("a", "the last")
    assert run.status == RunStatus.FAILED
    assert run.error == "step 'a' failed: the last"
    assert run.step("a").attempt == 3


def test_a_final_failure_is_not_retried() -> None:
    run = Run(job("a", retry_max_attempts=5)).fails("a", final=True)
    assert run.status == RunStatus.FAILED


def test_at_the_bound_the_attempt_has_failed_retryable_and_is_told_to_stop() -> None:
    run = Run(job("a", retry_max_attempts=2, timeout_secs_override=0.25))
    assert run.step("a").due_ms == run.now + 250
    run.fires("a")
    assert run.step("a").error == "timed out after 0.25 s"
    assert run.effects(StopAttempt) == [StopAttempt(step=0, attempt=1, timed_out=True)]
    run.fires("a").fires("a")
    assert run.error == "step 'a' failed: timed out after 0.25 s"


@pytest.mark.parametrize("report", [c.AttemptCompleted, partial(c.AttemptFailed, error="no")])
def test_what_ended_by_callback_is_withdrawn_where_it_is_still_held_back(
    report: Callable[..., c.Command],
) -> None:
    """After a crash it is dispatched again, and its first delivery may report meanwhile."""
    run = Run(job("a"))
    run.give(report(step=0, attempt=1, actor=c.CALLBACK))
    assert run.effects(StopAttempt) == [StopAttempt(step=0, attempt=1, reported=True)]
    other = Run(job("a"))
    other.give(report(step=0, attempt=1))
    assert other.effects(StopAttempt) == []


@pytest.mark.parametrize(
    ("secs", "text"), [(300.0, "300"), (0.25, "0.25"), (2_592_000.0, "2592000")]
)
def test_durations_are_written_for_people(secs: float, text: str) -> None:
    assert seconds(secs) == text


def test_an_attempt_ends_its_timeout_with_its_report() -> None:
    run = Run(job("a")).completes("a")
    assert run.effects(CancelTimer) == [CancelTimer(step=0)]


def test_a_retry_without_delay_is_armed_although_the_timer_was_due_at_that_instant() -> None:
    run = Run(job("a", retry_max_attempts=2, retry_initial_delay_secs=0.0))
    run.fires("a")
    assert run.step("a").due_ms == run.now
    assert run.effects(ScheduleTimer) == [ScheduleTimer(step=0, due_ms=run.now)]
    run.fires("a")
    assert run.step("a").attempt == 2


def test_a_timer_that_comes_early_is_armed_again_and_one_that_comes_twice_does_nothing() -> None:
    run = Run(sleep("a"), job("b"))
    due = run.world.timers.pop(0)
    run.give(c.TimerFired(step=0))
    assert not run.last.events
    assert run.effects(ScheduleTimer) == [ScheduleTimer(step=0, due_ms=due)]
    run.fires("a")
    run.give(c.TimerFired(step=0))
    assert run.last.reply == Done(changed=False)
    assert not run.last.effects


def test_a_running_step_s_timer_measures_its_attempt() -> None:
    run = Run(job("a", timeout_secs_override=10))
    due = run.step("a").due_ms
    assert due is not None
    timer = ScheduleTimer(step=0, due_ms=due, attempt=1, left_ms=10_000)
    assert run.effects(ScheduleTimer) == [timer]


def test_the_timer_of_a_wait_that_is_over_does_not_end_the_attempt_that_came_of_it() -> None:
    """It may reach the run late, when the store was away for longer than the attempt's time."""
    run = Run(job("a", timeout_secs_override=10, retry_max_attempts=2)).fails("a")
    run.does(c.ReplaySubtree, "a").after_secs(60.0)
    assert run.step("a").attempt == 2
    run.give(c.TimerFired(step=0))
    assert run.last.reply == Done(changed=False)
    assert not run.last.effects


def test_the_time_of_an_attempt_is_up_when_it_was_measured_whatever_the_clock_says() -> None:
    run = Run(job("a", timeout_secs_override=10, retry_max_attempts=2))
    run.give(c.TimerFired(step=0, attempt=1))
    assert run.waits == {"a": "retry"}
    assert run.step("a").error == "timed out after 10 s"
    run.give(c.TimerFired(step=0, attempt=1))
    assert run.last.reply == Done(changed=False)
    run.fires("a")
    assert run.step("a").attempt == 2
    run.give(c.TimerFired(step=0, attempt=1))  # that of the attempt before
    assert run.last.reply == Done(changed=False)
    assert not run.last.effects


def test_what_is_stored_of_an_attempt_s_time_follows_the_clock() -> None:
    run = Run(job("a", timeout_secs_override=10))
    run.give(c.AttemptAccepted(step=0, attempt=1))
    later = run.now + 5_000
    run.give(c.MoveTimeout(step=0, attempt=2, due_ms=later))
    assert run.last.reply == Done(changed=False)
    run.world.timers[0] = later
    run.give(c.MoveTimeout(step=0, attempt=1, due_ms=later))
    assert run.events == ["StepTimeoutMoved a"]
    assert (run.step("a").due_ms, run.step("a").accepted) == (later, True)
    assert not run.last.effects, "its timer knows"
    run.give(c.MoveTimeout(step=0, attempt=1, due_ms=later))
    assert run.last.reply == Done(changed=False)
    run.completes("a")
    run.give(c.MoveTimeout(step=0, attempt=1, due_ms=later + 1))
    assert run.last.reply == Done(changed=False)


def test_a_late_result_of_an_older_attempt_is_ignored_and_says_that_a_newer_one_exists() -> None:
    run = Run(job("a", retry_max_attempts=2)).fails("a").fires("a")
    for report in (
        c.AttemptCompleted(step=0, attempt=1, output=b"1"),
        c.AttemptFailed(step=0, attempt=1, error="x"),
        c.AttemptAccepted(step=0, attempt=1),
    ):
        run.give(report)
        assert run.last.reply == Late(superseded=True)
    run.completes("a")
    run.give(c.AttemptCompleted(step=0, attempt=2))
    assert run.last.reply == Late(superseded=False)


@pytest.mark.parametrize("over", [c.SkipStep, c.ForceCompleteStep])
def test_a_result_of_a_step_that_is_over_is_late(over: type[c.Command]) -> None:
    run = Run(job("a"), job("b")).does(over, "a")
    assert run.effects(StopAttempt) == [StopAttempt(step=0, attempt=1)]
    run.completes("a")
    assert run.last.reply == Late(superseded=False)


def test_a_job_s_report_about_a_sub_workflow_step_is_late() -> None:
    run = Run(sub("a"))
    run.give(c.AttemptCompleted(step=0, attempt=1))
    assert run.last.reply == Late(superseded=False)


def test_a_retry_that_is_due_when_its_attempt_would_have_timed_out_has_its_own_timer() -> None:
    run = Run(job("a", timeout_secs_override=5, retry_max_attempts=2))
    run.after_secs(2)
    due_ms = run.step("a").due_ms or 0
    run.fails("a", retry_after_secs=(due_ms - run.now - 1) / 1000)
    assert run.step("a").due_ms == due_ms
    assert run.effects(ScheduleTimer) == [ScheduleTimer(step=0, due_ms=due_ms)]
    run.fires("a")
    assert run.step("a").attempt == 2


def test_an_accepted_attempt_is_noted_once() -> None:
    run = Run(job("a"))
    run.give(c.AttemptAccepted(step=0, attempt=1))
    assert run.step("a").accepted
    run.give(c.AttemptAccepted(step=0, attempt=1))
    assert run.last.reply == Done(changed=False)
    run.completes("a")
    assert run.status == RunStatus.COMPLETED


def test_a_retry_gives_a_fresh_budget_and_attempt_numbers_go_on() -> None:
    run = Run(job("a", retry_max_attempts=2)).fails("a").fires("a").fails("a")
    run.does(c.RetryStep, "a")
    assert run.step("a").attempt == 3
    run.fails("a")
    assert run.waits == {"a": "retry"}
    run.fires("a").fails("a")
    assert (run.status, run.step("a").attempt) == (RunStatus.FAILED, 4)


def test_an_attempt_whose_dependency_is_tried_again_waits_for_it() -> None:
    run = Run(job("a"), job("b", after="a", retry_max_attempts=2)).completes("a").fails("b")
    run.does(c.RetryStep, "a").fires("b")
    assert run.waits == {"b": "dependencies"}
    assert run.events == ["StepUnready b"]
    run.completes("a")
    assert run.step("b").attempt == 2


@pytest.mark.parametrize("limited", [False, True])
def test_a_held_step_whose_dependency_is_tried_again_waits_for_it(limited: bool) -> None:
    b = job("b", after="a", job_id=LIMITED if limited else "j")
    run = Run(job("a"), b, job("c", after="a"), max_parallel_steps=1)
    run.world.job_slots = 0
    if limited:
        run = Run(job("a"), b)
        run.world.job_slots = 0
    run.completes("a")
    if not limited:
        run.does(c.PauseRun).completes("b").does(c.RetryStep, "a")
        assert run.waits == {"a": "paused", "c": "dependencies"}
        return
    run.does(c.RetryStep, "a")
    assert run.waits == {"b": "dependencies"}
    run.completes("a")
    assert run.waits == {"b": "job_limit"}


def test_an_error_of_the_longest_length_is_kept_as_it_is() -> None:
    longest = "x" * MAX_ERROR_CHARS
    assert Run(job("a")).fails("a", longest).step("a").error == longest


def test_a_long_error_is_cut() -> None:
    run = Run(job("a", retry_max_attempts=2)).fails("a", "x" * 10_000)
    assert len(run.step("a").error or "") == MAX_ERROR_CHARS
    run.fires("a").fails("a", "x" * 10_000)
    assert (run.step("a").error or "").endswith("x…")


def worn_out(run: Run, ref: str) -> None:
    """Give a step all the attempts it can ever have."""
    steps = list(run.state.steps())
    steps[run.i(ref)] = StepState(
        status=StepStatus.COMPLETED, attempt=MAX_ATTEMPT, budget_start=MAX_ATTEMPT - 1
    )
    state = run.state
    run.world.attempts.clear()
    run.world.timers.clear()
    run.world.state = rebuild(state.head, state.graph, state.vitals, chunked(steps))


def test_a_step_that_has_used_every_attempt_number_starts_no_more() -> None:
    run = Run(job("a"))
    worn_out(run, "a")
    for kind in (c.RetryStep, c.ReplaySubtree):
        assert run.refused(kind, "a") == (
            'step "a" has used all of its 16383 attempts; retry the run'
        )


@pytest.mark.parametrize("kind", [job, approval])
def test_a_replayed_dependent_that_has_used_every_attempt_number_fails(
    kind: Callable[..., StepSpec],
) -> None:
    run = Run(approval("a"), kind("b", after="a", on_failure=SKIP))
    worn_out(run, "b")
    run.does(c.ReplaySubtree, "a").does(c.ApproveStep, "a")
    assert run.step("b").error == "the step has used all of its 16383 attempts"
