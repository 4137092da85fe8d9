"""Starting, conditions, limits, failure policies and the end (runs.md §2 to §4)."""

from __future__ import annotations

import pytest

from pilotage.runtime import commands as c
from pilotage.runtime.definition import JobPolicy
from pilotage.runtime.effects import (
    CancelTimer,
    QueueRun,
    ReleaseRunSlot,
    ReleaseSlot,
    RequestSlot,
    ScheduleTimer,
    StartAttempt,
    StopAttempt,
)
from pilotage.runtime.replies import Done, SlotTaken
from pilotage.runtime.status import OnFailure, RunStatus, SkippedBy
from tests.support.run_story import (
    FAIL,
    GO_ON,
    LIMITED,
    SKIP,
    START,
    Run,
    approval,
    event,
    job,
    sleep,
)

FALSE = {"type": "eq", "left": 1, "right": 2}
BAD = {"type": "gt", "left": "{{ steps.a.output.missing }}", "right": 2}


# --- run status (§2) -------------------------------------------------------------------------


def test_a_triggered_run_with_a_slot_runs_at_once() -> None:
    run = Run(job("a"), job("b", after="a"))
    assert run.status == RunStatus.RUNNING
    assert run.state.vitals.started_at_ms == run.now
    assert run.statuses == {"a": "running", "b": "waiting"}
    assert run.waits == {"b": "dependencies"}


def test_a_triggered_run_without_a_slot_is_queued_and_its_roots_are_pending() -> None:
    run = Run(job("a"), job("b", after="a"), slot=False)
    assert run.status == RunStatus.PENDING
    assert run.effects(QueueRun) == [QueueRun(since_ms=run.now)]
    assert run.waits == {"a": "run_queue", "b": "dependencies"}
    assert run.state.vitals.started_at_ms is None
    run.does(c.AdmitRun)
    assert run.status == RunStatus.RUNNING
    assert run.statuses["a"] == "running"


def test_a_run_that_runs_has_no_use_for_another_slot() -> None:
    run = Run(job("a"))
    run.does(c.AdmitRun)
    assert run.last.reply == Done(changed=False)


def test_a_run_completes_when_every_step_has() -> None:
    run = Run(job("a"), job("b", after="a"))
    run.completes("a", "b")
    assert run.status == RunStatus.COMPLETED
    assert run.error is None
    assert run.state.vitals.finished_at_ms == run.now
    assert run.effects(ReleaseRunSlot)


def test_a_run_times_out_when_its_deadline_has_passed() -> None:
    run = Run(job("a"), approval("b"), timeout_secs=60.0)
    assert run.state.vitals.expires_at_ms == run.now + 60_000
    run.fires()
    assert run.status == RunStatus.TIMED_OUT
    assert run.error == "run timed out after 60 s"
    assert run.statuses == {"a": "canceled", "b": "canceled"}
    assert run.effects(StopAttempt) == [StopAttempt(step=0, attempt=1)]


@pytest.mark.parametrize("pause", [True, False])
def test_the_deadline_keeps_running_in_the_queue_and_while_paused(pause: bool) -> None:
    run = Run(job("a"), slot=pause, timeout_secs=60.0)
    if pause:
        run.does(c.PauseRun)
    run.fires()
    assert run.status == RunStatus.TIMED_OUT


def test_the_end_takes_back_the_run_s_timer() -> None:
    run = Run(job("a"), timeout_secs=60.0)
    run.completes("a")
    assert CancelTimer(step=None) in run.effects(CancelTimer)
    run.give(c.TimerFired())
    assert run.last.reply == Done(changed=False)


@pytest.mark.parametrize("policy", list(OnFailure))
def test_a_failed_run_names_the_step_and_its_error_under_every_policy(policy: OnFailure) -> None:
    run = Run(job("a", on_failure=policy), job("b", after="a"))
    run.fails("a", "no disk")
    if policy is GO_ON:
        run.completes("b")
        assert (run.status, run.error) == (RunStatus.COMPLETED, None)
    else:
        assert (run.status, run.error) == (RunStatus.FAILED, "step 'a' failed: no disk")


def test_a_run_with_more_failed_steps_names_the_first_and_counts_the_rest() -> None:
    run = Run(job("a", on_failure=SKIP), job("b", on_failure=SKIP), job("c", on_failure=SKIP))
    run.fails("c", "last").fails("b", "middle").completes("a")
    assert run.error == "step 'b' failed: middle (and 1 more failed)"


# --- delay and queue -------------------------------------------------------------------------


def test_a_delayed_run_is_pending_until_it_is_due_and_joins_the_queue_then() -> None:
    run = Run(job("a"), delay_until_ms=START + 5_000, timeout_secs=60.0)
    assert run.status == RunStatus.PENDING
    assert run.waits == {"a": "run_queue"}
    assert not run.effects(QueueRun)
    assert run.effects(ScheduleTimer) == [ScheduleTimer(step=None, due_ms=START + 5_000)]
    run.fires()
    assert run.effects(QueueRun) == [QueueRun(since_ms=START + 5_000)]
    assert run.effects(ScheduleTimer) == [ScheduleTimer(step=None, due_ms=START + 65_000)]
    run.does(c.AdmitRun)
    assert run.status == RunStatus.RUNNING


def test_a_delayed_run_that_never_gets_a_slot_still_times_out() -> None:
    run = Run(job("a"), delay_until_ms=START + 5_000, timeout_secs=60.0)
    run.fires().fires()
    assert run.status == RunStatus.TIMED_OUT


def test_the_timer_of_a_delay_that_comes_early_is_armed_again() -> None:
    run = Run(job("a"), delay_until_ms=START + 5_000)
    run.world.timers.clear()
    run.give(c.TimerFired())
    assert run.effects(ScheduleTimer) == [ScheduleTimer(step=None, due_ms=START + 5_000)]
    assert not run.effects(QueueRun)


def test_a_delay_in_the_past_delays_nothing() -> None:
    for until in (START, START + 1):  # the run is created one millisecond after START
        assert Run(job("a"), delay_until_ms=until).status == RunStatus.RUNNING


def test_a_canceled_delayed_run_takes_back_its_timer() -> None:
    run = Run(job("a"), delay_until_ms=START + 5_000).does(c.CancelRun)
    assert run.effects(CancelTimer) == [CancelTimer(step=None)]


def test_a_reopen_ends_the_delay() -> None:
    run = Run(job("a"), delay_until_ms=START + 5_000).does(c.CancelRun)
    run.does(c.RetryStep, "a", slot=False)
    assert run.effects(QueueRun) == [QueueRun(since_ms=run.now)]
    assert not run.effects(ScheduleTimer)


# --- readiness and conditions (§3, §4) -------------------------------------------------------


def test_deps_completed_counts_completed_skipped_and_tolerated_steps() -> None:
    run = Run(
        job("a"), job("b", on_failure=GO_ON), job("c"), job("d"), job("z", after=tuple("abcd"))
    )
    run.completes("a").fails("b").does(c.SkipStep, "c")
    assert (run.view("z").deps_completed, run.view("z").deps_required) == (3, 4)
    run.completes("d")
    assert run.view("z").deps_completed == 4
    assert run.statuses["z"] == "running"


def test_a_dependency_that_is_named_twice_counts_once() -> None:
    run = Run(job("a"), job("z", after=("a", "a")))
    run.completes("a")
    assert (run.view("z").deps_completed, run.view("z").deps_required) == (1, 1)


def test_candidates_start_in_definition_order() -> None:
    run = Run(job("c"), job("a"), job("b"))
    assert run.events[-3:] == ["StepStarted c", "StepStarted a", "StepStarted b"]


def test_a_false_condition_skips_the_step_also_a_root_and_satisfies_its_dependents() -> None:
    run = Run(job("a", condition=FALSE), job("b", after="a", condition=FALSE), job("c", after="b"))
    assert run.statuses == {"a": "skipped", "b": "skipped", "c": "running"}
    assert run.step("a").skipped_by is SkippedBy.CONDITION
    assert run.step("a").error is None
    assert run.step("a").attempt == 0


def test_a_run_whose_steps_were_all_skipped_is_completed() -> None:
    assert Run(job("a", condition=FALSE)).status == RunStatus.COMPLETED


@pytest.mark.parametrize("policy", list(OnFailure))
def test_a_condition_that_cannot_be_evaluated_fails_the_step_under_its_policy(
    policy: OnFailure,
) -> None:
    run = Run(job("a"), job("b", after="a", condition=BAD, on_failure=policy), job("c", after="b"))
    run.completes("a", output={})
    assert run.step("b").status == "failed"
    assert run.step("b").attempt == 0
    assert (run.step("b").error or "").startswith("condition: ")
    assert "steps.a.output.missing" in (run.step("b").error or "")
    wanted = {FAIL: "canceled", SKIP: "skipped", GO_ON: "running"}
    assert run.statuses["c"] == wanted[policy]


def test_a_condition_is_evaluated_once_for_a_step_that_is_held_back() -> None:
    run = Run(job("a"), job("b", condition={"type": "exists", "operand": 1}), max_parallel_steps=1)
    assert run.step("b").checked
    run.completes("a")
    assert run.statuses["b"] == "running"


# --- limits ----------------------------------------------------------------------------------


def test_at_most_max_parallel_steps_run() -> None:
    run = Run(job("a"), job("b"), job("c"), max_parallel_steps=2)
    assert run.statuses == {"a": "running", "b": "running", "c": "pending"}
    assert run.waits == {"c": "parallel_limit"}
    run.completes("a")
    assert run.statuses["c"] == "running"


def test_parked_steps_do_not_count() -> None:
    run = Run(approval("a"), sleep("b"), event("c"), job("d"), max_parallel_steps=1)
    assert run.waits == {"a": "approval", "b": "timer", "c": "event"}
    assert run.statuses["d"] == "running"


def test_a_step_in_backoff_leaves_its_place_to_another() -> None:
    run = Run(job("a", retry_max_attempts=2), job("b"), max_parallel_steps=1)
    run.fails("a")
    assert run.statuses["b"] == "running"
    run.fires("a")
    assert run.waits == {"a": "parallel_limit"}
    run.completes("b")
    assert run.step("a").attempt == 2


def test_one_step_a_concurrency_key_runs() -> None:
    run = Run(job("a", concurrency_key="k"), job("b", concurrency_key="k"), job("c"))
    assert run.statuses == {"a": "running", "b": "pending", "c": "running"}
    assert run.waits == {"b": "concurrency_key"}
    run.completes("a")
    assert run.statuses["b"] == "running"


def test_a_step_of_a_limited_job_asks_for_a_slot_and_starts_with_the_grant() -> None:
    run = Run(job("a", job_id=LIMITED), job("b"))
    assert run.waits == {"a": "job_limit"}
    assert run.effects(RequestSlot) == [RequestSlot(step=0, job=LIMITED, since_ms=run.now)]
    run.deliver_grants()
    assert run.last.reply == SlotTaken(taken=True)
    assert [e.attempt for e in run.effects(StartAttempt)] == [1]
    run.completes("a")
    assert run.effects(ReleaseSlot) == [ReleaseSlot(step=0, job=LIMITED)]


def test_only_as_many_slots_are_asked_for_as_the_run_has_room() -> None:
    run = Run(job("d"), *(job(ref, job_id=LIMITED) for ref in "abc"), max_parallel_steps=2)
    assert run.waits == {"a": "job_limit", "b": "job_limit", "c": "job_limit"}
    assert [e.step for e in run.effects(RequestSlot)] == [run.i("a")]


def test_a_grant_that_finds_a_local_limit_full_goes_on_and_is_asked_for_again() -> None:
    run = Run(job("a", job_id=LIMITED, concurrency_key="k"), job("b", concurrency_key="k"))
    assert run.statuses == {"a": "pending", "b": "running"}
    run.deliver_grants()
    assert run.last.reply == SlotTaken(taken=False)
    assert run.effects(ReleaseSlot) == [ReleaseSlot(step=0, job=LIMITED)]
    since = run.step("a").ready_since_ms
    run.completes("b")
    assert [e.since_ms for e in run.effects(RequestSlot)] == [since], "it keeps its place"
    run.deliver_grants()
    assert run.statuses["a"] == "running"


def test_a_second_grant_for_a_step_that_runs_is_in_use() -> None:
    run = Run(job("a", job_id=LIMITED)).deliver_grants()
    run.give(c.SlotGranted(step=0))
    assert run.last.reply == SlotTaken(taken=True)
    assert not run.last.effects


def test_a_grant_that_nobody_asked_for_is_given_back() -> None:
    run = Run(job("a", job_id=LIMITED), job("b"))
    run.does(c.SkipStep, "a")
    assert run.effects(ReleaseSlot) == [ReleaseSlot(step=0, job=LIMITED)]
    run.give(c.SlotGranted(step=0))
    assert run.last.reply == SlotTaken(taken=False)
    assert run.effects(ReleaseSlot) == [ReleaseSlot(step=0, job=LIMITED)]


def test_a_grant_for_a_withdrawn_request_is_not_taken_for_the_next_one() -> None:
    run = Run(job("a", job_id=LIMITED))
    crossed = run.world.grants.pop()
    run.world.holders.clear()
    run.world.requests[0] = crossed.since_ms or 0
    run.does(c.ReplaySubtree, "a")
    assert [type(e) for e in run.last.effects] == [ReleaseSlot, RequestSlot]
    run.give(crossed)
    assert run.last.reply == SlotTaken(taken=False)
    assert not run.last.effects
    run.deliver_grants()
    assert run.statuses["a"] == "running"


def test_a_grant_whose_step_cannot_start_is_given_back() -> None:
    bad = {"x": "{{ payload.missing }}"}
    run = Run(job("a", job_id=LIMITED, payload=bad), job("b")).deliver_grants()
    assert run.last.reply == SlotTaken(taken=False)
    assert run.step("a").status == "failed"
    assert run.effects(ReleaseSlot) == [ReleaseSlot(step=0, job=LIMITED)]


# --- failure policies ------------------------------------------------------------------------


def test_fail_workflow_ends_the_run_at_once_and_stops_what_is_in_progress() -> None:
    run = Run(job("a"), job("b"), job("c", after="b"), approval("d"), sleep("e"), event("f"))
    run.fails("a")
    assert run.status == RunStatus.FAILED
    assert set(run.statuses.values()) == {"failed", "canceled"}
    assert run.effects(StopAttempt) == [StopAttempt(step=1, attempt=1)]
    assert run.statuses["b"] == "canceled"


def test_fail_workflow_ends_a_paused_run_too() -> None:
    run = Run(job("a"), job("b")).does(c.PauseRun).fails("a")
    assert run.status == RunStatus.FAILED


def test_skip_dependents_skips_transitively_and_other_branches_go_on() -> None:
    run = Run(
        job("a", on_failure=SKIP), job("b", after="a"), job("c", after="b"), job("d"), job("e", "d")
    )
    run.fails("a")
    assert run.statuses == {
        "a": "failed",
        "b": "skipped",
        "c": "skipped",
        "d": "running",
        "e": "waiting",
    }
    assert run.step("c").skipped_by is SkippedBy.DEPENDENCY
    assert run.view("c").deps_completed == 0
    run.completes("d", "e")
    assert run.status == RunStatus.FAILED


def test_continue_satisfies_the_dependents_which_see_no_output() -> None:
    run = Run(job("a", on_failure=GO_ON), job("b", after="a"))
    run.fails("a")
    assert b'"parent_outputs":{}' in run.effects(StartAttempt)[0].input
    run.completes("b")
    assert run.status == RunStatus.COMPLETED


def test_a_step_that_starts_in_the_transition_in_which_the_run_ends_is_never_dispatched() -> None:
    bad = job("c", after="a", payload={"x": "{{ payload.missing }}"})
    wait = event("d", after="a")
    run = Run(job("a"), job("b", after="a"), bad, wait, job("e", after="a", job_id=LIMITED))
    run.completes("a")
    assert run.status == RunStatus.FAILED
    assert run.step("b").attempt == 1
    assert [type(e) for e in run.last.effects] == [ReleaseRunSlot, CancelTimer]


def test_skip_dependents_skips_a_dependent_that_runs_while_its_dependency_is_tried_again() -> None:
    run = Run(job("a", on_failure=SKIP), job("b", after="a"))
    run.completes("a").does(c.RetryStep, "a").fails("a")
    assert run.statuses == {"a": "failed", "b": "skipped"}
    assert run.effects(StopAttempt) == [StopAttempt(step=1, attempt=1)]


def test_a_job_that_is_unknown_has_the_default_policy() -> None:
    run = Run(job("a", job_id="gone", retry_max_attempts=None))
    assert run.effects(StartAttempt)[0].timeout_secs == 300.0
    run.fails("a")
    assert run.waits == {"a": "retry"}


def test_a_step_overrides_its_job() -> None:
    policies = {"j": JobPolicy(max_attempts=1, timeout_secs=7.0)}
    run = Run(job("a", retry_max_attempts=None), job("b"), policies=policies)
    assert run.effects(StartAttempt)[0].timeout_secs == 7.0
    run.fails("a")
    assert run.status == RunStatus.FAILED
