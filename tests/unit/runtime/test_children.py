"""Sub-workflows: cancel, pause and resume go down, the end goes up (runs.md §7)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pilotage.runtime import commands as c
from pilotage.runtime.effects import StartChild, TellChild, TellParent
from pilotage.runtime.ids import is_run_id, shard_of
from pilotage.runtime.inputs import MAX_OUTPUT_BYTES
from pilotage.runtime.replies import Done, Late
from pilotage.runtime.status import RunStatus
from tests.support.run_story import GO_ON, PARENT_ID, RUN_ID, SKIP, Run, approval, job, sub

ENDS = [RunStatus.FAILED, RunStatus.TIMED_OUT, RunStatus.CANCELED]


def child_run(*steps: Any, **head: Any) -> Run:
    return Run(*steps, parent_run_id=PARENT_ID, parent_step=4, depth=1, **head)


# --- the parent -----


def test_a_sub_workflow_step_starts_a_child_with_its_input() -> None:
    run = Run(sub("a", payload={"y": 2}), payload=b'{"x": 1}')
    (start,) = run.effects(StartChild)
    assert (start.attempt, start.workflow) == (1, "child")
    assert msgspec.json.decode(start.payload) == {"x": 1, "y": 2, "parent_outputs": {}}
    assert is_run_id(start.child_run_id)
    assert shard_of(start.child_run_id) == shard_of(RUN_ID)
    assert run.view("a").child_workflow_run_id == start.child_run_id
    assert run.view("a").job_run_id is None


def test_every_child_has_an_id_of_its_own() -> None:
    run = Run(*(sub(f"s{i}") for i in range(40)))
    assert len({e.child_run_id for e in run.effects(StartChild)}) == 40


def test_the_child_s_output_is_the_output_of_the_step() -> None:
    run = Run(sub("a"), job("b", after="a")).child_ends("a")
    assert run.step("a").output == b'{"v": 1}'
    assert run.statuses == {"a": "completed", "b": "running"}


@pytest.mark.parametrize("status", ENDS)
def test_a_child_that_ends_badly_fails_the_step_with_its_error(status: RunStatus) -> None:
    run = Run(sub("a")).child_ends("a", status)
    assert run.error == "step 'a' failed: broken"


def test_a_child_without_an_error_is_named() -> None:
    run = Run(sub("a"))
    child = run.step("a").child_run_id or ""
    run.world.children[child].active = False
    run.give(c.ChildEnded(step=0, attempt=1, child_run_id=child, status=RunStatus.TIMED_OUT))
    assert run.step("a").error == f"child run {child} is timed_out"


def test_a_child_whose_output_is_too_large_fails_the_step_final() -> None:
    run = Run(sub("a", retry_max_attempts=3))
    child = run.step("a").child_run_id or ""
    run.world.children[child].active = False
    end = c.ChildEnded(
        step=0, attempt=1, child_run_id=child, status=RunStatus.COMPLETED, error="too large"
    )
    run.give(end)
    assert run.error == "step 'a' failed: too large"


def test_an_end_of_another_child_or_attempt_is_ignored() -> None:
    run = Run(sub("a", retry_max_attempts=2), job("z"))
    child = run.step("a").child_run_id or ""
    good = c.ChildEnded(step=0, attempt=1, child_run_id=child, status=RunStatus.COMPLETED)
    for wrong in (
        msgspec.structs.replace(good, attempt=0),
        msgspec.structs.replace(good, attempt=2),
        msgspec.structs.replace(good, child_run_id=RUN_ID),
        msgspec.structs.replace(good, step=1),
    ):
        run.give(wrong)
        assert run.last.reply == Late(superseded=True)
    run.child_ends("a", RunStatus.FAILED)
    run.give(good)
    assert run.last.reply == Late(superseded=False)


def test_cancel_goes_down() -> None:
    run = Run(sub("a"), sub("b", after="a")).does(c.CancelRun)
    child = run.step("a").child_run_id
    assert run.effects(TellChild) == [TellChild(child_run_id=child or "", what="cancel")]
    run.child_reports()
    assert run.last.reply == Late(superseded=False)


def test_pause_and_resume_go_down_to_children_that_run() -> None:
    run = Run(sub("a"), sub("b", after="a"), job("c")).does(c.PauseRun)
    assert [e.what for e in run.effects(TellChild)] == ["pause"]
    run.does(c.ResumeRun)
    assert [e.what for e in run.effects(TellChild)] == ["resume"]


def test_a_child_that_ends_while_its_parent_is_paused_is_recorded() -> None:
    run = Run(sub("a"), job("b", after="a")).does(c.PauseRun).child_ends("a")
    assert run.statuses == {"a": "completed", "b": "pending"}


@pytest.mark.parametrize("kind", [c.SkipStep, c.ForceCompleteStep])
def test_skip_and_force_complete_cancel_the_child(kind: type[c.Command]) -> None:
    run = Run(sub("a"), job("b")).does(kind, "a")
    assert [e.what for e in run.effects(TellChild)] == ["cancel"]


def test_a_step_retry_reopens_the_child_in_place() -> None:
    run = Run(sub("a")).child_ends("a", RunStatus.FAILED)
    child = run.step("a").child_run_id or ""
    run.does(c.RetryStep, "a")
    assert run.effects(TellChild) == [
        TellChild(child_run_id=child, what="reopen", parent_attempt=2)
    ]
    assert not run.effects(StartChild)
    run.child_ends("a")
    assert run.status == RunStatus.COMPLETED


def test_a_reopen_brings_back_the_canceled_children_of_side_branches() -> None:
    run = Run(job("x"), sub("a")).fails("x").does(c.RetryStep, "x")
    assert [e.what for e in run.effects(TellChild)] == ["reopen"]


def test_a_step_retry_after_success_makes_a_new_child() -> None:
    run = Run(sub("a")).child_ends("a")
    old = run.step("a").child_run_id
    run.does(c.RetryStep, "a")
    assert [e.attempt for e in run.effects(StartChild)] == [2]
    assert run.step("a").child_run_id != old


@pytest.mark.parametrize("running", [True, False])
def test_a_subtree_replay_makes_a_new_child(running: bool) -> None:
    run = Run(sub("a", on_failure=SKIP), job("z"))
    old = run.step("a").child_run_id
    if not running:
        run.child_ends("a", RunStatus.FAILED)
    run.does(c.ReplaySubtree, "a")
    assert [e.what for e in run.effects(TellChild)] == (["cancel"] if running else [])
    assert len(run.effects(StartChild)) == 1
    assert run.step("a").child_run_id != old
    run.child_reports()
    assert run.statuses["a"] == "running"


def test_sub_workflows_are_not_retried_by_themselves_unless_the_step_says_so() -> None:
    run = Run(sub("a", on_failure=GO_ON), sub("b", retry_max_attempts=2), job("z"))
    run.child_ends("a", RunStatus.FAILED).child_ends("b", RunStatus.TIMED_OUT)
    assert run.statuses["a"] == "failed"
    assert run.waits == {"b": "retry"}
    child = run.step("b").child_run_id
    run.fires("b")
    assert [(e.child_run_id, e.parent_attempt) for e in run.effects(TellChild)] == [(child, 2)]
    run.child_ends("b", RunStatus.FAILED)
    assert run.status == RunStatus.FAILED


def test_a_child_that_was_canceled_is_not_brought_back_by_a_retry_budget() -> None:
    run = Run(sub("a", retry_max_attempts=5)).child_ends("a", RunStatus.CANCELED)
    assert run.status == RunStatus.FAILED


@pytest.mark.parametrize(
    ("depth", "limit", "fits"),
    [
        (9, None, True),
        (10, None, False),
        (0, 1, True),
        (1, 1, False),
        (9, 50, True),
        (10, 50, False),
    ],
)
def test_nesting_is_bounded(depth: int, limit: int | None, fits: bool) -> None:
    run = Run(sub("a", max_nesting_depth=limit), depth=depth)
    assert run.status == (RunStatus.RUNNING if fits else RunStatus.FAILED)
    if not fits:
        assert run.error == (
            f"step 'a' failed: sub-workflows may be nested {min(limit or 10, 10)} deep at most"
        )
        assert run.step("a").attempt == 0


# --- the child -----


def test_the_end_goes_up_with_the_outputs_of_the_completed_steps() -> None:
    run = child_run(job("a"), job("b"), job("c", on_failure=GO_ON))
    run.completes("a", output=1).completes("b").fails("c")
    assert run.effects(TellParent) == [
        TellParent(
            parent_run_id=PARENT_ID,
            step=4,
            attempt=1,
            status=RunStatus.COMPLETED,
            output=b'{"a":1}',
        )
    ]


@pytest.mark.parametrize("how", ENDS)
def test_a_bad_end_goes_up_with_the_error(how: RunStatus) -> None:
    run = child_run(job("a"), timeout_secs=60.0)
    if how is RunStatus.FAILED:
        run.fails("a", "no")
    elif how is RunStatus.TIMED_OUT:
        run.fires()
    else:
        run.does(c.CancelRun)
    (told,) = run.effects(TellParent)
    assert (told.status, told.output, told.error) == (how, None, run.error)


def test_outputs_that_are_too_large_together_go_up_as_an_error() -> None:
    run = child_run(job("a"), job("b"))
    run.completes("a", output="x" * (MAX_OUTPUT_BYTES - 2)).completes("b", output=1)
    (told,) = run.effects(TellParent)
    assert told.status is RunStatus.COMPLETED
    assert told.output is None
    assert told.error == "output is 1048588 bytes; at most 1048576 are kept"


def test_outputs_that_just_fit_go_up() -> None:
    run = child_run(job("a")).completes("a", output="x" * (MAX_OUTPUT_BYTES - 8))
    (told,) = run.effects(TellParent)
    assert len(told.output or b"") == MAX_OUTPUT_BYTES


def test_a_run_without_a_parent_tells_nobody() -> None:
    assert not Run(job("a")).completes("a").effects(TellParent)


@pytest.mark.parametrize("slot", [True, False])
def test_a_reopened_child_runs_what_failed_and_what_was_canceled(slot: bool) -> None:
    run = child_run(job("a"), job("b"), job("c"), job("d", after="b")).completes("a").fails("b")
    run.does(c.ReopenChild, parent_attempt=2, slot=slot)
    if not slot:
        assert run.status == RunStatus.PENDING
        run.does(c.AdmitRun)
    assert run.statuses == {"a": "completed", "b": "running", "c": "running", "d": "waiting"}
    run.completes("b", "c", "d")
    assert [e.attempt for e in run.effects(TellParent)] == [2]


def test_a_reopened_child_evaluates_the_condition_that_could_not_be_evaluated() -> None:
    bad = {"type": "gt", "left": "{{ steps.a.output.n }}", "right": 1}
    run = child_run(job("a"), job("b", after="a", condition=bad)).completes("a", output={})
    run.does(c.ReopenChild, parent_attempt=2)
    assert run.status == RunStatus.FAILED
    assert run.step("b").attempt == 0


def test_a_reopened_child_reopens_its_own_failed_child() -> None:
    run = child_run(sub("a"), job("z")).child_ends("a", RunStatus.FAILED)
    run.does(c.ReopenChild, parent_attempt=2)
    assert [(e.what, e.parent_attempt) for e in run.effects(TellChild)] == [("reopen", 2)]


def test_a_child_that_has_completed_meanwhile_answers_at_once() -> None:
    run = child_run(job("a")).fails("a").does(c.RetryStep, "a").completes("a", output=3)
    assert [e.attempt for e in run.effects(TellParent)] == [-1], "no step waits for that"
    run.does(c.ReopenChild, parent_attempt=2)
    (told,) = run.effects(TellParent)
    assert (told.attempt, told.status, told.output) == (2, RunStatus.COMPLETED, b'{"a":3}')
    assert run.status == RunStatus.COMPLETED


@pytest.mark.parametrize("held", [True, False])
def test_a_child_reopened_by_hand_does_not_follow_what_was_meant_for_its_earlier_life(
    held: bool,
) -> None:
    """The parent was paused while the child ended; its resume would tell the child nothing."""
    run = child_run(job("a")).completes("a").does(c.RetryStep, "a", slot=False)
    run.does(c.HoldRun, held=held)
    assert run.events == []
    run.does(c.AdmitRun).does(c.HoldRun, held=held)
    assert run.status == RunStatus.RUNNING
    run.fails("a", final=True).does(c.ReopenChild, parent_attempt=1)
    assert run.events == [], "told twice"
    run.does(c.ReopenChild, parent_attempt=2, slot=False).does(c.HoldRun, held=True)
    assert run.events == ["RunHeldChanged"]


def test_a_child_that_goes_on_already_answers_to_the_new_attempt() -> None:
    run = child_run(job("a")).fails("a").does(c.RetryStep, "a")
    run.does(c.ReopenChild, parent_attempt=2)
    assert run.events == ["ParentAttemptChanged"]
    run.completes("a")
    assert [e.attempt for e in run.effects(TellParent)] == [2]


def test_a_reopen_that_is_told_twice_is_done_once() -> None:
    run = child_run(job("a")).fails("a").does(c.ReopenChild, parent_attempt=2).fails("a")
    run.does(c.ReopenChild, parent_attempt=2)
    assert run.last.reply == Done(changed=False)
    assert run.status == RunStatus.FAILED


def test_a_canceled_child_without_a_failed_step_goes_on() -> None:
    run = child_run(approval("a")).does(c.CancelRun).does(c.ReopenChild, parent_attempt=2)
    assert run.waits == {"a": "approval"}


def test_a_child_with_nothing_left_to_do_ends_at_once_and_says_so() -> None:
    run = child_run(job("a"), slot=False).does(c.SkipStep, "a").does(c.CancelRun)
    run.does(c.ReopenChild, parent_attempt=2)
    assert run.status == RunStatus.COMPLETED
    assert [e.attempt for e in run.effects(TellParent)] == [2]
