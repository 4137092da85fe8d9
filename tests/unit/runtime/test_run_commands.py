"""Cancel, pause and resume of a run; creation and the queue (runs.md §6 and §10)."""

from __future__ import annotations

import pytest

from pilotage.runtime import commands as c
from pilotage.runtime.effects import (
    EmitEvent,
    QueueRun,
    ReleaseRunSlot,
    ReleaseSlot,
    StartAttempt,
    StopAttempt,
    TellChild,
    UnparkEvent,
)
from pilotage.runtime.replies import Done
from pilotage.runtime.settle import MAX_ERROR_CHARS
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


def full_run() -> Run:
    """Something of everything in progress."""
    return Run(
        job("run"), approval("ask"), event("wait"), sleep("nap"), sub("child"),
        job("slot", job_id=LIMITED), job("later", after="run"), timeout_secs=90.0,
    )  # fmt: skip


# --- cancel ----------------------------------------------------------------------------------


def test_cancel_ends_everything_and_takes_everything_back() -> None:
    run = full_run().does(c.CancelRun, reason="wrong order")
    assert run.status == RunStatus.CANCELED
    assert run.error == "canceled by ops: wrong order"
    assert set(run.statuses.values()) == {"canceled"}
    assert run.effects(StopAttempt) == [StopAttempt(step=0, attempt=1)]
    assert [e.event_key for e in run.effects(UnparkEvent)] == ["k"]
    assert [e.what for e in run.effects(TellChild)] == ["cancel"]
    assert [e.step for e in run.effects(ReleaseSlot)] == [run.i("slot")]
    assert run.effects(ReleaseRunSlot)
    assert not run.world.timers


@pytest.mark.parametrize("slot", [True, False])
def test_cancel_without_a_reason_names_who_did_it_also_in_the_queue(slot: bool) -> None:
    run = Run(job("a"), slot=slot).does(c.CancelRun, actor="ann")
    assert (run.status, run.error) == (RunStatus.CANCELED, "canceled by ann")


def test_a_long_reason_is_cut() -> None:
    run = Run(job("a")).does(c.CancelRun, reason="y" * 9_000)
    assert len(run.error or "") == MAX_ERROR_CHARS


def test_cancel_of_a_paused_run() -> None:
    assert Run(job("a")).does(c.PauseRun).does(c.CancelRun).status == RunStatus.CANCELED


# --- pause and resume ------------------------------------------------------------------------


def test_nothing_new_starts_in_a_paused_run_and_what_ends_is_recorded() -> None:
    run = Run(
        job("a"), approval("b"), event("c"), sleep("d"), job("r", retry_max_attempts=2),
        *(job(f"after-{ref}", after=ref) for ref in "abcd"),
    )  # fmt: skip
    run.does(c.PauseRun).completes("a", output=1).fails("r")
    run.does(c.ApproveStep, "b").receives("c", b"2").fires("d").fires("r")
    assert run.status == RunStatus.PAUSED
    assert [run.statuses[ref] for ref in "abcd"] == ["completed"] * 4
    assert run.step("a").output == b"1"
    assert run.waits == {f"after-{ref}": "paused" for ref in "abcd"} | {"r": "paused"}
    run.does(c.ResumeRun)
    started = [e.step for e in run.effects(StartAttempt)]
    assert started == [run.i("r"), *(run.i(f"after-{ref}") for ref in "abcd")]
    assert run.step("r").attempt == 2


def test_pause_and_resume_that_hold_already_change_nothing() -> None:
    run = Run(job("a")).does(c.ResumeRun)
    assert run.last.reply == Done(changed=False)
    run.does(c.PauseRun).does(c.PauseRun)
    assert run.last.reply == Done(changed=False)
    assert not run.last.events


def test_a_paused_run_ends_at_once_when_nothing_is_left_that_could_start() -> None:
    run = Run(job("a", on_failure=SKIP), job("b", after="a")).does(c.PauseRun).fails("a")
    assert run.status == RunStatus.FAILED
    run = Run(job("a")).does(c.PauseRun).completes("a")
    assert run.status == RunStatus.COMPLETED


def test_pause_keeps_the_place_in_the_queue_of_a_job() -> None:
    run = Run(job("a", job_id=LIMITED))
    since = run.step("a").ready_since_ms
    run.does(c.PauseRun)
    assert run.waits == {"a": "paused"}
    run.deliver_grants()
    assert run.effects(ReleaseSlot), "a paused run takes no slot"
    run.does(c.ResumeRun)
    assert run.world.grants[0].since_ms == since
    run.deliver_grants()
    assert run.statuses == {"a": "running"}


def test_an_attempt_s_timeout_counts_in_a_paused_run() -> None:
    run = Run(job("a")).does(c.PauseRun).fires("a")
    assert run.status == RunStatus.FAILED


def test_a_condition_is_evaluated_at_the_resume() -> None:
    seen = {"type": "step_status", "step_ref": "a", "status": "completed"}
    run = Run(job("a"), job("b", after="a", condition=seen)).does(c.PauseRun).completes("a")
    assert run.waits == {"b": "paused"}
    assert not run.step("b").checked
    run.does(c.ResumeRun)
    assert run.statuses["b"] == "running"


def test_a_step_that_parks_parks_at_the_resume() -> None:
    run = Run(job("a"), approval("b", after="a")).does(c.PauseRun).completes("a")
    assert run.waits == {"b": "paused"}
    run.does(c.ResumeRun)
    assert run.waits == {"b": "approval"}


def test_a_reject_fails_a_paused_run() -> None:
    run = Run(approval("a"), job("b")).does(c.PauseRun).does(c.RejectStep, "a", reason="no budget")
    assert run.status == RunStatus.FAILED
    assert run.error == "step 'a' failed: rejected by ops: no budget"


# --- queue and hold --------------------------------------------------------------------------


def test_skip_and_force_complete_of_a_queued_run_are_recorded_and_it_still_waits() -> None:
    run = Run(job("a"), job("b", after="a"), job("c", after="b"), slot=False)
    run.does(c.ForceCompleteStep, "a", result=b"7").does(c.SkipStep, "b")
    assert run.status == RunStatus.PENDING
    assert run.waits == {"c": "run_queue"}
    run.does(c.SkipStep, "c")
    assert (run.status, run.waits) == (RunStatus.PENDING, {})
    run.does(c.AdmitRun)
    assert run.status == RunStatus.COMPLETED


def test_force_complete_of_a_queued_run_sends_its_event() -> None:
    run = Run(job("a", event_emit_key="done"), slot=False).does(c.ForceCompleteStep, "a")
    assert run.effects(EmitEvent) == [EmitEvent(event_key="done", at_ms=run.now)]


def test_a_replay_in_a_queued_run_leaves_it_in_the_queue() -> None:
    run = Run(job("a"), job("b", after="a"), slot=False)
    run.does(c.ForceCompleteStep, "a").does(c.ReplaySubtree, "a")
    assert run.waits == {"a": "run_queue", "b": "dependencies"}


def test_a_held_run_keeps_its_place_and_gets_no_slot_until_it_is_let_go() -> None:
    run = Run(job("a"), held=True)
    assert run.status == RunStatus.PENDING
    assert run.effects(QueueRun) == [QueueRun(since_ms=run.now, held=True)]
    since = run.now
    run.does(c.AdmitRun)
    assert run.last.reply == Done(changed=False)
    run.does(c.HoldRun, held=False)
    assert run.effects(QueueRun) == [QueueRun(since_ms=since, held=False)]
    run.does(c.AdmitRun)
    assert run.status == RunStatus.RUNNING


def test_hold_of_a_run_in_the_queue_holds_it_and_again_changes_nothing() -> None:
    run = Run(job("a"), slot=False).does(c.HoldRun, held=True)
    assert run.state.vitals.held
    run.does(c.HoldRun, held=True)
    assert run.last.reply == Done(changed=False)


def test_hold_of_a_delayed_run_leaves_it_out_of_the_queue() -> None:
    run = Run(job("a"), delay_until_ms=1_700_000_009_000).does(c.HoldRun, held=True)
    assert not run.effects(QueueRun)
    run.fires()
    assert [e.held for e in run.effects(QueueRun)] == [True]


def test_hold_pauses_a_running_run_and_lets_a_paused_one_go_on() -> None:
    run = Run(job("a")).does(c.HoldRun, held=True)
    assert run.status == RunStatus.PAUSED
    run.does(c.HoldRun, held=True)
    assert run.last.reply == Done(changed=False)
    run.does(c.HoldRun, held=False)
    assert run.status == RunStatus.RUNNING
    run.does(c.HoldRun, held=False)
    assert run.last.reply == Done(changed=False)


@pytest.mark.parametrize("held", [True, False])
def test_hold_of_a_run_that_is_over_changes_nothing(held: bool) -> None:
    run = Run(job("a")).completes("a").does(c.HoldRun, held=held)
    assert run.last.reply == Done(changed=False)


# --- overrides, pins -------------------------------------------------------------------------


def test_a_step_that_is_switched_off_is_skipped_and_satisfies_its_dependents() -> None:
    run = Run(job("a"), job("b", after="a"), disabled=("a",))
    assert run.statuses == {"a": "skipped", "b": "running"}
    assert run.step("a").skipped_by is SkippedBy.OVERRIDE
    assert run.step("a").error is None


def test_a_run_is_pinned_once_also_after_its_end() -> None:
    run = Run(job("a")).completes("a").does(c.PinRun, pinned=True)
    assert run.state.vitals.pinned
    run.does(c.PinRun, pinned=True)
    assert run.last.reply == Done(changed=False)
    run.does(c.PinRun, pinned=False)
    assert not run.state.vitals.pinned


def test_a_tolerated_failure_is_no_failure_of_the_run() -> None:
    run = Run(approval("a", on_failure=GO_ON), job("b")).does(c.RejectStep, "a").completes("b")
    assert run.status == RunStatus.COMPLETED
    assert run.step("a").error == "rejected by ops"
