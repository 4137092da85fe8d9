"""One answer tells everything that is wrong with a request, wherever it stands."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.http.conftest import PROJECT, Server, approval, define, job, trigger

HUGE = 10**30


def paths_of(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 422, answer.text
    return sorted(problem.partition(":")[0] for problem in answer.json()["error"]["details"])


async def test_a_number_that_cannot_be_kept_hides_nothing_else_of_a_workflow(
    client: httpx.AsyncClient,
) -> None:
    body: dict[str, Any] = {"slug": "n\0", "foo": 1, "steps": [], "timeout_secs": HUGE, "cron": "x"}
    answer = await client.post("/v1/workflows", json=body)
    assert paths_of(answer) == ["cron", "foo", "slug", "steps", "timeout_secs"]
    steps = [job("a", timeout_secs_override=HUGE), job("b", "nobody"), job("b", payload=[HUGE])]
    answer = await client.post("/v1/workflows", json={"slug": "w", "steps": steps})
    assert {"steps[0].timeout_secs_override", "steps[1].job_id", "steps[2].payload[0]"} <= set(
        paths_of(answer)
    )
    await define(client, "w", [job("a")])
    answer = await client.patch("/v1/workflows/w", json={"timeout_secs": HUGE, "cron": "x"})
    assert paths_of(answer) == ["cron", "timeout_secs"]


async def test_a_number_that_cannot_be_kept_hides_nothing_else_of_a_job(
    client: httpx.AsyncClient,
) -> None:
    body = {"slug": "/", "foo": 1, "max_attempts": HUGE, "endpoint_url": "http://x"}
    answer = await client.post("/v1/jobs", json=body)
    assert paths_of(answer) == ["foo", "max_attempts", "slug"]
    made = await client.post("/v1/jobs", json={"slug": "j", "execution_mode": "python"})
    assert made.status_code == 201
    answer = await client.patch("/v1/jobs/j", json={"max_attempts": HUGE, "timeout_secs": 0})
    assert paths_of(answer) == ["max_attempts", "timeout_secs"]


async def test_a_number_that_cannot_be_kept_hides_nothing_else_of_a_trigger(
    client: httpx.AsyncClient,
) -> None:
    await define(client, "w", [job("a")])
    body: dict[str, Any] = {
        "payload": {"a": HUGE},
        "delay_secs": -1,
        "tags": {"a": 1},
        "step_overrides": [{"step_ref": "nobody", "enabled": False}],
    }
    for verb in ("trigger", "dry-run"):
        answer = await client.post(f"/v1/workflows/w/{verb}", json=body)
        expected = ["delay_secs", "payload.a", "step_overrides[0].step_ref", "tags.a"]
        assert paths_of(answer) == expected


async def test_numbers_that_cannot_be_kept_are_refused_on_every_action(
    client: httpx.AsyncClient,
) -> None:
    await define(client, "w", [approval("gate")])
    run_id = (await trigger(client, "w"))["id"]
    run = f"/v1/workflow-runs/{run_id}"
    for verb in ("pause", "pin", "retry", "steps/gate/skip", "steps/gate/retry"):
        answer = await client.post(f"{run}/{verb}", json={"x": HUGE})
        assert paths_of(answer) == ["x"], verb
    answer = await client.post(f"{run}/steps/gate/approve", json={"comment": 5, "x": HUGE})
    assert paths_of(answer) == ["comment", "x"]
    answer = await client.post(f"{run}/steps/gate/force-complete", json={"result": [HUGE]})
    assert paths_of(answer) == ["result[0]"]
    event = {"buffer_secs": HUGE, "payload": HUGE}
    answer = await client.post("/v1/events/e/send", json=event)
    assert paths_of(answer) == ["buffer_secs", "payload"]
    answer = await client.post("/v1/events/e/send", content=b'{"buffer_secs": %s}' % (b"9" * 400))
    assert paths_of(answer) == ["buffer_secs"]
    assert (await client.get(run)).json()["status"] == "running"


async def test_a_wrong_header_hides_nothing_of_the_body(client: httpx.AsyncClient) -> None:
    await define(client, "w", [job("a")])
    headers = {"Idempotency-Key": "x" * 257}
    answer = await client.post("/v1/workflows/w/trigger", json={"delay_secs": -1}, headers=headers)
    assert paths_of(answer) == ["Idempotency-Key", "delay_secs"]
    answer = await client.post("/v1/jobs", json={"slug": "/"}, headers=headers)
    assert paths_of(answer) == ["Idempotency-Key", "endpoint_url", "slug"]
    answer = await client.post("/v1/workflows", json={"slug": "/"}, headers=headers)
    assert paths_of(answer) == ["Idempotency-Key", "slug", "steps"]


async def test_a_list_without_a_project_tells_what_else_is_wrong(server: Server) -> None:
    query = {"limit": "0", "status": "x", "tag": "y", "created_after": "z", "workflow_id": ""}
    answer = await server.admin.get("/v1/workflow-runs", params=query)
    assert paths_of(answer) == sorted([*query, "project_id"])
    for path in ("/v1/workflows", "/v1/jobs"):
        answer = await server.admin.get(path, params={"limit": "0", "cursor": "x"})
        assert paths_of(answer) == ["limit", "project_id"]


async def test_each_scope_that_is_none_is_told(server: Server) -> None:
    body = {"name": "k", "project_id": PROJECT, "scopes": ["nope", "*", 5]}
    answer = await server.admin.post("/v1/api-keys", json=body)
    assert paths_of(answer) == ["scopes[0]", "scopes[2]"]
    answer = await server.admin.post(
        "/v1/workflow-runs/bulk-cancel", json={"workflow_run_ids": ["", 5, "x"]}
    )
    assert paths_of(answer) == ["workflow_run_ids[0]", "workflow_run_ids[1]"]


async def test_the_bounds_of_days_are_readable(server: Server) -> None:
    body = {"name": "k", "project_id": PROJECT, "scopes": ["*"], "expires_in_days": 0}
    answer = await server.admin.post("/v1/api-keys", json=body)
    told = answer.json()["error"]["details"]
    assert "expires_in_days: must be from 0.000012 to 3650" in told


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/workflows", "/v1/api-keys", "/v1/events/e/send"])
async def test_a_project_that_is_no_text_is_told_as_that(server: Server, path: str) -> None:
    answer = await server.admin.post(path, json={"project_id": 5})
    told = [p for p in answer.json()["error"]["details"] if p.startswith("project_id")]
    assert told == ["project_id: must be a string, not a number"]


async def test_a_parameter_of_one_value_is_not_given_two(client: httpx.AsyncClient) -> None:
    query = (
        "status=running&status=failed&limit=1&limit=2&tag=a:b&tag=c:d&workflow_id=x&workflow_id=x"
    )
    answer = await client.get(f"/v1/workflow-runs?{query}")
    assert paths_of(answer) == ["limit", "status"]
    await define(client, "w", [approval("gate")])
    run = f"/v1/workflow-runs/{(await trigger(client, 'w'))['id']}"
    answer = await client.post(f"{run}/steps/gate/skip?dry_run=true&dry_run=false")
    assert paths_of(answer) == ["dry_run"]
    assert (await client.get(run)).json()["status"] == "running"


async def test_a_change_refuses_parameters_that_look_mistyped(client: httpx.AsyncClient) -> None:
    await define(client, "w", [approval("gate")])
    run = f"/v1/workflow-runs/{(await trigger(client, 'w'))['id']}"
    mistyped = {"dryrun": "true"}
    for method, path in (
        ("POST", f"{run}/pause"),
        ("POST", f"{run}/steps/gate/skip"),
        ("POST", "/v1/workflows/w/trigger"),
        ("POST", "/v1/workflows/w/dry-run"),
        ("POST", "/v1/events/e/send"),
        ("PATCH", "/v1/workflows/w"),
        ("DELETE", run),
    ):
        answer = await client.request(method, path, params=mistyped)
        told = answer.json()["error"]["details"]
        assert told == ['query: unknown parameter "dryrun" (did you mean "dry_run"?)'], path
    assert (await client.get(run)).json()["status"] == "running"
    assert (await client.get("/v1/workflows", params={"anything": "1"})).status_code == 200
    named = {"project_id": PROJECT, "trace": "x"}
    assert (await client.post(f"{run}/pause", params=named)).status_code == 204


async def test_what_makes_keys_and_sends_events_has_no_dry_run(server: Server) -> None:
    body = {"name": "k", "project_id": PROJECT, "scopes": ["*"]}
    for path in ("/v1/api-keys", "/v1/events/e/send"):
        answer = await server.admin.post(
            f"{path}?dry_run=true", json=body, headers={"X-Project-Id": PROJECT}
        )
        assert paths_of(answer) == ["dry_run"]


@pytest.mark.parametrize("body", [b"[1]", b'"x"', b"5", b"false"])
async def test_the_body_of_an_action_is_an_object(client: httpx.AsyncClient, body: bytes) -> None:
    await define(client, "w", [approval("gate")])
    run = f"/v1/workflow-runs/{(await trigger(client, 'w'))['id']}"
    for verb in (
        "pause", "resume", "retry", "pin", "unpin", "steps/gate/approve", "steps/gate/reject",
        "steps/gate/skip", "steps/gate/retry", "steps/gate/replay-subtree",
        "steps/gate/force-complete",
    ):  # fmt: skip
        answer = await client.post(f"{run}/{verb}", content=body)
        assert paths_of(answer) == ["body"], verb
    answer = await client.post("/v1/workflows/w/trigger", content=body)
    assert paths_of(answer) == ["body"]


async def test_a_blank_body_is_none(client: httpx.AsyncClient) -> None:
    await define(client, "w", [approval("gate")])
    run = f"/v1/workflow-runs/{(await trigger(client, 'w'))['id']}"
    for verb in ("pause", "resume", "steps/gate/approve"):
        assert (await client.post(f"{run}/{verb}", content=b" \r\n\t")).status_code == 204
    assert (await client.post("/v1/workflows/w/trigger", content=b" ")).status_code == 201


@pytest.mark.parametrize(
    ("body", "is_told"),
    [
        (b'{"comment": "\\ud800"}', True),
        (b'{"comment": "\\udc00x"}', True),
        (b'{"comment": "\\ud83d\\ude00', False),
        (b'{"comment": "abc', False),
    ],
)
async def test_half_a_surrogate_pair_is_told_as_that(
    client: httpx.AsyncClient, body: bytes, is_told: bool
) -> None:
    answer = await client.post("/v1/events/e/send", content=body)
    assert answer.status_code == 400
    assert ("surrogate" in answer.json()["message"]) == is_told
