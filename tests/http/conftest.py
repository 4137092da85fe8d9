"""A whole server for each test: the real runtime over the store in memory, behind real HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from litestar import Litestar

from pilotage.actors.executors.python_jobs import JobRegistry
from pilotage.actors.runtime import Runtime
from pilotage.http.app import create_app
from pilotage.http.server import RunningServer, serve_app
from pilotage.persistence.memory import MemoryStore
from pilotage.settings import Settings
from tests.http.conformance import Conformance

ADMIN_KEY = "test-admin-key-0123456789"
PROJECT = "acme"
ALL_SCOPES = ["*"]
WAIT_SECS = 10.0


def _nothing() -> list[dict[str, Any]]:
    return []


@dataclass
class Latch:
    """What jobs of a test wait for and report."""

    open: asyncio.Event = field(default_factory=asyncio.Event)
    inputs: list[dict[str, Any]] = field(default_factory=_nothing)
    failing: bool = True


def make_registry(latch: Latch) -> JobRegistry:
    registry = JobRegistry()

    async def echo(data: dict[str, Any]) -> dict[str, Any]:
        latch.inputs.append(data)
        return {"echo": data.get("payload", data.get("n"))}

    async def hold(data: dict[str, Any]) -> str:
        latch.inputs.append(data)
        await latch.open.wait()
        return "held"

    async def flaky(data: dict[str, Any]) -> str:
        latch.inputs.append(data)
        if latch.failing:
            raise RuntimeError("out of order")
        return "repaired"

    registry.register(echo, name="echo", inline=True)
    registry.register(hold, name="hold", inline=True)
    registry.register(flaky, name="flaky", inline=True, max_attempts=1)
    return registry


class Server:
    """A running server and clients of it; every answer is held against the OpenAPI document."""

    def __init__(self, runtime: Runtime, app: Litestar, http: RunningServer, latch: Latch) -> None:
        self.runtime = runtime
        self.app = app
        self.url = http.url
        self._http = http
        self._stopped = False
        self.latch = latch
        self.store = runtime.store
        self.conformance = Conformance(app)
        self._clients: list[httpx.AsyncClient] = []
        self.admin = self.client(ADMIN_KEY)

    def client(self, key: str | None = None, **headers: str) -> httpx.AsyncClient:
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        hooks = {"response": [self.conformance.check]}
        client = httpx.AsyncClient(
            base_url=self.url, headers=headers, timeout=30, event_hooks=hooks
        )
        self._clients.append(client)
        return client

    async def key(
        self, scopes: list[str] | None = None, project: str = PROJECT, name: str = "tester"
    ) -> str:
        made = await self.admin.post(
            "/v1/api-keys",
            json={"name": name, "project_id": project, "scopes": scopes or ALL_SCOPES},
        )
        assert made.status_code == 201, made.text
        key: str = made.json()["key"]
        return key

    async def member(
        self, scopes: list[str] | None = None, project: str = PROJECT, name: str = "tester"
    ) -> httpx.AsyncClient:
        return self.client(await self.key(scopes, project, name))

    async def stop(self) -> None:
        """Everything ends in order; without effect the second time."""
        if self._stopped:
            return
        self._stopped = True
        for client in self._clients:
            await client.aclose()
        self.latch.open.set()
        await self._http.stop()
        await self.runtime.stop()


StartServer = Callable[..., Awaitable[Server]]


@pytest.fixture
async def start_server() -> AsyncIterator[StartServer]:
    """Starts a server with settings of one's own; all are stopped after the test."""
    running: list[Server] = []

    async def start(
        store: MemoryStore | None = None, *, real_store: bool = False, **settings: Any
    ) -> Server:
        latch = Latch()
        values = Settings(admin_key=ADMIN_KEY, allow_private_endpoints=True, **settings)
        runtime = Runtime(
            settings=values,
            registry=make_registry(latch),
            store=None if real_store else store or MemoryStore(),
        )
        await runtime.start()
        app = create_app(runtime.gateway, values, metrics=runtime.metrics)
        http = await serve_app(app, "127.0.0.1", 0, grace_secs=1)
        running.append(Server(runtime, app, http, latch))
        return running[-1]

    yield start
    for server in reversed(running):
        await server.stop()


@pytest.fixture
async def server(start_server: StartServer) -> Server:
    return await start_server()


@pytest.fixture
async def client(server: Server) -> httpx.AsyncClient:
    """A client with a key of project `acme` and all scopes."""
    return await server.member()


async def define(
    client: httpx.AsyncClient, slug: str, steps: list[dict[str, Any]], **more: Any
) -> dict[str, Any]:
    made = await client.post("/v1/workflows", json={"slug": slug, "steps": steps, **more})
    assert made.status_code == 201, made.text
    return dict(made.json())


async def trigger(client: httpx.AsyncClient, slug: str, **body: Any) -> dict[str, Any]:
    made = await client.post(f"/v1/workflows/{slug}/trigger", json=body)
    assert made.status_code == 201, made.text
    return dict(made.json())


async def wait_for(
    client: httpx.AsyncClient, run_id: str, holds: Callable[[dict[str, Any]], bool], what: str
) -> dict[str, Any]:
    """Reads the run until `holds`, or fails with what it was waiting for."""
    deadline = time.monotonic() + WAIT_SECS
    run: dict[str, Any] = {}
    while time.monotonic() < deadline:
        run = (await client.get(f"/v1/workflow-runs/{run_id}")).json()
        if holds(run):
            return run
        await asyncio.sleep(0.005)
    raise AssertionError(f"waited {WAIT_SECS} s for {what}; the run is {run}")


async def wait_status(client: httpx.AsyncClient, run_id: str, status: str) -> dict[str, Any]:
    return await wait_for(client, run_id, lambda r: r.get("status") == status, status)


async def wait_step(
    client: httpx.AsyncClient, run_id: str, step_ref: str, status: str
) -> dict[str, Any]:
    deadline = time.monotonic() + WAIT_SECS
    step: dict[str, Any] = {}
    while time.monotonic() < deadline:
        step = await read_step(client, run_id, step_ref)
        if step["status"] == status:
            return step
        await asyncio.sleep(0.005)
    raise AssertionError(f"waited {WAIT_SECS} s for {step_ref} to be {status}; it is {step}")


async def read_step(client: httpx.AsyncClient, run_id: str, step_ref: str) -> dict[str, Any]:
    steps = (await client.get(f"/v1/workflow-runs/{run_id}/steps")).json()
    return next(dict(s) for s in steps if s["step_ref"] == step_ref)


def job(ref: str, name: str = "echo", *after: str, **more: Any) -> dict[str, Any]:
    return {"step_ref": ref, "job_id": name, "depends_on": list(after), **more}


def approval(ref: str, *after: str, **more: Any) -> dict[str, Any]:
    return {"step_ref": ref, "step_type": "approval", "depends_on": list(after), **more}
