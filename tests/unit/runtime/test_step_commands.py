"""Approve, skip, force-complete, retry step and replay subtree (runs.md §6)."""

from __future__ import annotations

import msgspec
import pytest

from pilotage.runtime import commands as c
from pilotage.runtime.definition import StepSpec
from pilotage.runtime.effects import (
    EmitEvent,
    ReleaseSlot,
    RequestSlot,
    StartAttempt,
    StopAttempt,
    UnparkEvent,
)
from pilotage.runtime.inputs import MAX_OUTPUT_BYTES, MAX_OUTPUTS_BYTES
from pilotage.runtime.replies import Done, ResetSteps
from pilotage.runtime.rules import RejectionCode
from pilotage.runtime.state import Resolution
from pilotage.runtime.status import RunStatus, SkippedBy
from tests.support.run_story import (
    GO_ON,
    LIMITED,
    SKIP,
    Run,
    approval,
    event,
    job,
    sleep,
    sub,
)

FALSE = {"type": "eq", "left": 1, "right": 2}


# --- approve and reject ----------------------------------------------------------------------


def test_approve_completes_the_step_with_who_and_when() -> None:
    run = Run(approval("a"), job("b", after="a")).does(c.ApproveStep, "a", comment="fine")
    assert msgspec.json.decode(run.step("a").output or b"") == {
        "approved_by": "ops",
        "approved_at": "2023-11-14T22:13:20.002Z",
        "comment": "fine",
    }
    assert run.step("a").attempt == 1
    assert run.statuses["b"] == "running"


def test_approve_without_a_comment_says_none() -> None:
    run = Run(approval("a")).does(c.ApproveStep, "a")
    assert set(msgspec.json.decode(run.step("a").output or b"")) == {"approved_by", "approved_at"}


def test_anyone_may_decide_when_no_approvers_are_named_and_else_only_those() -> None:
    run = Run(approval("a"), approval("b", approval_approvers=("ops", "ann")))
    run.does(c.ApproveStep, "a", actor="whoever")
    assert run.refuses(c.RejectStep(step=1, actor="whoever")).code is RejectionCode.FORBIDDEN
    run.does(c.ApproveStep, "b", actor="ann")
    assert run.status == RunStatus.COMPLETED


def test_reject_fails_the_step_final_and_its_policy_applies() -> None:
    run = Run(approval("a", on_failure=SKIP), job("b", after="a"), job("c"))
    run.does(c.RejectStep, "a")
    assert run.statuses == {"a": "failed", "b": "skipped", "c": "running"}
    assert run.step("a").resolution is Resolution.REJECTED


def test_an_approval_of_a_run_that_is_over_is_a_conflict() -> None:
    run = Run(approval("a")).does(c.CancelRun)
    assert 'step "a" is canceled; only a waiting step can be approved' in run.refused(
        c.ApproveStep, "a"
    )


# --- skip and force-complete -----------------------------------------------------------------


@pytest.mark.parametrize("kind", [c.SkipStep, c.ForceCompleteStep])
@pytest.mark.parametrize(
    "step",
    [
        job("a"), job("a", after="z"), job("a", job_id=LIMITED), approval("a"), event("a"),
        sleep("a"), sub("a"),
    ],
)  # fmt: skip
def test_a_step_that_is_not_over_is_skipped_or_completed_and_taken_back(
    kind: type[c.Command], step: StepSpec
) -> None:
    run = Run(step, job("b", after="a"), approval("z")).does(kind, "a")
    assert run.statuses["a"] == ("skipped" if kind is c.SkipStep else "completed")
    assert run.statuses["b"] == "running"
    assert not run.world.parked
    assert not run.world.holders
    assert 0 not in run.world.timers


def test_skip_keeps_the_reason_as_error() -> None:
    run = Run(job("a"), job("b")).does(c.SkipStep, "a", reason="not today")
    assert run.step("a").error == "not today"
    assert run.step("a").skipped_by is SkippedBy.OPERATOR
    run.does(c.SkipStep, "a", reason="again")
    assert run.last.reply == Done(changed=False)


def test_force_complete_does_not_need_the_dependencies() -> None:
    run = Run(job("a"), job("b", after="a"), job("c", after="b"))
    run.does(c.ForceCompleteStep, "b", result=b'{"v": 3}')
    assert run.statuses == {"a": "running", "b": "completed", "c": "running"}
    assert b'"parent_outputs":{"b":{"v": 3}}' in run.effects(StartAttempt)[0].input


def test_a_result_of_json_null_is_the_same_as_none() -> None:
    run = Run(job("a"), job("b")).does(c.ForceCompleteStep, "a", result=b" null ")
    assert run.step("a").output is None
    run.does(c.ForceCompleteStep, "a")
    assert run.last.reply == Done(changed=False)


def test_a_result_that_is_too_large_is_refused_and_changes_nothing() -> None:
    run = Run(job("a"))
    found = run.refuses(c.ForceCompleteStep(step=0, result=b"1" * (MAX_OUTPUT_BYTES + 1)))
    assert found.code is RejectionCode.INVALID
    assert found.message == "result: output is 1048577 bytes; at most 1048576 are kept"
    assert run.statuses == {"a": "running"}


def test_a_result_whose_event_key_cannot_be_made_is_refused() -> None:
    run = Run(job("a", event_emit_key="{{ payload.missing }}"))
    found = run.refuses(c.ForceCompleteStep(step=0))
    assert found.code is RejectionCode.INVALID
    assert "payload.missing" in found.message


def test_skip_of_a_failed_step_brings_back_what_was_skipped_because_of_it() -> None:
    run = Run(job("a", on_failure=SKIP), job("b", after="a"), job("c", after="b"), job("z"))
    run.fails("a").does(c.SkipStep, "a")
    assert run.statuses == {"a": "skipped", "b": "running", "c": "waiting", "z": "running"}
    run.completes("b", "c", "z")
    assert run.status == RunStatus.COMPLETED


def test_skip_of_a_tolerated_failure_changes_only_the_step() -> None:
    run = Run(job("a", on_failure=GO_ON), job("b", after="a")).fails("a").does(c.SkipStep, "a")
    assert run.events == ["StepSkipped a"]
    assert run.statuses == {"a": "skipped", "b": "running"}


# --- retry step ------------------------------------------------------------------------------


def test_retry_of_a_completed_step_leaves_its_completed_dependents() -> None:
    run = Run(job("a"), job("b", after="a")).completes("a", "b")
    run.does(c.RetryStep, "a")
    assert run.statuses == {"a": "running", "b": "completed"}
    assert run.status == RunStatus.RUNNING
    assert run.step("a").output is None
    run.completes("a")
    assert run.status == RunStatus.COMPLETED


def test_retry_does_not_evaluate_the_condition_again() -> None:
    run = Run(job("a", condition=FALSE), job("b")).does(c.RetryStep, "a")
    assert run.statuses["a"] == "running"


@pytest.mark.parametrize("state", ["paused", "queued", "limited"])
def test_a_retried_step_waits_where_it_may_not_start(state: str) -> None:
    run = Run(job("a"), job("z"), max_parallel_steps=1 if state == "limited" else 0)
    run.completes("a")
    if state == "paused":
        run.does(c.PauseRun)
    if state == "queued":
        run.completes("z")
    run.does(c.RetryStep, "a", slot=False)
    reasons = {"paused": "paused", "queued": "run_queue", "limited": "parallel_limit"}
    assert run.waits == {"a": reasons[state]}


@pytest.mark.parametrize("step", [approval("a"), sleep("a"), event("a")])
@pytest.mark.parametrize("paused", [True, False])
def test_a_parking_step_that_is_retried_parks_again(step: StepSpec, paused: bool) -> None:
    run = Run(step, job("z")).does(c.ForceCompleteStep, "a")
    if paused:
        run.does(c.PauseRun).does(c.RetryStep, "a")
        assert run.waits == {"a": "paused"}
        run.does(c.ResumeRun)
    else:
        run.completes("z").does(c.RetryStep, "a", slot=False)
        assert run.waits == {"a": "run_queue"}
        run.does(c.AdmitRun)
    assert run.statuses["a"] == "waiting"
    assert run.step("a").attempt == 2
    assert not run.effects(StartAttempt)


def test_retry_with_open_dependencies_waits_for_them() -> None:
    run = Run(job("a"), job("b", after="a")).does(c.ForceCompleteStep, "b").does(c.RetryStep, "b")
    assert run.waits == {"b": "dependencies"}
    run.completes("a")
    assert run.statuses["b"] == "running"


@pytest.mark.parametrize("policy", ["skip_dependents", "fail_workflow"])
def test_retry_below_a_failed_step_is_refused_and_names_the_culprit(policy: str) -> None:
    run = Run(
        job("a", on_failure=policy),
        job("m", after="a"),
        job("b", after="m"),
        job("x"),
        job("y", "x"),
    ).fails("a")
    assert run.refused(c.RetryStep, "b") == (
        'step "b" depends on step "a", which failed and can never be satisfied as things stand; '
        'retry step "a" instead'
    )
    run.does(c.RetryStep, "a")
    assert run.statuses["a"] == "running"


def test_retry_looks_no_further_than_a_satisfied_dependency() -> None:
    run = Run(job("a", on_failure=SKIP), job("m", after="a"), job("b", after=("m", "x")), job("x"))
    run.does(c.ForceCompleteStep, "m").fails("a").completes("x", "b").does(c.RetryStep, "b")
    assert run.statuses["b"] == "running"


def test_retry_in_an_active_run_resets_what_was_skipped_because_of_the_step() -> None:
    run = Run(
        job("a", on_failure=SKIP), job("z", on_failure=SKIP), job("b", after="a"),
        job("c", after=("b", "z")), job("d", after="z"), approval("hold"),
    )  # fmt: skip
    run.fails("a").fails("z").does(c.RetryStep, "a")
    assert run.statuses == {
        "a": "running",
        "z": "failed",
        "b": "waiting",
        "c": "skipped",
        "d": "skipped",
        "hold": "waiting",
    }


def test_a_step_that_is_parked_stays_so_while_its_dependency_is_tried_again() -> None:
    run = Run(job("a"), approval("b", after="a"), event("c", after="a")).completes("a")
    run.does(c.RetryStep, "a").completes("a")
    assert run.waits == {"b": "approval", "c": "event"}
    assert (run.step("b").attempt, run.step("c").attempt) == (1, 1)


# --- replay subtree --------------------------------------------------------------------------


def test_replay_resets_the_step_and_all_its_dependents_and_nothing_else() -> None:
    run = Run(
        job("up"), job("a", after="up"), job("b", after="a"), job("c", "b"), job("side", "up")
    )
    run.completes("up", output=1).completes("a", "b", "c", "side")
    assert run.status == RunStatus.COMPLETED
    run.does(c.ReplaySubtree, "a")
    assert run.last.reply == ResetSteps(count=3)
    assert run.statuses == {
        "up": "completed",
        "a": "running",
        "b": "waiting",
        "c": "waiting",
        "side": "completed",
    }
    assert run.step("a").attempt == 2
    assert b'"parent_outputs":{"up":1}' in run.effects(StartAttempt)[0].input
    assert (run.step("b").output, run.step("b").error) == (None, None)


def test_replay_stops_attempts_and_withdraws_waits() -> None:
    run = Run(
        job("a"), approval("ask", "a"), event("wait", "a"), sleep("nap", "a"), job("run", "a"),
        sub("child", "a"), job("slot", "a", job_id=LIMITED), job("held", "a", job_id=LIMITED),
    )  # fmt: skip
    run.completes("a")
    run.give(run.world.grants.pop(0))
    run.does(c.ReplaySubtree, "a")
    assert run.last.reply == ResetSteps(count=8)
    assert run.statuses == {"a": "running"} | dict.fromkeys(list(run.statuses)[1:], "waiting")
    assert run.waits == dict.fromkeys(list(run.statuses)[1:], "dependencies")
    assert {e.step for e in run.effects(StopAttempt)} == {run.i("run"), run.i("slot")}
    assert {e.step for e in run.effects(ReleaseSlot)} == {run.i("slot"), run.i("held")}
    assert [e.step for e in run.effects(UnparkEvent)] == [run.i("wait")]


def test_replay_of_a_running_step_that_holds_a_slot_gives_it_back_and_asks_again() -> None:
    run = Run(job("a", job_id=LIMITED)).deliver_grants().does(c.ReplaySubtree, "a")
    assert [type(e) for e in run.last.effects][:3] == [StopAttempt, ReleaseSlot, RequestSlot]
    run.deliver_grants()
    assert run.step("a").attempt == 2


def test_replay_of_a_parked_event_parks_it_anew() -> None:
    run = Run(event("a")).does(c.ReplaySubtree, "a")
    assert [type(e).__name__ for e in run.last.effects][:2] == ["UnparkEvent", "ParkEvent"]
    assert run.world.parked == {0: (2, "k")}


def test_replay_of_a_step_that_never_ran_changes_nothing() -> None:
    run = Run(job("a"), job("b", after="a")).does(c.ReplaySubtree, "b")
    assert run.last.reply == ResetSteps(count=1)
    assert not run.last.events


def test_replay_below_a_standing_failure_is_skipped_again() -> None:
    run = Run(job("a", on_failure=SKIP), job("b", after="a"), job("z")).fails("a")
    run.does(c.ReplaySubtree, "b")
    assert run.statuses == {"a": "failed", "b": "skipped", "z": "running"}


def test_replay_evaluates_conditions_again() -> None:
    seen = {"type": "eq", "left": "{{ steps.a.output.n }}", "right": 2}
    run = Run(job("a"), job("b", after="a", condition=seen)).completes("a", output={"n": 1})
    assert run.statuses["b"] == "skipped"
    run.does(c.ReplaySubtree, "a").completes("a", output={"n": 2})
    assert run.statuses["b"] == "running"


# --- bounds of outputs, events of steps ------------------------------------------------------


def test_outputs_are_bounded_together() -> None:
    run = Run(*(job(f"s{i}", on_failure=GO_ON) for i in range(66)))
    big = "x" * (MAX_OUTPUT_BYTES - 2)
    for i in range(64):
        run.completes(f"s{i}", output=big)
    assert run.state.masks.output_bytes == MAX_OUTPUTS_BYTES
    run.completes("s64", output=1)
    assert run.step("s64").error == (
        "outputs of the run's steps together would be 67108865 bytes; at most 67108864 are kept"
    )
    run.does(c.ReplaySubtree, "s0").completes("s65", output=1)
    assert run.statuses["s65"] == "completed"


def test_a_completed_step_sends_its_event_with_its_output() -> None:
    run = Run(job("a", event_emit_key="order-{{ payload.n }}"), payload=b'{"n": 7}')
    run.completes("a", output={"x": 1})
    assert run.effects(EmitEvent) == [
        EmitEvent(event_key="order-7", payload=b'{"x":1}', at_ms=run.now)
    ]


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("{{ payload.missing }}", "payload.missing"),
        ("{{ payload.flag }}", "event_emit_key must give text, not true"),
        ("{{ payload.empty }}", 'event_emit_key must give text, not ""'),
        ("{{ payload.long }}", "event_emit_key gives 513 characters; at most 512 are allowed"),
    ],
)
def test_an_event_key_that_cannot_be_made_fails_the_step_final(key: str, problem: str) -> None:
    payload = msgspec.json.encode({"flag": True, "empty": "", "long": "k" * 513})
    run = Run(job("a", event_emit_key=key, retry_max_attempts=3), payload=payload).completes("a")
    assert run.status == RunStatus.FAILED
    assert problem in (run.step("a").error or "")
    assert not run.effects(EmitEvent)


def test_a_number_is_a_fine_event_key() -> None:
    run = Run(job("a", event_emit_key="{{ payload.n }}"), payload=b'{"n": 12}').completes("a")
    assert run.effects(EmitEvent) == [EmitEvent(event_key="12", at_ms=run.now)]
