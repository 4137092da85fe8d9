"""A start waits for a store that is away or loading, says so, and heeds SIGTERM meanwhile."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pilotage.persistence.keys import Keys
from tests.chaos.world import WAIT_SECS, World, a_world
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(300)

LEASE = Keys("pilotage").lease
FOR_EVER = "3600"
"""Far longer than a server gets to end: one that does not heed SIGTERM fails the test."""
SLOWLY = ("--key-load-delay", "50000", "--loading-process-events-interval-bytes", "1024")
FILLER = 2_000


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as made:
        yield made


async def stopped(world: World) -> str:
    """A parked run's id; server and store have ended."""
    _, run = await world.trigger()
    world.server.signal(signal.SIGTERM)
    assert await world.server.ended() == 0
    await world.store.kill()
    return str(run["id"])


async def much(world: World) -> None:
    """Data in the base file of the store, which is loaded key by key."""
    filler = random.Random(0).randbytes(1_000).hex()  # cannot be compressed
    await world.admin.mset({f"filler {n}": filler for n in range(FILLER)})
    await world.admin.bgrewriteaof()

    async def written() -> bool:
        info = await world.admin.info("persistence")
        return not info["aof_rewrite_in_progress"] and not info["aof_rewrite_scheduled"]

    await wait_until(written, "its base file has it", within_secs=WAIT_SECS)


async def loading(world: World) -> None:
    """The store comes back and loads its data, until `loaded`."""
    await world.store.start(*SLOWLY)


async def loaded(world: World) -> None:
    await world.admin.config_set("key-load-delay", "0")


async def spawn(world: World, words: str, **settings: str) -> None:
    """A new server, once it has said `words`."""
    before = world.server.log.stat().st_size
    world.server = world.new_server(**settings)
    await world.server.spawn()

    def said() -> bool:
        return words in world.server.log.read_text()[before:]

    await wait_until(said, f"it says {words!r}", within_secs=WAIT_SECS)


async def goes_on(world: World, run_id: str) -> None:
    await wait_until(world.is_ready, "it has started", within_secs=WAIT_SECS)
    assert await world.approve(run_id) == 204
    await world.until_completed(run_id, "the run goes on")


async def test_a_store_that_comes_later_is_waited_for(world: World) -> None:
    run_id = await stopped(world)
    await spawn(world, "waiting for the store, for 3600 s if nothing changes: the store cannot be "
                "reached", PILOTAGE_STORE_WAIT_SECS=FOR_EVER)  # fmt: skip
    await world.start_store()
    await goes_on(world, run_id)
    assert "the store is there, after" in world.server.log.read_text()


async def test_a_store_that_loads_is_waited_for_and_how_far_it_is_is_told(world: World) -> None:
    await much(world)
    run_id = await stopped(world)
    await loading(world)
    await spawn(world, "it is loading its data (", PILOTAGE_STORE_WAIT_SECS=FOR_EVER)
    await loaded(world)
    await goes_on(world, run_id)


async def test_a_store_that_does_not_come_is_given_up_in_words(world: World) -> None:
    await stopped(world)
    world.server = world.new_server(PILOTAGE_STORE_WAIT_SECS="1")
    await world.server.spawn()
    assert await world.server.ended() == 1
    *_, waited, last = world.server.log_lines()
    assert "waiting for the store, for 1 s if nothing changes" in waited["message"]
    assert "the store cannot be reached" in last["message"]
    assert "(waited for it for 1 s, PILOTAGE_STORE_WAIT_SECS)" in last["message"]


@pytest.mark.parametrize("why", ["away", "loading", "owned"])
async def test_a_stop_ends_the_wait(world: World, why: str) -> None:
    if why == "loading":
        await much(world)
    await stopped(world)
    words = "waiting for the store"
    if why == "loading":
        await loading(world)
        words = "it is loading its data ("
    elif why == "owned":
        await world.start_store()
        await world.admin.set(LEASE, "7 somebody", ex=int(FOR_EVER))
        words = "waiting for the lease of somebody"
    await spawn(world, words, PILOTAGE_STORE_WAIT_SECS=FOR_EVER)
    world.server.signal(signal.SIGTERM)
    assert await world.server.ended() == 0
    assert "stopped before the start was complete" in world.server.log_lines()[-1]["message"]
    if why == "owned":
        assert await world.admin.get(LEASE) == "7 somebody"


@pytest.mark.parametrize("silent", [False, True], ids=["", "of a store that falls silent"])
async def test_a_stop_during_the_recovery_of_many_runs_gives_the_lease_back(
    world: World, *, silent: bool
) -> None:
    """At some moment between the taking of the lease and the end of the recovery. A store that
    falls silent then cannot be given anything back.
    """
    runs = [run["id"] for _, run in await asyncio.gather(*[world.trigger() for _ in range(300)])]
    await stopped(world)
    await world.start_store()
    world.server = world.new_server(PILOTAGE_LEASE_SECS="300")
    await world.server.spawn()

    async def owned() -> bool:
        return bool(await world.admin.exists(LEASE))

    await wait_until(owned, "it has taken the store", within_secs=WAIT_SECS)
    if silent:
        os.kill(world.store.pid, signal.SIGSTOP)
    world.server.signal(signal.SIGTERM)
    assert await world.server.ended() == 0
    if silent:
        os.kill(world.store.pid, signal.SIGCONT)
        await world.admin.delete(LEASE)
    assert not await owned()
    await world.start_server()
    await goes_on(world, runs[0])
    await goes_on(world, runs[-1])
