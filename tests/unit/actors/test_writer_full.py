"""The writer with a store whose memory is full: ends first, then what fits, within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import cast

import pytest

from pilotage.actors import writer as writer_module
from pilotage.actors.writer import MAX_RUNS, Writer
from pilotage.persistence.port import RunWrite, Store, StoreError, StoreFullError, Verdict
from tests.support.waiting import wait_until
from tests.unit.actors.test_writer import INDEX, Dirty, ScriptedStore, World


class FullStore(ScriptedStore):
    """Takes what ends runs, alone, and otherwise as many bytes as there is room for."""

    def __init__(self) -> None:
        super().__init__()
        self.room = 0

    async def commit(self, batch: Sequence[RunWrite], fence: int) -> list[Verdict]:
        needed = sum(len(write.vitals) for write in batch)
        if needed > self.room and not all(write.finished for write in batch):
            await asyncio.sleep(0)
            raise StoreFullError("full")
        return await super().commit(batch, fence)


class Sized(Dirty):
    def __init__(self, name: str, size: int, *, ends: bool = False) -> None:
        super().__init__(name)
        self.size = size
        self.ends = ends

    def collect(self) -> RunWrite | None:
        self.collected += 1
        return RunWrite(
            run_id=self.name,
            follows=1,
            seq=2,
            index=INDEX,
            vitals=bytes(self.size),
            finished=self.ends,
            blob=b"" if self.ends else None,
        )


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    await made.writer.close()


@pytest.fixture
async def full(world: World, monkeypatch: pytest.MonkeyPatch) -> FullStore:
    monkeypatch.setattr(writer_module, "MAX_PAUSE_SECS", 0.01)
    store = FullStore()
    world.writer = Writer(cast("Store", store), lambda: 1, world._on_fenced)
    world.writer.start()
    return store


async def test_while_the_store_is_full_ends_go_first_then_what_fits(
    world: World, full: FullStore
) -> None:
    large, small, end = Sized("large", 900), Sized("small", 10), Sized("end", 500, ends=True)
    for one in (large, small, end):
        world.writer.submit(one)
    await wait_until(lambda: end.verdicts == [Verdict.OK], "the end is taken")
    assert large.verdicts == small.verdicts == []
    later = Sized("later", 500, ends=True)
    world.writer.submit(later)
    await wait_until(lambda: later.verdicts == [Verdict.OK], "so is one that comes later")
    assert not world.writer.healthy
    full.room = 10
    await wait_until(lambda: small.verdicts == [Verdict.OK], "the small one is taken")
    assert large.verdicts == []
    world.writer.is_back()
    assert not world.writer.healthy, "as long as something is held"
    full.room = 900
    await world.writer.flushed()
    assert large.verdicts == [Verdict.OK]
    assert world.writer.healthy
    assert [one.collected for one in (large, small, end, later)] == [1] * 4
    assert full.batches == [["end"], ["later"], ["small"], ["large"]]


async def test_what_is_held_for_a_full_store_is_bounded(
    world: World, full: FullStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "MAX_HELD_RUNS", 2 * MAX_RUNS)
    many = [Sized(str(n), 10) for n in range(5 * MAX_RUNS)]
    for one in many:
        world.writer.submit(one)
    await wait_until(lambda: not world.writer.healthy, "it is full")
    await wait_until(lambda: sum(one.collected for one in many) == 2 * MAX_RUNS, "some are held")
    for _ in range(100):
        await asyncio.sleep(0)
    assert sum(one.collected for one in many) == 2 * MAX_RUNS
    full.room = 10 * MAX_RUNS
    await world.writer.flushed()
    assert all(one.verdicts == [Verdict.OK] and one.collected == 1 for one in many)
    assert max(map(len, full.batches)) == MAX_RUNS


async def test_a_run_a_full_store_chokes_on_is_told_and_the_others_are_held(
    world: World, full: FullStore
) -> None:
    taken = full.commit

    async def commit(batch: Sequence[RunWrite], fence: int) -> list[Verdict]:
        if any(write.run_id == "bad" for write in batch):
            raise StoreError("too big")
        return await taken(batch, fence)

    full.commit = commit  # type: ignore[method-assign]
    bad, good = Sized("bad", 1), Sized("good", 10)
    world.writer.submit(bad)
    world.writer.submit(good)
    await wait_until(lambda: len(bad.errors) == 1, "it is told")
    assert good.verdicts == []
    full.room = 10
    await world.writer.flushed()
    assert good.verdicts == [Verdict.OK]
