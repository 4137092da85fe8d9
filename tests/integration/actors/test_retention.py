"""What is over goes, whatever state it is in, and in the end nothing is left."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from pilotage.actors import retention
from pilotage.actors.errors import ConflictError, NotFoundError
from pilotage.actors.principal import ADMIN
from pilotage.cli.doctor_deep import BESIDE, RECORDS
from pilotage.persistence.redis_check import check_store
from tests.integration.actors.rig import Rig, gate, noop, rig
from tests.support.waiting import wait_until

PREFIX = "pilotage:{s0}:"


@pytest.fixture
async def client(valkey_url: str) -> AsyncIterator[Redis]:
    made = Redis.from_url(valkey_url, protocol=2)
    yield made
    await made.aclose()


@pytest.fixture
async def brief(
    valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Rig]:
    """Finished runs are over at once, and go when the test says so."""
    monkeypatch.setattr("pilotage.actors.housekeeping.SWEEP_SECS", 10_000)
    monkeypatch.setattr(retention, "VERSIONS_EVERY_SECS", 0)
    async with rig(valkey_url, tmp_path, retention_completed_secs=0) as made:
        yield made


async def sweep(world: Rig) -> None:
    await world.runtime.housekeeping._upkeep.retention.sweep()


async def names(client: Redis) -> set[str]:
    return {
        name.decode().removeprefix(PREFIX)
        for name in await client.keys("*")
        if isinstance(name, bytes)
    }


async def test_more_damaged_runs_than_a_batch_has_do_not_keep_the_others(
    brief: Rig, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 3)
    flow = await brief.workflow("w", [noop("a")])
    runs = [await brief.trigger(flow, n=n) for n in range(12)]
    for run in runs:
        await brief.until(run, "completed")
    await wait_until(lambda: not len(brief.runtime.supervisor), "none is in memory")
    kinds = {run: n for n, run in enumerate(runs[:9])}
    for run, n in kinds.items():
        key = f"{PREFIX}run:{run}"
        data = await client.get(key)
        assert isinstance(data, bytes)
        line, _, rest = data.partition(b"\n")
        if n % 3 == 0:  # damaged
            await client.set(key, data[:-2] + b"??")
            with pytest.raises(ConflictError):
                await brief.gateway.get_run(run, ADMIN)
        elif n % 3 == 1:  # of a newer version
            length = int(line.split()[-1])
            blob = rest[length:]
            await client.set(key, line + b"\n" + rest[:length] + b"\x09" + blob[1:])
        else:  # only its index entries are left
            await client.delete(key)
    await sweep(brief)
    newer = [run for run, n in kinds.items() if n % 3 == 1]
    left = {name.partition(":")[2] for name in await names(client) if name.startswith("run:")}
    assert left == set(newer)
    assert await client.zcard(PREFIX + "expire") == len(newer)
    assert not brief.gateway.quarantined
    assert brief.runtime.housekeeping._upkeep.retention.removed >= 9


async def test_versions_of_a_deleted_workflow_go_with_its_last_run_and_nothing_is_left(
    brief: Rig, client: Redis
) -> None:
    before = await names(client)
    flow = await brief.workflow("w", [noop("a")], tags={"x": "y"})
    old = flow.version_id
    kept = await brief.trigger(flow)
    await brief.gateway.pin(kept, ADMIN, pinned=True)
    flow = await brief.patch(flow, steps=[noop("a"), noop("b")])
    gone = await brief.trigger(flow)
    for run in (kept, gone):
        await brief.until(run, "completed")
    await brief.runtime.catalog.delete_workflow(flow)
    for _ in range(3):
        await sweep(brief)
    with pytest.raises(NotFoundError):
        await brief.gateway.get_run(gone, ADMIN)
    assert (await brief.runtime.catalog.spec_version(old)).workflow_id == flow.id
    await brief.gateway.replay_subtree(kept, "a", ADMIN)  # it can still be worked with
    await brief.until(kept, "completed")
    await brief.gateway.pin(kept, ADMIN, pinned=False)
    await sweep(brief)
    assert (await brief.runtime.catalog.spec_version(old)).workflow_id == flow.id  # seen once
    await sweep(brief)
    with pytest.raises(NotFoundError):
        await brief.runtime.catalog.spec_version(old)
    assert await names(client) == before


async def test_a_store_that_has_been_used_is_whole(brief: Rig) -> None:
    child = await brief.workflow("child", [gate("a")], tags={"t": "1"})
    sub = {"step_ref": "s", "step_type": "sub_workflow", "sub_workflow_id": child.slug}
    parent = await brief.workflow("parent", [sub, noop("b", "s")], max_concurrent_runs=1)
    fails = await brief.workflow("fails", [{"step_ref": "x", "job_id": "fail"}])
    brief.broken.add("fail")
    running, queued = [await brief.trigger(parent) for _ in range(2)]
    failed = await brief.trigger(fails)
    pinned = await brief.trigger(fails)
    await brief.until(failed, "failed")
    await brief.gateway.pin(pinned, ADMIN, pinned=True)
    await brief.gateway.retry_run(failed, ADMIN)
    await brief.began_all("a")
    await brief.gateway.send_event("p", "nobody", b"1", 60, actor="test")
    await brief.crash_and_start()
    report = await check_store(brief.store, RECORDS, BESIDE)
    assert report.problems == []
    assert report.runs >= 5
    assert report.records >= 6
    brief.let("a")
    await wait_until(lambda: not len(brief.runtime.supervisor), "all are over")
    await sweep(brief)
    with pytest.raises(NotFoundError):
        await brief.gateway.get_run(running, ADMIN)
    with pytest.raises(NotFoundError):
        await brief.gateway.get_run(queued, ADMIN)
    assert (await check_store(brief.store, RECORDS, BESIDE)).problems == []


async def test_a_deletion_that_failed_leaves_the_workflow_and_its_versions(
    brief: Rig, client: Redis
) -> None:
    flow = await brief.workflow("w", [gate("a")])
    run = await brief.trigger(flow)
    await brief.runtime.catalog.deleted.note(flow, brief.runtime._fence)
    await brief.runtime.catalog.deleted.note(flow, brief.runtime._fence)
    for _ in range(3):
        await sweep(brief)
    assert not any("deleted_workflow" in name for name in await names(client))
    brief.let("a")
    await brief.until(run, "completed")
    assert (await brief.runtime.catalog.spec_version(flow.version_id)).version == 1
