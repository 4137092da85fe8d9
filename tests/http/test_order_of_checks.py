"""Which refusal is told first, over every route there is.

401, 403 scope, 413/415/400, 404, 403 approver, 422, 409. What is wrong on one level is told
together.
"""

from __future__ import annotations

from typing import Any

import httpx

from pilotage.http.openapi import document
from tests.http.conftest import PROJECT, Server, approval, define, job, trigger
from tests.http.test_access import error_of, filled, guarded

UNKNOWN = "019a3f5c-8f80-7c3a-8b1d-000012340000"
WRONG = {
    "X-Actor-Id": "system",
    "X-Project-Id": "no spaces",
    "Idempotency-Key": "x" * 257,
}


def _is_about_one(path: str) -> bool:
    return "{" in path and "{eventKey}" not in path


async def _values(server: Server) -> dict[str, str]:
    """One of each that a path may name."""
    client = await server.member(name="maker")
    workflow = await define(client, "w", [approval("gate"), job("a")])
    run = await trigger(client, "w")
    made = await client.post("/v1/jobs", json={"slug": "j", "execution_mode": "python"})
    key = await client.post("/v1/api-keys", json={"name": "k", "scopes": ["jobs:read"]})
    job_runs = await client.get("/v1/runs", params={"workflow_run_id": run["id"]})
    return {
        "workflowRunID": run["id"],
        "stepRef": "gate",
        "workflowID": workflow["id"],
        "jobID": made.json()["id"],
        "jobRunID": job_runs.json()["data"][0]["id"],
        "keyID": key.json()["id"],
    }


def _told(answer: httpx.Response) -> list[str]:
    details: Any = error_of(answer).get("details", [])
    return list(details)


async def test_what_is_unknown_is_told_before_what_is_wrong_with_the_request(
    server: Server,
) -> None:
    seen = 0
    for method, path, _ in guarded(server):
        if not _is_about_one(path):
            continue
        seen += 1
        url = filled(path, dict.fromkeys(("workflowRunID", "workflowID", "jobID"), UNKNOWN))
        query = {"dry_run": "perhaps", "limit": "0", "format": "poem", "after": "x"}
        answer = await server.admin.request(method, url, params=query, headers=WRONG)
        assert answer.status_code == 404, (method, path, answer.text)
    assert seen > 30


async def test_what_is_wrong_with_the_headers_of_a_change_is_told_at_once_on_every_route(
    server: Server,
) -> None:
    values = await _values(server)
    seen = 0
    for method, path, _ in guarded(server):
        if method == "GET" or path.startswith("/v1/quarantine/"):
            continue  # of those nothing is there
        seen += 1
        body = None if method == "DELETE" else {"comment": 1}
        answer = await server.admin.request(
            method, filled(path, values), headers=WRONG, json=body, params={"dry_run": "perhaps"}
        )
        assert answer.status_code == 422, (method, path, answer.text)
        told = " ".join(_told(answer))
        assert "X-Actor-Id" in told, (method, path, told)
        assert ("Idempotency-Key" in told) == (method == "POST"), (method, path, told)
        assert "X-Project-Id" in told, (method, path, told)
    assert seen > 20
    run = await server.admin.get(f"/v1/workflow-runs/{values['workflowRunID']}")
    assert run.json()["status"] == "running", "nothing was done"


async def test_a_body_that_cannot_be_read_is_told_before_what_is_unknown(server: Server) -> None:
    for method, path, _ in guarded(server):
        if method not in {"POST", "PATCH"}:
            continue
        url = filled(path, dict.fromkeys(("workflowRunID", "workflowID", "jobID"), UNKNOWN))
        for content, kind, status in (
            (b"{", "application/json", 400),
            (b"{}", "text/plain", 415),
            (b"[" + b" " * (9 << 20) + b"]", "application/json", 413),
        ):
            answer = await server.admin.request(
                method, url, content=content, headers={**WRONG, "Content-Type": kind}
            )
            assert answer.status_code == status, (method, path, answer.text)


async def test_a_cursor_that_is_not_ours_is_told_before_a_wrong_limit(server: Server) -> None:
    values = await _values(server)
    seen = 0
    lists = {
        path
        for path, item in document(server.app)["paths"].items()
        if str(item.get("get", {}).get("operationId")).startswith("list-")
    }
    for path in lists:
        seen += 1
        query = {"cursor": "mine", "limit": "0", "workflow_run_id": values["workflowRunID"]}
        answer = await server.admin.get(
            filled(path, values), params=query, headers={"X-Project-Id": PROJECT}
        )
        assert answer.status_code == 400, (path, answer.text)
    assert seen >= 9


async def test_who_may_not_decide_is_told_before_what_is_wrong_with_the_decision(
    server: Server,
) -> None:
    client = await server.member()
    await define(client, "w", [approval("gate", approval_approvers=["ops"])])
    run = await trigger(client, "w")
    for verb in ("approve", "reject"):
        url = f"/v1/workflow-runs/{run['id']}/steps/gate/{verb}"
        answer = await client.post(url, json={"comment": 1, "reason": 1})
        assert answer.status_code == 403, answer.text
        answer = await client.post(f"{url}?dry_run=true")
        assert answer.status_code == 403, answer.text


async def test_everything_wrong_with_a_definition_is_told_though_its_project_is_not_known(
    server: Server,
) -> None:
    body: dict[str, Any] = {"slug": "/", "enabled": 1, "steps": [{"step_ref": "a b"}]}
    for project in ({}, {"project_id": "no spaces"}):
        answer = await server.admin.post("/v1/workflows", json={**body, **project})
        assert answer.status_code == 422
        paths = {problem.split(":")[0] for problem in _told(answer)}
        assert {"slug", "enabled", "steps[0].step_ref", "project_id"} <= paths, paths
        answer = await server.admin.post(
            "/v1/jobs", json={"slug": "/", "max_attempts": 0, **project}
        )
        paths = {problem.split(":")[0] for problem in _told(answer)}
        assert {"slug", "max_attempts", "endpoint_url", "project_id"} <= paths, paths


async def test_an_unknown_run_is_told_before_a_dry_run_that_is_not_offered(server: Server) -> None:
    client = await server.member()
    seen = 0
    for method, path, _ in guarded(server):
        if method == "GET" or "{workflowRunID}" not in path:
            continue
        seen += 1
        for run_id in (UNKNOWN, "zzz"):
            url = filled(path, {"workflowRunID": run_id})
            for query in ("dry_run=true", "dryrun=1", "dry_run=true&dry_run=false"):
                for body in (b"", b'{"x": 1e30, "y": 1000000000000000000000000000}'):
                    answer = await client.request(method, f"{url}?{query}", content=body)
                    assert answer.status_code == 404, (method, path, answer.text)
    assert seen >= 12
