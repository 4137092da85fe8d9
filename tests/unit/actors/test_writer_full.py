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
    def __init__(self, name: str, size: int, *, ends: bool = False, new: bool = False) -> None:
        super().__init__(name)
        self.follows = 0 if new else 1
        self.size = size
        self.ends = ends

    def collect(self) -> RunWrite | None:
        self.collected += 1
        return RunWrite(
            run_id=self.name,
            follows=self.follows,
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
    assert world.writer.full
    assert world.writer.healthy, "it takes what is small"
    full.room = 10
    await wait_until(lambda: small.verdicts == [Verdict.OK], "the small one is taken")
    assert large.verdicts == []
    assert world.writer.full, "as long as something is held"
    assert world.writer.held == 1
    full.room = 900
    await wait_until(lambda: not world.writer.full, "all is taken")
    assert large.verdicts == [Verdict.OK]
    assert [one.collected for one in (large, small, end, later)] == [1] * 4
    assert full.batches == [["end"], ["later"], ["small"], ["large"]]


async def test_what_is_held_for_a_full_store_is_bounded(
    world: World, full: FullStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "MAX_HELD_RUNS", 2 * MAX_RUNS)
    many = [Sized(str(n), 10) for n in range(5 * MAX_RUNS)]
    for one in many:
        world.writer.submit(one)
    await wait_until(lambda: world.writer.full, "it is full")
    await wait_until(lambda: sum(one.collected for one in many) == 2 * MAX_RUNS, "some are held")
    for _ in range(100):
        await asyncio.sleep(0)
    assert sum(one.collected for one in many) == 2 * MAX_RUNS
    full.room = 10 * MAX_RUNS
    await wait_until(lambda: all(one.verdicts == [Verdict.OK] for one in many), "all are taken")
    assert all(one.collected == 1 for one in many)
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
    await wait_until(lambda: good.verdicts == [Verdict.OK], "the other is taken")


async def test_what_is_small_does_not_wait_for_what_is_held(
    world: World, full: FullStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does the end of the process."""
    monkeypatch.setattr(writer_module, "FIRST_PAUSE_SECS", 10_000.0)
    full.room = 100
    large, small = Sized("large", 900), Sized("small", 10)
    world.writer.submit(large)
    await wait_until(lambda: world.writer.full, "it is held")
    world.writer.submit(small)
    await wait_until(lambda: small.verdicts == [Verdict.OK], "a command")
    assert large.verdicts == []
    await world.writer.flushed()
    assert not world.writer.busy


async def test_a_run_that_was_to_be_made_is_refused(world: World, full: FullStore) -> None:
    new, active = Sized("new", 900, new=True), Sized("active", 900)
    world.writer.submit(new)
    world.writer.submit(active)
    await wait_until(lambda: len(new.errors) == 1, "it is told")
    assert isinstance(new.errors[0], StoreFullError)
    assert not active.errors
    assert not active.verdicts
    full.room = 900
    await wait_until(lambda: active.verdicts == [Verdict.OK], "the other goes on")
    assert new.verdicts == []
