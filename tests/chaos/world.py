"""A server and a store of one's own, for tests that take one of them away."""

from __future__ import annotations

import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.chaos.client import Client
from tests.chaos.machines import ADMIN_KEY, OwnStore, ServerProcess, free_port
from tests.support.waiting import wait_until

WAIT_SECS = 60.0


class World:
    """A server, its store, and a way to ask both."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        self.folder = folder
        self._settings = settings
        self.store = OwnStore(folder / "store", free_port())
        self.server = self.new_server()
        self.problems: list[str] = []
        self.client = Client(
            lambda: self.server.url, key=ADMIN_KEY, project="p", problem=self.problems.append
        )
        self.admin: Any = Redis(port=self.store.port, decode_responses=True)

    def new_server(self, **settings: str) -> ServerProcess:
        """Not started yet. `settings`: of the environment, others than usual."""
        env = {
            "PILOTAGE_ADMIN_KEY": ADMIN_KEY,
            "PILOTAGE_LEASE_SECS": "2",
            "PILOTAGE_GRACE_SECS": "2",
            "PILOTAGE_LOG_FORMAT": "json",
            "CHAOS_LOG": str(self.folder / "executions"),
            **self._settings,
            **settings,
        }
        url = f"redis://127.0.0.1:{self.store.port}/0"
        args = ["--port", "0", "--redis-url", url, "--app", "tests.chaos.app:app"]
        return ServerProcess("server", args, env, self.folder / "server.log")

    async def start_server(self) -> None:
        """A new one, once it listens."""
        self.server = self.new_server()
        await self.server.spawn()
        await wait_until(lambda: self.server.url != "", "it listens", within_secs=WAIT_SECS)

    async def answers(self) -> bool:
        try:
            return bool(await self.admin.ping())
        except (RedisError, OSError):
            return False

    async def start_store(self) -> None:
        await self.store.start()
        await wait_until(self.answers, "the store answers", within_secs=WAIT_SECS)

    async def ready(self) -> tuple[bool, str]:
        status, answer = await self.client.once("GET", "/health/ready")
        return status == 200, str(answer)

    async def is_ready(self) -> bool:
        return (await self.ready())[0]

    async def trigger(self) -> tuple[int, Any]:
        return await self.client.once("POST", "/v1/workflows/flow/trigger")

    async def approve(self, run_id: str) -> int:
        path = f"/v1/workflow-runs/{run_id}/steps/go/approve"
        return (await self.client.once("POST", path))[0]

    async def until_completed(self, run_id: str, what: str) -> None:
        async def completed() -> bool:
            return bool((await self.run(run_id))["status"] == "completed")

        await wait_until(completed, what, within_secs=WAIT_SECS)

    async def run(self, run_id: str) -> dict[str, Any]:
        run: dict[str, Any] = (await self.client.once("GET", f"/v1/workflow-runs/{run_id}"))[1]
        return run


@asynccontextmanager
async def a_world(folder: Path, **settings: str) -> AsyncGenerator[World]:
    """A store, and a server that has the workflow `flow`: an approval, then a job. `settings` of
    the environment hold for each server of this world.
    """
    world = World(folder, settings)
    await world.start_store()
    await world.start_server()
    steps = [
        {"step_ref": "go", "step_type": "approval"},
        {"step_ref": "then", "job_id": "mark_inline", "depends_on": ["go"]},
    ]
    flow = {"project_id": "p", "name": "flow", "slug": "flow", "steps": steps}
    assert (await world.client.once("POST", "/v1/workflows", flow))[0] == 201
    try:
        yield world
    finally:
        if world.server.running:
            world.server.signal(signal.SIGKILL)
            await world.server.ended()
        await world.client.close()
        await world.admin.aclose()
        await world.store.kill()
