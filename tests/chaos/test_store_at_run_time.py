"""A store that stops being usable while a server runs: named, refused, waited for.

One server goes through all states. In each of them readiness is off and says why, commands are
refused with 503 and `Retry-After`, and afterwards what was under way goes on by itself.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.chaos.client import Client
from tests.chaos.impostors import HTTP, LOADING, Impostor
from tests.chaos.machines import ADMIN_KEY, OwnStore, ServerProcess, free_port
from tests.support.waiting import wait_until

WAIT_SECS = 60.0


class World:
    """A server, its store, and a way to ask both."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = OwnStore(folder / "store", free_port())
        env = {
            "PILOTAGE_ADMIN_KEY": ADMIN_KEY,
            "PILOTAGE_LEASE_SECS": "2",
            "CHAOS_LOG": str(folder / "executions"),
        }
        url = f"redis://127.0.0.1:{self.store.port}/0"
        args = ["--port", "0", "--redis-url", url, "--app", "tests.chaos.app:app"]
        self.server = ServerProcess("server", args, env, folder / "server.log")
        self.problems: list[str] = []
        self.client = Client(
            lambda: self.server.url, key=ADMIN_KEY, project="p", problem=self.problems.append
        )
        self.admin: Any = Redis(port=self.store.port, decode_responses=True)

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

    async def run(self, run_id: str) -> dict[str, Any]:
        run: dict[str, Any] = (await self.client.once("GET", f"/v1/workflow-runs/{run_id}"))[1]
        return run


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    await world.start_store()
    await world.server.spawn()
    await wait_until(lambda: world.server.url != "", "it listens", within_secs=WAIT_SECS)
    steps = [
        {"step_ref": "go", "step_type": "approval"},
        {"step_ref": "then", "job_id": "mark_inline", "depends_on": ["go"]},
    ]
    flow = {"project_id": "p", "name": "flow", "slug": "flow", "steps": steps}
    assert (await world.client.once("POST", "/v1/workflows", flow))[0] == 201
    yield world
    if world.server.running:
        world.server.signal(signal.SIGKILL)
        await world.server.ended()
    await world.client.close()
    await world.admin.aclose()
    await world.store.kill()


# --- the states ----------------------------------------------------------------------------------


@asynccontextmanager
async def replica(world: World) -> AsyncGenerator[None]:
    await world.admin.execute_command("REPLICAOF", "127.0.0.1", "1")
    yield
    await world.admin.execute_command("REPLICAOF", "NO", "ONE")


@asynccontextmanager
async def without_replicas(world: World) -> AsyncGenerator[None]:
    await world.admin.config_set("min-replicas-to-write", "1")
    yield
    await world.admin.config_set("min-replicas-to-write", "0")


@asynccontextmanager
async def unsaved(world: World) -> AsyncGenerator[None]:
    """Its snapshots fail: a directory is in the way of the file."""
    (world.store.folder / "dump.rdb").mkdir()
    await world.admin.config_set("save", "3600 1")
    await world.admin.bgsave()

    async def failed() -> bool:
        info = await world.admin.info("persistence")
        return bool(info["rdb_last_bgsave_status"] == "err")

    await wait_until(failed, "a snapshot failed", within_secs=WAIT_SECS)
    yield
    await world.admin.config_set("save", "")


@asynccontextmanager
async def other_password(world: World) -> AsyncGenerator[None]:
    await world.admin.config_set("requirepass", "changed")
    await world.admin.execute_command("AUTH", "changed")
    await world.admin.client_kill_filter(_type="normal", skipme=True)
    yield
    await world.admin.config_set("requirepass", "")


@asynccontextmanager
async def fewer_rights(world: World) -> AsyncGenerator[None]:
    await world.admin.execute_command("ACL", "SETUSER", "default", "-@scripting")
    yield
    await world.admin.execute_command("ACL", "SETUSER", "default", "+@all")


@asynccontextmanager
async def busy(world: World) -> AsyncGenerator[None]:
    await world.admin.config_set("busy-reply-threshold", "50")
    other: Any = Redis(port=world.store.port)
    endless = asyncio.create_task(other.eval("while true do end", 0))
    yield
    await world.admin.script_kill()
    await asyncio.gather(endless, return_exceptions=True)
    await other.aclose()


@asynccontextmanager
async def killed(world: World) -> AsyncGenerator[None]:
    await world.store.kill()
    yield
    await world.start_store()


@asynccontextmanager
async def suspended(world: World) -> AsyncGenerator[None]:
    os.kill(world.store.pid, signal.SIGSTOP)
    yield
    os.kill(world.store.pid, signal.SIGCONT)


def replaced(answer: bytes) -> Callable[[World], AbstractAsyncContextManager[None]]:
    """Something else listens where it was."""

    @asynccontextmanager
    async def state(world: World) -> AsyncGenerator[None]:
        await world.store.kill()
        with Impostor(answer, world.store.port):
            yield
        await world.start_store()

    return state


STATES: list[tuple[str, Callable[[World], AbstractAsyncContextManager[None]], str]] = [
    ("killed", killed, "the store cannot be reached"),
    ("suspended", suspended, "did not answer within"),
    ("replica", replica, "it has become a replica and takes no writes"),
    ("without replicas", without_replicas, "too few replicas are connected"),
    ("unsaved", unsaved, "it cannot save to its disk and refuses writes"),
    ("busy", busy, "it is busy with a long script"),
    ("other password", other_password, "the store refuses our credentials or rights"),
    ("fewer rights", fewer_rights, "the store refuses our credentials or rights"),
    ("loading", replaced(LOADING), "it is loading its data"),
    ("not a Redis", replaced(HTTP), "this is not a Redis or Valkey server"),
]


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_each_state_is_named_and_commands_are_refused_until_it_passes(world: World) -> None:
    for name, state, words in STATES:
        async with AsyncExitStack() as stack:
            _, run = await world.trigger()
            await stack.enter_async_context(state(world))
            said = ""

            async def off(name: str = name, words: str = words) -> bool:
                nonlocal said
                ready, said = await world.ready()
                return not ready and words in said

            try:
                await wait_until(off, f"{name}: named", within_secs=WAIT_SECS)
            except AssertionError as error:
                raise AssertionError(f"{error}; it says {said!r}") from None
            status, refused = await world.trigger()
            assert status == 503, (name, refused)
            assert words in refused["message"], name
            assert await world.approve(run["id"]) == 503, name
        await wait_until(world.is_ready, f"{name}: ready again", within_secs=WAIT_SECS)
        assert await world.approve(run["id"]) == 204, name

        async def completed(run_id: str = run["id"]) -> bool:
            return bool((await world.run(run_id))["status"] == "completed")

        await wait_until(completed, f"{name}: the run goes on", within_secs=WAIT_SECS)
    assert world.problems == [], "each 503 has Retry-After"
    assert world.server.running
    await world.admin.script_flush()
    assert (await world.trigger())[0] == 201, "scripts that were forgotten are sent again"


async def test_a_store_that_has_lost_its_data_ends_the_server_with_words(world: World) -> None:
    await world.admin.flushall()
    assert await world.server.ended() == 1
    (last,) = world.server.log_lines()[-1:]
    assert "the store has lost what was written, or is another one" in last["message"]
