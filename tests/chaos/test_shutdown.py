"""SIGTERM in bad moments: the end is in order, in time, and loses nothing acknowledged."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.world import WAIT_SECS, World, a_world
from tests.support.waiting import wait_until

# Each waits for processes to start and to end, some of them several times.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as made:
        yield made


async def slow_run(world: World) -> tuple[str, Path]:
    """A run with an attempt in progress, and the file that it waits for."""
    gate = world.folder / "gate"
    step = {"step_ref": "slow", "job_id": "mark_slow", "payload": {"gate": str(gate)}}
    flow = {"project_id": "p", "name": "slow", "slug": "slow", "steps": [step]}
    assert (await world.client.once("POST", "/v1/workflows", flow))[0] == 201
    _, run = await world.client.once("POST", "/v1/workflows/slow/trigger")
    await wait_until(lambda: begun(world) == 1, "its attempt began", within_secs=WAIT_SECS)
    return run["id"], gate


def begun(world: World) -> int:
    log = world.folder / "executions"
    return len(log.read_text().splitlines()) if log.exists() else 0


async def step(world: World, run_id: str) -> Any:
    _, steps = await world.client.once("GET", f"/v1/workflow-runs/{run_id}/steps")
    return steps[0]


async def test_what_ends_within_the_grace_is_kept_and_readiness_is_off_meanwhile(
    world: World,
) -> None:
    run_id, gate = await slow_run(world)
    world.server.signal(signal.SIGTERM)

    async def stopping() -> bool:
        return "the server is stopping" in (await world.ready())[1]

    await wait_until(stopping, "readiness is off", within_secs=WAIT_SECS)
    gate.touch()
    assert await world.server.ended() == 0
    await world.start_server()
    await world.until_completed(run_id, "it is completed")
    assert (await step(world, run_id))["attempt"] == 1
    assert begun(world) == 1, "its result was kept"


async def test_what_does_not_end_within_the_grace_is_handed_back(world: World) -> None:
    run_id, gate = await slow_run(world)
    world.server.signal(signal.SIGTERM)
    assert await world.server.ended() == 0
    gate.touch()
    await world.start_server()
    await world.until_completed(run_id, "it is completed")
    assert (await step(world, run_id))["attempt"] == 1, "the same attempt, delivered again"
    assert begun(world) == 2


@pytest.mark.parametrize("how", ["killed", "suspended"])
async def test_a_stop_while_the_store_is_away_ends_in_order(world: World, how: str) -> None:
    _, parked = await world.trigger()
    run_id, gate = await slow_run(world)
    if how == "killed":
        await world.store.kill()
    else:
        os.kill(world.store.pid, signal.SIGSTOP)

    async def away() -> bool:
        return "the store is away" in (await world.ready())[1]

    await wait_until(away, "the store is away", within_secs=WAIT_SECS)
    world.server.signal(signal.SIGTERM)
    assert await world.server.ended() == 0
    gate.touch()
    if how == "killed":
        await world.start_store()
    else:
        os.kill(world.store.pid, signal.SIGCONT)
    await world.start_server()
    await world.until_completed(run_id, "it is done again")
    assert await world.approve(parked["id"]) == 204
    await world.until_completed(parked["id"], "the other goes on")


async def test_a_stop_between_the_start_and_its_end_is_in_order(world: World) -> None:
    """At each of some moments of a start, of which nobody knows how far it has come."""
    _, parked = await world.trigger()
    world.server.signal(signal.SIGTERM)
    assert await world.server.ended() == 0
    size = world.server.log.stat().st_size
    for words in ("", "active runs recovered"):
        world.server = world.new_server()
        await world.server.spawn()

        def has_come(words: str = words) -> bool:
            return words in world.server.log.read_text()[size:]

        await wait_until(has_come, f"it said {words!r}", within_secs=WAIT_SECS)
        world.server.signal(signal.SIGTERM)
        status = await world.server.ended()
        assert status in ({0} if words else {0, -signal.SIGTERM}), "before it heeds signals it dies"
    await world.start_server()
    assert await world.approve(parked["id"]) == 204
    await world.until_completed(parked["id"], "it goes on")
