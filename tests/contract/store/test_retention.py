"""Finished runs go when their time is up, with everything that was theirs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pilotage.persistence.port import FencedError, RunQuery, StoredRun
from pilotage.runtime.status import RunStatus
from tests.contract.store.building import Life, changed
from tests.contract.store.worlds import RedisWorld, World

COMPLETED = RunStatus.COMPLETED


async def finished(world: World, life: Life, keep_until_ms: int | None) -> None:
    await world.put(life.write(history=2, job_runs={(0, 1): b"job"}))
    await world.put(life.write(COMPLETED, keep_until_ms=keep_until_ms))


async def test_expired_runs_come_longest_first(world: World) -> None:
    for number, until in enumerate([300, 100, None, 200, 400]):
        await finished(world, Life(number), until)
    assert await world.store.expired_run_ids(300, 10) == [Life(i).id for i in (1, 3, 0)]
    assert await world.store.expired_run_ids(300, 2) == [Life(i).id for i in (1, 3)]
    assert await world.store.expired_run_ids(99, 10) == []


async def test_pinned_runs_and_reopened_runs_do_not_expire(world: World) -> None:
    pinned, reopened = Life(1), Life(2)
    await finished(world, pinned, 100)
    await finished(world, reopened, 100)
    await world.put(pinned.write(keep_until_ms=None))
    await world.put(reopened.write(RunStatus.RUNNING))
    assert await world.store.expired_run_ids(1_000, 10) == []
    assert await world.store.delete_runs([pinned.id, reopened.id], world.fence) == 0
    await world.put(pinned.write(keep_until_ms=500))
    assert await world.store.expired_run_ids(1_000, 10) == [pinned.id]


async def test_a_deleted_run_leaves_nothing(world: World) -> None:
    empty = await world.contents()
    life = Life(1, tags={"a": "b", "c": "d"})
    await finished(world, life, 100)
    assert await world.store.delete_runs([life.id, life.id], world.fence) == 1
    assert await world.contents() == empty
    assert await world.store.load_runs([life.id]) == [None]
    assert await world.store.history(life.id, 0, 10) == []
    assert await world.store.delete_runs([life.id], world.fence) == 0


async def test_the_others_stay(world: World) -> None:
    lives = [Life(i, tags={"a": "b"}) for i in range(250)]
    await world.put(*(life.write() for life in lives))
    await world.put(*(life.write(COMPLETED, keep_until_ms=5) for life in lives))
    gone, kept = lives[:150], lives[150:]
    assert await world.store.delete_runs([life.id for life in gone], world.fence) == 150
    for tags in ((), ("a:b",)):
        page = await world.store.list_runs(RunQuery(project_id="project", limit=200, tags=tags))
        assert [row.run_id for row in page.rows] == [life.id for life in reversed(kept)]


async def test_runs_that_still_have_something_to_say_stay(world: World) -> None:
    active, talking = Life(1), Life(2)
    await world.put(active.write(), talking.write(outbox_add={"m": b"m"}))
    await world.put(talking.write(COMPLETED, keep_until_ms=1))
    before = await world.contents()
    assert await world.store.delete_runs([active.id, talking.id], world.fence) == 0
    assert await world.contents() == before


async def test_a_run_that_changes_while_it_is_to_be_removed_stays(
    redis_world: RedisWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = Life(1)
    await finished(redis_world, life, 1)
    seen = await redis_world.store.load_runs([life.id])
    await redis_world.put(life.write(RunStatus.RUNNING))
    await redis_world.put(life.write(RunStatus.FAILED, keep_until_ms=1))

    async def as_seen(run_ids: Sequence[str]) -> list[StoredRun | None]:
        return seen

    with monkeypatch.context() as patch:
        patch.setattr(redis_world.store, "load_runs", as_seen)
        assert await redis_world.store.delete_runs([life.id], redis_world.fence) == 0
    assert await redis_world.store.load_runs([life.id]) != [None]
    assert await redis_world.store.delete_runs([life.id], redis_world.fence) == 1


async def test_only_the_owner_deletes(world: World) -> None:
    life = Life(1)
    await finished(world, life, 1)
    for run_ids in ([life.id], []):
        with pytest.raises(FencedError):
            await world.store.delete_runs(run_ids, world.fence - 1)


async def test_a_damaged_run_is_left_where_it_is(redis_world: RedisWorld) -> None:
    damaged, sound = Life(1), Life(2)
    await finished(redis_world, sound, 1)
    await redis_world.put(damaged.write())
    write = changed(damaged.write(COMPLETED, keep_until_ms=1), blob=b"\x01broken snapshot")
    await redis_world.put(write)
    assert await redis_world.store.delete_runs([damaged.id, sound.id], redis_world.fence) == 1
    assert await redis_world.store.load_runs([damaged.id]) != [None]


async def test_what_stays_can_be_passed_over(world: World) -> None:
    for number in range(5):
        await finished(world, Life(number), number)
    assert await world.store.expired_run_ids(99, 2, 3) == [Life(i).id for i in (3, 4)]
    assert await world.store.expired_run_ids(99, 2, 5) == []


@pytest.mark.parametrize("how", ["active", "finished", "pinned", "talking"])
async def test_a_purged_run_leaves_nothing_and_the_others_stay(world: World, how: str) -> None:
    stays = [Life(i, tags={"a": "b"}) for i in (1, 3)]
    for life in stays:
        await world.put(life.write(history=2, job_runs={(0, 1): b"job"}))
    before = await world.contents()
    life = Life(2, tags={"a": "b", "c": "d"})
    await world.put(
        life.write(history=2, job_runs={(0, 1): b"job"}, outbox_add={"m": b"m"}, due_ms=5)
    )
    if how != "active":
        await world.put(
            life.write(
                COMPLETED,
                keep_until_ms=None if how == "pinned" else 100,
                outbox_done=() if how == "talking" else ("m",),
            )
        )
    unknown = Life(9).id
    assert await world.store.purge_runs([life.id, unknown, life.id], world.fence) == 1
    assert await world.contents() == before
    assert await world.store.load_runs([life.id]) == [None]
    assert await world.store.purge_runs([life.id], world.fence) == 0
    assert await world.store.purge_runs([], world.fence) == 0


async def test_only_the_owner_purges(world: World) -> None:
    life = Life(1)
    await finished(world, life, 1)
    for run_id in (life.id, Life(2).id):
        with pytest.raises(FencedError):
            await world.store.purge_runs([run_id], world.fence - 1)
    assert await world.store.load_runs([life.id]) != [None]
