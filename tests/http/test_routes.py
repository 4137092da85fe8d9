"""From the door to a route: what the framework's own router would have done is still done."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from litestar import get
from litestar.types import ASGIApp

from pilotage.http.app import create_app
from pilotage.http.auth import PUBLIC
from tests.http.conftest import ADMIN_KEY, PROJECT, Server
from tests.http.test_access import error_of


@pytest.mark.parametrize("host", ["a b", "a/b", "a\\b", 'a"b', "a<b>", "a?b", "a#b"])
async def test_a_host_that_is_none_is_400(server: Server, host: str) -> None:
    answer = await server.admin.get("/v1/workflows", headers={"Host": host})
    assert answer.status_code == 400
    assert error_of(answer)["code"] == "bad_request"


@pytest.mark.parametrize("host", ["example.org:8000", "[::1]:80", "a_b-c.d~e", "xn--bcher-kva.de"])
async def test_a_host_is_taken_as_it_is(server: Server, host: str) -> None:
    answer = await server.admin.get("/v1/workflows?project_id=acme", headers={"Host": host})
    assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/v1/workflow-runs/x", "/health"])
async def test_a_method_that_a_path_lacks_is_405_and_told_which_it_has(
    server: Server, path: str
) -> None:
    answer = await server.admin.put(path)
    assert answer.status_code == 405
    assert answer.headers["allow"].startswith("GET, HEAD")
    assert answer.headers["allow"] in error_of(answer)["message"]


async def test_an_app_that_is_mounted_finds_its_routes(server: Server) -> None:
    app: Any = server.app
    transport = httpx.ASGITransport(app=app, root_path="/engine")
    async with httpx.AsyncClient(transport=transport, base_url="http://example.org") as client:
        assert (await client.get("/engine/health")).status_code == 200
        assert (await client.get("/engine/nothing")).status_code == 404
        assert (await client.get("/engine")).status_code == (await client.get("/")).status_code
        assert (await client.get("/engine/metrics")).status_code == 401
        for path in ("/engine/v1/workflows", "/engine/v1/workflows/v1/engine"):
            assert (await client.get(path)).status_code == 401
        key = {"Authorization": f"Bearer {ADMIN_KEY}", "X-Project-Id": PROJECT}
        assert (await client.get("/engine/metrics", headers=key)).status_code == 200
        assert (await client.get("/engine/v1/workflows", headers=key)).status_code == 200
        assert (await client.get("/engine/v1/workflows/engine", headers=key)).status_code == 404
        assert (await client.get("/engine/v1//workflows", headers=key)).status_code == 404
        assert (await client.get("/v1/workflows", headers=key)).status_code == 200
        options = await client.request("OPTIONS", "/engine/v1/workflows", headers=key)
        assert "POST" in options.headers["allow"]


@pytest.mark.parametrize("path", ["//v1/jobs", "/v1//jobs", "/v1/jobs//x", "//health", "//"])
async def test_a_path_with_an_empty_segment_is_404(server: Server, path: str) -> None:
    answer = await server.admin.get(f"{server.url}{path}", headers={"X-Project-Id": "acme"})
    assert answer.status_code == 404, answer.text
    assert "empty segment" in error_of(answer)["message"]


async def test_a_path_with_an_empty_segment_needs_the_key_that_others_beside_it_need(
    server: Server,
) -> None:
    nobody = server.client()
    assert (await nobody.get(f"{server.url}/v1//jobs")).status_code == 401
    assert (await nobody.get(f"{server.url}//v1/jobs")).status_code == 404


async def test_a_websocket_is_closed(server: Server) -> None:
    sent: list[dict[str, Any]] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope: Any = {"type": "websocket", "path": "/v1/workflow-runs", "headers": [], "state": {}}
    await server.app(scope, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


def refuse(*_: object) -> Any:
    """An exception handler that nobody would ask."""


def passing(app: ASGIApp) -> ASGIApp:
    return app


@pytest.mark.parametrize(
    "own",
    [{"exception_handlers": {ValueError: refuse}}, {"middleware": [passing]}],
    ids=["handlers", "middleware"],
)
async def test_a_route_that_would_answer_errors_itself_keeps_the_app_from_starting(
    server: Server, own: dict[str, Any]
) -> None:
    @get("/page", opt={"scope": PUBLIC}, **own)
    async def page() -> None: ...

    with pytest.raises(AssertionError, match="of its own"):
        create_app(server.runtime.gateway, server.runtime.settings, pages=[page])
