"""The table of legal moves: every row in every status (runs.md §6 and §10)."""

from __future__ import annotations

import pytest

from pilotage.runtime import commands as c
from pilotage.runtime.machine import Transition, step
from pilotage.runtime.replies import Done
from pilotage.runtime.rerun import retry_of
from pilotage.runtime.rules import (
    RETRY_RUN,
    RUN_MOVES,
    STEP_MOVES,
    Rejection,
    RejectionCode,
    words,
)
from pilotage.runtime.state import Resolution, RunState, RunVitals, StepState, chunked, rebuild
from pilotage.runtime.status import RunStatus as R, SkippedBy, StepStatus as S, WaitingFor
from tests.support.run_story import START, Run, approval, job

ACTS, HOLDS, NO = "acts", "holds already", "is refused"

# What runs.md says, not what the code has: one letter a status, in the order of the enum.
RUN_TABLE: dict[type[c.Command], dict[R, str]] = {
    c.CancelRun: {
        R.PENDING: ACTS,
        R.RUNNING: ACTS,
        R.PAUSED: ACTS,
        R.COMPLETED: NO,
        R.FAILED: NO,
        R.TIMED_OUT: NO,
        R.CANCELED: HOLDS,
    },
    c.PauseRun: {
        R.PENDING: NO,
        R.RUNNING: ACTS,
        R.PAUSED: HOLDS,
        R.COMPLETED: NO,
        R.FAILED: NO,
        R.TIMED_OUT: NO,
        R.CANCELED: NO,
    },
    c.ResumeRun: {
        R.PENDING: NO,
        R.RUNNING: HOLDS,
        R.PAUSED: ACTS,
        R.COMPLETED: NO,
        R.FAILED: NO,
        R.TIMED_OUT: NO,
        R.CANCELED: NO,
    },
}
_OPEN_OR_FAILED = dict.fromkeys((S.WAITING, S.PENDING, S.RUNNING, S.FAILED), ACTS)
_TERMINAL = (S.COMPLETED, S.FAILED, S.SKIPPED, S.CANCELED)
STEP_TABLE: dict[type[c.Command], dict[S, str]] = {
    c.ApproveStep: {**dict.fromkeys(S, NO), S.WAITING: ACTS},
    c.RejectStep: {**dict.fromkeys(S, NO), S.WAITING: ACTS},
    c.SkipStep: {**dict.fromkeys(S, NO), **_OPEN_OR_FAILED, S.SKIPPED: HOLDS},
    c.ForceCompleteStep: {**dict.fromkeys(S, NO), **_OPEN_OR_FAILED},
    c.RetryStep: {**dict.fromkeys(S, NO), **dict.fromkeys(_TERMINAL, ACTS)},
    c.ReplaySubtree: dict.fromkeys(S, ACTS),
}
RUN_CASES = [(k, s, want) for k, row in RUN_TABLE.items() for s, want in row.items()]
STEP_CASES = [(k, s, want) for k, row in STEP_TABLE.items() for s, want in row.items()]
RETRY_RUN_CASES = [(s, s in {R.FAILED, R.TIMED_OUT, R.CANCELED}) for s in R]


def in_status(status: R, first: StepState) -> RunState:
    """A run of two independent steps in any status; `first` is the state of the first step."""
    run = Run(approval("a"), job("b"))
    other = S.CANCELED if status.is_terminal else S.WAITING
    if status in {R.RUNNING, R.PAUSED}:
        other = S.COMPLETED
    ended = START if status.is_terminal else None
    vitals = RunVitals(status=status, started_at_ms=START, finished_at_ms=ended)
    chunks = chunked([first, StepState(status=other)])
    return rebuild(run.state.head, run.state.graph, vitals, chunks)


def step_in(status: S) -> tuple[R, StepState]:
    """A step in a status that the operator meets, and the status of its run then."""
    if status is S.WAITING:
        return R.RUNNING, StepState(status=S.WAITING, wait=WaitingFor.APPROVAL, attempt=1)
    if status is S.SKIPPED:
        return R.RUNNING, StepState(status=status, skipped_by=SkippedBy.OPERATOR)
    if status is S.PENDING:
        return R.PAUSED, StepState(status=status)
    if status in {S.FAILED, S.CANCELED}:
        return R.FAILED, StepState(status=status, error="boom", attempt=1)
    return R.RUNNING, StepState(status=status, attempt=1)


def test_every_row_of_the_table_is_tried_in_every_status() -> None:
    assert set(RUN_TABLE) == set(RUN_MOVES)
    assert set(STEP_TABLE) == set(STEP_MOVES)
    assert all(set(row) == set(R) for row in RUN_TABLE.values())
    assert all(set(row) == set(S) for row in STEP_TABLE.values())


@pytest.mark.parametrize(("kind", "status", "want"), RUN_CASES)
def test_command_about_a_run(kind: type[c.Command], status: R, want: str) -> None:
    first = StepState(status=S.CANCELED if status.is_terminal else S.WAITING)
    state = in_status(status, first)
    result = step(state, kind(actor="ops"), START)
    if want is NO:
        assert isinstance(result, Rejection)
        assert result.code is RejectionCode.CONFLICT
        assert result.found == status
        assert result.allowed == tuple(sorted(RUN_MOVES[kind].allowed))
        assert result.message.startswith(f"run is {status}; only a ")
        return
    assert isinstance(result, Transition)
    assert result.reply == Done(changed=want is ACTS)
    assert bool(result.events) is (want is ACTS)


@pytest.mark.parametrize(("kind", "status", "want"), STEP_CASES)
def test_command_about_a_step(kind: type[c.Command], status: S, want: str) -> None:
    run_status, found = step_in(status)
    result = step(in_status(run_status, found), kind(actor="ops", step=0), START)  # type: ignore[call-arg]
    if want is NO:
        assert isinstance(result, Rejection)
        assert result.code is RejectionCode.CONFLICT
        assert result.found == status
        assert result.allowed == tuple(sorted(STEP_MOVES[kind].allowed))
        assert result.message.startswith(f'step "a" is {status}; only a ')
        return
    assert isinstance(result, Transition)
    assert bool(result.events) is (want is ACTS)
    if isinstance(result.reply, Done):
        assert result.reply.changed is (want is ACTS)


@pytest.mark.parametrize(("status", "allowed"), RETRY_RUN_CASES)
def test_retry_run(status: R, allowed: bool) -> None:
    state = in_status(status, StepState(status=S.CANCELED if status.is_terminal else S.WAITING))
    result = retry_of(state, run_id="new", now=START, actor="ops", slot=True)
    if allowed:
        assert isinstance(result, c.CreateRun)
        return
    assert isinstance(result, Rejection)
    assert result.found == status
    assert result.allowed == tuple(sorted(RETRY_RUN.allowed))
    hint = "nothing to retry" if status is R.COMPLETED else "wait for its end, or cancel it first"
    assert hint in result.message


def test_a_refusal_says_what_was_found_and_what_is_allowed() -> None:
    run = Run(job("a"))
    run.completes("a")
    assert run.refused(c.PauseRun) == "run is completed; only a running run can be paused"
    assert run.refused(c.CancelRun) == (
        "run is completed; only a pending, running or paused run can be canceled"
    )
    assert run.refused(c.SkipStep, "a") == (
        'step "a" is completed; only a waiting, pending, running or failed step can be skipped; '
        "retry the step or replay its subtree to run it again"
    )


def test_words_follow_the_order_of_the_enums() -> None:
    assert words([S.COMPLETED], S) == "completed"
    assert words([R.PAUSED, R.RUNNING], R) == "running or paused"
    assert words([S.SKIPPED, S.PENDING, S.WAITING], S) == "waiting, pending or skipped"


def test_a_step_of_another_type_is_not_approved() -> None:
    run = Run(job("a"))
    assert run.refused(c.ApproveStep, "a") == (
        'step "a" is of type job; only an approval step can be approved'
    )


def test_an_approval_that_is_not_asked_for_yet_is_not_decided() -> None:
    run = Run(job("a"), approval("b", after="a"))
    assert run.refused(c.RejectStep, "b") == (
        'step "b" is waiting for its dependencies; it can be rejected once it is waiting for an '
        "approval"
    )


def test_who_may_not_decide_is_told_so_in_every_state() -> None:
    run = Run(job("a"), approval("b", after="a"), approval("c", approval_approvers=("boss",)))
    for _ in range(2):
        found = run.refuses(c.ApproveStep(step=run.i("c"), actor="eve"))
        assert found.code is RejectionCode.FORBIDDEN
        assert found.message == 'eve may not decide about step "c"; its approvers are boss'
        if run.status == R.RUNNING:
            run.does(c.CancelRun)


def test_approve_of_an_approved_step_is_a_success_and_the_other_way_round_a_conflict() -> None:
    run = Run(approval("a", on_failure="continue"), approval("b", on_failure="continue"), job("z"))
    run.does(c.ApproveStep, "a").does(c.RejectStep, "b")
    assert run.step("a").resolution is Resolution.APPROVED
    for kind, ref in ((c.ApproveStep, "a"), (c.RejectStep, "b")):
        run.does(kind, ref)
        assert run.last.reply == Done(changed=False)
    assert run.refused(c.RejectStep, "a") == (
        'step "a" is completed, it was approved already; only a waiting step can be rejected'
    )
    assert run.refused(c.ApproveStep, "b") == (
        'step "b" is failed, it was rejected already; only a waiting step can be approved'
    )


def test_force_complete_again_with_an_equal_result_is_a_success() -> None:
    run = Run(job("a"), job("b"))
    run.does(c.ForceCompleteStep, "a", result=b'{"x": 1, "y": [5]}')
    run.does(c.ForceCompleteStep, "a", result=b'{"y":[5.0],"x":1}')
    assert run.last.reply == Done(changed=False)
    for other in (b'{"x": true, "y": [5]}', b'{"x": 1}', None):
        assert run.refused(c.ForceCompleteStep, "a", result=other) == (
            'step "a" is completed, it was force-completed already, with another result; replay its'
            " subtree to run it again"
        )
    assert "step can be skipped" in run.refused(c.SkipStep, "a")
