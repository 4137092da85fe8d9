"""Approve and reject: who may, what it does, repeats and conflicts (sections 6, 7, 10)."""

from __future__ import annotations

import pytest

from tests.blackbox.api import Api, approval, event, job, sleep
from tests.blackbox.stories import conflict, key_for, run_in


def test_approve_completes_with_who_and_when_and_the_comment(api: Api) -> None:
    run_id = run_in(api, "running")
    api.on(run_id, "a", "approve", {"comment": "fine"})
    output = api.step(run_id, "a")["output"]
    assert output["approved_by"] == "admin"
    assert output["comment"] == "fine"
    assert output["approved_at"].endswith("Z")
    other = run_in(api, "running")
    api.on(other, "a", "approve")
    assert "comment" not in api.step(other, "a")["output"]


def test_reject_fails_the_step_finally(api: Api) -> None:
    workflow = api.workflow(approval("a"))
    run_id = api.trigger(workflow)
    api.on(run_id, "a", "reject", {"reason": "not like this"})
    assert "not like this" in api.until(run_id, "failed")["error"]
    step = api.step(run_id, "a")
    assert (step["status"], step["attempt"]) == ("failed", 1)
    assert "not like this" in step["error"]


def test_the_policy_holds_for_a_rejection(api: Api) -> None:
    run_id = api.start(approval("a", on_failure="continue"), job("b", after="a"))
    api.on(run_id, "a", "reject")
    api.until(run_id, "completed")
    assert api.shown(run_id) == {"a": "failed", "b": "completed"}


def test_approve_and_reject_repeated_are_successes_the_other_way_round_409(api: Api) -> None:
    approved = run_in(api, "running")
    api.on(approved, "a", "approve", {"comment": "first"})
    before = api.step(approved, "a")
    api.on(approved, "a", "approve", {"comment": "second"})
    assert api.step(approved, "a") == before
    conflict(api.on(approved, "a", "reject", expect=409), "completed")
    rejected = run_in(api, "running")
    api.on(rejected, "a", "reject", {"reason": "first"})
    before = api.step(rejected, "a")
    api.on(rejected, "a", "reject", {"reason": "second"})
    assert api.step(rejected, "a") == before
    conflict(api.on(rejected, "a", "approve", expect=409), "failed")


def test_approve_of_a_step_that_is_not_parked_yet_is_a_conflict(api: Api) -> None:
    run_id = api.start(approval("a"), approval("b", "a"))
    conflict(api.on(run_id, "b", "approve", expect=409), "waiting")
    queued = run_in(api, "pending")
    conflict(api.on(queued, "a", "approve", expect=409), "pending")


def test_approve_of_a_step_of_another_type_is_a_conflict(api: Api) -> None:
    run_id = api.start(event("e", "k"), sleep("s", 600))
    api.on(run_id, "e", "approve", expect=409)
    api.on(run_id, "s", "reject", expect=409)
    assert api.shown(run_id) == {"e": "waiting/event", "s": "waiting/timer"}


def as_actor(api: Api, run_id: str, action: str, actor: str, expect: int) -> None:
    path = f"/v1/workflow-runs/{run_id}/steps/a/{action}"
    api.post(path, None, expect, headers={"X-Actor-Id": actor})


def test_only_approvers_may_decide_whatever_the_state(api: Api) -> None:
    run_id = api.start(approval("a", approval_approvers=["ann", "bob"]), approval("b"))
    for action in ("approve", "reject"):
        as_actor(api, run_id, action, "eve", 403)
        api.on(run_id, "a", action, expect=403)
    as_actor(api, run_id, "approve", "bob", 204)
    assert api.step(run_id, "a")["output"]["approved_by"] == "bob"
    as_actor(api, run_id, "approve", "ann", 204)
    as_actor(api, run_id, "approve", "eve", 403)
    as_actor(api, run_id, "reject", "ann", 409)
    as_actor(api, run_id, "reject", "eve", 403)


@pytest.mark.xfail(strict=True, reason="GET /v1/approvals is not there yet")
def test_the_inbox_holds_what_the_caller_may_decide(api: Api) -> None:
    run_id = api.start(approval("a", approvers=["ann"]), approval("b", approvers=["bob"]))
    path = f"/v1/approvals?project_id={api.project}"
    seen: dict[str, list[str]] = {}
    for actor in ("ann", "bob", "eve"):
        page = api.request("GET", path, headers={"X-Actor-Id": actor}).json()
        seen[actor] = [item["step_ref"] for item in page["data"]]
    assert (seen["ann"], seen["bob"]) == (["a"], ["b"])
    as_actor(api, run_id, "approve", "ann", 204)
    page = api.request("GET", path, headers={"X-Actor-Id": "ann"}).json()
    assert page["data"] == []
    api.cancel(run_id)
    page = api.request("GET", path, headers={"X-Actor-Id": "bob"}).json()
    assert page["data"] == []


def test_the_principal_of_a_key_is_its_name(api: Api) -> None:
    robot = Api(api.server, project=api.project, key=key_for(api, api.project, "*"))
    run_id = robot.start(approval("a", approvers=["robot"]))
    assert robot.run(run_id)["created_by"] == "robot"
    api.on(run_id, "a", "approve", expect=403)
    robot.on(run_id, "a", "approve")
    assert robot.step(run_id, "a")["output"]["approved_by"] == "robot"
    robot.close()
