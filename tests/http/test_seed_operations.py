from __future__ import annotations

import json
from typing import Any

import httpx

from tests.http.conftest import (
    PROJECT,
    Server,
    approval,
    define,
    job,
    read_step,
    trigger,
    wait_status,
    wait_step,
)

REPRESENTATION = {"Prefer": "return=representation"}
RUN_FIELDS = {
    "id", "workflow_id", "project_id", "status", "triggered_by", "workflow_version",
    "max_parallel_steps", "payload", "error", "started_at", "finished_at", "expires_at",
    "retry_of_run_id", "parent_workflow_run_id", "parent_step_run_id", "tags",
    "workflow_version_id", "created_by", "created_at",
}  # fmt: skip
STEP_FIELDS = {
    "id", "workflow_run_id", "workflow_step_id", "step_ref", "job_run_id", "attempt", "status",
    "deps_completed", "deps_required", "output", "error", "started_at", "finished_at", "created_at",
}  # fmt: skip


def has_no_null(value: Any) -> bool:
    return "null" not in json.dumps(value)


async def test_a_triggered_run_completes_and_is_shown_with_the_fields_of_the_seed(
    client: httpx.AsyncClient,
) -> None:
    await define(client, "two", [job("a"), job("b", "echo", "a")], max_parallel_steps=2)
    made = await trigger(client, "two", payload={"n": 7}, tags={"team": "x"})
    run = await wait_status(client, made["id"], "completed")
    assert set(run) <= RUN_FIELDS | {"pinned"}
    assert run["project_id"] == PROJECT
    assert run["payload"] == {"n": 7}
    assert run["tags"] == {"team": "x"}
    assert run["created_by"] == "tester"
    assert run["workflow_version"] == 1
    assert run["max_parallel_steps"] == 2
    assert has_no_null(run)
    steps = (await client.get(f"/v1/workflow-runs/{run['id']}/steps")).json()
    assert [s["step_ref"] for s in steps] == ["a", "b"]
    assert all(set(s) <= STEP_FIELDS for s in steps)
    assert steps[1]["deps_completed"] == steps[1]["deps_required"] == 1
    assert steps[0]["output"] == {"echo": 7}


async def test_the_trigger_answers_201_with_the_place_of_the_run(client: httpx.AsyncClient) -> None:
    await define(client, "one", [job("a")])
    made = await client.post("/v1/workflows/one/trigger")
    assert made.status_code == 201
    assert made.headers["location"] == f"/v1/workflow-runs/{made.json()['id']}"


async def test_pause_and_resume_answer_204_and_repeat_without_effect(
    client: httpx.AsyncClient,
) -> None:
    await define(client, "w", [approval("gate")])
    run_id = (await trigger(client, "w"))["id"]
    for _ in range(2):
        paused = await client.post(f"/v1/workflow-runs/{run_id}/pause")
        assert (paused.status_code, paused.content) == (204, b"")
    for _ in range(2):
        shown = await client.post(f"/v1/workflow-runs/{run_id}/resume", headers=REPRESENTATION)
        assert shown.status_code == 200
        assert shown.headers["preference-applied"] == "return=representation"
        assert shown.json()["status"] == "running"


async def test_cancel_answers_204_and_keeps_the_reason(client: httpx.AsyncClient) -> None:
    await define(client, "w", [approval("gate")])
    run_id = (await trigger(client, "w"))["id"]
    canceled = await client.delete(f"/v1/workflow-runs/{run_id}", params={"reason": "by mistake"})
    assert (canceled.status_code, canceled.content) == (204, b"")
    run = (await client.get(f"/v1/workflow-runs/{run_id}")).json()
    assert run["status"] == "canceled"
    assert run["error"] == "canceled by tester: by mistake"
    assert (await client.delete(f"/v1/workflow-runs/{run_id}")).status_code == 204


async def test_approve_completes_the_step_with_who_and_why(client: httpx.AsyncClient) -> None:
    await define(client, "w", [approval("gate")])
    run_id = (await trigger(client, "w"))["id"]
    path = f"/v1/workflow-runs/{run_id}/steps/gate/approve"
    answer = await client.post(path, json={"comment": "fine"}, headers=REPRESENTATION)
    assert answer.status_code == 200
    step = answer.json()["step_run"]
    assert step["status"] == "completed"
    assert step["output"]["approved_by"] == "tester"
    assert step["output"]["comment"] == "fine"
    assert (await client.post(path)).status_code == 204
    assert (await client.post(path.replace("approve", "reject"))).status_code == 409


async def test_reject_fails_the_step(client: httpx.AsyncClient) -> None:
    await define(client, "w", [approval("gate")])
    run_id = (await trigger(client, "w"))["id"]
    path = f"/v1/workflow-runs/{run_id}/steps/gate/reject"
    assert (await client.post(path, json={"reason": "no"})).status_code == 204
    assert (await wait_status(client, run_id, "failed"))["error"]


async def test_only_approvers_may_decide(server: Server) -> None:
    tester = await server.member(name="tester")
    await define(tester, "w", [approval("gate", approval_approvers=["anna"])])
    run_id = (await trigger(tester, "w"))["id"]
    path = f"/v1/workflow-runs/{run_id}/steps/gate/approve"
    refused = await tester.post(path)
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "forbidden"
    # 403 for the approver comes before 422 for the body
    assert (await tester.post(path, json={"comment": 5})).status_code == 403
    anna = await server.member(name="anna")
    assert (await anna.post(path, json={"comment": 5})).status_code == 422
    assert (await anna.post(path)).status_code == 204


async def test_an_admin_key_speaks_for_the_actor_it_names(server: Server) -> None:
    tester = await server.member()
    await define(tester, "w", [approval("gate", approval_approvers=["anna"])])
    run_id = (await trigger(tester, "w"))["id"]
    path = f"/v1/workflow-runs/{run_id}/steps/gate/approve"
    assert (await server.admin.post(path)).status_code == 403
    # the header means nothing with a key of a project
    assert (await tester.post(path, headers={"X-Actor-Id": "anna"})).status_code == 403
    assert (await server.admin.post(path, headers={"X-Actor-Id": "anna"})).status_code == 204
    step = await read_step(tester, run_id, "gate")
    assert step["output"]["approved_by"] == "anna"


async def test_skip_and_force_complete_take_optional_bodies(client: httpx.AsyncClient) -> None:
    await define(client, "w", [approval("a"), approval("b"), approval("c"), approval("d")])
    run_id = (await trigger(client, "w"))["id"]
    steps = f"/v1/workflow-runs/{run_id}/steps"
    assert (await client.post(f"{steps}/a/skip")).status_code == 204
    assert (await client.post(f"{steps}/b/skip", json={"reason": "not needed"})).status_code == 204
    assert (await client.post(f"{steps}/c/force-complete", content=b"{}")).status_code == 204
    done = await client.post(
        f"{steps}/d/force-complete", json={"result": {"by": "hand"}}, headers=REPRESENTATION
    )
    assert done.json()["step_run"]["output"] == {"by": "hand"}
    assert (await read_step(client, run_id, "b"))["error"] == "not needed"
    assert (await wait_status(client, run_id, "completed"))["status"] == "completed"


async def test_retry_of_a_step_answers_the_step(server: Server, client: httpx.AsyncClient) -> None:
    await define(client, "w", [job("a", "flaky")])
    run_id = (await trigger(client, "w"))["id"]
    await wait_status(client, run_id, "failed")
    server.latch.failing = False
    answer = await client.post(f"/v1/workflow-runs/{run_id}/steps/a/retry")
    assert answer.status_code == 200
    assert answer.json()["step_run"]["attempt"] == 2
    assert (await wait_status(client, run_id, "completed"))["status"] == "completed"


async def test_replay_of_a_subtree_answers_how_many_steps_were_reset(
    client: httpx.AsyncClient,
) -> None:
    await define(client, "w", [job("a"), job("b", "echo", "a"), job("c", "echo", "b"), job("x")])
    run_id = (await trigger(client, "w"))["id"]
    await wait_status(client, run_id, "completed")
    answer = await client.post(f"/v1/workflow-runs/{run_id}/steps/b/replay-subtree")
    assert (answer.status_code, answer.json()) == (200, {"reset_steps": 2})
    await wait_status(client, run_id, "completed")
    assert (await read_step(client, run_id, "b"))["attempt"] == 2


async def test_retry_of_a_run_makes_a_new_run(server: Server, client: httpx.AsyncClient) -> None:
    await define(client, "w", [job("a"), job("b", "flaky", "a")])
    run_id = (await trigger(client, "w", tags={"k": "v"}))["id"]
    await wait_status(client, run_id, "failed")
    server.latch.failing = False
    answer = await client.post(f"/v1/workflow-runs/{run_id}/retry")
    assert answer.status_code == 201
    new = answer.json()
    assert answer.headers["location"] == f"/v1/workflow-runs/{new['id']}"
    assert new["retry_of_run_id"] == run_id
    assert new["triggered_by"] == "retry"
    assert new["tags"] == {"k": "v"}
    await wait_status(client, new["id"], "completed")
    assert (await client.post(f"/v1/workflow-runs/{new['id']}/retry")).status_code == 409


async def test_bulk_cancel_counts_each_run_once(client: httpx.AsyncClient) -> None:
    await define(client, "w", [approval("gate")])
    first, second = [(await trigger(client, "w"))["id"] for _ in range(2)]
    answer = await client.post(
        "/v1/workflow-runs/bulk-cancel",
        json={"workflow_run_ids": [first, "nonsense", second, first]},
    )
    body = answer.json()
    assert answer.status_code == 200
    assert (body["canceled"], body["failed"]) == (2, 1)
    assert [r["workflow_run_id"] for r in body["results"]] == [first, "nonsense", second]
    assert [r["status"] for r in body["results"]] == ["canceled", "failed", "canceled"]
    assert body["results"][1]["error"]


async def test_bulk_replay_starts_new_runs(client: httpx.AsyncClient) -> None:
    await define(client, "w", [job("a")])
    run_id = (await trigger(client, "w"))["id"]
    await wait_status(client, run_id, "completed")
    body = (
        await client.post("/v1/workflow-runs/bulk-replay", json={"workflow_run_ids": [run_id]})
    ).json()
    assert (body["replayed"], body["failed"]) == (1, 0)
    new_id = body["results"][0]["new_workflow_run_id"]
    new = await wait_status(client, new_id, "completed")
    assert (new["triggered_by"], new["retry_of_run_id"]) == ("replay", run_id)


async def test_bulk_takes_one_to_a_hundred_ids(client: httpx.AsyncClient) -> None:
    for ids in ([], ["x"] * 101, "x", [1], None):
        answer = await client.post("/v1/workflow-runs/bulk-cancel", json={"workflow_run_ids": ids})
        assert answer.status_code == 422, ids
        assert answer.json()["error"]["details"][0].startswith("workflow_run_ids")


async def test_dry_runs_say_what_would_happen_and_change_nothing(
    client: httpx.AsyncClient,
) -> None:
    await define(client, "w", [job("a", "flaky"), job("b", "echo", "a")])
    run_id = (await trigger(client, "w"))["id"]
    before = await wait_status(client, run_id, "failed")
    steps = f"/v1/workflow-runs/{run_id}/steps"
    dry = {"dry_run": "true"}
    retried = (await client.post(f"{steps}/a/retry", params=dry)).json()
    assert retried["started"] == ["a"]
    assert retried["run_status"] == "running"
    skipped = (await client.post(f"{steps}/a/skip", params=dry)).json()
    assert skipped["skipped"] == ["a"]
    assert skipped["started"] == ["b"]
    forced = (await client.post(f"{steps}/a/force-complete", params=dry)).json()
    assert forced["completed"] == ["a"]
    replayed = (await client.post(f"{steps}/a/replay-subtree", params=dry)).json()
    assert replayed["reset_steps"] == 2 or replayed["reset"] == ["a", "b"]
    again = await client.post(f"/v1/workflow-runs/{run_id}/retry", params=dry)
    assert again.status_code == 200
    for verb in ("bulk-cancel", "bulk-replay"):
        answer = await client.post(
            f"/v1/workflow-runs/{verb}", params=dry, json={"workflow_run_ids": [run_id]}
        )
        assert answer.status_code == 200
    assert (await client.get(f"/v1/workflow-runs/{run_id}")).json() == before
    runs = (await client.get("/v1/workflow-runs", params={"project_id": PROJECT})).json()
    assert len(runs) == 1
    assert (await client.post(f"{steps}/a/retry", params={"dry_run": "maybe"})).status_code == 422


async def test_a_step_that_the_run_does_not_have_is_404(client: httpx.AsyncClient) -> None:
    await define(client, "w", [approval("gate")])
    run_id = (await trigger(client, "w"))["id"]
    for verb in ("approve", "reject", "skip", "force-complete", "retry", "replay-subtree"):
        answer = await client.post(f"/v1/workflow-runs/{run_id}/steps/zzz/{verb}")
        assert answer.status_code == 404, verb
        # 404 comes before 422
        answer = await client.post(
            f"/v1/workflow-runs/{run_id}/steps/zzz/{verb}",
            content=b"[]",
            headers={"Content-Type": "application/json"},
        )
        assert answer.status_code == 404, verb


async def test_conflicts_name_what_was_found_and_what_is_allowed(
    client: httpx.AsyncClient,
) -> None:
    await define(client, "w", [job("a")])
    run_id = (await trigger(client, "w"))["id"]
    await wait_status(client, run_id, "completed")
    answer = await client.post(f"/v1/workflow-runs/{run_id}/pause")
    assert answer.status_code == 409
    error = answer.json()
    assert error["error"]["code"] == "conflict"
    assert error["message"] == error["error"]["message"]
    assert error["message"].startswith("run is completed; only a running run can be paused")
    assert error["request_id"] == answer.headers["x-request-id"]


async def test_a_running_step_can_be_skipped(server: Server, client: httpx.AsyncClient) -> None:
    await define(client, "w", [job("a", "hold"), job("b", "echo", "a")])
    run_id = (await trigger(client, "w"))["id"]
    await wait_step(client, run_id, "a", "running")
    assert (await client.post(f"/v1/workflow-runs/{run_id}/steps/a/skip")).status_code == 204
    await wait_status(client, run_id, "completed")
    assert (await read_step(client, run_id, "a"))["skipped_by"] == "operator"
