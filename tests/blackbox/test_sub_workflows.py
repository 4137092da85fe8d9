"""Runs within runs: everything that goes down, and the end that comes up (section 7)."""

from __future__ import annotations

import pytest

from tests.blackbox.api import Api, Json, approval, job, sub
from tests.blackbox.jobserver import JobServer, ok, status
from tests.blackbox.stories import child_of


def test_the_output_of_the_step_is_the_map_of_the_childs_outputs(api: Api) -> None:
    child = api.workflow(
        job("x", "echo", payload={"n": "{{ payload.n }}"}),
        job("none", "value"),
        job("off", condition={"type": "eq", "left": 1, "right": 2}),
    )
    run_id = api.start(
        sub("s", child, payload={"n": 5}), job("b", "echo", after="s"), payload={"z": 1}
    )
    api.until(run_id, "completed")
    output = api.step(run_id, "s")["output"]
    assert output["x"]["n"] == 5
    assert "off" not in output or output["off"] is None
    assert api.step(run_id, "b")["output"]["parent_outputs"] == {"s": output}
    made = api.run(child_of(api, run_id))
    assert made["parent_workflow_run_id"] == run_id
    assert made["parent_step_run_id"] == api.step(run_id, "s")["id"]
    assert made["triggered_by"] == "sub_workflow"
    assert made["payload"]["n"] == 5
    assert made["payload"]["z"] == 1


@pytest.mark.parametrize("end", ["failed", "timed_out", "canceled"])
def test_a_child_that_did_not_succeed_fails_the_step_with_its_error(api: Api, end: str) -> None:
    fields: Json = {"timeout_secs": 0.3} if end == "timed_out" else {}
    child = api.workflow(approval("c"), **fields)
    run_id = api.start(sub("s", child))
    child_id = child_of(api, run_id)
    if end == "failed":
        api.on(child_id, "c", "reject", {"reason": "no way"})
    elif end == "canceled":
        api.cancel(child_id, "no way")
    ended = api.until(run_id, "failed")
    child_error = api.until(child_id, end)["error"]
    assert child_error in api.step(run_id, "s")["error"]
    assert child_error in ended["error"]
    assert api.step(run_id, "s")["attempt"] == 1


def test_cancel_goes_down_transitively(api: Api) -> None:
    grandchild = api.workflow(approval("g"))
    child = api.workflow(sub("c", grandchild))
    run_id = api.start(sub("s", child))
    child_id = child_of(api, run_id)
    grandchild_id = child_of(api, child_id, "c")
    api.until(grandchild_id, "running")
    api.cancel(run_id)
    api.until(child_id, "canceled")
    api.until(grandchild_id, "canceled")
    assert api.shown(grandchild_id) == {"g": "canceled"}


def test_pause_and_resume_go_down(api: Api) -> None:
    grandchild = api.workflow(approval("g"), job("h", after="g"))
    child = api.workflow(sub("c", grandchild))
    run_id = api.start(sub("s", child))
    child_id = child_of(api, run_id)
    grandchild_id = child_of(api, child_id, "c")
    api.until(grandchild_id, "running")
    api.act(run_id, "pause")
    api.until(child_id, "paused")
    api.until(grandchild_id, "paused")
    api.on(grandchild_id, "g", "approve")
    assert api.shown(grandchild_id)["h"] == "pending/paused"
    api.act(run_id, "resume")
    api.until(run_id, "completed")
    assert api.run(grandchild_id)["status"] == "completed"


def test_a_child_that_ends_while_the_parent_is_paused_ends_the_step(api: Api) -> None:
    child = api.workflow(approval("c"))
    run_id = api.start(sub("s", child), job("b", after="s"))
    child_id = child_of(api, run_id)
    api.act(run_id, "pause")
    api.until(child_id, "paused")
    api.on(child_id, "c", "approve")
    api.until_step(run_id, "s", "completed")
    assert api.shown(run_id)["b"] == "pending/paused"
    api.act(run_id, "resume")
    api.until(run_id, "completed")


def test_a_failing_parent_cancels_its_children(api: Api) -> None:
    child = api.workflow(approval("c"))
    run_id = api.start(sub("s", child), approval("a"))
    child_id = child_of(api, run_id)
    api.on(run_id, "a", "reject")
    api.until(run_id, "failed")
    api.until(child_id, "canceled")


@pytest.mark.parametrize("action", ["skip", "force-complete"])
def test_skip_of_the_step_cancels_the_child(api: Api, action: str) -> None:
    child = api.workflow(approval("c"))
    run_id = api.start(sub("s", child), job("b", after="s"))
    child_id = child_of(api, run_id)
    api.on(run_id, "s", action)
    api.until(run_id, "completed")
    api.until(child_id, "canceled")


def test_a_parent_that_times_out_ends_its_children(api: Api) -> None:
    child = api.workflow(approval("c"))
    run_id = api.start(sub("s", child), timeout_secs=0.3)
    child_id = child_of(api, run_id)
    api.until(run_id, "timed_out")
    api.until(child_id, "canceled", "timed_out")


def test_a_step_retry_reopens_the_failed_child_in_place(api: Api, jobs: JobServer) -> None:
    endpoint = jobs.endpoint(status(400), ok("fine"))
    done = jobs.endpoint(ok(1))
    child = api.workflow(job("done", api.job(done)), job("c", api.job(endpoint), after="done"))
    run_id = api.start(sub("s", child))
    api.until(run_id, "failed")
    first = child_of(api, run_id)
    answer: Json = api.on(run_id, "s", "retry", expect=200)
    assert (answer["step_run"]["status"], answer["step_run"]["attempt"]) == ("running", 2)
    api.until(run_id, "completed")
    assert child_of(api, run_id) == first
    assert api.run(first)["status"] == "completed"
    assert api.step(run_id, "s")["output"] == {"done": 1, "c": "fine"}
    assert len(done.calls) == 1


@pytest.mark.parametrize("end", ["canceled", "timed_out"])
def test_a_step_retry_reopens_a_child_that_was_canceled_or_timed_out(api: Api, end: str) -> None:
    fields: Json = {"timeout_secs": 0.3} if end == "timed_out" else {}
    child = api.workflow(approval("c"), **fields)
    run_id = api.start(sub("s", child))
    first = child_of(api, run_id)
    if end == "canceled":
        api.cancel(first)
    api.until(run_id, "failed")
    api.on(run_id, "s", "retry", expect=200)
    assert child_of(api, run_id) == first
    api.until(first, "running")
    api.until_step(first, "c", "waiting/approval")
    api.on(first, "c", "approve")
    api.until(run_id, "completed")


def test_a_reopen_of_the_parent_brings_back_the_child_that_its_end_had_canceled(
    api: Api,
) -> None:
    child = api.workflow(approval("c"))
    run_id = api.start(sub("s", child), approval("a"))
    api.until(child_of(api, run_id), "running")
    api.on(run_id, "a", "reject")
    api.until(run_id, "failed")
    api.until(child_of(api, run_id), "canceled")
    api.on(run_id, "a", "retry", expect=200)
    api.on(run_id, "a", "approve")
    child_id = child_of(api, run_id)
    api.until(child_id, "running")
    api.until_step(child_id, "c", "waiting/approval")
    api.on(child_id, "c", "approve")
    api.until(run_id, "completed")


def test_a_subtree_replay_makes_a_new_child(api: Api) -> None:
    child = api.workflow(job("c"))
    run_id = api.start(sub("s", child))
    api.until(run_id, "completed")
    first = child_of(api, run_id)
    api.on(run_id, "s", "replay-subtree", expect=200)
    api.until(run_id, "completed")
    assert child_of(api, run_id) != first
    assert api.step(run_id, "s")["attempt"] == 2
    assert api.run(first)["status"] == "completed"


def test_the_end_of_a_replaced_child_is_ignored(api: Api) -> None:
    child = api.workflow(approval("c"))
    run_id = api.start(sub("s", child))
    first = child_of(api, run_id)
    api.on(run_id, "s", "replay-subtree", expect=200)
    second = child_of(api, run_id)
    assert second != first
    api.until(first, "canceled")
    assert api.shown(run_id) == {"s": "running"}
    api.on(second, "c", "approve")
    api.until(run_id, "completed")


def test_a_child_reopened_by_hand_does_not_reopen_its_parent(api: Api) -> None:
    child = api.workflow(approval("c"))
    run_id = api.start(sub("s", child))
    child_id = child_of(api, run_id)
    api.on(child_id, "c", "reject")
    failed = api.until(run_id, "failed")
    api.on(child_id, "c", "retry", expect=200)
    api.on(child_id, "c", "approve")
    api.until(child_id, "completed")
    assert api.run(run_id) == failed
    assert api.shown(run_id) == {"s": "failed"}


def test_a_sub_workflow_step_is_not_retried_by_itself(api: Api, jobs: JobServer) -> None:
    endpoint = jobs.endpoint(status(400))
    child = api.workflow(job("c", api.job(endpoint)))
    run_id = api.start(sub("s", child))
    api.until(run_id, "failed")
    assert len(endpoint.calls) == 1


def test_unless_the_step_says_so(api: Api, jobs: JobServer) -> None:
    endpoint = jobs.endpoint(status(400), ok(1))
    child = api.workflow(job("c", api.job(endpoint)))
    run_id = api.start(sub("s", child, retry_max_attempts=2, retry_initial_delay_secs=0))
    api.until(run_id, "completed")
    assert api.step(run_id, "s")["attempt"] == 2
    assert len(endpoint.calls) == 2


def test_ten_levels_and_no_more(api: Api) -> None:
    workflow = api.workflow(job("leaf"))
    for _ in range(9):
        workflow = api.workflow(sub("s", workflow))
    api.until(api.start(sub("s", workflow)), "completed", within_secs=20)
    for _ in range(2):
        workflow = api.workflow(sub("s", workflow))
    run_id = api.trigger(workflow)
    ended = api.until(run_id, "failed", within_secs=20)
    assert "10" in ended["error"] or "depth" in ended["error"] or "deep" in ended["error"]


def test_a_workflow_that_calls_itself_is_bounded(api: Api) -> None:
    workflow = api.workflow(job("x"))
    response = api.request(
        "PATCH",
        f"/v1/workflows/{workflow}",
        {"steps": [sub("s", workflow)], "max_concurrent_runs": 1},
    )
    if response.status_code == 200:
        ended = api.until(api.trigger(workflow), "failed", within_secs=20)
        assert ended["error"]
    else:
        assert response.status_code == 422


def test_a_child_of_an_ancestor_with_a_slot_needs_none(api: Api) -> None:
    leaf = api.workflow(job("x"), max_concurrent_runs=1)
    middle = api.workflow(sub("m", leaf), max_concurrent_runs=1)
    changed = api.request(
        "PATCH",
        f"/v1/workflows/{leaf}",
        {
            "steps": [
                job("x", condition={"type": "exists", "operand": "{{ payload.inner }}"}),
                sub(
                    "s",
                    middle,
                    payload={"inner": True},
                    condition={
                        "type": "not",
                        "condition": {"type": "exists", "operand": "{{ payload.inner }}"},
                    },
                ),
            ]
        },
    )
    if changed.status_code == 422:
        pytest.skip("a definition may not call itself in a circle")
    run_id = api.trigger(leaf)
    api.until(run_id, "completed")


def test_a_queued_child_waits_for_its_slot(api: Api) -> None:
    child = api.workflow(approval("c"), max_concurrent_runs=1)
    holder = api.trigger(child)
    run_id = api.start(sub("s", child))
    child_id = child_of(api, run_id)
    api.until(child_id, "pending")
    assert api.shown(child_id) == {"c": "pending/run_queue"}
    api.act(run_id, "pause")
    api.cancel(holder)
    later = api.trigger(child)
    api.until(later, "running")
    assert api.run(child_id)["status"] == "pending"
    api.act(run_id, "resume")
    api.cancel(later)
    api.until(child_id, "running")
    api.on(child_id, "c", "approve")
    api.until(run_id, "completed")


def test_the_version_of_the_child_is_fixed_at_its_creation(api: Api) -> None:
    child = api.workflow(approval("old"))
    run_id = api.start(approval("a"), sub("s", child, "a"))
    changed = api.request("PATCH", f"/v1/workflows/{child}", {"steps": [approval("new")]})
    assert changed.status_code == 200
    api.on(run_id, "a", "approve")
    child_id = child_of(api, run_id)
    api.until(child_id, "running")
    version = api.run(child_id)["workflow_version"]
    assert set(api.steps(child_id)) == {"new" if version == 2 else "old"}


def test_a_failed_child_under_continue_lets_the_parent_go_on(api: Api) -> None:
    child = api.workflow(approval("c"))
    run_id = api.start(sub("s", child, on_failure="continue"), job("b", "echo", after="s"))
    api.on(child_of(api, run_id), "c", "reject")
    api.until(run_id, "completed")
    assert api.step(run_id, "b")["output"]["parent_outputs"] == {}


def test_a_deleted_or_disabled_child_workflow_fails_the_step_or_runs(api: Api) -> None:
    child = api.workflow(job("c"))
    run_id = api.start(approval("a"), sub("s", child, "a"))
    api.request("PATCH", f"/v1/workflows/{child}", {"enabled": False})
    api.on(run_id, "a", "approve")
    api.until(run_id, "completed", "failed")


def test_bulk_cancel_of_parent_and_child(api: Api) -> None:
    child = api.workflow(approval("c"))
    run_id = api.start(sub("s", child))
    child_id = child_of(api, run_id)
    answer: Json = api.post(
        "/v1/workflow-runs/bulk-cancel", {"workflow_run_ids": [run_id, child_id]}
    )
    assert answer["canceled"] == 2
    api.until(run_id, "canceled")
    api.until(child_id, "canceled")
