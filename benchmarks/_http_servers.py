"""The two servers that `http_api` compares, each a process of its own on the same kind of server.

ours   the product: runtime, embedded store, the whole app, an API key of a project
bare   a Litestar app without any middleware whose handlers return the same structs ready made;
       each POST does one acknowledged write (HSET) to an embedded server of its own

Started as `python -m benchmarks._http_servers ours|bare`; prints one line of JSON that says where
it is and what it has, and ends when its standard input is closed.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import redis.asyncio
import uvloop
from litestar import Litestar, get, post

from benchmarks._actors import PROJECT, chain, finish, make_workflow, running, start_run
from pilotage.actors.principal import ADMIN, SCOPES
from pilotage.http.app import create_app
from pilotage.http.server import serve_app
from pilotage.persistence.embedded import EmbeddedServer
from pilotage.runtime.status import RunStatus
from pilotage.runtime.views import RunView

RUNS = 200
"""Active runs that are there before anything is asked; more come by the triggers."""
PAGE = 50


class Where(msgspec.Struct):
    """What the other side has to know: address, credentials, a run and a workflow to ask for (one
    approval), and a workflow of three inline jobs in a row.
    """

    port: int
    key: str = ""
    run_id: str = "0199a3c4-7e21-7000-8000-000000010000"
    workflow_id: str = "orders"
    chain_id: str = "three"
    finished_id: str = "finished"
    """Its runs, a page of them, have all ended."""


def noop(_: dict[str, Any]) -> dict[str, int]:
    return {"ok": 1}


@asynccontextmanager
async def ours() -> AsyncGenerator[Where]:
    gate = {"step_ref": "gate", "step_type": "approval", "approval_timeout_secs": 86_400}
    async with running(inline_noop=noop) as runtime:
        flow = await make_workflow(runtime, "orders", [gate])
        three = await make_workflow(runtime, "three", chain(3, "inline_noop"))
        ids = [await start_run(runtime, flow) for _ in range(RUNS)]
        ending = await make_workflow(runtime, "finished", chain(1, "inline_noop"))
        for _ in range(PAGE):
            await finish(runtime, await start_run(runtime, ending))
        _, key = await runtime.catalog.keys.create(
            name="benchmark", project_id=PROJECT, scopes=SCOPES, by=ADMIN
        )
        server = await serve_app(create_app(runtime.gateway, runtime.settings), "127.0.0.1", 0)
        yield Where(
            port=server.port,
            key=key,
            run_id=ids[-1],
            workflow_id=flow.id,
            chain_id=three.id,
            finished_id=ending.id,
        )
        await server.stop()


def same_view(number: int) -> RunView:
    """As large as the run that the product shows."""
    return RunView(
        id=f"0199a3c4-7e21-7000-8000-0000{number:04x}0000",
        workflow_id="0199a3c4-7000-7abc-9def-0123456789ab",
        project_id=PROJECT,
        status=RunStatus.RUNNING,
        triggered_by="manual",
        workflow_version=1,
        payload=msgspec.Raw(b'{"order":17}'),
        started_at="2026-01-31T09:30:00.250Z",
        workflow_version_id="0199a3c4-7001-7abc-9def-0123456789ab",
        created_by="bench",
        created_at="2026-01-31T09:30:00.250Z",
    )


@asynccontextmanager
async def bare() -> AsyncGenerator[Where]:
    view, fifty = same_view(0), [same_view(i) for i in range(PAGE)]

    @get("/v1/workflow-runs/{run_id:str}")
    async def read(run_id: str) -> RunView:
        del run_id
        return view

    @get("/v1/workflow-runs")
    async def list_runs() -> list[RunView]:
        return fifty

    @post("/v1/workflows/{workflow_id:str}/trigger")
    async def write(workflow_id: str, data: dict[str, object]) -> RunView:
        await client.hset(f"run {workflow_id}", mapping={"h": msgspec.msgpack.encode(data)})
        return view

    @post("/v1/workflow-runs/{run_id:str}/steps/{step_ref:str}/approve", status_code=204)
    async def approve(run_id: str, step_ref: str, data: dict[str, object]) -> None:
        await client.hset(f"run {run_id}", mapping={step_ref: msgspec.msgpack.encode(data)})

    with tempfile.TemporaryDirectory() as folder:
        store = EmbeddedServer(Path(folder))
        client = redis.asyncio.Redis.from_url(await store.start())
        app = Litestar([read, list_runs, write, approve], openapi_config=None, logging_config=None)
        server = await serve_app(app, "127.0.0.1", 0)
        yield Where(port=server.port)
        await server.stop()
        await client.aclose()
        await store.stop()


async def serve(kind: str) -> None:
    async with {"ours": ours, "bare": bare}[kind]() as where:
        print(msgspec.json.encode(where).decode(), flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(sys.argv[1]))
