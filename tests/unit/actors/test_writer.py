"""The writer with a store that is away, refuses, fences, or chokes on one run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, cast

import pytest

from pilotage.actors.writer import MAX_RUNS, Writer
from pilotage.persistence.port import (
    FencedError,
    RunIndex,
    RunWrite,
    Store,
    StoreError,
    StoreUnavailableError,
    Verdict,
)
from pilotage.runtime.status import RunStatus
from tests.support.waiting import wait_until

INDEX = RunIndex(project_id="p", workflow_id="w", created_at_ms=1, status=RunStatus.RUNNING)


class Dirty:
    """Something to write, and what it was told about it."""

    def __init__(self, name: str, *, gone: bool = False) -> None:
        self.name = name
        self.gone = gone
        self.verdicts: list[Verdict] = []
        self.errors: list[Exception] = []
        self.collected = 0

    def collect(self) -> RunWrite | None:
        self.collected += 1
        if self.gone:
            return None
        return RunWrite(run_id=self.name, follows=0, seq=1, index=INDEX, vitals=b"v")

    def stored(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)

    def failed(self, error: Exception) -> None:
        self.errors.append(error)

    def no_room(self, error: Exception) -> None:
        self.errors.append(error)


class ScriptedStore:
    """`answer` says what each commit leads to."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.answer: Callable[[list[str]], list[Verdict]] = lambda names: [Verdict.OK] * len(names)

    async def commit(self, batch: Sequence[RunWrite], fence: int) -> list[Verdict]:
        del fence
        await asyncio.sleep(0)
        names = [write.run_id for write in batch]
        self.batches.append(names)
        return self.answer(names)


class World:
    def __init__(self) -> None:
        self.store = ScriptedStore()
        self.fenced = 0
        self.writer = Writer(cast("Store", self.store), lambda: 1, self._on_fenced)

    def _on_fenced(self) -> None:
        self.fenced += 1


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    made.writer.start()
    yield made
    await made.writer.close()


async def test_what_is_dirty_at_once_goes_out_at_once_and_in_bounded_batches(world: World) -> None:
    many = [Dirty(str(n)) for n in range(MAX_RUNS + 5)]
    for one in many:
        world.writer.submit(one)
    await world.writer.flushed()
    assert [len(batch) for batch in world.store.batches] == [MAX_RUNS, 5]
    assert all(one.verdicts == [Verdict.OK] for one in many)


async def test_a_store_that_is_away_gets_the_same_batch_until_it_answers(world: World) -> None:
    away = [StoreUnavailableError("away"), StoreUnavailableError("away")]

    def answer(names: list[str]) -> list[Verdict]:
        if away:
            raise away.pop()
        return [Verdict.OK] * len(names)

    world.store.answer = answer
    first, second = Dirty("1"), Dirty("2")
    world.writer.submit(first)
    await wait_until(lambda: not world.writer.healthy, "it is noticed")
    world.writer.is_back()  # a ping is no proof that writes are taken
    assert not world.writer.healthy
    world.writer.submit(second)
    await wait_until(lambda: first.verdicts == [Verdict.OK], "the first was written")
    await wait_until(lambda: second.verdicts == [Verdict.OK], "the second was written")
    assert world.store.batches[:3] == [["1"]] * 3
    assert first.collected == 1
    assert world.writer.healthy


async def test_a_run_the_store_chokes_on_does_not_take_others_with_it(world: World) -> None:
    def answer(names: list[str]) -> list[Verdict]:
        if "bad" in names:
            raise StoreError("the store refused a command: too big")
        return [Verdict.OK] * len(names)

    world.store.answer = answer
    good = [Dirty(str(n)) for n in range(4)]
    bad = Dirty("bad")
    for one in [*good[:2], bad, *good[2:]]:
        world.writer.submit(one)
    await world.writer.flushed()
    assert all(one.verdicts == [Verdict.OK] for one in good)
    assert bad.verdicts == []
    assert [str(error) for error in bad.errors] == ["the store refused a command: too big"]
    later = Dirty("later")
    world.writer.submit(later)
    await world.writer.flushed()
    assert later.verdicts == [Verdict.OK]


async def test_who_cannot_make_or_take_its_write_is_told_and_others_go_on(world: World) -> None:
    class CannotMake(Dirty):
        def collect(self) -> RunWrite | None:
            raise ValueError("cannot make it")

    class CannotTake(Dirty):
        def stored(self, verdict: Verdict) -> None:
            raise ValueError(f"cannot take {verdict}")

    dirty: list[Any] = [CannotMake("a"), Dirty("b"), CannotTake("c"), Dirty("d"), Dirty("e")]
    dirty[4].gone = True
    for one in dirty:
        world.writer.submit(one)
    await world.writer.flushed()
    assert world.store.batches == [["b", "c", "d"]]
    assert [str(e) for one in dirty for e in one.errors] == ["cannot make it", "cannot take ok"]


@pytest.mark.parametrize("raised", [True, False])
async def test_a_fence_is_told_once_and_nothing_is_written_any_more(
    world: World,
    raised: bool,
) -> None:
    def answer(names: list[str]) -> list[Verdict]:
        if raised:
            raise FencedError("newer owner")
        return [Verdict.FENCED] * len(names)

    world.store.answer = answer
    first, second = Dirty("1"), Dirty("2")
    world.writer.submit(first)
    world.writer.submit(second)
    await wait_until(lambda: second.verdicts == [Verdict.FENCED], "they are told")
    assert first.verdicts == [Verdict.FENCED]
    assert world.fenced == 1
    assert world.writer.fenced
    world.writer.submit(Dirty("3"))
    await asyncio.sleep(0)
    assert len(world.store.batches) == 1


async def test_what_follows_from_a_verdict_is_in_the_next_batch(world: World) -> None:
    """`at_once` makes it happen before that is taken, and lets it out of the present one."""
    first, second, follower = Dirty("1"), Dirty("2"), Dirty("follower")

    def answer(names: list[str]) -> list[Verdict]:
        if names == ["1"]:
            world.writer.submit(second)
        return [Verdict.OK] * len(names)

    def at_once(give: Callable[[], object]) -> None:
        give()
        if first.verdicts and not follower.collected:
            world.writer.submit(follower)

    world.store.answer, world.writer.at_once = answer, at_once
    world.writer.submit(first)
    await world.writer.flushed()
    assert world.store.batches == [["1"], ["2", "follower"]]
    assert [one.verdicts for one in (first, second, follower)] == [[Verdict.OK]] * 3
