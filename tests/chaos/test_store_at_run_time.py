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

from tests.chaos.impostors import HTTP, LOADING, Impostor
from tests.chaos.world import WAIT_SECS, World, a_world
from tests.support.waiting import wait_until


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as made:
        yield made


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
        await world.until_completed(run["id"], f"{name}: the run goes on")
    assert world.problems == [], "each 503 has Retry-After"
    assert world.server.running
    await world.admin.script_flush()
    assert (await world.trigger())[0] == 201, "scripts that were forgotten are sent again"


@pytest.mark.timeout(300)
async def test_a_store_that_has_lost_its_data_ends_the_server_with_words(world: World) -> None:
    await world.admin.flushall()
    assert await world.server.ended() == 1
    (last,) = world.server.log_lines()[-1:]
    assert "the store has lost what was written, or is another one" in last["message"]
