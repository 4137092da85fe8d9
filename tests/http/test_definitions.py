"""Workflows and jobs over HTTP, what they would do, and why runs are as they are."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from pilotage.actors import run_actor
from tests.http.conftest import (
    PROJECT,
    Server,
    approval,
    define,
    job,
    trigger,
    wait_status,
    wait_step,
)


async def test_a_job_is_made_read_changed_and_deleted(client: httpx.AsyncClient) -> None:
    made = await client.post("/v1/jobs", json={"slug": "j", "endpoint_url": "http://host/x"})
    assert made.status_code == 201
    assert made.headers["location"] == f"/v1/jobs/{made.json()['id']}"
    assert (await client.get("/v1/jobs/j")).json() == made.json()
    changed = await client.patch("/v1/jobs/j", json={"max_attempts": 7, "tags": {"a": "b"}})
    assert changed.json()["max_attempts"] == 7
    assert changed.json()["id"] == made.json()["id"]
    assert (await client.patch("/v1/jobs/j", json={"max_attempts": 0})).status_code == 422
    assert (await client.post("/v1/jobs", json={"slug": "j"})).status_code in {409, 422}
    again = await client.post("/v1/jobs", json={"slug": "j", "endpoint_url": "http://host/x"})
    assert again.status_code == 409
    await define(client, "w", [job("a", "j")])
    assert (await client.delete("/v1/jobs/j")).status_code == 409
    await client.patch("/v1/workflows/w", json={"enabled": False})
    assert (await client.delete("/v1/jobs/j")).status_code == 204
    assert (await client.get("/v1/jobs/j")).status_code == 404


async def test_a_repeated_creation_of_a_job_answers_the_first(client: httpx.AsyncClient) -> None:
    body = {"slug": "j", "endpoint_url": "http://host/x"}
    headers = {"Idempotency-Key": "k"}
    first = await client.post("/v1/jobs", json=body, headers=headers)
    again = await client.post("/v1/jobs", json=body, headers=headers)
    assert again.json() == first.json()
    assert again.headers["idempotency-replayed"] == "true"


async def test_a_slug_may_look_like_an_id(server: Server, client: httpx.AsyncClient) -> None:
    slug = "019a3f5a-11c0-7e02-a1b2-c3d4e5f60718"
    body = {"slug": slug, "endpoint_url": "http://host/x"}
    assert (await client.post("/v1/jobs", json=body)).status_code == 201
    made = await define(client, slug, [job("a", slug)])
    with_project = {"X-Project-Id": PROJECT}
    for path in (f"/v1/jobs/{slug}", f"/v1/workflows/{slug}"):
        assert (await client.get(path)).json()["slug"] == slug
        assert (await server.admin.get(path, headers=with_project)).json()["slug"] == slug
        assert (await server.admin.get(path)).status_code == 404
        other = await server.admin.get(path, headers={"X-Project-Id": "rival"})
        assert other.status_code == 404
    by_id = await server.admin.get(f"/v1/workflows/{made['id']}", headers={"X-Project-Id": "rival"})
    assert by_id.json()["slug"] == slug
    started = await server.admin.post(f"/v1/workflows/{slug}/trigger", headers=with_project)
    assert started.status_code == 201


async def test_a_workflow_is_deleted_once_its_runs_have_ended(client: httpx.AsyncClient) -> None:
    await define(client, "w", [approval("gate")])
    run_id = (await trigger(client, "w"))["id"]
    refused = await client.delete("/v1/workflows/w")
    assert refused.status_code == 409
    assert "1 active run" in refused.json()["message"]
    await client.delete(f"/v1/workflow-runs/{run_id}")
    assert (await client.delete("/v1/workflows/w")).status_code == 204
    assert (await client.get("/v1/workflows/w")).status_code == 404
    assert (await client.get(f"/v1/workflow-runs/{run_id}/steps")).status_code == 200


async def test_a_disabled_workflow_is_not_triggered(client: httpx.AsyncClient) -> None:
    await define(client, "w", [job("a")], enabled=False)
    answer = await client.post("/v1/workflows/w/trigger")
    assert answer.status_code == 409
    assert "disabled" in answer.json()["message"]


async def test_a_workflow_keeps_what_was_defined(client: httpx.AsyncClient) -> None:
    steps: list[dict[str, Any]] = [
        {**job("a"), "retry_max_attempts": 2, "timeout_secs_override": 1.5},
        {"step_ref": "s", "type": "sleep", "sleep_duration_secs": 30, "depends_on": ["a"]},
        {**approval("g", "s"), "approvers": ["anna"], "on_failure": "continue"},
    ]
    made = await define(client, "w", steps, timezone="Europe/Berlin", cron="5 4 * * *")
    assert made["cron_timezone"] == "Europe/Berlin"
    shown = (await client.get("/v1/workflows/w")).json()
    assert shown == made
    assert shown["steps"][0]["timeout_secs_override"] == 1.5
    assert repr(shown["steps"][1]["sleep_duration_secs"]) == "30"
    assert shown["steps"][2]["approval_approvers"] == ["anna"]
    listed = (await client.get("/v1/workflows")).json()["data"][0]
    assert "steps" not in listed
    assert listed["step_count"] == 3
    # what is shown can be sent again
    again = await client.patch("/v1/workflows/w", json={"steps": shown["steps"]})
    assert again.json()["version"] == 1


async def test_a_workflow_shows_its_graph_and_its_order(client: httpx.AsyncClient) -> None:
    await define(
        client, "w", [job("d", "echo", "b", "c"), job("b", "echo", "a"), job("c", "echo", "a"),
                      job("a")],
    )  # fmt: skip
    graph = (await client.get("/v1/workflows/w/graph")).json()
    assert graph["roots"] == ["a"]
    assert graph["critical_path"] == ["a", "b", "d"]
    dry = await client.post(
        "/v1/workflows/w/dry-run", json={"step_overrides": [{"step_ref": "b", "enabled": False}]}
    )
    assert dry.json()["waves"] == [["a"], ["c"], ["d"]]
    assert dry.json()["order"] == ["a", "c", "d"]
    assert dry.json()["disabled"] == ["b"]
    wrong = await client.post(
        "/v1/workflows/w/dry-run", json={"step_overrides": [{"step_ref": "x", "enabled": False}]}
    )
    assert wrong.status_code == 422
    changed = await client.patch("/v1/workflows/w", json={"max_parallel_steps": 1})
    assert changed.status_code == 200
    dry = await client.post("/v1/workflows/w/dry-run")
    assert dry.json()["waves"] == [["a"], ["b"], ["c"], ["d"]]
    assert (await client.get("/v1/workflow-runs")).json()["data"] == []
    for path in ("/v1/workflows/w/graph",):
        assert (await client.get(path, params={"format": "gif"})).status_code == 422


async def test_a_run_is_explained_and_timed(server: Server, client: httpx.AsyncClient) -> None:
    await define(
        client,
        "w",
        [job("a"), approval("gate", "a", approval_approvers=["ops"]), job("b", "echo", "gate")],
    )
    run_id = (await trigger(client, "w"))["id"]
    await wait_step(client, run_id, "gate", "waiting")
    base = f"/v1/workflow-runs/{run_id}"
    told = (await client.get(f"{base}/explain")).json()
    assert [(s["step_ref"], s["waiting_for"]) for s in told["steps"]] == [
        ("gate", "approval"),
        ("b", "dependencies"),
    ]
    assert '"ops"' in told["steps"][0]["reason"]
    graph = (await client.get(f"{base}/graph")).json()
    assert [n["status"] for n in graph["nodes"]] == ["completed", "waiting", "waiting"]
    assert graph["critical_path"] == ["a", "gate"]
    timeline = (await client.get(f"{base}/timeline")).json()
    assert [s["on_critical_path"] for s in timeline["steps"]] == [True, True, False]
    await client.post(f"{base}/pause")
    paused = (await client.get(f"{base}/explain")).json()
    assert "paused" in paused["steps"][0]["reason"]


async def test_explain_tells_the_place_in_the_queue(
    server: Server, client: httpx.AsyncClient
) -> None:
    await define(client, "w", [approval("gate")], max_concurrent_runs=1)
    await trigger(client, "w")
    await trigger(client, "w")
    third = await trigger(client, "w")
    assert third["status"] == "pending"
    told = (await client.get(f"/v1/workflow-runs/{third['id']}/explain")).json()
    (line,) = told["steps"]
    assert line["waiting_for"] == "run_queue"
    assert "number 2 in the queue" in line["reason"]


async def test_a_pinned_run_says_so(client: httpx.AsyncClient) -> None:
    await define(client, "w", [job("a")])
    run_id = (await trigger(client, "w"))["id"]
    await wait_status(client, run_id, "completed")
    path = f"/v1/workflow-runs/{run_id}"
    assert "pinned" not in (await client.get(path)).json()
    assert (await client.post(f"{path}/pin")).status_code == 204
    assert (await client.get(path)).json()["pinned"] is True
    assert (await client.post(f"{path}/unpin")).status_code == 204
    assert "pinned" not in (await client.get(path)).json()


@pytest.mark.parametrize("actor", ["system", "x" * 129, "a\tb"])
async def test_an_actor_must_have_a_proper_name(server: Server, actor: str) -> None:
    member = await server.member()
    await define(member, "w", [approval("gate")])
    run_id = (await trigger(member, "w"))["id"]
    answer = await server.admin.post(
        f"/v1/workflow-runs/{run_id}/pause", headers={"X-Actor-Id": actor}
    )
    assert answer.status_code == 422
    assert answer.json()["error"]["details"][0].startswith("X-Actor-Id")


async def test_the_history_names_the_actor_of_an_admin_key(server: Server) -> None:
    member = await server.member()
    await define(member, "w", [approval("gate")])
    run_id = (await trigger(member, "w"))["id"]
    await server.admin.delete(f"/v1/workflow-runs/{run_id}", headers={"X-Actor-Id": "anna"})
    run = (await member.get(f"/v1/workflow-runs/{run_id}")).json()
    assert run["error"] == "canceled by anna"
    items = (await member.get(f"/v1/workflow-runs/{run_id}/events")).json()["data"]
    assert items[-1]["actor"] == "anna"


async def test_what_comes_first_in_the_order_of_checks_is_told_first(
    client: httpx.AsyncClient,
) -> None:
    wrong = {"params": {"dry_run": "maybe"}}
    for path in ("/v1/workflow-runs/zzz/retry", "/v1/workflow-runs/zzz/steps/a/skip"):
        assert (await client.post(path, **wrong)).status_code == 404, path  # type: ignore[arg-type]
    cancel = await client.delete("/v1/workflow-runs/zzz", params={"reason": "x" * 2001})
    assert cancel.status_code == 404
    events = await client.get("/v1/workflow-runs/zzz/events", params={"limit": "x"})
    assert events.status_code == 404


# --- quarantine ----------------------------------------------------------------------------------


async def fail_until_quarantined(server: Server, client: httpx.AsyncClient, run_id: str) -> None:
    deadline = time.monotonic() + 20
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(run_actor, "step", _broken_step)
        while run_id not in server.runtime.supervisor.quarantined:
            assert time.monotonic() < deadline, "the run was not quarantined"
            await client.post(f"/v1/workflow-runs/{run_id}/pause")


def _broken_step(*_: object) -> None:
    raise RuntimeError("a bug")


async def test_quarantined_runs_are_listed_released_and_discarded(
    server: Server, client: httpx.AsyncClient
) -> None:
    await define(client, "w", [approval("gate")])
    first, second, third = [(await trigger(client, "w"))["id"] for _ in range(3)]
    for run_id in (first, second, third):
        await fail_until_quarantined(server, client, run_id)
    page = (await client.get("/v1/quarantine", params={"limit": 2})).json()
    assert page["has_more"]
    assert "a bug" in page["data"][0]["reason"]
    assert page["data"][0]["run"]["quarantined"] is True
    rest = await client.get("/v1/quarantine", params={"limit": 2, "cursor": page["next_cursor"]})
    listed = [r["workflow_run_id"] for r in page["data"] + rest.json()["data"]]
    assert sorted(listed) == sorted([first, second, third])
    rival = await server.member(project="rival", name="r")
    assert (await rival.get("/v1/quarantine")).json()["data"] == []
    assert (await rival.post(f"/v1/quarantine/{first}/release")).status_code == 404
    refused = await client.post(f"/v1/workflow-runs/{first}/pause")
    assert refused.status_code == 409
    assert "quarantined" in refused.json()["message"]
    assert (await client.post(f"/v1/quarantine/{first}/release")).status_code == 204
    assert (await client.post(f"/v1/quarantine/{first}/release")).status_code == 404
    assert (await client.post(f"/v1/workflow-runs/{first}/pause")).status_code == 204
    assert (await client.post(f"/v1/quarantine/{second}/discard")).status_code == 204
    await wait_status(client, second, "canceled")


async def test_an_admin_sees_the_quarantine_of_all_projects(server: Server) -> None:
    member = await server.member(project=PROJECT)
    await define(member, "w", [approval("gate")])
    run_id = (await trigger(member, "w"))["id"]
    server.runtime.supervisor.quarantined[run_id] = "why"
    page = (await server.admin.get("/v1/quarantine")).json()
    assert [r["workflow_run_id"] for r in page["data"]] == [run_id]


async def test_a_workflow_whose_job_is_gone_is_not_enabled_again(client: httpx.AsyncClient) -> None:
    for slug in ("j", "k"):
        made = await client.post("/v1/jobs", json={"slug": slug, "execution_mode": "python"})
        assert made.status_code == 201
    await define(client, "w", [job("a", "j"), job("b", "k"), job("c", "j")])
    assert (await client.patch("/v1/workflows/w", json={"enabled": False})).status_code == 200
    assert (await client.delete("/v1/jobs/j")).status_code == 204
    refused = await client.patch("/v1/workflows/w", json={"enabled": True})
    assert refused.status_code == 422
    told = refused.json()["error"]["details"]
    assert [problem.partition(":")[0] for problem in told] == ["steps[0].job_id", "steps[2].job_id"]
    assert all("unknown job" in problem for problem in told)
    # what leaves it disabled is still possible, and so is replacing the steps
    assert (await client.patch("/v1/workflows/w", json={"name": "x"})).status_code == 200
    changed = {"enabled": True, "steps": [job("a", "k")]}
    assert (await client.patch("/v1/workflows/w", json=changed)).status_code == 200
