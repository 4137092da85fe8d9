"""Events kept for a later reader: in order, once, bounded, and not lost with a taker that dies."""

from __future__ import annotations

import time

import pytest

from pilotage.persistence import memory, redis_records
from pilotage.persistence.keys import Keys, digest
from pilotage.persistence.port import FencedError
from tests.contract.store.worlds import RedisWorld, World
from tests.support.waiting import wait_until


async def keep(
    world: World, event_id: str, *, key: str = "key", project: str = "project", ttl_secs: int = 60
) -> bool:
    data = f"event {event_id}".encode()
    return await world.store.buffer_event(project, key, event_id, data, ttl_secs, world.fence)


async def take(
    world: World, by: str, *, key: str = "key", project: str = "project"
) -> bytes | None:
    return await world.store.take_event(project, key, by, world.fence)


async def test_events_are_taken_once_and_oldest_first(world: World) -> None:
    for event_id in ("z", "a", "m"):
        assert await keep(world, event_id)
    taken = [await take(world, f"run {i}") for i in range(4)]
    assert taken == [b"event z", b"event a", b"event m", None]


async def test_order_holds_when_the_clock_of_the_server_goes_back(redis_world: RedisWorld) -> None:
    contents, waiting, expiry, _ = Keys("pilotage").events("project")
    later = digest("key") + f"{1 << 52:014x}" + "before the jump"
    await redis_world.client.hset(contents, "e" + later, "event before the jump")
    await redis_world.client.zadd(waiting, {later: 0})
    await redis_world.client.zadd(expiry, {later: time.time_ns() // 1_000_000 + 60_000})
    await keep(redis_world, "after")
    assert await take(redis_world, "a") == b"event before the jump"
    assert await take(redis_world, "b") == b"event after"


async def test_keys_and_projects_are_apart(world: World) -> None:
    await keep(world, "1", key="key")
    assert await take(world, "r", key="key ") is None
    assert await take(world, "r", key="ke") is None
    assert await take(world, "r", project="other") is None
    assert await take(world, "r") == b"event 1"


async def test_any_text_is_a_key(world: World) -> None:
    await keep(world, "1", key="order/ä:{x}\x00\n*")
    assert await take(world, "r", key="order/ä:{x}\x00") is None
    assert await take(world, "r", key="order/ä:{x}\x00\n*") == b"event 1"


async def test_a_taker_that_asks_again_gets_the_same_event(world: World) -> None:
    await keep(world, "1")
    await keep(world, "2")
    assert await take(world, "run 1 step 2 attempt 1") == b"event 1"
    assert await take(world, "run 1 step 2 attempt 1") == b"event 1"
    assert await take(world, "run 1 step 2 attempt 2") == b"event 2"
    assert await take(world, "run 1 step 2 attempt 1") == b"event 1"


async def test_an_event_sent_again_is_kept_once(world: World) -> None:
    assert await keep(world, "1")
    assert await keep(world, "1")
    assert await take(world, "a") == b"event 1"
    assert await take(world, "b") is None
    assert await keep(world, "1")
    assert await take(world, "b") is None


async def test_a_kept_event_goes_after_its_time(world: World) -> None:
    await keep(world, "short", ttl_secs=1)
    await keep(world, "long")
    await keep(world, "other", key="other", ttl_secs=1)
    assert await take(world, "claims", key="other") == b"event other"

    async def gone() -> bool:
        return await take(world, "claims", key="other") is None

    await wait_until(gone, "the claim has ended with its event")
    assert await take(world, "late") == b"event long"
    assert await keep(world, "short", ttl_secs=1)


async def test_only_the_owner_keeps_and_takes(world: World) -> None:
    await keep(world, "1")
    with pytest.raises(FencedError):
        await world.store.buffer_event("project", "key", "2", b"", 60, world.fence + 1)
    with pytest.raises(FencedError):
        await world.store.take_event("project", "key", "r", world.fence - 1)
    assert await take(world, "r") == b"event 1"


async def test_waiting_events_are_bounded_by_project(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MAX_BUFFERED_EVENTS", 3)
    monkeypatch.setattr(redis_records, "MAX_BUFFERED_EVENTS", 3)
    for number in range(3):
        assert await keep(world, str(number), key=f"key {number}")
    assert not await keep(world, "4")
    assert await keep(world, "4", project="other")
    assert await keep(world, "0", key="key 0")
    assert await take(world, "r", key="key 1") == b"event 1"
    assert await keep(world, "4")


async def test_forgotten_events_make_room(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MAX_BUFFERED_EVENTS", 2)
    monkeypatch.setattr(redis_records, "MAX_BUFFERED_EVENTS", 2)
    assert await keep(world, "1", ttl_secs=1)
    assert await keep(world, "2", ttl_secs=1)
    assert not await keep(world, "3")
    await wait_until(lambda: keep(world, "3"), "there is room")


async def test_claims_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound the claim that ends first is given up."""
    monkeypatch.setattr(memory, "MAX_CLAIMED_EVENTS", 2)
    monkeypatch.setattr(redis_records, "MAX_CLAIMED_EVENTS", 2)
    for number in range(3):
        await keep(world, str(number), ttl_secs=60 + number)
        assert await take(world, f"run {number}") == b"event %d" % number
    assert await take(world, "run 0") is None
    assert await take(world, "run 1") == b"event 1"


async def test_nothing_of_the_events_outlives_them(redis_world: RedisWorld) -> None:
    before = set(await redis_world.client.keys())
    await keep(redis_world, "1", ttl_secs=1)
    await keep(redis_world, "2", ttl_secs=1)
    await take(redis_world, "r")

    async def gone() -> bool:
        return set(await redis_world.client.keys()) == before

    await wait_until(gone, "all keys of the events have run out")
