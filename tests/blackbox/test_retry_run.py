"""Retry run: a new run that carries over what was achieved (section 6)."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tests.blackbox.api import Api, Json, approval, job, sub
from tests.blackbox.jobserver import JobServer, ok, status
from tests.blackbox.stories import child_of, conflict, run_in

Gates = Callable[[], threading.Event]
FALSE = {"type": "eq", "left": 1, "right": 2}


def test_retry_run_answers_201_and_the_new_run_with_its_location(api: Api) -> None:
    run_id = run_in(api, "failed")
    response = api.request("POST", f"/v1/workflow-runs/{run_id}/retry")
    assert response.status_code == 201
    new: Json = response.json()
    assert new["id"] != run_id
    assert new["retry_of_run_id"] == run_id
    assert new["triggered_by"] == "retry"
    assert response.headers["location"].endswith(f"/v1/workflow-runs/{new['id']}")
    assert api.run(run_id)["status"] == "failed"


@pytest.mark.parametrize("state", ["failed", "timed_out", "canceled"])
def test_retry_run_is_for_runs_that_did_not_succeed(api: Api, state: str) -> None:
    run_id = run_in(api, state)
    new: Json = api.act(run_id, "retry", expect=201)
    assert new["status"] == "running"
    api.on(new["id"], "a", "approve")
    api.until(new["id"], "completed")


@pytest.mark.parametrize("state", ["pending", "running", "paused", "completed"])
def test_retry_of_an_active_or_completed_run_is_a_conflict(api: Api, state: str) -> None:
    run_id = run_in(api, state)
    conflict(api.act(run_id, "retry", expect=409), state, "failed", "timed_out", "canceled")


def test_what_was_achieved_is_carried_over_and_the_rest_starts_fresh(
    api: Api, jobs: JobServer
) -> None:
    done = jobs.endpoint(ok({"n": 1}))
    tolerated = jobs.endpoint(status(400, "never mind"))
    bad = jobs.endpoint(status(500), status(500), ok("good"))
    run_id = api.start(
        job("done", api.job(done)),
        job("soft", api.job(tolerated), on_failure="continue"),
        approval("by-hand"),
        job("cond", condition=FALSE),
        approval("gate"),
        job("bad", api.job(bad, max_attempts=2, retry_initial_delay_secs=0), after="gate"),
        job("after", "echo", after=["done", "bad"]),
    )
    api.until_step(run_id, "soft", "failed")
    api.until_step(run_id, "done", "completed")
    api.on(run_id, "by-hand", "skip", {"reason": "not today"})
    api.on(run_id, "gate", "approve", {"comment": "yes"})
    api.until(run_id, "failed")
    old = api.steps(run_id)
    new: Json = api.act(run_id, "retry", expect=201)
    api.until(new["id"], "completed")
    steps = api.steps(new["id"])
    for ref in ("done", "soft", "by-hand", "gate"):
        for field in ("status", "output", "error", "skipped_by", "attempt"):
            assert steps[ref].get(field) == old[ref].get(field), (ref, field)
        assert steps[ref]["id"] != old[ref]["id"]
    assert steps["cond"]["skipped_by"] == "condition"
    assert steps["bad"]["output"] == "good"
    assert steps["after"]["output"]["parent_outputs"] == {"done": {"n": 1}, "bad": "good"}
    assert len(done.calls) == 1
    assert len(tolerated.calls) == 1


def test_conditions_are_evaluated_anew(api: Api, jobs: JobServer) -> None:
    endpoint = jobs.endpoint(status(400), ok(1))
    condition = {"type": "step_status", "step_ref": "bad", "status": "failed"}
    run_id = api.start(
        job("bad", api.job(endpoint), on_failure="skip_dependents"),
        job("other", condition={"type": "not", "condition": condition}, after="side"),
        job("side"),
    )
    api.until(run_id, "failed")
    new: Json = api.act(run_id, "retry", expect=201)
    api.until(new["id"], "completed")
    assert api.shown(new["id"])["bad"] == "completed"


def test_payload_tags_version_limits_and_overrides_are_kept(api: Api) -> None:
    workflow = api.workflow(
        approval("a"), job("b", after="a"), job("off"), max_parallel_steps=4, timeout_secs=600
    )
    run: Json = api.post(
        f"/v1/workflows/{workflow}/trigger",
        {
            "payload": {"x": [1]},
            "tags": {"k": "v"},
            "step_overrides": [{"step_ref": "off", "enabled": False}],
        },
        201,
    )
    assert api.step(run["id"], "off")["skipped_by"] == "override"
    api.on(run["id"], "a", "reject")
    api.until(run["id"], "failed")
    changed = api.request("PATCH", f"/v1/workflows/{workflow}", {"steps": [job("quite-different")]})
    assert changed.status_code == 200
    new: Json = api.act(run["id"], "retry", expect=201)
    for field in ("payload", "tags", "workflow_version", "workflow_version_id"):
        assert new[field] == run[field], field
    assert new["max_parallel_steps"] == 4
    assert new["expires_at"] > run["expires_at"]
    assert set(api.steps(new["id"])) == {"a", "b", "off"}
    assert api.step(new["id"], "off")["skipped_by"] == "override"


def test_retry_of_a_child_has_no_parent_links(api: Api) -> None:
    child = api.workflow(approval("c"))
    run_id = api.start(sub("s", child))
    child_id = child_of(api, run_id)
    found = api.run(child_id)
    assert found["parent_workflow_run_id"] == run_id
    assert found["parent_step_run_id"] == api.step(run_id, "s")["id"]
    assert found["triggered_by"] == "sub_workflow"
    api.on(child_id, "c", "reject")
    api.until(run_id, "failed")
    new: Json = api.act(child_id, "retry", expect=201)
    assert "parent_workflow_run_id" not in new
    assert "parent_step_run_id" not in new
    api.on(new["id"], "c", "approve")
    api.until(new["id"], "completed")
    assert api.run(run_id)["status"] == "failed"


def test_retry_run_of_a_full_workflow_is_queued(api: Api) -> None:
    workflow = api.workflow(approval("a"), max_concurrent_runs=1)
    first = api.trigger(workflow)
    api.on(first, "a", "reject")
    api.until(first, "failed")
    second = api.trigger(workflow)
    new: Json = api.act(first, "retry", expect=201)
    assert new["status"] == "pending"
    assert api.shown(new["id"]) == {"a": "pending/run_queue"}
    api.cancel(second)
    api.until(new["id"], "running")


def test_retry_of_a_retry_names_the_run_it_repeats(api: Api) -> None:
    first = run_in(api, "failed")
    second: Json = api.act(first, "retry", expect=201)
    api.cancel(second["id"])
    third: Json = api.act(second["id"], "retry", expect=201)
    assert third["retry_of_run_id"] == second["id"]


def test_a_run_that_failed_with_everything_tolerated_or_done_but_one_step(
    api: Api, jobs: JobServer
) -> None:
    endpoint = jobs.endpoint(status(400), ok(1))
    run_id = api.start(
        job("a"),
        job("bad", api.job(endpoint), after="a", on_failure="skip_dependents"),
        job("b", after="bad"),
    )
    api.until(run_id, "failed")
    new: Json = api.act(run_id, "retry", expect=201)
    api.until(new["id"], "completed")
    assert api.shown(new["id"]) == {"a": "completed", "bad": "completed", "b": "completed"}


def test_an_operator_completed_step_is_carried_over(api: Api) -> None:
    run_id = api.start(approval("a"), approval("b"))
    api.on(run_id, "a", "force-complete", {"result": [1]})
    api.on(run_id, "b", "reject")
    api.until(run_id, "failed")
    new: Json = api.act(run_id, "retry", expect=201)
    assert api.step(new["id"], "a")["output"] == [1]
    assert api.shown(new["id"]) == {"a": "completed", "b": "waiting/approval"}


def test_a_carried_over_step_can_be_replayed(api: Api) -> None:
    run_id = api.start(job("done", "who"), approval("b", "done"))
    api.until_step(run_id, "b", "waiting/approval")
    api.on(run_id, "b", "reject")
    api.until(run_id, "failed")
    new: Json = api.act(run_id, "retry", expect=201)
    api.on(new["id"], "done", "replay-subtree", expect=200)
    step = api.until_step(new["id"], "done", "completed")
    assert step["output"]["run"] == new["id"]
    assert step["attempt"] == 2
