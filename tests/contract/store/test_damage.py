"""Whatever has become of one run's record, the others are read, listed and removed as ever."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pilotage.persistence import codec
from pilotage.persistence.port import FencedError, RunQuery, RunRow, StoredRun
from pilotage.persistence.redis_store import RedisStore
from pilotage.runtime.status import RunStatus
from tests.contract.store.building import Life, step
from tests.contract.store.worlds import RedisWorld

PREFIX = "pilotage:{s0}:"
Damage = Callable[[RedisWorld, str], Awaitable[Any]]


async def wrong_type(world: RedisWorld, key: str) -> None:
    await world.client.delete(key)
    await world.client.rpush(key, "what is this")


async def empty(world: RedisWorld, key: str) -> None:
    await world.client.set(key, b"")


async def garbage(world: RedisWorld, key: str) -> None:
    await world.client.set(key, b"\x00\xff not a run\n" * 9)


async def cut(world: RedisWorld, key: str) -> None:
    if await world.client.type(key) == b"hash":
        for name, data in (await world.client.hgetall(key)).items():
            await world.client.hset(key, name, data[: len(data) // 2])
    else:
        whole = await world.client.get(key)
        assert isinstance(whole, bytes)
        await world.client.set(key, whole[: len(whole) * 2 // 3])


async def no_head(world: RedisWorld, key: str) -> None:
    if await world.client.type(key) == b"hash":
        await world.client.hdel(key, "r")
    else:
        await world.client.setrange(key, 0, "x")


async def no_vitals(world: RedisWorld, key: str) -> None:
    if await world.client.type(key) == b"hash":
        await world.client.hdel(key, "h")
    else:
        await world.client.setrange(key, 30, b"\xff\xff\xff")


async def no_sequence(world: RedisWorld, key: str) -> None:
    if await world.client.type(key) == b"hash":
        await world.client.hset(key, "q", "some")
    else:
        await world.client.setrange(key, 1, b"\n\n\n\n")


async def foreign_field(world: RedisWorld, key: str) -> None:
    if await world.client.type(key) == b"hash":
        await world.client.hset(key, "sx", "some")
    else:
        await world.client.append(key, "more")


async def outbox_of_a_wrong_type(world: RedisWorld, key: str) -> None:
    await world.client.set(key.replace(":run:", ":out:"), "x")


DAMAGES: list[Damage] = [
    wrong_type, empty, garbage, cut, no_head, no_vitals, no_sequence, foreign_field,
    outbox_of_a_wrong_type,
]  # fmt: skip


def sound(stored: StoredRun | None) -> bool:
    """Whether the codec takes all parts of it."""
    assert stored is not None
    try:
        codec.decode_vitals(stored.vitals)
        if stored.blob is not None:
            codec.decode_finished(stored.blob)
        else:
            codec.decode_head(stored.head or b"")
            for data in stored.steps.values():
                codec.decode_step(data)
    except codec.SnapshotError:
        return False
    return True


def readable(row: RunRow) -> bool:
    try:
        codec.decode_head(row.head)
        codec.decode_vitals(row.vitals)
    except codec.SnapshotError:
        return False
    return True


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("finished", [False, True])
async def test_one_damaged_run_harms_no_other(
    redis_world: RedisWorld, damage: Damage, finished: bool
) -> None:
    lives = [Life(n, tags={"a": "b"}) for n in range(3)]
    for life in lives:
        await redis_world.put(life.write(steps={0: step(1)}, history=2, outbox_add={"m": b"m"}))
        if finished:
            done = life.write(RunStatus.COMPLETED, keep_until_ms=5, outbox_done=("m",))
            await redis_world.put(done)
    await damage(redis_world, PREFIX + "run:" + lives[1].id)
    store = redis_world.store
    found = await store.load_runs([life.id for life in lives])
    assert [sound(stored) for stored in found] == [True, False, True]
    page = await store.list_runs(RunQuery(project_id="project", limit=10))
    shown = [row.run_id for row in page.rows if readable(row) and row.run_id != lives[1].id]
    assert shown == [lives[2].id, lives[0].id]
    if finished:
        await store.delete_runs([life.id for life in lives], redis_world.fence)
        left = await store.load_runs([life.id for life in lives])
        assert (left[0], left[2]) == (None, None)
    assert await store.purge_runs([lives[1].id], redis_world.fence) <= 1
    assert (await store.load_runs([lives[1].id])) == [None]
    left_over = await redis_world.client.keys(f"*{lives[1].id}*")
    assert left_over == []
    page = await store.list_runs(RunQuery(project_id="project", limit=10, tags=("a:b",)))
    assert [row.run_id for row in page.rows] == ([] if finished else [lives[2].id, lives[0].id])


async def test_a_purge_finds_a_run_in_any_project_and_namespace_with_odd_characters(
    valkey_url: str,
) -> None:
    store = RedisStore(valkey_url, namespace="a[b]?c-d^e\\f")
    await store.open()
    fence = await store.acquire("test", 60)
    try:
        lives = [
            Life(n, project_id=f"p.{n}", workflow_id=f"w{n}", tags={"k:*": "v[x]"})
            for n in range(4)
        ]
        for life in lives:
            await store.commit([life.write()], fence)
            if life is not lives[3]:
                await store.commit([life.write(RunStatus.FAILED, keep_until_ms=None)], fence)
        assert await store.purge_runs([life.id for life in lives], fence) == 4
        with pytest.raises(FencedError):
            await store.purge_runs([lives[0].id], fence + 1)
        keys = await store.link.command("KEYS", "*")
        assert sorted(key.rpartition(b":")[2] for key in keys) == [b"fence", b"format", b"lease"]
    finally:
        await store.close()
