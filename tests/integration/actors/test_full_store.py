"""A store that runs out of memory: new runs are refused first, active ones end, room is made."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from redis.asyncio import Redis

from pilotage.actors import housekeeping, store_room
from pilotage.actors.errors import UnavailableError
from pilotage.actors.principal import ADMIN
from pilotage.actors.store_room import StoreRoom
from pilotage.persistence.memory import MemoryStore
from pilotage.persistence.port import (
    MemoryUse,
    RunWrite,
    StoreFullError,
    StoreUnavailableError,
    Verdict,
)
from tests.integration.actors.rig import PROJECT, Rig, gate, noop, rig
from tests.support.waiting import wait_until

NEVER_SECS = 10_000.0
FILLER_BYTES = 30 << 20


@pytest.fixture
async def client(valkey_url: str) -> AsyncIterator[Redis]:
    """The store has some megabytes already: a share of them is room for what is under way.

    They are made there: sent, they would for a while be in the connection's buffer a second time.
    """
    made = Redis.from_url(valkey_url, protocol=2)
    await made.setrange("filler", FILLER_BYTES - 1, "x")
    yield made
    await made.config_set("maxmemory", 0)
    await made.delete("filler")
    await made.aclose()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask for the store's room often; remove what is over only when the test says so."""
    monkeypatch.setattr(housekeeping, "ROOM_SECS", 0.02)
    monkeypatch.setattr(housekeeping, "SWEEP_SECS", NEVER_SECS)


async def allow(client: Redis, share: float) -> None:
    """Let the store have used this share of its memory now."""
    used = int((await client.info("memory"))["used_memory"])
    await client.config_set("maxmemory", int(used / share))


async def sweep(world: Rig) -> None:
    await world.runtime.housekeeping._upkeep.retention.sweep()


def bulky() -> str:
    return secrets.token_hex(50_000)


async def test_a_nearly_full_store_refuses_new_runs_and_lets_the_active_ones_end(
    quick: None, world: Rig, client: Redis
) -> None:
    done = await world.workflow("done", [noop("a")])
    flow = await world.workflow("w", [gate("a"), noop("b", "a")])
    failed = await world.trigger(done)
    await world.until(failed, "completed")
    runs = [await world.trigger(flow, k=f"{n}.", big=bulky()) for n in range(20)]
    assert world.gateway.degraded is None
    assert await world.store.memory_use() is None
    await allow(client, 0.93)
    await wait_until(lambda: world.gateway.degraded is not None, "it says that it is degraded")
    assert world.runtime.ready
    use = await world.store.memory_use()
    assert use is not None
    assert 0.9 <= use.used / use.limit < 1
    for refused in (world.trigger(done), world.gateway.retry_run(failed, ADMIN)):
        with pytest.raises(UnavailableError, match=r"memory .maxmemory") as error:
            await refused
        assert error.value.retry_after_secs > 0
    (item,) = await world.gateway.bulk_replay([failed], ADMIN)
    assert item.status == "failed"
    assert "pilotage_store_full 1" in world.runtime.metrics.text()
    world.let(*(f"{n}.a" for n in range(20)))
    for run in runs:
        await world.until(run, "completed")
    await client.config_set("maxmemory", 0)
    await wait_until(lambda: world.gateway.degraded is None, "it is as ever")
    assert "pilotage_store_full 0" in world.runtime.metrics.text()
    await world.until(await world.trigger(done), "completed")


async def test_a_nearly_full_store_delivers_events_and_keeps_no_more_of_them(
    quick: None, world: Rig, client: Redis
) -> None:
    waits = {"step_ref": "e", "step_type": "wait_for_event", "event_key": "paid"}
    flow = await world.workflow("w", [gate("a"), {**waits, "depends_on": ["a"]}])
    kept = await world.gateway.send_event(PROJECT, "paid", b"1", 3600, actor="t")
    assert kept.buffered
    runs = [await world.trigger(flow, k=f"{n}.") for n in range(3)]
    await allow(client, 0.93)
    await wait_until(lambda: world.gateway.degraded is not None, "it says that it is degraded")

    with pytest.raises(UnavailableError, match="no step waits for the event paid") as error:
        await world.gateway.send_event(PROJECT, "paid", b"2", 3600, actor="t")
    assert error.value.retry_after_secs > 0
    plan = await world.gateway.plan_event(PROJECT, "paid", 3600)
    with pytest.raises(UnavailableError, match="no step waits"):
        await world.gateway.send_event(PROJECT, "paid", b"2", 3600, actor="t", plan=plan)

    world.let("0.a")
    await world.until(runs[0], "completed")  # by the event that was kept before
    world.let("1.a")
    await world.until_step(runs[1], "e", "waiting", "event")
    sent = await world.gateway.send_event(PROJECT, "paid", b"3", 3600, actor="t")
    assert sent.delivered == 1
    await world.until(runs[1], "completed")
    await world.workflow("passes", [noop("a")])

    await client.config_set("maxmemory", 0)
    await wait_until(lambda: world.gateway.degraded is None, "it is as ever")
    again = await world.gateway.send_event(
        PROJECT, "paid", b"2", 3600, actor="t", plan=plan, again=True
    )
    assert again.buffered
    world.let("2.a")
    await world.until(runs[2], "completed")


async def test_runs_whose_time_is_over_make_room_by_themselves(
    monkeypatch: pytest.MonkeyPatch, valkey_url: str, tmp_path: Path, client: Redis
) -> None:
    monkeypatch.setattr(housekeeping, "ROOM_SECS", 0.02)
    monkeypatch.setattr(housekeeping, "SWEEP_SECS", 0.02)
    async with rig(valkey_url, tmp_path, retention_completed_secs=0) as world:
        flow = await world.workflow("w", [gate("a")])
        for n in range(40):
            await world.trigger(flow, k=f"{n}.", big=bulky())
        await allow(client, 0.92)
        await wait_until(lambda: world.gateway.degraded is not None, "full")
        world.let(*(f"{n}.a" for n in range(40)))
        await wait_until(lambda: world.gateway.degraded is None, "room was made", within_secs=30)
        run = await world.trigger(flow, k="0.")
        assert run


async def test_when_nothing_can_be_written_any_more_what_is_over_still_goes(
    quick: None, valkey_url: str, tmp_path: Path, client: Redis
) -> None:
    async with rig(valkey_url, tmp_path, retention_completed_secs=0) as world:
        over = await world.workflow("over", [noop("a")])
        flow = await world.workflow("w", [gate("a"), noop("b", "a")])
        for _ in range(20):
            await world.until(await world.trigger(over, big=bulky()), "completed")
        await client.delete("filler")
        runs = [await world.trigger(flow, k=f"{n}.") for n in range(5)]
        await world.began_all(*(f"{n}.a" for n in range(5)))
        await allow(client, 1.2)
        world.let(*(f"{n}.a" for n in range(5)))
        await wait_until(lambda: world.runtime.writer.full, "writes are refused")
        assert "out of memory" in (world.runtime.writer.last_error or "")
        with pytest.raises(UnavailableError):
            await world.trigger(over)
        for _ in range(3):  # the lease costs no memory: its owner stays
            await world.store.renew(world.runtime.owner, world.runtime._fence, 1.0)
        await sweep(world)
        for run in runs:
            await world.until(run, "completed", within_secs=30)
        assert not world.runtime.fenced.is_set()
        assert world.ran.count("0.a") == 1


async def test_what_ends_or_removes_runs_is_written_when_nothing_else_can_be(
    quick: None, valkey_url: str, tmp_path: Path, client: Redis
) -> None:
    async with rig(valkey_url, tmp_path, retention_completed_secs=0) as world:
        ends = await world.workflow("ends", [gate("a")])
        goes_on = await world.workflow("goes_on", [gate("a"), noop("b", "a")])
        ending = [await world.trigger(ends, k=f"e{n}.") for n in range(20)]
        going = [await world.trigger(goes_on, k=f"g{n}.") for n in range(5)]
        both = [f"e{n}.a" for n in range(20)] + [f"g{n}.a" for n in range(5)]
        await world.began_all(*both)
        await allow(client, 1.2)
        world.let(*both)
        for run in ending:
            await world.until(run, "completed")
        await wait_until(lambda: world.runtime.writer.full, "other writes are refused")
        assert {await world.status(run) for run in going} == {"running"}
        await sweep(world)
        assert await world.store.load_runs(ending) == [None] * 20
        assert {await world.status(run) for run in going} == {"running"}
        await client.delete("filler")
        for run in going:
            await world.until(run, "completed", within_secs=30)
        await wait_until(lambda: not world.runtime.writer.full, "all is written")
        assert not world.runtime.fenced.is_set()


async def test_a_server_starts_on_a_full_store_and_makes_room(
    quick: None, valkey_url: str, tmp_path: Path, client: Redis
) -> None:
    async with rig(valkey_url, tmp_path, retention_completed_secs=0, store_wait_secs=0) as world:
        over = await world.workflow("over", [noop("a")])
        flow = await world.workflow("w", [gate("a"), noop("b", "a")])
        for _ in range(20):
            await world.until(await world.trigger(over, big=bulky()), "completed")
        run = await world.trigger(flow, k="0.")
        await world.began_all("0.a")
        await client.delete("filler")
        await world.crash()
        await allow(client, 1.2)
        await client.delete(world.store.keys.lease)  # as if it had run out
        await world.start()
        await wait_until(lambda: world.gateway.degraded is not None, "it says that it is full")
        await sweep(world)
        await wait_until(lambda: world.gateway.degraded is None, "room was made")
        world.let("0.a")
        await world.until(run, "completed", within_secs=30)


async def test_a_burst_between_two_looks_leaves_room_for_what_is_active(
    world: Rig, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = await world.workflow("w", [gate("a")])
    run = await world.trigger(flow, k="0.")
    await world.began_all("0.a")
    await allow(client, 0.7)
    room = world.runtime.room
    await room.check()
    monkeypatch.setattr(StoreRoom, "check", gone_deaf)
    burst = await asyncio.gather(
        *(world.trigger(flow, k=f"{n}.", big=bulky() * 8) for n in range(1, 60)),
        return_exceptions=True,
    )
    refused = [error for error in burst if isinstance(error, BaseException)]
    assert refused
    assert all(
        isinstance(error, UnavailableError) and error.retry_after_secs > 0 for error in refused
    )
    use = await world.store.memory_use()
    assert use is not None
    assert 0.75 < use.used / use.limit < 0.95
    world.let("0.a")
    await world.until(run, "completed")


async def gone_deaf(_: StoreRoom) -> None:
    """It is not asked any more."""


async def test_a_large_result_without_room_keeps_no_command_waiting(
    world: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    approval = {"step_ref": "a", "step_type": "approval"}
    flow = await world.workflow("w", [approval, noop("b", "a")])
    run, other = await world.trigger(flow), await world.trigger(flow)
    commit, room = world.store.commit, [100_000]

    async def bounded(batch: Sequence[RunWrite], fence: int) -> list[Verdict]:
        if sum(len(data) for write in batch for data in write.steps.values()) > room[0]:
            raise StoreFullError("out of memory")
        return await commit(batch, fence)

    monkeypatch.setattr(world.store, "commit", bounded)
    result = json.dumps(secrets.token_hex(450_000)).encode()
    forcing = asyncio.create_task(world.gateway.force_complete(run, "a", ADMIN, result))
    await wait_until(lambda: world.runtime.writer.full, "there is no room for it")
    assert world.runtime.writer.healthy
    assert "no room for all that is to be written" in (world.runtime.not_ready or "")
    await world.gateway.approve(other, "a", ADMIN, None, "ops")
    await world.until(other, "completed")
    assert world.runtime.writer.full
    room[0] = 10_000_000
    await forcing
    await world.until(run, "completed")
    assert world.runtime.not_ready is None


class TellingStore(MemoryStore):
    """Says how full it is, or that it is away."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False

    async def memory_use(self) -> MemoryUse | None:
        if self.away:
            raise StoreUnavailableError("away")
        return await super().memory_use()


async def test_room_does_not_flicker_and_what_was_told_last_holds() -> None:
    store = TellingStore()
    await store.open()
    room = StoreRoom(store)
    told = [None, 0.5, 0.899, 0.9, 0.95, 0.88, 0.871, 0.86, 0.89, 0.9]
    seen: list[bool] = []
    for used in told:
        store.server.memory_use = None if used is None else MemoryUse(round(used * 1000), 1000)
        await room.check()
        seen.append(room.full)
    assert seen == [False, False, False, True, True, True, True, False, False, True]
    store.away = True
    store.server.memory_use = None
    await room.check()
    assert room.full
    with pytest.raises(UnavailableError, match="90%"):
        room.refuse_if_full()
    store.away = False
    await room.check()
    assert not room.full
    room.refuse_if_full()
    assert store_room.ROOM_AGAIN < store_room.FULL
