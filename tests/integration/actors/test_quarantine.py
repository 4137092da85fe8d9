"""Runs that cannot be read or fail again and again: set apart, told of, mended or removed alone."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from pilotage.actors.errors import ConflictError, NotFoundError, UnavailableError
from pilotage.actors.principal import ADMIN, Principal
from pilotage.persistence.port import RunQuery
from pilotage.runtime.insight import explain
from tests.integration.actors.rig import PROJECT, Rig, gate, noop
from tests.support.waiting import wait_until

MEMBER = Principal(name="m", project_id=PROJECT, scopes=frozenset({"*"}))
STRANGER = Principal(name="s", project_id="other", scopes=frozenset({"*"}))


@pytest.fixture
async def client(valkey_url: str) -> AsyncIterator[Redis]:
    made = Redis.from_url(valkey_url, protocol=2)
    yield made
    await made.aclose()


def key(run_id: str, kind: str = "run") -> str:
    return f"pilotage:{{s0}}:{kind}:{run_id}"


async def spoil(client: Redis, run_id: str, field: str, change: Callable[[bytes], bytes]) -> bytes:
    """Change the bytes of a part of an active run, or of a finished one; what they were."""
    name = key(run_id)
    if await client.type(name) == b"hash":
        was = await client.hget(name, field)
        assert isinstance(was, bytes)
        await client.hset(name, field, change(was))
    else:
        was = await client.get(name)
        assert isinstance(was, bytes)
        await client.set(name, change(was))
    return was


def flip_last(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def newer(data: bytes) -> bytes:
    return b"\x63" + data[1:]


async def traces(client: Redis, run_id: str) -> list[Any]:
    """Everything the store still has of a run."""
    found: list[Any] = list(await client.keys(f"*{run_id}*"))
    for name in await client.keys("*"):
        kind = await client.type(name)
        if kind == b"zset":
            members = await client.zrange(name, 0, -1)
        elif kind == b"set":
            members = list(await client.smembers(name))
        else:
            continue
        found += [(name, member) for member in members if run_id in str(member)]
    return found


@pytest.mark.parametrize(
    ("field", "change"), [("r", flip_last), ("h", half), ("h", newer), ("s0", flip_last)]
)
async def test_active_runs_that_cannot_be_read_are_quarantined_alone_and_mended(
    world: Rig, client: Redis, field: str, change: Callable[[bytes], bytes]
) -> None:
    flow = await world.workflow("w", [gate("a"), noop("b", "a")])
    bad, good = [await world.trigger(flow, k=f"{n}.") for n in range(2)]
    await world.began_all("0.a", "1.a")
    await world.crash()
    was = await spoil(client, bad, field, change)
    world.began.clear()
    await world.start()
    assert list(world.gateway.quarantined) == [bad]
    await world.began_all("1.a")
    with pytest.raises(ConflictError, match="cannot be read"):
        await world.gateway.get_run(bad, ADMIN)
    with pytest.raises(NotFoundError):
        await world.gateway.get_run(bad, STRANGER)
    with pytest.raises(NotFoundError):
        await world.gateway.discard_quarantined(bad, STRANGER)
    with pytest.raises(ConflictError, match="still cannot be read"):
        await world.gateway.release_quarantined(bad, ADMIN)
    assert bad in world.gateway.quarantined
    views, _ = await world.gateway.list_runs(RunQuery(project_id=PROJECT, limit=10))
    assert good in [view.id for view in views]
    await client.hset(key(bad), field, was)
    await world.gateway.release_quarantined(bad, ADMIN)
    await world.began_all("0.a")
    world.let("0.a", "1.a")
    await world.until(bad, "completed")
    await world.until(good, "completed")
    assert not world.gateway.quarantined


async def test_an_active_run_that_cannot_be_read_is_discarded_with_everything(
    world: Rig, client: Redis
) -> None:
    flow = await world.workflow(
        "w", [gate("a"), noop("b", "a")], max_concurrent_runs=2, tags={"x": "y"}
    )
    bad, good = [await world.trigger(flow, k=f"{n}.") for n in range(2)]
    await world.began_all("0.a", "1.a")
    await world.crash()
    await spoil(client, bad, "s0", flip_last)
    await world.start()
    await world.gateway.discard_quarantined(bad, ADMIN)
    assert not world.gateway.quarantined
    assert await traces(client, bad) == []
    with pytest.raises(NotFoundError):
        await world.gateway.get_run(bad, ADMIN)
    with pytest.raises(NotFoundError):
        await world.gateway.discard_quarantined(bad, ADMIN)
    world.let("1.a")
    await world.until(good, "completed")


async def test_a_run_of_a_newer_version_is_not_discarded(world: Rig, client: Redis) -> None:
    flow = await world.workflow("w", [gate("a")])
    run = await world.trigger(flow, k="0.")
    await world.began_all("0.a")
    await world.crash()
    was = await spoil(client, run, "h", newer)
    await world.start()
    with pytest.raises(ConflictError, match="for a version that can"):
        await world.gateway.discard_quarantined(run, ADMIN)
    assert await client.exists(key(run))
    await client.hset(key(run), "h", was)
    await world.gateway.release_quarantined(run, ADMIN)
    world.let("0.a")
    await world.until(run, "completed")


async def test_a_run_that_failed_and_then_cannot_be_read_gives_its_slot_back(
    world: Rig, client: Redis
) -> None:
    flow = await world.workflow("w", [gate("a")], max_concurrent_runs=1)
    run = await world.trigger(flow, k="0.")
    await world.began_all("0.a")
    queued = await world.trigger(flow, k="1.")
    for _ in range(6):
        await wait_until(
            lambda: (
                world.runtime.supervisor.published(run) is not None
                or run in world.gateway.quarantined
            ),
            "up or out",
        )
        world.runtime.supervisor.notify(run, object())
        await wait_until(
            lambda: world.runtime.supervisor.published(run) is None, "its actor has ended"
        )
    await wait_until(lambda: run in world.gateway.quarantined, "quarantined")
    await spoil(client, run, "r", half)
    assert "1.a" not in world.began
    await world.gateway.discard_quarantined(run, ADMIN)
    await world.began_all("1.a")
    world.let("1.a")
    await world.until(queued, "completed")


@pytest.mark.parametrize("field", ["h", "r"])
async def test_the_parent_of_a_child_that_cannot_be_read_is_told_if_its_head_can(
    world: Rig, client: Redis, field: str
) -> None:
    child = await world.workflow("child", [gate("a")])
    sub = {"step_ref": "sub", "step_type": "sub_workflow", "sub_workflow_id": child.slug}
    parent = await world.workflow("parent", [sub])
    run = await world.trigger(parent)
    await world.began_all("a")
    child_run = (await world.step(run, "sub")).child_run_id
    assert child_run is not None
    await world.crash()
    await spoil(client, child_run, field, flip_last)
    await world.start()
    await world.gateway.discard_quarantined(child_run, ADMIN)
    assert await traces(client, child_run) == []
    if field == "h":
        failed = await world.until(run, "failed")
        assert "discarded from quarantine" in (failed.vitals.error or "")
    else:  # nobody can tell whose child it was: the operator decides about the step
        await world.gateway.force_complete(run, "sub", ADMIN, b"7")
        await world.until(run, "completed")


async def test_a_finished_run_that_cannot_be_read_is_listed_mended_and_discarded(
    world: Rig, client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    flow = await world.workflow("w", [noop("a", payload={"value": 1})])
    mended, discarded, sound = [await world.trigger(flow) for _ in range(3)]
    for run in (mended, discarded, sound):
        await world.until(run, "completed")
    await wait_until(lambda: not len(world.runtime.supervisor), "none is in memory")
    was = await spoil(client, mended, "", flip_last)
    await spoil(client, discarded, "", flip_last)
    with caplog.at_level(logging.ERROR):
        for run in (mended, discarded, mended):
            with pytest.raises(ConflictError, match="wrong checksum"):
                await world.gateway.get_run(run, MEMBER)
    assert caplog.text.count(f"run {mended} is quarantined") == 1
    assert set(world.gateway.quarantined) == {mended, discarded}
    with pytest.raises(ConflictError, match="cannot be read"):
        await world.gateway.retry_step(mended, "a", ADMIN)
    await client.set(key(mended), was)
    await world.gateway.release_quarantined(mended, MEMBER)
    assert await world.status(mended) == "completed"
    await world.gateway.discard_quarantined(discarded, MEMBER)
    assert await traces(client, discarded) == []
    assert not world.gateway.quarantined
    assert len(world.runtime.supervisor) == 0
    assert await world.status(sound) == "completed"


async def test_a_finished_run_of_another_project_that_cannot_be_read_is_not_told_of(
    world: Rig, client: Redis
) -> None:
    flow = await world.workflow("w", [noop("a")])
    run = await world.trigger(flow)
    await world.until(run, "completed")
    await wait_until(lambda: not len(world.runtime.supervisor), "it is not in memory")
    await spoil(client, run, "", flip_last)
    for _ in range(2):
        with pytest.raises(NotFoundError):
            await world.gateway.get_run(run, STRANGER)


async def test_what_is_damaged_beside_a_run_does_not_stop_it(world: Rig, client: Redis) -> None:
    flow = await world.workflow("w", [gate("a"), noop("b", "a")])
    run = await world.trigger(flow, k="0.")
    await world.began_all("0.a")
    await world.crash()
    await client.hset(key(run, "jobs"), "0:1", b"\x01what")
    await client.lset(key(run, "hist"), 0, "what")
    await world.start()
    world.let("0.a")
    await world.until(run, "completed")
    with pytest.raises(ConflictError, match="a part of run"):
        await world.gateway.history(run, ADMIN, 0, 100)


async def test_a_damaged_message_of_the_outbox_quarantines_its_run_alone(
    world: Rig, client: Redis
) -> None:
    flow = await world.workflow("w", [gate("a")])
    bad, good = [await world.trigger(flow, k=f"{n}.") for n in range(2)]
    await world.began_all("0.a", "1.a")
    await world.crash()
    await client.hset(key(bad, "out"), "1.0", b"\x01what")
    await world.start()
    assert list(world.gateway.quarantined) == [bad]
    world.let("1.a")
    await world.until(good, "completed")
    await world.gateway.discard_quarantined(bad, ADMIN)
    assert await traces(client, bad) == []


async def test_while_the_store_is_away_nothing_is_decided_about_a_quarantined_run(
    world: Rig, client: Redis
) -> None:
    flow = await world.workflow("w", [gate("a")])
    run = await world.trigger(flow, k="0.")
    await world.began_all("0.a")
    await world.crash()
    await spoil(client, run, "h", half)
    await world.start()
    await world.store.close()
    for decide in (world.gateway.release_quarantined, world.gateway.discard_quarantined):
        with pytest.raises(UnavailableError):
            await decide(run, ADMIN)
    await world.store.open()
    assert run in world.gateway.quarantined
    await world.gateway.discard_quarantined(run, ADMIN)


@pytest.mark.parametrize("restarted", ["", "before it is released", "after that"])
async def test_more_attempts_than_slots_wait_for_their_turn_after_a_start_too(
    world: Rig, restarted: str
) -> None:
    """Others got the slot of a quarantined run: by what is stored both are in progress."""
    flow = await world.workflow("w", [gate("a", job="gate1")])
    first = await world.trigger(flow, k="0.")
    await world.began_all("0.a")
    await world.quarantine(first)
    second = await world.trigger(flow, k="1.")
    await world.began_all("1.a")
    if restarted == "before it is released":
        await world.crash_and_start()
    else:
        await world.gateway.release_quarantined(first, ADMIN)
        supervisor = world.runtime.supervisor
        await wait_until(lambda: supervisor.published(first) is not None, "it is loaded")
    if restarted == "after that":
        await world.crash_and_start()
    third = await world.trigger(flow, k="2.")
    await world.until_step(third, "a", "pending", "job_limit")
    waiting = second if restarted else first
    state = await world.state(waiting)
    told = explain(state, world.gateway.notes(state))
    assert "attempt 1 is held back: it is number 1 in the queue" in told.steps[0].reason
    assert world.now["gate1"] == 1
    world.let("0.a", "1.a", "2.a")
    for run in (first, second, third):
        assert (await world.until(run, "completed")).step(0).attempt == 1
    assert world.most["gate1"] == 1
    assert world.ran[-1] == "2.a"


@pytest.mark.parametrize("then", ["goes on", "is canceled"])
async def test_a_released_run_whose_slot_others_have_waits_for_it(world: Rig, then: str) -> None:
    flow = await world.workflow("w", [gate("a", job="gate1")])
    run = await world.trigger(flow, k="0.")
    await world.began_all("0.a")
    await world.quarantine(run)
    other = await world.trigger(flow, k="1.")
    await world.began_all("1.a")
    queued = await world.trigger(flow, k="2.")
    await world.until_step(queued, "a", "pending", "job_limit")
    world.began.clear()
    await world.gateway.release_quarantined(run, ADMIN)
    supervisor = world.runtime.supervisor
    await wait_until(lambda: supervisor.published(run) is not None, "it is loaded")
    if then == "is canceled":
        await world.gateway.cancel(run, ADMIN, None)
        await world.until(run, "canceled")
    else:
        for _ in range(2):  # one that holds an attempt back stays as it is
            await supervisor.put_aside()
        place = world.runtime.admission.step_place((PROJECT, "gate1"), run, 0)
        assert place is not None
        assert place.position == 1, "before those who came later"
        told = explain(await world.state(run), world.gateway.notes(await world.state(run)))
        assert "attempt 1 is held back: it is number 1 in the queue" in told.steps[0].reason
    assert not world.began
    world.let("1.a")
    await world.until(other, "completed")
    if then == "goes on":
        await world.began_all("0.a")
        assert world.began == ["0.a"]
        world.let("0.a")
        state = await world.until(run, "completed")
        assert state.step(0).attempt == 1
    world.let("2.a")
    await world.until(queued, "completed")
    assert world.began == (["0.a", "2.a"] if then == "goes on" else ["2.a"])
    assert world.most["gate1"] == 1


async def test_a_finished_run_that_is_woken_leaves_memory_at_once(world: Rig) -> None:
    flow = await world.workflow("w", [noop("a")])
    run = await world.trigger(flow)
    await world.until(run, "completed")
    supervisor = world.runtime.supervisor
    await wait_until(lambda: not len(supervisor), "it is over and out of memory")
    supervisor.wake(run)
    assert len(supervisor) == 1
    await wait_until(lambda: not len(supervisor), "nobody has asked for it")
    supervisor.wake(run)
    await world.gateway.retry_step(run, "a", ADMIN)
    await world.until(run, "completed")
