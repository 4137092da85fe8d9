"""Definitions with slugs and revisions, remembered answers, secrets."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from pilotage.persistence import memory, redis_records
from pilotage.persistence.port import (
    BoundReachedError,
    FencedError,
    IdempotencyRecord,
    Record,
    RevisionError,
    SlugTakenError,
    Verdict,
)
from tests.contract.store.building import Life
from tests.contract.store.worlds import RedisWorld, World
from tests.support.waiting import wait_until


def record(number: int = 1, **fields: Any) -> Record:
    defaults: dict[str, Any] = {
        "kind": "workflow",
        "project_id": "project",
        "id": f"id-{number}",
        "data": b"data %d" % number,
        "slug": f"slug-{number}",
        "created_at_ms": 1_000 + number // 3,
    }
    return Record(**(defaults | fields))


def changed(old: Record, **fields: Any) -> Record:
    return msgspec.structs.replace(old, revision=old.revision + 1, **fields)


async def test_a_record_comes_back_and_is_found_by_its_slug(world: World) -> None:
    first = record(data=bytes(range(256)))
    await world.store.put_record(first, world.fence)
    assert await world.store.get_record("workflow", "id-1") == first
    assert await world.store.get_record("job", "id-1") is None
    assert await world.store.find_slug("workflow", "project", "slug-1") == "id-1"
    assert await world.store.find_slug("workflow", "other", "slug-1") is None
    assert await world.store.find_slug("job", "project", "slug-1") is None


async def test_a_record_may_have_no_slug(world: World) -> None:
    first = record(slug=None)
    await world.store.put_record(first, world.fence)
    await world.store.put_record(record(2, slug=None), world.fence)
    assert await world.store.get_record("workflow", "id-1") == first
    named = changed(first, slug="name")
    await world.store.put_record(named, world.fence)
    assert await world.store.get_record("workflow", "id-1") == named
    unnamed = changed(named, slug=None)
    await world.store.put_record(unnamed, world.fence)
    assert await world.store.get_record("workflow", "id-1") == unnamed
    assert await world.store.find_slug("workflow", "project", "name") is None


async def test_a_taken_slug_is_refused_and_nothing_changes(world: World) -> None:
    await world.store.put_record(record(1), world.fence)
    second = record(2)
    await world.store.put_record(second, world.fence)
    before = await world.contents()
    with pytest.raises(SlugTakenError, match='a workflow with slug "slug-1" exists'):
        await world.store.put_record(record(3, slug="slug-1"), world.fence)
    with pytest.raises(SlugTakenError):
        await world.store.put_record(changed(second, slug="slug-1"), world.fence)
    assert await world.contents() == before
    await world.store.put_record(record(4, slug="slug-1", project_id="other"), world.fence)
    await world.store.put_record(record(5, slug="slug-1", kind="job"), world.fence)


async def test_a_changed_slug_frees_the_old_one(world: World) -> None:
    first = record(1)
    await world.store.put_record(first, world.fence)
    await world.store.put_record(changed(first, slug="new"), world.fence)
    assert await world.store.find_slug("workflow", "project", "slug-1") is None
    assert await world.store.find_slug("workflow", "project", "new") == "id-1"
    await world.store.put_record(record(2, slug="slug-1"), world.fence)


async def test_revisions_guard_against_lost_updates(world: World) -> None:
    first = record(1)
    with pytest.raises(RevisionError, match="read it again"):
        await world.store.put_record(changed(first), world.fence)
    await world.store.put_record(first, world.fence)
    second = changed(first, data=b"second")
    await world.store.put_record(second, world.fence)
    before = await world.contents()
    for stale in (record(1, data=b"x"), changed(first, data=b"lost"), changed(changed(second))):
        with pytest.raises(RevisionError):
            await world.store.put_record(stale, world.fence)
    with pytest.raises(RevisionError):
        await world.store.put_record(changed(second, project_id="other"), world.fence)
    assert await world.contents() == before


async def test_a_put_may_be_repeated(world: World) -> None:
    first = record(1)
    answer = IdempotencyRecord(project_id="project", key="k", data=b"a")
    await world.store.put_record(first, world.fence, answer)
    await world.store.put_record(first, world.fence, answer)
    second = changed(first, data=b"2")
    await world.store.put_record(second, world.fence)
    await world.store.put_record(second, world.fence)
    assert await world.store.get_record("workflow", "id-1") == second


@pytest.mark.parametrize("remembered", [False, True])
async def test_two_records_are_put_together_or_not_at_all(world: World, remembered: bool) -> None:
    """A workflow and the version that it names."""
    kept = answer("k") if remembered else None
    version = record(1, kind="version", project_id="id-1", id="v-1", slug=None)
    for _ in range(2):  # its reply may be lost
        await world.store.put_record(record(1), world.fence, kept, version)
    assert await world.store.get_record("workflow", "id-1") == record(1)
    assert await world.store.get_record("version", "v-1") == version
    for project_id in ("id-1", None):
        page = await world.store.list_records("version", project_id, 10, None)
        assert page.rows == [version]
    assert (await world.store.idempotency("project", "k") is not None) is remembered
    before = await world.contents()
    late = msgspec.structs.replace(version, id="v-2")
    with pytest.raises(SlugTakenError):
        await world.store.put_record(record(2, slug="slug-1"), world.fence, kept, late)
    with pytest.raises(RevisionError):
        await world.store.put_record(record(1, revision=3), world.fence, kept, late)
    with pytest.raises(FencedError):
        await world.store.put_record(changed(record(1)), world.fence - 1, kept, late)
    assert await world.contents() == before


@pytest.mark.usefixtures("bound_of_3")
async def test_nothing_is_put_beside_where_no_answer_can_be_kept(world: World) -> None:
    for key in ("a", "b", "c"):
        assert await world.store.remember(answer(key), world.fence)
    version = record(1, kind="version", project_id="id-1", id="v-1", slug=None)
    with pytest.raises(BoundReachedError):
        await world.store.put_record(record(1), world.fence, answer("d"), version)
    assert await world.store.get_record("version", "v-1") is None
    assert await world.store.get_record("workflow", "id-1") is None


async def test_only_the_owner_changes_records(world: World) -> None:
    await world.store.put_record(record(1), world.fence)
    before = await world.contents()
    with pytest.raises(FencedError):
        await world.store.put_record(record(2), world.fence + 1)
    with pytest.raises(FencedError):
        await world.store.delete_record("workflow", "id-1", world.fence - 1)
    with pytest.raises(FencedError):
        await world.store.delete_record("workflow", "nothing", world.fence - 1)
    assert await world.contents() == before


async def test_a_deleted_record_leaves_nothing(world: World) -> None:
    before = await world.contents()
    await world.store.put_record(record(1), world.fence)
    assert await world.store.delete_record("workflow", "id-1", world.fence)
    assert not await world.store.delete_record("workflow", "id-1", world.fence)
    assert await world.store.get_record("workflow", "id-1") is None
    assert await world.contents() == before
    await world.store.put_record(record(1), world.fence)


async def test_a_record_made_anew_elsewhere_while_it_is_deleted_is_deleted_there(
    redis_world: RedisWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await redis_world.contents()
    await redis_world.store.put_record(record(1), redis_world.fence)
    outdated, get_record = [record(1, project_id="elsewhere")], redis_world.store.get_record

    async def late(kind: str, record_id: str) -> Record | None:
        return outdated.pop() if outdated else await get_record(kind, record_id)

    monkeypatch.setattr(redis_world.store, "get_record", late)
    assert await redis_world.store.delete_record("workflow", "id-1", redis_world.fence)
    assert not outdated
    assert await redis_world.contents() == before


@pytest.mark.parametrize("limit", [1, 3, 100])
@pytest.mark.parametrize("project_id", ["project", "other", None])
async def test_records_are_listed_newest_first(
    world: World, limit: int, project_id: str | None
) -> None:
    """Three share a millisecond each; one has moved in time."""
    records = [record(i, project_id="project" if i % 3 else "other") for i in range(20)]
    for each in [*records, record(50, kind="job")]:
        await world.store.put_record(each, world.fence)
    records[4] = changed(records[4], created_at_ms=5_000)
    await world.store.put_record(records[4], world.fence)
    listed: list[Record] = []
    after: tuple[int, str] | None = None
    while True:
        page = await world.store.list_records("workflow", project_id, limit, after)
        listed += page.rows
        after = page.next_after
        if after is None:
            break
    wanted = [each for each in records if project_id in {None, each.project_id}]
    assert listed == sorted(wanted, key=lambda r: (r.created_at_ms, r.id), reverse=True)


# --- idempotency ---------------------------------------------------------------------------------


def answer(key: str, project_id: str = "project", ttl_secs: int = 60) -> IdempotencyRecord:
    return IdempotencyRecord(
        project_id=project_id, key=key, data=f"answer {key}".encode(), ttl_secs=ttl_secs
    )


async def test_an_answer_is_remembered_by_project_and_key(world: World) -> None:
    assert await world.store.remember(answer("POST /a ü"), world.fence)
    assert await world.store.idempotency("project", "POST /a ü") == "answer POST /a ü".encode()
    assert await world.store.idempotency("project", "POST /a") is None
    assert await world.store.idempotency("other", "POST /a ü") is None
    with pytest.raises(FencedError):
        await world.store.remember(answer("x"), world.fence + 1)


async def test_an_answer_is_forgotten_after_its_time(world: World) -> None:
    await world.store.remember(answer("k", ttl_secs=1), world.fence)

    async def forgotten() -> bool:
        return await world.store.idempotency("project", "k") is None

    assert not await forgotten()
    await wait_until(forgotten, "the answer is forgotten")


@pytest.fixture
def bound_of_3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MAX_IDEMPOTENCY_RECORDS", 3)
    monkeypatch.setattr(redis_records, "MAX_IDEMPOTENCY_RECORDS", 3)
    monkeypatch.setattr("pilotage.persistence.redis_runs.MAX_IDEMPOTENCY_RECORDS", 3)


@pytest.mark.usefixtures("bound_of_3")
async def test_answers_are_bounded_by_project(world: World) -> None:
    first, second, *_ = lives = [Life(i) for i in range(3)]
    await world.put(first.write(idempotency=answer("0")))
    verdicts = await world.store.commit(
        [life.write(idempotency=answer(f"run {life.id}")) for life in lives[1:]], world.fence
    )
    assert verdicts == [Verdict.OK, Verdict.OK]
    before = await world.contents()
    assert not await world.store.remember(answer("3"), world.fence)
    late = [Life(7).write(idempotency=answer("7")), Life(8).write()]
    with pytest.raises(BoundReachedError, match="idempotency"):
        await world.store.put_record(record(1), world.fence, answer("4"))
    assert await world.contents() == before
    assert await world.store.commit(late, world.fence) == [Verdict.FULL, Verdict.OK]
    assert await world.store.remember(answer("0"), world.fence)
    await world.put(second.write(idempotency=answer("0")))
    assert await world.store.remember(answer("3", project_id="other"), world.fence)


@pytest.mark.usefixtures("bound_of_3")
async def test_a_batch_cannot_pass_the_bound(world: World) -> None:
    writes = [Life(i).write(idempotency=answer(str(i))) for i in range(5)]
    verdicts = await world.store.commit(writes, world.fence)
    assert verdicts == [Verdict.OK] * 3 + [Verdict.FULL] * 2


@pytest.mark.usefixtures("bound_of_3")
async def test_forgotten_answers_make_room(world: World) -> None:
    for key in ("a", "b", "c"):
        assert await world.store.remember(answer(key, ttl_secs=1), world.fence)
    assert not await world.store.remember(answer("d"), world.fence)
    await wait_until(lambda: world.store.remember(answer("d"), world.fence), "there is room")


async def test_forgotten_answers_are_not_counted_for_ever(redis_world: RedisWorld) -> None:
    await redis_world.store.remember(answer("a", ttl_secs=1), redis_world.fence)

    async def only_the_newest() -> bool:
        await redis_world.store.remember(answer("b"), redis_world.fence)
        return await redis_world.client.zcard("pilotage:{s0}:idemx:project") == 1

    assert not await only_the_newest()
    await wait_until(only_the_newest, "the first answer is forgotten")


async def test_an_answer_comes_with_its_record(world: World) -> None:
    await world.store.put_record(record(1), world.fence, answer("k"))
    assert await world.store.idempotency("project", "k") == b"answer k"
    with pytest.raises(SlugTakenError):
        await world.store.put_record(record(2, slug="slug-1"), world.fence, answer("l"))
    assert await world.store.idempotency("project", "l") is None


# --- secrets -------------------------------------------------------------------------------------


async def test_a_secret_is_made_once(world: World) -> None:
    other = await world.another_store()
    stores = [world.store, other] * 5
    secrets = set(await asyncio.gather(*(store.secret("tokens") for store in stores)))
    assert len(secrets) == 1
    assert len(secrets.pop()) == 32
    assert await world.store.secret("other") != await world.store.secret("tokens")
