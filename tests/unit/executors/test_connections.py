"""Connections that may be used at once: bounded in all and for each host, in order."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from pilotage.actors.executors.connections import Connections, room_for


async def test_beyond_the_bounds_they_are_waited_for_in_order() -> None:
    connections = Connections(3, 2)
    assert [connections.try_take(host) for host in "aaabb"] == [True, True, False, True, False]
    assert connections.out == 3
    assert "2 requests to a" in connections.why("a")
    assert connections.why("b").startswith("3 requests are under way")
    came: list[str] = []

    async def take(host: str, name: str) -> None:
        await connections.take(host)
        came.append(name)

    tasks = [asyncio.create_task(take(host, host + n)) for n in "12" for host in "ab"]
    await asyncio.sleep(0)
    connections.give("b")
    await asyncio.sleep(0)
    assert came == ["b1"]  # a is full, and so b goes past it
    connections.give("a")
    connections.give("a")
    await asyncio.sleep(0)
    assert came == ["b1", "a1", "a2"]
    connections.give("b")
    await asyncio.gather(*tasks)
    assert came == ["b1", "a1", "a2", "b2"]


async def test_nobody_goes_past_who_waits_for_the_same_host() -> None:
    connections = Connections(1, 1)
    await connections.take("a")
    waits = asyncio.create_task(connections.take("a"))
    await asyncio.sleep(0)
    connections.give("a")  # handed over, though the other does not know yet
    assert not connections.try_take("a")
    await waits


async def test_who_is_canceled_after_it_was_handed_one_gives_it_back() -> None:
    connections = Connections(1, 1)
    await connections.take("a")
    first, second = (asyncio.create_task(connections.take("a")) for _ in range(2))
    await asyncio.sleep(0)
    connections.give("a")
    first.cancel()
    await second
    connections.give("a")
    assert connections.out == 0
    assert connections.try_take("b")


@pytest.mark.parametrize("seed", range(5))
async def test_never_too_many_and_nobody_waits_beside_a_free_one(seed: int) -> None:
    chance = random.Random(seed)
    connections = Connections(5, 3)
    out: Counter[str] = Counter()
    most = 0

    async def request(host: str) -> None:
        nonlocal most
        await connections.take(host)
        out[host] += 1
        most = max(most, out.total())
        assert out[host] <= 3
        try:
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
        finally:
            out[host] -= 1
            connections.give(host)

    tasks = [asyncio.create_task(request(chance.choice("abc"))) for _ in range(200)]
    for _ in range(30):
        await asyncio.sleep(0)
        chance.choice(tasks).cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(result is None or isinstance(result, asyncio.CancelledError) for result in done)
    assert connections.out == 0
    assert most == 5


def test_there_is_room_for_at_least_one() -> None:
    assert room_for(1) == 1
    assert 1 <= room_for(1_000_000_000) <= 1_000_000_000
