"""Retry run and bulk replay: a new run from an old one (runs.md §6)."""

from __future__ import annotations

from pilotage.runtime import commands as c
from pilotage.runtime.effects import StartAttempt
from pilotage.runtime.ids import make_run_id
from pilotage.runtime.rerun import replay_of, retry_of
from pilotage.runtime.status import RunStatus, SkippedBy
from tests.support.run_story import GO_ON, PARENT_ID, SKIP, START, Run, job, sub

NEW_ID = make_run_id(START, 99)


def retried(run: Run) -> Run:
    now = run.now + 1_000
    command = retry_of(run.state, run_id=NEW_ID, now=now, actor="ann", slot=True)
    assert isinstance(command, c.CreateRun)
    return Run.from_command(run.state.graph, command, now)


def test_what_is_done_is_carried_over_and_the_rest_starts_fresh() -> None:
    no = {"type": "exists", "operand": "{{ payload.no }}"}
    run = Run(
        job("done"), job("tolerated", on_failure=GO_ON), job("skipped"), job("cond", condition=no),
        job("off"), job("bad", after=("done", "tolerated", "skipped", "cond", "off")),
        job("later", after="bad"), disabled=("off",),
    )  # fmt: skip
    run.completes("done", output=1).fails("tolerated").does(c.SkipStep, "skipped", reason="no")
    run.fails("bad")
    new = retried(run)
    assert new.statuses == {
        "done": "completed",
        "tolerated": "failed",
        "skipped": "skipped",
        "cond": "skipped",
        "off": "skipped",
        "bad": "running",
        "later": "waiting",
    }
    for ref in ("done", "tolerated", "skipped"):
        assert new.step(ref) == run.step(ref), "as they are"
    assert new.step("cond").finished_at_ms == new.now, "evaluated anew"
    assert new.step("off").skipped_by is SkippedBy.OVERRIDE
    assert new.step("bad").attempt == 1
    assert b'"done":1' in new.effects(StartAttempt)[0].input
    new.completes("bad", "later")
    assert new.status == RunStatus.COMPLETED


def test_the_new_run_has_the_same_version_payload_tags_and_limits_and_no_parent() -> None:
    run = Run(
        job("a"), payload=b'{"x": 1}', tags={"k": "v"}, max_parallel_steps=3, timeout_secs=60.0,
        parent_run_id=PARENT_ID, parent_step=2, depth=4, ancestor_workflows=("w0",), slotless=True,
        delay_until_ms=START,
    ).fails("a")  # fmt: skip
    head = retried(run).state.head
    old = run.state.head
    assert head.triggered_by == "retry"
    assert head.retry_of_run_id == old.id
    assert (head.id, head.created_by) == (NEW_ID, "ann")
    assert (head.version, head.version_id, head.payload) == (1, "ver_1", old.payload)
    assert (head.tags, head.max_parallel_steps, head.timeout_secs) == ({"k": "v"}, 3, 60.0)
    assert (head.parent_run_id, head.parent_step, head.depth) == (None, None, 0)
    assert (head.ancestor_workflows, head.slotless, head.delay_until_ms) == ((), False, None)


def test_the_failed_step_under_skip_dependents_and_its_dependents_run_again() -> None:
    run = Run(job("a", on_failure=SKIP), job("b", after="a"), job("z")).fails("a").completes("z")
    assert retried(run).statuses == {"a": "running", "b": "waiting", "z": "completed"}


def test_a_canceled_run_that_had_nothing_left_completes_at_once() -> None:
    run = Run(job("a"), slot=False).does(c.SkipStep, "a").does(c.CancelRun)
    assert retried(run).status == RunStatus.COMPLETED


def test_the_retry_may_have_to_queue() -> None:
    run = Run(job("a"), job("b", after="a")).completes("a").fails("b")
    command = retry_of(run.state, run_id=NEW_ID, now=run.now, actor="ann", slot=False)
    assert isinstance(command, c.CreateRun)
    new = Run.from_command(run.state.graph, command, run.now)
    assert (new.status, new.waits) == (RunStatus.PENDING, {"b": "run_queue"})


def test_carried_steps_name_no_job_run_of_the_new_run() -> None:
    run = Run(job("a"), job("b", after="a")).completes("a").fails("b")
    assert run.view("a").job_run_id is not None
    new = retried(run)
    assert (new.view("a").attempt, new.view("a").job_run_id) == (1, None)
    assert new.view("b").job_run_id is not None


def test_a_carried_child_can_be_replaced_by_a_replay() -> None:
    run = Run(sub("a"), job("b", after="a")).child_ends("a").fails("b")
    new = retried(run)
    assert new.view("a").child_workflow_run_id == run.view("a").child_workflow_run_id
    new.does(c.ReplaySubtree, "a")
    assert new.view("a").child_workflow_run_id != run.view("a").child_workflow_run_id


def test_a_bulk_replay_of_a_completed_run_starts_from_the_beginning() -> None:
    run = Run(job("a"), job("off"), job("b", after="a"), disabled=("off",))
    run.completes("a", "b")
    command = replay_of(run.state, run_id=NEW_ID, now=run.now, actor="ann", slot=True)
    new = Run.from_command(run.state.graph, command, run.now)
    assert new.statuses == {"a": "running", "off": "skipped", "b": "waiting"}
    assert new.state.head.triggered_by == "replay"
    assert new.state.head.retry_of_run_id == run.state.id
