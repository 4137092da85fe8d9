from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from aiohttp import web

from tests.http.conftest import (
    Server,
    define,
    job,
    read_step,
    trigger,
    wait_status,
    wait_step,
)


def waits(ref: str, key: str) -> dict[str, Any]:
    return {"step_ref": ref, "step_type": "wait_for_event", "event_key": key}


@pytest.mark.parametrize("key", ["paid", "order/42", "a b", "ü?&#%"])
async def test_an_event_completes_every_step_that_waits_for_it(
    client: httpx.AsyncClient, key: str
) -> None:
    await define(client, "w", [waits("a", key), waits("b", key)])
    run_id = (await trigger(client, "w"))["id"]
    await wait_step(client, run_id, "b", "waiting")
    sent = await client.post(f"/v1/events/{quote(key, safe='')}/send", json={"payload": {"n": 1}})
    assert sent.status_code == 200, sent.text
    assert sent.json() == {"event_key": key, "delivered": 2, "buffered": False}
    await wait_status(client, run_id, "completed")
    assert (await read_step(client, run_id, "a"))["output"] == {"n": 1}


async def test_an_event_that_comes_early_is_kept(client: httpx.AsyncClient) -> None:
    sent = (await client.post("/v1/events/k/send", json={"payload": 5, "buffer_secs": 60})).json()
    assert (sent["delivered"], sent["buffered"]) == (0, True)
    assert sent["expires_at"].endswith("Z")
    await define(client, "w", [waits("a", "k")])
    run_id = (await trigger(client, "w"))["id"]
    await wait_status(client, run_id, "completed")
    nobody = (await client.post("/v1/events/k/send")).json()
    assert nobody == {"event_key": "k", "delivered": 0, "buffered": False}


async def test_an_event_of_another_project_reaches_nobody(
    server: Server, client: httpx.AsyncClient
) -> None:
    await define(client, "w", [waits("a", "k")])
    run_id = (await trigger(client, "w"))["id"]
    await wait_step(client, run_id, "a", "waiting")
    rival = await server.member(project="rival", name="r")
    assert (await rival.post("/v1/events/k/send")).json()["delivered"] == 0
    refused = await rival.post("/v1/events/k/send", json={"project_id": "acme"})
    assert refused.status_code == 403
    assert (await server.admin.post("/v1/events/k/send")).status_code == 422
    sent = await server.admin.post("/v1/events/k/send", json={"project_id": "acme"})
    assert sent.json()["delivered"] == 1


async def test_all_problems_of_an_event_are_told(client: httpx.AsyncClient) -> None:
    answer = await client.post(f"/v1/events/{'k' * 513}/send", json={"buffer_secs": 86_401})
    assert answer.status_code == 422
    assert len(answer.json()["error"]["details"]) == 2
    assert (await client.post("/v1/events/k")).status_code == 404
    assert (await client.post("/v1/events/send")).status_code == 404
    assert (await client.get("/v1/events/k/send")).status_code == 405


# --- callbacks -----------------------------------------------------------------------------------


class Peer:
    """A job far away: it takes every order with 202 and keeps it."""

    def __init__(self) -> None:
        self.orders: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        await request.read()
        self.orders.put_nowait({k.lower(): v for k, v in request.headers.items()})
        return web.Response(status=202)


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    peer = Peer()
    app = web.Application()
    app.router.add_post("/job", peer.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    peer.url = f"http://127.0.0.1:{runner.addresses[0][1]}/job"
    yield peer
    await runner.cleanup()


async def a_remote_run(client: httpx.AsyncClient, peer: Peer) -> tuple[str, dict[str, str]]:
    body = {"slug": "remote", "endpoint_url": peer.url, "max_attempts": 1}
    assert (await client.post("/v1/jobs", json=body)).status_code == 201
    await define(client, "w", [job("a", "remote")])
    run_id = (await trigger(client, "w"))["id"]
    order = await asyncio.wait_for(peer.orders.get(), 10)
    return run_id, order


def token(order: dict[str, str]) -> dict[str, str]:
    return {"Authorization": f"Bearer {order['x-run-token']}"}


async def test_a_job_reports_progress_and_its_end(
    server: Server, client: httpx.AsyncClient, peer: Peer
) -> None:
    run_id, order = await a_remote_run(client, peer)
    path = f"/sdk/v1/runs/{order['x-run-id']}"
    remote = server.client(None, **token(order))
    assert (await remote.post(f"{path}/heartbeat")).status_code == 204
    progress = await remote.post(f"{path}/progress", json={"percent": 40, "message": "4 of 10"})
    assert progress.status_code == 204
    log = await remote.post(f"{path}/log", json={"level": "info", "message": "m", "data": {"a": 1}})
    assert log.status_code == 204
    assert (await remote.post(f"{path}/complete", json={"result": {"ok": 1}})).status_code == 204
    await wait_status(client, run_id, "completed")
    shown = (await client.get(f"/v1/runs/{order['x-run-id']}")).json()
    assert shown["result"] == {"ok": 1}
    assert shown["progress"]["percent"] == 40
    assert isinstance(shown["progress"]["percent"], int), "whole numbers are integers"
    assert shown["logs"][0]["message"] == "m"
    again = await remote.post(f"{path}/complete", json={"result": {"ok": 1}})
    assert again.status_code == 410
    assert again.json()["error"]["code"] == "gone"


async def test_a_job_reports_its_failure(
    server: Server, client: httpx.AsyncClient, peer: Peer
) -> None:
    run_id, order = await a_remote_run(client, peer)
    remote = server.client(None, **token(order))
    path = f"/sdk/v1/runs/{order['x-run-id']}/fail"
    assert (await remote.post(path, json={})).status_code == 422
    assert (await remote.post(path, json={"error": "no", "final": True})).status_code == 204
    assert "no" in (await wait_status(client, run_id, "failed"))["error"]


async def test_a_callback_needs_the_token_of_its_attempt(
    server: Server, client: httpx.AsyncClient, peer: Peer
) -> None:
    _, order = await a_remote_run(client, peer)
    path = f"/sdk/v1/runs/{order['x-run-id']}"
    bodies: dict[str, Any] = {
        "complete": {},
        "fail": {"error": "x"},
        "heartbeat": {},
        "progress": {"percent": 1},
        "log": {"level": "info", "message": "m"},
    }
    for verb, body in bodies.items():
        for credentials in ({}, {"Authorization": "Bearer nonsense"}, token(order)):
            target = path if credentials is not token(order) else "/sdk/v1/runs/other"
            if credentials == token(order):
                target = "/sdk/v1/runs/019a3f5c-8f80-7c3a-8001-000412340000"
            answer = await server.client(None, **credentials).post(f"{target}/{verb}", json=body)
            assert answer.status_code == 401, (verb, credentials)
            assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_all_problems_of_a_callback_are_told(
    server: Server, client: httpx.AsyncClient, peer: Peer
) -> None:
    _, order = await a_remote_run(client, peer)
    remote = server.client(None, **token(order))
    path = f"/sdk/v1/runs/{order['x-run-id']}"
    for verb, body, problems in (
        ("progress", {"percent": 101, "message": 5}, 2),
        ("progress", {}, 1),
        ("log", {"level": "loud", "data": "x" * 20_000}, 3),
        ("log", {"message": "m"}, 1),
    ):
        answer = await remote.post(f"{path}/{verb}", json=body)
        assert answer.status_code == 422, (verb, body)
        assert len(answer.json()["error"]["details"]) == problems


async def test_a_superseded_attempt_is_told_so(
    server: Server, client: httpx.AsyncClient, peer: Peer
) -> None:
    run_id, first = await a_remote_run(client, peer)
    await client.post(f"/v1/workflow-runs/{run_id}/steps/a/replay-subtree")
    await asyncio.wait_for(peer.orders.get(), 10)
    remote = server.client(None, **token(first))
    late = await remote.post(f"/sdk/v1/runs/{first['x-run-id']}/complete", json={"result": 1})
    assert late.status_code == 409
    assert (await read_step(client, run_id, "a"))["status"] == "running"


async def test_the_trace_of_the_trigger_goes_on_to_jobs_and_child_runs(
    client: httpx.AsyncClient, peer: Peer
) -> None:
    body = {"slug": "remote", "endpoint_url": peer.url, "max_attempts": 1}
    assert (await client.post("/v1/jobs", json=body)).status_code == 201
    await define(client, "child", [job("b", "remote")])
    sub = {"step_ref": "sub", "step_type": "sub_workflow", "sub_workflow_id": "child"}
    await define(client, "w", [job("a", "remote"), sub])
    trace = "0af7651916cd43dd8448eb211c80319c"
    header = {"traceparent": f"00-{trace}-b7ad6b7169203331-00"}
    answer = await client.post("/v1/workflows/w/trigger", json={}, headers=header)
    assert answer.status_code == 201
    orders = [await asyncio.wait_for(peer.orders.get(), 10) for _ in range(2)]
    assert {order["x-step-ref"] for order in orders} == {"a", "b"}
    parts = [order["traceparent"].split("-") for order in orders]
    assert [(version, found, flags) for version, found, _, flags in parts] == [
        ("00", trace, "00")
    ] * 2
    assert len({span for _, _, span, _ in parts} | {"b7ad6b7169203331"}) == 3

    await trigger(client, "child")  # without one it is a trace of its own
    order = await asyncio.wait_for(peer.orders.get(), 10)
    run = order["x-workflow-run-id"].replace("-", "")
    assert order["traceparent"].startswith(f"00-{run}-")
    assert order["traceparent"].endswith("-01")
