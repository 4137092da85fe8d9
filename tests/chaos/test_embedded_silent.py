"""The embedded store is suspended: the server wakes it, and a stop ends in order all the same."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.chaos.client import Client
from tests.chaos.machines import ADMIN_KEY, EmbeddedStore, ServerProcess
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(300)

WAIT_SECS = 60.0
FLOW = {
    "project_id": "p",
    "name": "flow",
    "slug": "flow",
    "steps": [
        {"step_ref": "go", "step_type": "approval"},
        {"step_ref": "then", "job_id": "mark_inline", "depends_on": ["go"]},
    ],
}


class Alone:
    """A server with its embedded store."""

    def __init__(self, folder: Path) -> None:
        env = {
            "PILOTAGE_ADMIN_KEY": ADMIN_KEY,
            "PILOTAGE_LOG_FORMAT": "json",
            "CHAOS_LOG": str(folder / "executions"),
        }
        args = ["--port", "0", "--data-dir", str(folder / "data"), "--app", "tests.chaos.app:app"]
        self.server = ServerProcess("server", args, env, folder / "server.log")
        self.store = EmbeddedStore(folder / "data")
        self.problems: list[str] = []
        self.client = Client(
            lambda: self.server.url, key=ADMIN_KEY, project="p", problem=self.problems.append
        )

    async def start(self) -> None:
        await self.server.spawn()
        await wait_until(self.ready, "it is ready", within_secs=WAIT_SECS)

    async def ready(self) -> bool:
        return (await self.client.once("GET", "/health/ready"))[0] == 200

    def suspend(self, *, watcher: bool) -> int:
        pid = self.store.pid
        assert pid is not None
        if watcher:
            os.killpg(os.getpgid(pid), signal.SIGSTOP)
        else:
            os.kill(pid, signal.SIGSTOP)
        return pid

    async def goes_on(self, run_id: str) -> None:
        path = f"/v1/workflow-runs/{run_id}"
        assert (await self.client.once("POST", f"{path}/steps/go/approve"))[0] == 204

        async def completed() -> bool:
            return bool((await self.client.once("GET", path))[1]["status"] == "completed")

        await wait_until(completed, "the run goes on", within_secs=WAIT_SECS)


@pytest.fixture
async def alone(tmp_path: Path) -> AsyncIterator[Alone]:
    made = Alone(tmp_path)
    await made.start()
    assert (await made.client.once("POST", "/v1/workflows", FLOW))[0] == 201
    try:
        yield made
    finally:
        made.server.signal(signal.SIGKILL)
        await made.server.ended()
        await made.server.children_ended()
        await made.client.close()


@pytest.mark.parametrize("watcher", [False, True], ids=["store", "its watcher too"])
async def test_a_stop_while_the_store_is_suspended_ends_in_order(
    alone: Alone, *, watcher: bool
) -> None:
    _, run = await alone.client.once("POST", "/v1/workflows/flow/trigger")
    alone.suspend(watcher=watcher)
    alone.server.signal(signal.SIGTERM)
    assert await alone.server.ended() == 0, "the store has ended by itself, it was not killed"
    assert await alone.server.children_ended()
    assert alone.store.pid is None
    said = alone.server.log.read_text()
    assert "not given back" not in said
    assert "could not be flushed" not in said
    await alone.start()
    await alone.goes_on(run["id"])


async def test_a_suspended_store_is_woken(alone: Alone) -> None:
    _, run = await alone.client.once("POST", "/v1/workflows/flow/trigger")
    pid = alone.suspend(watcher=False)

    def woken() -> bool:
        return "the store is back" in alone.server.log.read_text()

    await wait_until(woken, "it was noticed, and the store goes on", within_secs=WAIT_SECS)
    assert alone.store.pid == pid
    await alone.goes_on(run["id"])
    assert "the embedded store is silent; it is told to go on" in alone.server.log.read_text()
    assert alone.problems == []
