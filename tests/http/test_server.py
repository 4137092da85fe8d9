"""The server itself: ports, starting, stopping, time limits, and what happens when things break."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
from litestar import Litestar, get
from litestar.response.base import ASGIResponse
from litestar.types import Receive, Scope, Send

from pilotage.actors.errors import UnavailableError
from pilotage.actors.kernel.errors import MailboxFullError
from pilotage.http import server as http_server
from pilotage.http.api import Api
from pilotage.http.auth import Door
from pilotage.http.call import AnyRequest
from pilotage.http.problems import INTERNAL
from pilotage.http.server import PortError, RunningServer, serve_app
from pilotage.persistence.port import FencedError, StoreUnavailableError
from tests.http.conftest import (
    ADMIN_KEY,
    Server,
    approval,
    define,
    job,
    trigger,
    wait_status,
)

UNKNOWN = "019a3f5c-8f80-7c3a-8b1d-000012340000"


async def test_a_free_port_is_taken_and_told(server: Server) -> None:
    assert int(server.url.rpartition(":")[2]) > 0
    assert (await server.client().get("/health")).json()["status"] == "ok"


async def test_a_taken_port_is_refused_at_once_and_in_words(server: Server) -> None:
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(PortError, match=f"127.0.0.1:{port}.*--port"):
        await serve_app(server.app, "127.0.0.1", port)
    with pytest.raises(PortError, match="cannot listen on"):
        await serve_app(server.app, "no-such-host.invalid", 0)


async def test_a_stop_lets_open_requests_end(server: Server) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    @get("/slow")
    async def slow(request: AnyRequest) -> ASGIResponse:
        started.set()
        await go_on.wait()
        return ASGIResponse(body=b"done")

    running = await serve_app(Litestar([slow], openapi_config=None), "127.0.0.1", 0)
    async with httpx.AsyncClient(base_url=running.url) as client:
        asked = asyncio.create_task(client.get("/slow"))
        await started.wait()
        stopping = asyncio.create_task(running.stop())
        with pytest.raises(httpx.ConnectError):
            await until_refused(running)
        go_on.set()
        assert (await asked).text == "done"
        await stopping


async def until_refused(running: RunningServer) -> None:
    async with asyncio.timeout(10):
        while True:
            async with httpx.AsyncClient(base_url=running.url, timeout=0.5) as client:
                # Between "listens" and "refuses" a connection may be taken and then cut.
                with suppress(httpx.TimeoutException, httpx.ReadError, httpx.RemoteProtocolError):
                    await client.get("/nothing")
            await asyncio.sleep(0.01)


async def test_an_app_that_cannot_start_is_told() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.failed", "message": "no"})

    with pytest.raises(PortError, match="did not start"):
        await serve_app(broken, "127.0.0.1", 0)


async def test_readiness_follows_the_runtime(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = server.client()
    assert (await client.get("/health/ready")).status_code == 200
    monkeypatch.setattr(type(server.runtime), "ready", property(lambda _: False))
    answer = await client.get("/health/ready")
    assert answer.status_code == 503
    assert "retry-after" in answer.headers
    assert (await client.get("/health")).status_code == 200


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UnavailableError("not now", 7), 503),
        (StoreUnavailableError("away"), 503),
        (FencedError("newer owner"), 503),
        (MailboxFullError("run", 10), 503),
        (TimeoutError(), 503),
        (RuntimeError("secret detail"), 500),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, Exception) else str(v),
)
async def test_what_goes_wrong_inside_is_answered_without_its_cause(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    status: int,
) -> None:
    async def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(server.runtime.gateway, "get_run_view", fails)
    answer = await server.admin.get("/v1/workflow-runs/x", headers={"X-Request-Id": "req-7"})
    assert answer.status_code == status
    assert answer.json()["request_id"] == "req-7" == answer.headers["x-request-id"]
    if status == 503:
        assert int(answer.headers["retry-after"]) >= 1
    else:
        assert answer.json()["message"] == INTERNAL
        assert "secret" not in answer.text
        record = next(r for r in caplog.records if r.name == "pilotage.http")
        assert getattr(record, "request_id") == "req-7"  # noqa: B009
        assert record.exc_info is not None


async def test_a_store_that_goes_away_is_503_and_comes_back(
    server: Server, client: httpx.AsyncClient
) -> None:
    await define(client, "w", [approval("gate")])

    def away(_: object) -> None:
        raise StoreUnavailableError("away")

    server.store.before_commit = away  # type: ignore[attr-defined]
    task = asyncio.create_task(client.post("/v1/workflows/w/trigger"))
    done, _ = await asyncio.wait({task}, timeout=0.3)
    server.store.before_commit = None  # type: ignore[attr-defined]
    answer = await task
    assert answer.status_code in ({503} if done else {201, 503})
    deadline = asyncio.get_running_loop().time() + 10
    while (await client.post("/v1/workflows/w/trigger")).status_code != 201:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)


# --- the door ----------------------------------------------------------------------------------


@pytest.fixture
async def door_client(server: Server) -> AsyncIterator[Any]:
    """Serves an ASGI app behind a door with a time limit of 0.2 s."""
    running: list[RunningServer] = []
    clients: list[httpx.AsyncClient] = []
    api: Api = server.app.state["api"]

    async def start(inner: Any) -> httpx.AsyncClient:
        door = Door(inner, api, time_limit_secs=0.2)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                scope["litestar_app"] = server.app
                await door(scope, receive, send)

        http = await serve_app(app, "127.0.0.1", 0, grace_secs=1)
        running.append(http)
        clients.append(httpx.AsyncClient(base_url=http.url))
        return clients[-1]

    yield start
    for client in clients:
        await client.aclose()
    for http in running:
        await http.stop()


async def test_an_answer_that_takes_too_long_is_503(door_client: Any) -> None:
    async def stuck(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    client = await door_client(stuck)
    answer = await client.get("/x")
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "service_unavailable"


async def test_an_answer_that_has_begun_may_take_as_long_as_it_needs(door_client: Any) -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(0.4)  # twice the limit: the subject of this test
        await send({"type": "http.response.body", "body": b"late", "more_body": False})

    client = await door_client(slow)
    assert (await client.get("/x")).text == "late"


async def test_an_error_outside_of_the_framework_is_500(door_client: Any) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("boom")

    client = await door_client(broken)
    answer = await client.get("/x")
    assert (answer.status_code, answer.json()["message"]) == (500, INTERNAL)


async def test_an_error_in_the_middle_of_an_answer_cuts_it(door_client: Any) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-length", b"10")],
            }
        )
        raise RuntimeError("boom")

    client = await door_client(broken)
    with pytest.raises(httpx.RemoteProtocolError):
        await client.get("/x")


async def test_a_request_id_is_taken_over_or_made(server: Server) -> None:
    client = server.client()
    made = [(await client.get("/health")).headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]
    taken = await client.get("/health", headers={"X-Request-Id": "abc-123"})
    assert taken.headers["x-request-id"] == "abc-123"
    for bad in ("has space", "x" * 129, '"quotes"'):
        answer = await client.get("/health", headers={"X-Request-Id": bad})
        assert answer.headers["x-request-id"] != bad


async def test_each_request_is_one_log_line_without_secrets(
    server: Server, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="pilotage.access"):
        await client.get("/v1/workflow-runs", params={"tag": "secret:1"})
    (record,) = [r for r in caplog.records if r.name == "pilotage.access"]
    fields = vars(record)
    assert fields["status"] == 200
    assert fields["path"] == "/v1/workflow-runs"
    assert fields["principal"] == "tester"
    assert fields["request_id"]
    assert "secret" not in record.getMessage()
    assert client.headers["authorization"].split()[1] not in str(fields)


async def test_an_unknown_path_and_a_wrong_method_have_the_one_shape(server: Server) -> None:
    unknown = await server.admin.get("/v1/nothing")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
    wrong = await server.admin.put("/v1/workflow-runs/x")
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "GET, HEAD, DELETE, OPTIONS"
    assert wrong.json()["error"]["code"] == "method_not_allowed"
    options = await server.admin.options("/v1/workflow-runs/x")
    assert (options.status_code, options.headers["allow"]) == (204, "GET, HEAD, DELETE, OPTIONS")
    assert (await server.admin.options("/v1/nothing")).status_code == 404
    for path in ("/v1/workflow-runs/a/b/c", "/", "/v1", "//", "/v1/workflow-runs/%00"):
        answer = await server.admin.get(path)
        assert answer.status_code == 404, path
        assert set(answer.json()) == {"error", "message", "request_id"}


async def test_a_path_that_ends_with_a_slash_is_another_path(server: Server) -> None:
    """Or whoever forgot the id would be given the list."""
    client = await server.member()
    seen = 0
    for path in ("/v1/workflow-runs", "/v1/workflows", "/v1/jobs", "/v1/api-keys"):
        assert (await client.get(path)).status_code == 200
        for method in ("GET", "DELETE", "PATCH"):
            answer = await client.request(method, f"{path}/")
            assert answer.status_code in {404, 405}, (method, path)
            seen += answer.status_code == 404
    assert seen >= 4
    for path in (f"/v1/workflow-runs/{UNKNOWN}/", f"/v1/workflow-runs/{UNKNOWN}/pause/"):
        method = "POST" if "pause" in path else "GET"
        answer = await client.request(method, path)
        assert "slash" in answer.json()["message"]
        assert answer.status_code == 404


async def test_head_is_a_get_without_its_body(server: Server, client: httpx.AsyncClient) -> None:
    for path in ("/health", "/health/ready", "/v1/workflow-runs", "/metrics", "/v1/workflows/x"):
        got, head = await client.get(path), await client.head(path)
        assert (head.status_code, head.content) == (got.status_code, b"")
        assert head.headers["content-type"] == got.headers["content-type"]
        if path != "/metrics" and got.status_code == 200:
            assert head.headers["content-length"] == got.headers["content-length"]
    assert (await server.client().head("/v1/workflow-runs")).status_code == 401
    refused = await client.head("/v1/workflow-runs/x/pause")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST, OPTIONS")


async def test_who_takes_no_json_is_406(client: httpx.AsyncClient) -> None:
    for accept, status in (
        ("text/html", 406),
        ("application/json;q=0", 406),
        ("text/html, application/json;q=0.1", 200),
        ("application/*", 200),
        ("", 200),
        ("*/*", 200),
    ):
        answer = await client.get("/v1/workflows", headers={"Accept": accept})
        assert answer.status_code == status, accept


async def test_metrics_count_requests_by_route_and_never_by_id(
    server: Server, client: httpx.AsyncClient
) -> None:
    await define(client, "w", [job("a")])
    run_id = (await trigger(client, "w"))["id"]
    await wait_status(client, run_id, "completed")
    text = (await server.admin.get("/metrics")).text
    assert 'route="/v1/workflow-runs/{workflowRunID}"' in text
    assert run_id not in text


async def exchange(server: Server, *parts: bytes) -> bytes:
    """Everything that the server sends until it closes; what it does not read is not sent."""
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        with contextlib.suppress(ConnectionError):
            for part in parts:
                writer.write(part)
                await writer.drain()
        with contextlib.suppress(ConnectionError):
            return await asyncio.wait_for(reader.read(), 10)
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 4_000_000,
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X: aaaaaaaaaaaaaaa\r\n" * 200_000,
        b"GET /" + b"a" * 4_000_000,
    ],
)
async def test_a_head_without_end_is_refused(server: Server, head: bytes) -> None:
    answer = await exchange(server, *(head[i : i + 65_536] for i in range(0, len(head), 65_536)))
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400"), answer
    assert (await server.client().get("/health")).status_code == 200


async def test_a_head_of_reasonable_size_is_taken(server: Server) -> None:
    answer = await server.client().get("/health", headers={"X-Long": "a" * 50_000})
    assert answer.status_code == 200


async def test_trailers_of_a_body_are_not_kept(server: Server) -> None:
    answer = await exchange(
        server,
        b"POST /v1/workflows HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        + f"Authorization: Bearer {ADMIN_KEY}\r\n".encode()
        + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
        + b"X-Project-Id: acme\r\n\r\n",
    )
    assert answer.startswith(b"HTTP/1.1 422")
    assert b"project_id: required" in answer  # the trailer names no project


async def test_who_connects_and_says_nothing_is_let_go(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "HEAD_SECS", 0.05)
    assert await exchange(server) == b""
    assert await exchange(server, b"GET /health HT") == b""
    # within the time and after it: a connection that is kept alive is served
    client = server.client()
    for _ in range(3):
        assert (await client.get("/health")).status_code == 200


async def test_garbage_on_the_wire_is_refused(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as raw:
        raw.sendall(b"\x00\x01\x02 nonsense\r\n\r\n")
        answer = b""
        while received := await asyncio.to_thread(raw.recv, 4096):
            answer += received
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    told = json.loads(body)
    assert told["error"]["code"] == "bad_request"
    assert told["message"] == told["error"]["message"]
    assert f"x-request-id: {told['request_id']}".encode() in head
    assert f"content-length: {len(body)}".encode() in head
