"""Who may do what: checked for every route by walking over the routes of the app."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from litestar import get
from litestar.response.base import ASGIResponse
from litestar.routes import HTTPRoute

from pilotage.actors.principal import SCOPES
from pilotage.http.app import create_app, handlers_of
from pilotage.http.auth import PUBLIC
from pilotage.http.call import AnyRequest
from tests.http.conftest import (
    ADMIN_KEY,
    PROJECT,
    Server,
    StartServer,
    approval,
    define,
    job,
    trigger,
    wait_status,
)

OTHER = "rival"


def routes(server: Server) -> list[tuple[str, str, str]]:
    """(method, path, scope) of every route."""
    return [
        (method, route.path_format, str(handler.opt["scope"]))
        for route in server.app.routes
        if isinstance(route, HTTPRoute)
        for handler in route.route_handlers
        for method in sorted(handler.http_methods - {"OPTIONS"})
    ]


def filled(path: str, values: dict[str, str]) -> str:
    path = path.replace("/v1/events/{eventKey}", "/v1/events/some-key/send")
    return re.sub(r"\{(\w+)\}", lambda m: values.get(m[1], "zzz"), path)


def guarded(server: Server) -> list[tuple[str, str, str]]:
    found = [r for r in routes(server) if r[1].startswith("/v1")]
    assert len(found) > 40
    return found


def error_of(answer: httpx.Response) -> dict[str, Any]:
    body = answer.json()
    assert set(body) == {"error", "message", "request_id"}, body
    assert body["message"] == body["error"]["message"]
    assert body["request_id"] == answer.headers["x-request-id"]
    return dict(body["error"])


async def test_every_route_under_v1_needs_a_key(start_server: StartServer) -> None:
    server = await start_server(auth_failure_limit=1000)
    for credentials in (None, "Bearer nonsense", "Basic YTpi", "Bearer", "Bearer a b"):
        headers = {} if credentials is None else {"Authorization": credentials}
        anonymous = server.client(None, **headers)
        for method, path, _ in guarded(server):
            answer = await anonymous.request(method, filled(path, {}))
            assert answer.status_code == 401, (method, path, credentials)
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert error_of(answer)["code"] == "authentication_required"


async def test_every_route_under_v1_needs_its_scope(server: Server) -> None:
    for scope in SCOPES:
        others = [s for s in SCOPES if s not in {scope, "*"}]
        client = await server.member(others, name=f"without-{scope.replace(':', '-')}")
        for method, path, needed in guarded(server):
            assert needed != PUBLIC, path
            if needed != scope:
                continue
            answer = await client.request(method, filled(path, {}))
            assert answer.status_code == 403, (method, path)
            assert f'"{scope}"' in error_of(answer)["message"]


async def test_what_is_public_is_known(server: Server) -> None:
    public = {path for _, path, scope in routes(server) if scope == PUBLIC}
    assert {p for p in public if not p.startswith("/sdk/v1/")} == {
        "/health", "/health/ready", "/metrics", "/reference", "/reference/openapi.json",
    }  # fmt: skip


async def test_another_projects_things_do_not_exist_for_a_key(server: Server) -> None:
    mine, theirs = await server.member(), await server.member(project=OTHER, name="spy")
    workflow = await define(mine, "w", [approval("gate"), job("a", "flaky")])
    run = await trigger(mine, "w")
    await wait_status(mine, run["id"], "failed")
    job_runs = await mine.get("/v1/runs", params={"workflow_run_id": run["id"]})
    made = await mine.post("/v1/jobs", json={"slug": "j", "execution_mode": "python"})
    key = (await mine.post("/v1/api-keys", json={"name": "k", "scopes": ["jobs:read"]})).json()
    values = {
        "workflowRunID": run["id"],
        "stepRef": "gate",
        "workflowID": workflow["id"],
        "jobID": made.json()["id"],
        "jobRunID": job_runs.json()["data"][0]["id"],
        "keyID": key["id"],
    }
    unknown = {**dict.fromkeys(values, "019a3f5c-8f80-7c3a-8b1d-000012340000"), "stepRef": "gate"}
    seen = 0
    for method, path, _ in guarded(server):
        if "{" not in path or "{eventKey}" in path:
            continue
        seen += 1
        foreign = await theirs.request(method, filled(path, values))
        absent = await theirs.request(method, filled(path, unknown))
        assert foreign.status_code == absent.status_code == 404, (method, path, foreign.text)
        shown = [
            re.sub(r'"[^"]*"', "ID", str(error_of(answer)["message"]))
            for answer in (foreign, absent)
        ]
        assert shown[0] == shown[1], (method, path)
    assert seen > 30
    after = (await mine.get(f"/v1/workflow-runs/{run['id']}")).json()
    assert after["status"] == "failed"


async def test_a_list_of_another_project_is_forbidden(server: Server) -> None:
    client = await server.member()
    for path in ("/v1/workflow-runs", "/v1/workflows", "/v1/jobs", "/v1/api-keys", "/v1/runs"):
        answer = await client.get(path, params={"project_id": OTHER, "workflow_run_id": "x"})
        assert answer.status_code == 403, path
        answer = await client.get(
            path, params={"workflow_run_id": "x"}, headers={"X-Project-Id": OTHER}
        )
        assert answer.status_code == 403, path
    body: dict[str, Any] = {"slug": "w", "project_id": OTHER, "steps": []}
    for path in ("/v1/workflows", "/v1/jobs"):
        assert (await client.post(path, json=body)).status_code == 403


async def test_lists_show_only_the_keys_own_project(server: Server) -> None:
    mine, theirs = await server.member(), await server.member(project=OTHER, name="spy")
    await define(mine, "w", [job("a")])
    await mine.post("/v1/jobs", json={"slug": "j", "execution_mode": "python"})
    await trigger(mine, "w")
    for path in ("/v1/workflow-runs", "/v1/workflows", "/v1/jobs"):
        assert len((await mine.get(path)).json()["data"]) == 1, path
        assert (await theirs.get(path)).json() == {"data": [], "has_more": False}, path
    names = {k["name"] for k in (await theirs.get("/v1/api-keys")).json()["data"]}
    assert names == {"spy"}


async def test_an_admin_key_names_the_project_or_uses_ids(server: Server) -> None:
    member = await server.member()
    workflow = await define(member, "w", [job("a")])
    admin = server.admin
    refused = await admin.get("/v1/workflow-runs")
    assert refused.status_code == 422
    assert "project_id" in error_of(refused)["details"][0]
    assert (await admin.get("/v1/workflows/w")).status_code == 422
    assert (await admin.get(f"/v1/workflows/{workflow['id']}")).status_code == 200
    named = {"X-Project-Id": PROJECT}
    assert (await admin.get("/v1/workflows/w", headers=named)).status_code == 200
    assert (await admin.get("/v1/workflows", params={"project_id": PROJECT})).status_code == 200
    made = await admin.post("/v1/workflows", json={"slug": "x", "steps": [job("a")]})
    assert made.status_code == 422
    body = {"slug": "x", "project_id": OTHER, "steps": [job("a")]}
    assert (await admin.post("/v1/workflows", json=body)).json()["project_id"] == OTHER
    run = await admin.post("/v1/workflows/w/trigger", headers=named)
    assert run.json()["project_id"] == PROJECT
    assert (await admin.get(f"/v1/workflow-runs/{run.json()['id']}")).status_code == 200
    bad = await admin.get("/v1/workflows", params={"project_id": "no spaces"})
    assert bad.status_code == 422


# --- keys ----------------------------------------------------------------------------------------


async def test_a_key_is_shown_once_and_works_until_it_is_revoked(server: Server) -> None:
    made = await server.admin.post(
        "/v1/api-keys", json={"name": "ci", "project_id": PROJECT, "scopes": ["workflows:read"]}
    )
    key = made.json()
    assert re.fullmatch(r"plt_[A-Za-z0-9_-]{43}", key["key"])
    client = server.client(key["key"])
    assert (await client.get("/v1/workflow-runs")).status_code == 200
    listed = (await server.admin.get("/v1/api-keys", params={"project_id": PROJECT})).json()
    assert [k["id"] for k in listed["data"]] == [key["id"]]
    assert "key" not in listed["data"][0]
    assert "hash" not in listed["data"][0]
    assert (await server.admin.delete(f"/v1/api-keys/{key['id']}")).status_code == 204
    assert (await client.get("/v1/workflow-runs")).status_code == 401
    assert (await server.admin.delete(f"/v1/api-keys/{key['id']}")).status_code == 404


async def test_nobody_gives_away_more_than_they_hold(server: Server) -> None:
    manager = await server.member(["api-keys:manage", "workflows:read"])
    allowed = {"name": "a", "scopes": ["workflows:read"]}
    assert (await manager.post("/v1/api-keys", json=allowed)).status_code == 201
    for body in (
        {"name": "a", "scopes": ["*"]},
        {"name": "a", "scopes": ["workflows:write"]},
        {"name": "a", "scopes": ["workflows:read"], "project_id": "*"},
        {"name": "a", "scopes": ["workflows:read"], "project_id": OTHER},
    ):
        assert (await manager.post("/v1/api-keys", json=body)).status_code == 403, body


async def test_all_problems_of_a_key_are_told_at_once(server: Server) -> None:
    answer = await server.admin.post(
        "/v1/api-keys", json={"name": "", "scopes": "x", "expires_in_days": -1, "other": 1}
    )
    assert answer.status_code == 422
    told = " ".join(error_of(answer)["details"])
    for field in ("name", "scopes", "expires_in_days", "other", "project_id"):
        assert field in told
    for name in ("admin", "system"):
        body = {"name": name, "project_id": PROJECT, "scopes": ["*"]}
        assert (await server.admin.post("/v1/api-keys", json=body)).status_code == 422


async def test_a_repeated_request_for_a_key_is_refused(server: Server) -> None:
    body = {"name": "ci", "project_id": PROJECT, "scopes": ["workflows:read"]}
    headers = {"Idempotency-Key": "once"}
    first = await server.admin.post("/v1/api-keys", json=body, headers=headers)
    again = await server.admin.post("/v1/api-keys", json=body, headers=headers)
    assert (first.status_code, again.status_code) == (201, 409)
    assert first.json()["key"] not in again.text


async def test_an_admin_key_can_be_made(server: Server) -> None:
    body = {"name": "root", "project_id": "*", "scopes": ["*"]}
    made = (await server.admin.post("/v1/api-keys", json=body)).json()
    client = server.client(made["key"])
    assert (await client.get("/v1/workflows", params={"project_id": OTHER})).status_code == 200


# --- limits --------------------------------------------------------------------------------------


async def test_a_key_that_asks_too_often_is_told_to_wait(start_server: StartServer) -> None:
    server = await start_server(rate_limit=5)
    first = server.client(ADMIN_KEY)
    codes = [(await first.get("/v1/workflows?project_id=p")).status_code for _ in range(7)]
    assert codes == [200] * 5 + [429] * 2
    answer = await first.get("/v1/workflows?project_id=p")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert error_of(answer)["code"] == "rate_limited"


async def test_failed_authentications_are_limited_but_a_valid_key_passes(
    start_server: StartServer,
) -> None:
    server = await start_server(auth_failure_limit=3)
    stranger = server.client("wrong")
    codes = [(await stranger.get("/v1/workflows")).status_code for _ in range(5)]
    assert codes == [401] * 3 + [429] * 2
    assert (await server.admin.get("/v1/workflows?project_id=p")).status_code == 200


async def test_metrics_need_a_key_unless_they_are_public(start_server: StartServer) -> None:
    closed, public = await start_server(), await start_server(metrics_public=True)
    assert (await closed.client().get("/metrics")).status_code == 401
    shown = await closed.admin.get("/metrics")
    assert "pilotage_http_requests_total" in shown.text
    assert (await public.client().get("/metrics")).status_code == 200


async def test_a_route_that_names_no_scope_keeps_the_app_from_starting(server: Server) -> None:
    @get("/forgotten")
    async def forgotten(request: AnyRequest) -> ASGIResponse:
        return ASGIResponse(body=b"{}")

    with pytest.raises(AssertionError, match="scope"):
        create_app(server.runtime.gateway, server.runtime.settings, v1=[forgotten])
    assert all(h.opt.get("scope") for h in handlers_of(server.app))


async def test_answers_never_tell_secrets(server: Server) -> None:
    member = await server.member()
    body = {"slug": "j", "endpoint_url": "http://127.0.0.1:9/x", "signing_secret": "s3cret-value"}
    made = await member.post("/v1/jobs", json=body)
    assert made.status_code == 201
    assert made.json()["has_signing_secret"] is True
    for answer in (made, await member.get("/v1/jobs/j"), await member.get("/v1/jobs")):
        assert "s3cret-value" not in answer.text
