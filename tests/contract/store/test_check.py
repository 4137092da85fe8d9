"""The store looked through: silent about what is whole, precise about what is not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pilotage.actors.job_runs import JobRunRecord
from pilotage.cli.doctor_deep import BESIDE, RECORDS
from pilotage.persistence import codec
from pilotage.persistence.port import HistoryItem, Record
from pilotage.persistence.redis_check import MAX_TOLD, check_store
from pilotage.persistence.redis_store import RedisStore
from pilotage.runtime.effects import EmitEvent
from pilotage.runtime.history import HistoryEntry
from pilotage.runtime.state import RunVitals
from pilotage.runtime.status import JobRunStatus, RunStatus
from tests.contract.store.building import Life, changed, step
from tests.contract.store.worlds import RedisWorld

PREFIX = "pilotage:{s0}:"
PROJECT, FLOW = "project", "workflow"
ITEM = codec.encode_history(HistoryEntry(seq=1, at="", type="run_started", actor="x"))
ATTEMPT = codec.encode_record(JobRunRecord(job="j", status=JobRunStatus.COMPLETED))
MESSAGE = codec.encode_message(EmitEvent(event_key="k", payload=None))


async def fill(world: RedisWorld) -> tuple[Life, Life, Life]:
    """An active run, one that has ended, and one that is pinned."""
    active, ended, pinned = (Life(n, tags={"a": "b"}) for n in range(3))
    for life in (active, ended, pinned):
        write = life.write(steps={0: step(1)}, history=2, job_runs={(0, 1): ATTEMPT})
        items = [HistoryItem(seq=item.seq, data=ITEM) for item in write.history]
        await world.put(changed(write, history=items))
    await world.put(ended.write(RunStatus.COMPLETED, keep_until_ms=5, outbox_add={"m": MESSAGE}))
    write = pinned.write(RunStatus.FAILED)
    vitals = RunVitals(status=RunStatus.FAILED, seq=write.seq, pinned=True)
    await world.put(changed(write, vitals=codec.encode_vitals(vitals)))
    return active, ended, pinned


def place(life: Life) -> str:
    return f"{life.head.created_at_ms:012x}{life.id}"


async def found(world: RedisWorld) -> list[str]:
    assert isinstance(world.store, RedisStore)
    report = await check_store(world.store, RECORDS, BESIDE)
    assert report.found == len(report.problems) <= MAX_TOLD
    return report.problems


Harm = Callable[[RedisWorld, Life, Life, Life], Awaitable[Any]]
HARMS: dict[str, Harm] = {
    "list of its project": lambda w, a, e, p: w.client.zrem(
        f"{PREFIX}ix:{PROJECT}", f"p{place(a)}"
    ),
    "list of its workflow": lambda w, a, e, p: w.client.zrem(
        f"{PREFIX}ixw:{PROJECT}:{FLOW}", f"*{place(e)}"
    ),
    "is not counted as active": lambda w, a, e, p: w.client.srem(f"{PREFIX}busy:{FLOW}", a.id),
    "is counted as active": lambda w, a, e, p: w.client.sadd(f"{PREFIX}busy:{FLOW}", e.id),
    "would not be recovered": lambda w, a, e, p: w.client.zrem(f"{PREFIX}active", place(a)),
    "is taken for active": lambda w, a, e, p: w.client.zadd(f"{PREFIX}active", {place(p): 1}),
    "has no end": lambda w, a, e, p: w.client.zrem(f"{PREFIX}expire", place(e)),
    "would be removed": lambda w, a, e, p: w.client.zadd(f"{PREFIX}expire", {place(p): 1}),
    "list of a tag": lambda w, a, e, p: w.client.zrem(f"{PREFIX}ixt:{PROJECT}:a:b", f"*{place(a)}"),
    "hist:": lambda w, a, e, p: w.client.rpush(f"{PREFIX}hist:{Life(77).id}", ITEM),
    "jobs:": lambda w, a, e, p: w.client.hset(f"{PREFIX}jobs:{Life(77).id}", "0:1", ATTEMPT),
    "is damaged": lambda w, a, e, p: w.client.hset(f"{PREFIX}run:{a.id}", "h", b"\x01what"),
    "which is not there": lambda w, a, e, p: w.client.zadd(f"{PREFIX}expire", {place(Life(77)): 1}),
}


@pytest.mark.parametrize("words", HARMS)
async def test_what_is_out_of_place_is_told_and_nothing_else(
    redis_world: RedisWorld, words: str
) -> None:
    lives = await fill(redis_world)
    assert await found(redis_world) == []
    await HARMS[words](redis_world, *lives)
    problems = await found(redis_world)
    assert len(problems) == 1, problems
    assert words in problems[0]
    await redis_world.client.flushall()  # what was harmed is no business of the key table


async def test_records_are_read_and_what_is_told_is_bounded(redis_world: RedisWorld) -> None:
    store = redis_world.store
    for n in range(MAX_TOLD + 5):
        record = Record(kind="job", project_id="p", id=f"j{n}", data=b"\x01damaged")
        await store.put_record(record, redis_world.fence)
    assert isinstance(store, RedisStore)
    report = await check_store(store, RECORDS, BESIDE)
    assert (report.records, report.found) == (MAX_TOLD + 5, MAX_TOLD + 5)
    assert len(report.problems) == MAX_TOLD
    assert "job j" in report.problems[0]
