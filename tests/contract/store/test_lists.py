"""Lists: every filter against a model, pages without gaps or repeats, bounded cost."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import msgspec
import pytest

from pilotage.persistence import codec, redis_runs
from pilotage.persistence.port import RunPage, RunQuery, RunRow, Store
from pilotage.runtime.state import RunVitals
from pilotage.runtime.status import RunStatus
from tests.contract.store.building import NOW_MS, Life, step
from tests.contract.store.worlds import RedisWorld, World

SEEDS = range(3)
TAGS = [{}, {"team": "red"}, {"team": "blue"}, {"team": "red", "env": "prod"}, {"env": "prod:eu"}]


async def all_pages(store: Store, query: RunQuery) -> list[RunRow]:
    rows: list[RunRow] = []
    for _ in range(1_000):
        page = await store.list_runs(query)
        assert len(page.rows) <= query.limit
        rows += page.rows
        if page.next_after is None:
            return rows
        query = msgspec.structs.replace(query, after=page.next_after)
    raise AssertionError(f"no end: {query}")


def row(life: Life) -> RunRow:
    return RunRow(run_id=life.id, head=life.encoded_head, vitals=life.vitals)


def expected(lives: Sequence[Life], query: RunQuery) -> list[RunRow]:
    """The whole answer, by looking at each run."""
    after, before = query.created_after_ms, query.created_before_ms
    found = [
        life
        for life in lives
        if life.head.project_id == query.project_id
        and query.status in {None, life.status}
        and query.workflow_id in {None, life.head.workflow_id}
        and set(query.tags) <= set(life.tags)
        and (after is None or life.head.created_at_ms > after)
        and (before is None or life.head.created_at_ms < before)
        and (query.after is None or life.position < query.after)
    ]
    return [row(life) for life in sorted(found, key=lambda life: life.position, reverse=True)]


def some_life(number: int, dice: random.Random) -> Life:
    return Life(
        number,
        project_id=dice.choice(["alpha", "alpha", "beta"]),
        workflow_id=dice.choice(["w1", "w2", "shared"]),
        # Many runs share a millisecond: the cursor has to be exact within one.
        created_at_ms=NOW_MS + dice.randrange(12),
        tags=dice.choice(TAGS),
    )


async def populate(world: World, dice: random.Random, size: int) -> list[Life]:
    lives = [some_life(number, dice) for number in range(size)]
    await world.put(*(life.write(steps={0: step(0)}) for life in lives))
    for _ in range(2):
        moved = [life for life in lives if not life.status.is_terminal]
        await world.put(*(life.write(dice.choice([*RunStatus])) for life in moved))
    return lives


@pytest.mark.parametrize("seed", SEEDS)
async def test_every_combination_of_filters_gives_what_the_model_gives(
    world: World, seed: int
) -> None:
    dice = random.Random(seed)
    lives = await populate(world, dice, 150)
    tags: list[tuple[str, ...]] = [
        (), ("team:red",), ("env:prod", "team:red"), ("env:prod:eu",), ("no:such",),
    ]  # fmt: skip
    choices = itertools.product(
        ["alpha", "beta", "nobody"],
        [None, *RunStatus],
        [None, "w1", "shared", "nothing"],
        tags,
        [(None, None), (NOW_MS + 3, NOW_MS + 9)],
    )
    for project_id, status, workflow_id, wanted, (after, before) in choices:
        query = RunQuery(
            project_id=project_id,
            limit=dice.choice([1, 7, 50, 100]),
            status=status,
            workflow_id=workflow_id,
            tags=wanted,
            created_after_ms=after,
            created_before_ms=before,
            after=dice.choice([None, None, dice.choice(lives).position]),
        )
        assert await all_pages(world.store, query) == expected(lives, query), query


@pytest.mark.parametrize("limit", [1, 2, 3, 10, 25])
async def test_pages_within_one_millisecond_are_exact(world: World, limit: int) -> None:
    lives = [Life(i, created_at_ms=NOW_MS) for i in range(25)]
    await world.put(*(life.write() for life in lives))
    query = RunQuery(project_id="project", limit=limit)
    assert await all_pages(world.store, query) == expected(lives, query)


@pytest.mark.parametrize("seed", SEEDS)
async def test_paging_neither_skips_nor_repeats_while_runs_come_and_move(
    world: World, seed: int
) -> None:
    dice = random.Random(seed)
    lives = await populate(world, dice, 80)
    query = RunQuery(project_id="alpha", limit=7)
    there_from_the_start = {row.run_id for row in expected(lives, query)}
    seen: list[str] = []
    numbers = itertools.count(1_000)
    while True:
        page = await world.store.list_runs(query)
        seen += [row.run_id for row in page.rows]
        if page.next_after is None:
            break
        query = msgspec.structs.replace(query, after=page.next_after)
        lives += (new := [some_life(next(numbers), dice) for _ in range(5)])
        await world.put(*(life.write() for life in new))
        moved = dice.sample([life for life in lives if not life.status.is_terminal], 5)
        await world.put(*(life.write(dice.choice([*RunStatus])) for life in moved))
    assert len(seen) == len(set(seen))
    assert there_from_the_start <= set(seen)
    positions = {life.id: life.position for life in lives}
    order = [positions[run_id] for run_id in seen]
    assert order == sorted(order, reverse=True)


async def test_a_full_last_page_says_that_it_is_the_last(world: World) -> None:
    await world.put(*(Life(i).write() for i in range(10)))
    page = await world.store.list_runs(RunQuery(project_id="project", limit=10))
    assert (len(page.rows), page.next_after) == (10, None)
    page = await world.store.list_runs(RunQuery(project_id="project", limit=9))
    assert (len(page.rows), page.next_after) == (9, Life(1).position)


async def test_no_runs_no_rows(world: World) -> None:
    page = await world.store.list_runs(RunQuery(project_id="project", limit=10))
    assert page == RunPage(rows=[], next_after=None)


@pytest.mark.parametrize("at", [-5, 0, 1 << 48, 1 << 60])
async def test_times_that_no_run_can_have_are_no_mistake(world: World, at: int) -> None:
    await world.put(Life(1).write())
    below = await world.store.list_runs(
        RunQuery(project_id="project", limit=5, created_before_ms=at)
    )
    above = await world.store.list_runs(
        RunQuery(project_id="project", limit=5, created_after_ms=at)
    )
    cursor = await world.store.list_runs(RunQuery(project_id="project", limit=5, after=(at, "x")))
    assert len(below.rows) == len(cursor.rows) == (at > NOW_MS)
    assert len(above.rows) == (at < NOW_MS)


async def test_lists_show_the_newest_vitals_of_finished_runs(world: World) -> None:
    life = Life(1)
    await world.put(life.write())
    await world.put(life.write(RunStatus.COMPLETED))
    await world.put(life.write())
    page = await world.store.list_runs(RunQuery(project_id="project", limit=5))
    assert [codec.decode_vitals(row.vitals).seq for row in page.rows] == [3]


async def test_finished_runs_with_large_heads_or_vitals_are_listed_whole(world: World) -> None:
    noise = random.Random(5)
    large = Life(1, payload=noise.randbytes(300_000))
    await world.put(large.write())
    await world.put(large.write(RunStatus.COMPLETED))
    wordy = Life(2)
    await world.put(wordy.write())
    write = wordy.write(RunStatus.FAILED)
    error = noise.randbytes(4_000).hex()
    vitals = codec.encode_vitals(RunVitals(status=RunStatus.FAILED, seq=2, error=error))
    await world.put(msgspec.structs.replace(write, vitals=vitals))
    page = await world.store.list_runs(RunQuery(project_id="project", limit=5))
    assert [row.head for row in page.rows] == [wordy.encoded_head, large.encoded_head]
    assert [row.vitals for row in page.rows] == [vitals, large.vitals]


async def test_a_page_of_very_large_rows_is_cut_and_goes_on(redis_world: RedisWorld) -> None:
    noise = random.Random(6)
    lives = [Life(i, payload=noise.randbytes(1 << 20)) for i in range(20)]
    for life in lives:
        await redis_world.put(life.write())
    query = RunQuery(project_id="project", limit=20)
    page = await redis_world.store.list_runs(query)
    assert len(page.rows) == 8
    assert await all_pages(redis_world.store, query) == expected(lives, query)


async def test_combined_filters_read_a_bounded_number_of_entries(
    redis_world: RedisWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two tags have no run in common: each page reads its share and says where to go on."""
    monkeypatch.setattr(redis_runs, "MAX_ENTRIES_READ", 250)
    lives = [Life(i, tags={"parity": str(i % 2), "kind": str(i % 2 or 2)}) for i in range(1_200)]
    for start in range(0, len(lives), 256):
        await redis_world.put(*(life.write() for life in lives[start : start + 256]))
    query = RunQuery(project_id="project", limit=50, tags=("parity:1", "kind:2"))
    pages, found = 0, 0
    while True:
        page = await redis_world.store.list_runs(query)
        pages, found = pages + 1, found + len(page.rows)
        if page.next_after is None:
            break
        query = msgspec.structs.replace(query, after=page.next_after)
    assert (pages, found) == (3, 0)


async def test_the_smallest_index_is_the_one_that_is_read(redis_world: RedisWorld) -> None:
    lives = [Life(i, tags={"all": "yes", "rare": str(i == 0)}) for i in range(3_000)]
    for start in range(0, len(lives), 256):
        await redis_world.put(*(life.write() for life in lives[start : start + 256]))
    tags = ("all:yes", "rare:True")
    page = await redis_world.store.list_runs(RunQuery(project_id="project", limit=5, tags=tags))
    assert page == RunPage(rows=[row(lives[0])], next_after=None)


@pytest.mark.parametrize("seed", SEEDS)
async def test_known_runs_keep_their_places_in_a_page_and_come_without_their_parts(
    world: World, seed: int
) -> None:
    dice = random.Random(seed)
    lives = await populate(world, dice, 80)
    query = RunQuery(project_id="alpha", limit=7)
    whole = expected(lives, query)
    asked: list[str] = []

    def known(run_ids: Sequence[str]) -> set[str]:
        asked.extend(run_ids)
        return {run_id for run_id in run_ids if run_id[-6] in "0123456789"}

    rows: list[RunRow] = []
    while True:
        page = await world.store.list_runs(query, known)
        rows += page.rows
        if page.next_after is None:
            break
        query = msgspec.structs.replace(query, after=page.next_after)
    assert asked == [row.run_id for row in rows] == [row.run_id for row in whole]
    for row, there in zip(rows, whole, strict=True):
        if row.run_id[-6] in "0123456789":
            assert (row.head, row.vitals) == (b"", b"")
        else:
            assert row == there


async def test_a_page_of_very_large_rows_is_cut_before_the_first_that_was_not_read(
    redis_world: RedisWorld,
) -> None:
    noise = random.Random(7)
    lives = [Life(i, payload=noise.randbytes(1 << 20)) for i in range(20)]
    for life in lives:
        await redis_world.put(life.write())
    query = RunQuery(project_id="project", limit=20)
    newest_first = [row.run_id for row in expected(lives, query)]
    known = set(newest_first[1::2])
    page = await redis_world.store.list_runs(query, lambda _: known)
    assert [row.run_id for row in page.rows] == newest_first[:16]
    rest = await redis_world.store.list_runs(
        msgspec.structs.replace(query, after=page.next_after), lambda _: known
    )
    assert [row.run_id for row in rest.rows] == newest_first[16:]
