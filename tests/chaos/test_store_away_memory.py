"""A store that is away for long while much is asked: all is refused, nothing piles up."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.chaos.machines import rss_kb
from tests.chaos.test_store_at_run_time import suspended
from tests.chaos.world import WAIT_SECS, World, a_world
from tests.support.waiting import wait_until

AT_ONCE = 40
WAVE = 300
MOST_GROWTH_KB = 8_000
"""Far less than what two waves of triggers would need if they were kept: 600 x 20 kB."""
PAYLOAD = {"text": "x" * 20_000}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as made:
        yield made


async def wave(world: World, run_id: str) -> Counter[int]:
    """Triggers with a payload and commands; how often each status was the answer."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def ask(path: str, body: object) -> int:
        async with turns:
            return (await world.client.once("POST", path, body))[0]

    trigger = "/v1/workflows/flow/trigger"
    approve = f"/v1/workflow-runs/{run_id}/steps/go/approve"
    asked = [(trigger, {"payload": PAYLOAD}), (approve, {"comment": PAYLOAD["text"][:1000]})] * WAVE
    return Counter(await asyncio.gather(*[ask(path, body) for path, body in asked]))


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_what_is_asked_while_the_store_is_away_is_refused_and_takes_no_memory(
    world: World,
) -> None:
    _, run = await world.trigger()

    async def away() -> bool:
        return (await world.trigger())[0] == 503

    async with suspended(world):
        await wait_until(away, "it is noticed", within_secs=WAIT_SECS)
        assert await wave(world, run["id"]) == {503: 2 * WAVE}
        before = rss_kb(world.server.pid)
        for _ in range(2):
            assert await wave(world, run["id"]) == {503: 2 * WAVE}
        assert rss_kb(world.server.pid) - before < MOST_GROWTH_KB
    await wait_until(world.is_ready, "ready again", within_secs=WAIT_SECS)
    assert await world.approve(run["id"]) == 204
    await world.until_completed(run["id"], "the run goes on")
    assert (await world.trigger())[0] == 201
    assert world.problems == [], "each 503 has Retry-After"
