"""One owner at a time: the lease says who lives, the fence says who may write."""

from __future__ import annotations

import asyncio
import time

import pytest

from pilotage.persistence import store_format
from pilotage.persistence.port import (
    FencedError,
    LeaseHeldError,
    NewerStoreError,
    StoreUnavailableError,
    Verdict,
)
from pilotage.persistence.redis_store import RedisStore
from tests.contract.store.building import Life
from tests.contract.store.worlds import OWNER, RedisWorld, World
from tests.support.waiting import wait_until

LEASE_SECS = 0.2
FORMAT = "pilotage:{s0}:format"


async def test_each_owner_raises_the_fence(world: World) -> None:
    assert await world.store.fence() == world.fence == 1
    await world.store.release(OWNER, world.fence)
    assert await world.store.acquire("second", 60.0) == 2
    assert await world.store.fence() == 2


async def test_a_released_lease_is_free_at_once(world: World) -> None:
    other = await world.another_store()
    await world.store.release(OWNER, world.fence)
    started = time.monotonic()
    await other.acquire("second", 60.0)
    assert time.monotonic() - started < 50  # not the whole lease


async def test_a_lease_that_nobody_renews_is_taken_over_after_it_has_run_out(world: World) -> None:
    started = time.monotonic()
    await world.store.renew(OWNER, world.fence, LEASE_SECS)
    other = await world.another_store()
    fence = await other.acquire("second", 60.0)
    assert time.monotonic() - started >= LEASE_SECS * 0.9
    assert fence == world.fence + 1
    with pytest.raises(FencedError):
        await world.store.renew(OWNER, world.fence, LEASE_SECS)
    assert await world.commit(Life(1).write()) is Verdict.FENCED


async def test_the_same_owner_text_is_nothing_special(world: World) -> None:
    """A container restarted under its old name waits for its predecessor like anybody else."""
    started = time.monotonic()
    await world.store.renew(OWNER, world.fence, LEASE_SECS)
    other = await world.another_store()
    fence = await other.acquire(OWNER, 60.0)
    assert time.monotonic() - started >= LEASE_SECS * 0.9
    with pytest.raises(FencedError):
        await world.store.renew(OWNER, world.fence, LEASE_SECS)
    await world.store.release(OWNER, world.fence)
    await other.renew(OWNER, fence, LEASE_SECS)


async def test_a_lease_renewed_meanwhile_is_held(world: World) -> None:
    other = await world.another_store()
    await world.store.renew(OWNER, world.fence, 5.0)
    waiting = asyncio.create_task(other.acquire("second", 5.0))

    async def renewed_and_refused() -> bool:
        await world.store.renew(OWNER, world.fence, 5.0)
        return waiting.done()

    await wait_until(renewed_and_refused, "the second owner is refused")
    with pytest.raises(LeaseHeldError, match=OWNER) as caught:
        await waiting
    assert caught.value.holder == OWNER
    assert await world.store.fence() == world.fence


async def test_of_two_that_wait_one_gets_the_lease(world: World) -> None:
    await world.store.renew(OWNER, world.fence, LEASE_SECS)
    stores = [await world.another_store() for _ in range(2)]
    answers = await asyncio.gather(
        *(store.acquire(f"heir {i}", 60.0) for i, store in enumerate(stores)),
        return_exceptions=True,
    )
    assert sorted(type(answer).__name__ for answer in answers) == ["LeaseHeldError", "int"]
    assert await world.store.fence() == world.fence + 1


async def test_a_lease_that_ran_out_and_nobody_took_may_be_renewed(world: World) -> None:
    await world.store.renew(OWNER, world.fence, 0.001)
    await wait_until(world.lease_is_free, "the lease has run out")
    await world.store.renew(OWNER, world.fence, 60.0)
    assert await world.commit(Life(1).write()) is Verdict.OK


async def test_only_the_holder_renews(world: World) -> None:
    with pytest.raises(FencedError):
        await world.store.renew("somebody", world.fence, 60.0)
    with pytest.raises(FencedError):
        await world.store.renew(OWNER, world.fence + 1, 60.0)
    await world.store.renew(OWNER, world.fence, 60.0)


async def test_a_former_owner_does_not_get_a_free_lease_back(world: World) -> None:
    await world.store.release(OWNER, world.fence)
    fence = await world.store.acquire("second", 60.0)
    await world.store.release("second", fence)
    with pytest.raises(FencedError):
        await world.store.renew(OWNER, world.fence, 60.0)
    assert await world.lease_is_free()


async def test_release_leaves_a_lease_of_others_alone(world: World) -> None:
    await world.store.release("somebody", world.fence)
    await world.store.release(OWNER, world.fence + 1)
    assert not await world.lease_is_free()
    await world.store.release(OWNER, world.fence)
    assert await world.lease_is_free()


@pytest.mark.parametrize("noted", ["7 9.9.9", "what is this"])
async def test_the_store_of_a_newer_release_is_refused_and_left_alone(
    redis_world: RedisWorld, noted: str
) -> None:
    """At opening it, and also when the newer release comes between that and the lease."""
    store = redis_world.store
    await store.release(OWNER, redis_world.fence)
    await redis_world.client.set(FORMAT, noted)
    with pytest.raises(NewerStoreError, match=noted.rpartition(" ")[2]):
        await store.acquire("second", 60.0)
    assert await store.fence() == redis_world.fence
    assert await redis_world.lease_is_free()
    other = RedisStore(redis_world.url)
    with pytest.raises(NewerStoreError, match=noted.rpartition(" ")[2]):
        await other.open()
    await other.close()
    await redis_world.client.set(FORMAT, store_format.note())


async def test_an_owner_notes_its_format_once_and_lowers_none(redis_world: RedisWorld) -> None:
    client, store = redis_world.client, redis_world.store
    assert await client.get(FORMAT) == store_format.note().encode()
    for noted in ("1 0.0.1", None):  # as it is already; from before the note
        await store.release(OWNER, redis_world.fence)
        await client.delete(FORMAT)
        if noted is not None:
            await client.set(FORMAT, noted)
        redis_world.fence = await store.acquire(OWNER, 60.0)
        assert await client.get(FORMAT) == (noted or store_format.note()).encode()


async def test_who_owns_the_server_need_not_wait_for_the_lease_of_a_dead_user(
    redis_world: RedisWorld,
) -> None:
    other = RedisStore(redis_world.url)
    await other.open()
    await other.forget_lease()
    assert await redis_world.lease_is_free()
    fence = await other.acquire("second", 60.0)
    assert fence == redis_world.fence + 1
    assert await redis_world.commit(Life(1).write()) is Verdict.FENCED
    await other.close()


async def test_a_store_that_is_not_open_is_unavailable(world: World) -> None:
    await world.store.ping()
    await world.store.close()
    with pytest.raises(StoreUnavailableError, match="not open"):
        await world.store.ping()
    with pytest.raises(StoreUnavailableError, match="not open"):
        await world.commit(Life(1).write())
    await world.store.open()
    await world.store.ping()
