"""A run that has ended goes on: what comes back and what stays (runs.md §2, §6 and §10)."""

from __future__ import annotations

import pytest

from pilotage.runtime import commands as c
from pilotage.runtime.effects import (
    QueueRun,
    ReleaseRunSlot,
    ScheduleTimer,
    StartAttempt,
    StartChild,
    TellChild,
)
from pilotage.runtime.events import RunEnded, RunReopened
from pilotage.runtime.status import RunStatus, SkippedBy
from tests.support.run_story import Run, approval, event, job, sub

REOPENING = (c.RetryStep, c.ReplaySubtree, c.SkipStep, c.ForceCompleteStep)


def failed_run() -> Run:
    """`a` has failed; a side branch, a parked step and what hangs on them were canceled."""
    run = Run(
        job("a"), job("b", after="a"), job("side"), job("after-side", after="side"),
        approval("ask"), event("wait"),
    )  # fmt: skip
    return run.fails("a", "broken")


@pytest.mark.parametrize("kind", REOPENING)
def test_everything_that_the_failure_had_canceled_comes_back(kind: type[c.Command]) -> None:
    run = failed_run()
    assert set(run.statuses.values()) == {"failed", "canceled"}
    run.does(kind, "a")
    assert run.status == RunStatus.RUNNING
    assert (run.error, run.state.vitals.finished_at_ms) == (None, None)
    over = kind in {c.SkipStep, c.ForceCompleteStep}
    first = {"SkipStep": "skipped", "ForceCompleteStep": "completed"}.get(kind.__name__, "running")
    assert run.statuses == {
        "a": first,
        "b": "running" if over else "waiting",
        "side": "running",
        "after-side": "waiting",
        "ask": "waiting",
        "wait": "waiting",
    }
    assert run.step("side").attempt == 2


@pytest.mark.parametrize("kind", REOPENING)
def test_a_reopened_run_without_a_slot_joins_the_end_of_the_queue(kind: type[c.Command]) -> None:
    run = failed_run().does(kind, "a", slot=False)
    assert run.status == RunStatus.PENDING
    assert run.effects(QueueRun) == [QueueRun(since_ms=run.now)]
    assert run.state.vitals.queued_at_ms == run.now
    assert run.waits["side"] == "run_queue"
    assert not run.effects(StartAttempt)
    started = run.state.vitals.started_at_ms
    run.does(c.AdmitRun)
    assert run.statuses["side"] == "running"
    assert run.state.vitals.started_at_ms == started, "started_at is the first start"


def test_the_deadline_is_computed_anew() -> None:
    run = Run(job("a"), timeout_secs=60.0)
    run.fires()
    assert run.status == RunStatus.TIMED_OUT
    run.after_secs(500).does(c.RetryStep, "a")
    assert run.state.vitals.expires_at_ms == run.now + 60_000
    assert ScheduleTimer(step=None, due_ms=run.now + 60_000) in run.effects(ScheduleTimer)
    run.fires()
    assert run.status == RunStatus.TIMED_OUT


@pytest.mark.parametrize("kind", [c.RetryStep, c.ReplaySubtree])
def test_a_completed_run_is_reopened_too(kind: type[c.Command]) -> None:
    run = Run(job("a"), job("b", after="a")).completes("a", "b").does(kind, "a")
    assert run.status == RunStatus.RUNNING
    run.completes("a")
    if kind is c.ReplaySubtree:
        run.completes("b")
    assert run.status == RunStatus.COMPLETED


def test_a_run_that_was_canceled_in_the_queue_starts_with_its_reopen() -> None:
    run = Run(job("a"), slot=False).does(c.CancelRun)
    assert run.state.vitals.started_at_ms is None
    run.does(c.RetryStep, "a")
    assert run.state.vitals.started_at_ms == run.now
    assert run.statuses == {"a": "running"}


def test_what_was_skipped_by_an_operator_or_a_condition_stays_so() -> None:
    no = {"type": "eq", "left": 1, "right": 2}
    run = Run(job("a"), job("no", condition=no), job("b", after="no")).does(c.SkipStep, "b")
    run.fails("a").does(c.RetryStep, "a")
    assert run.statuses == {"a": "running", "no": "skipped", "b": "skipped"}


def test_a_failed_step_left_standing_counts_as_failed_under_skip_dependents() -> None:
    run = failed_run()
    run.does(c.RetryStep, "side")
    assert run.statuses == {
        "a": "failed",
        "b": "skipped",
        "side": "running",
        "after-side": "waiting",
        "ask": "waiting",
        "wait": "waiting",
    }
    assert run.step("b").skipped_by is SkippedBy.DEPENDENCY
    run.completes("side", "after-side").does(c.ApproveStep, "ask").receives("wait")
    assert run.status == RunStatus.FAILED
    assert run.error == "step 'a' failed: broken"


def test_what_hangs_on_a_step_left_standing_is_skipped_transitively() -> None:
    run = Run(job("a"), job("b", "a"), job("c", "b"), job("d", ("c", "side")), job("side"))
    run.fails("a").does(c.RetryStep, "side")
    assert [run.statuses[ref] for ref in "bcd"] == ["skipped"] * 3
    run.completes("side")
    assert run.status == RunStatus.FAILED


def test_a_step_left_standing_can_be_retried_later_and_its_dependents_come_back() -> None:
    run = failed_run().does(c.RetryStep, "side").does(c.RetryStep, "a")
    assert run.statuses["b"] == "waiting"
    run.completes("a", "side", "b", "after-side").does(c.ApproveStep, "ask").receives("wait")
    assert run.status == RunStatus.COMPLETED


def test_a_reopen_that_leaves_nothing_to_do_ends_again_in_the_same_transition() -> None:
    run = Run(job("a", on_failure="continue")).fails("a")
    assert run.status == RunStatus.COMPLETED
    run.does(c.SkipStep, "a")
    assert type(run.last.events[0]) is RunReopened
    assert type(run.last.events[-1]) is RunEnded
    assert run.effects(ReleaseRunSlot)
    assert run.status == RunStatus.COMPLETED


def test_such_a_reopen_without_a_slot_ends_when_the_slot_comes() -> None:
    run = Run(job("a", on_failure="continue")).fails("a").does(c.SkipStep, "a", slot=False)
    assert (run.status, run.statuses) == (RunStatus.PENDING, {"a": "skipped"})
    run.does(c.AdmitRun)
    assert run.status == RunStatus.COMPLETED


def test_a_reopen_that_fails_at_once_leaves_nothing_behind() -> None:
    needs = {"x": "{{ steps.a.output.x }}"}
    run = Run(
        sub("child"), job("boom"), job("a"), event("wait"), sub("new", after="boom"),
        job("z", after=("a", "boom"), payload=needs), timeout_secs=60.0,
    )  # fmt: skip
    run.completes("a", output={}).fails("boom")
    assert [e.what for e in run.effects(TellChild)] == ["cancel"]
    child = run.step("child").child_run_id

    run.does(c.SkipStep, "boom")
    assert run.events[-1] == "RunEnded"
    assert (run.error or "").startswith("step 'z' failed: payload: ")
    assert [type(e) for e in run.last.effects] == [ReleaseRunSlot], "nothing was begun"
    assert run.step("child").child_run_id == child, "this child can go on later"
    assert run.step("new").child_run_id is None, "this one never came to be"
    assert run.step("new").attempt == 1

    run.does(c.SkipStep, "z")
    assert [(e.child_run_id, e.what) for e in run.effects(TellChild)] == [(child, "reopen")]
    assert [e.attempt for e in run.effects(StartChild)] == [2]
