"""Group commit: atomic per run, in sequence, fenced, harmless to repeat."""

from __future__ import annotations

import pytest

from pilotage.persistence.port import (
    HistoryItem,
    IdempotencyRecord,
    RunQuery,
    RunWrite,
    StoredRun,
    Verdict,
)
from pilotage.runtime.status import RunStatus
from tests.contract.store.building import Life, changed, history_item, step
from tests.contract.store.worlds import World

PENDING, RUNNING, PAUSED = RunStatus.PENDING, RunStatus.RUNNING, RunStatus.PAUSED
COMPLETED, FAILED = RunStatus.COMPLETED, RunStatus.FAILED


async def loaded(world: World, life: Life) -> StoredRun | None:
    (run,) = await world.store.load_runs([life.id])
    return run


async def test_a_new_run_is_loaded_as_it_was_written(world: World) -> None:
    life = Life(1)
    await world.put(life.write(steps={0: step(0), 7: step(7)}, outbox_add={"m": b"message"}))
    assert await loaded(world, life) == StoredRun(
        run_id=life.id,
        seq=1,
        head=life.encoded_head,
        vitals=life.vitals,
        steps={0: step(0), 7: step(7)},
        outbox={"m": b"message"},
    )


async def test_a_change_replaces_only_the_steps_it_has(world: World) -> None:
    life = Life(1)
    await world.put(life.write(steps={0: step(0), 1: step(1)}))
    await world.put(life.write(RUNNING, steps={1: step(11), 2: step(2)}))
    run = await loaded(world, life)
    assert run is not None
    assert run.steps == {0: step(0), 1: step(11), 2: step(2)}
    assert (run.seq, run.vitals, run.head) == (2, life.vitals, life.encoded_head)


async def test_any_bytes_come_back(world: World) -> None:
    life = Life(1)
    nasty = bytes(range(256)) * 3 + b"\r\n"
    await world.put(life.write(steps={0: nasty}, outbox_add={"ä\n": nasty, "": b""}, history=0))
    run = await loaded(world, life)
    assert run is not None
    assert run.steps == {0: nasty}
    assert run.outbox == {"ä\n": nasty, "": b""}


async def test_a_run_of_5000_steps_is_one_write(world: World) -> None:
    life = Life(1)
    await world.put(life.write(steps={i: step(i) for i in range(5_000)}, history=5_001))
    run = await loaded(world, life)
    assert run is not None
    assert run.steps == life.steps
    assert [item.seq for item in await world.store.history(life.id, 4_990, 100)] == [
        *range(4_991, 5_002)
    ]


async def test_unknown_runs_load_as_none_in_their_place(world: World) -> None:
    first, second = Life(1), Life(2)
    await world.put(first.write(), second.write())
    runs = await world.store.load_runs([second.id, Life(3).id, first.id])
    assert [run and run.run_id for run in runs] == [second.id, None, first.id]


async def test_more_runs_than_one_loading_call_takes(world: World) -> None:
    lives = [Life(i) for i in range(150)]
    await world.put(*(life.write(steps={0: step(i)}) for i, life in enumerate(lives)))
    runs = await world.store.load_runs([life.id for life in lives])
    assert [run and run.steps for run in runs] == [life.steps for life in lives]


# --- verdicts ------------------------------------------------------------------------------------


def wrong_sequence(life: Life) -> list[RunWrite]:
    """Writes that follow something else than what is stored (which has sequence 2)."""
    good = life.write(RUNNING, steps={0: step(9)}, history=1, outbox_add={"new": b"new"})
    return [
        changed(good, follows=1, seq=2 + 1),
        changed(good, follows=3, seq=4),
        changed(good, follows=7, seq=8),
        changed(good, follows=1, seq=1),
    ]


@pytest.mark.parametrize("which", range(4))
async def test_a_write_that_follows_something_else_is_stale_and_leaves_nothing(
    world: World, which: int
) -> None:
    life = Life(1)
    await world.put(life.write(history=1))
    await world.put(life.write(history=1))
    before = await world.contents()
    assert await world.commit(wrong_sequence(life)[which]) is Verdict.STALE
    assert await world.contents() == before


async def test_a_change_of_a_run_that_is_not_there_is_stale(world: World) -> None:
    life = Life(1)
    life.write()
    before = await world.contents()
    assert await world.commit(life.write()) is Verdict.STALE
    assert await world.contents() == before


async def test_a_second_creation_is_refused(world: World) -> None:
    life = Life(1)
    await world.put(life.write(steps={0: step(0)}))
    await world.put(life.write())
    before = await world.contents()
    again = Life(1, payload=b"other").write(PAUSED)
    assert await world.commit(again) is Verdict.EXISTS
    assert await world.contents() == before


async def test_a_creation_over_a_finished_run_is_refused(world: World) -> None:
    life = Life(1)
    await world.put(life.write())
    await world.put(life.write(COMPLETED))
    assert await world.commit(Life(1).write()) is Verdict.EXISTS


async def test_another_token_than_the_newest_is_fenced(world: World) -> None:
    life = Life(1)
    await world.put(life.write())
    before = await world.contents()
    write = life.write(RUNNING)
    assert await world.commit(write, world.fence - 1) is Verdict.FENCED
    assert await world.commit(write, world.fence + 1) is Verdict.FENCED
    assert await world.contents() == before
    assert await world.commit(write) is Verdict.OK


async def test_one_refused_write_does_not_touch_the_others_of_its_batch(world: World) -> None:
    lives = [Life(i) for i in range(4)]
    await world.put(*(life.write() for life in lives))
    writes = [life.write(RUNNING, steps={0: step(5)}) for life in lives]
    writes[1] = changed(writes[1], follows=9, seq=10)
    writes[2] = Life(2).write()
    newcomer = Life(5)
    verdicts = await world.store.commit([*writes, newcomer.write()], world.fence)
    assert verdicts == [Verdict.OK, Verdict.STALE, Verdict.OK, Verdict.OK, Verdict.OK]


async def test_a_verdict_for_each_of_256_runs_in_order(world: World) -> None:
    lives = [Life(i, workflow_id=f"workflow{i % 40}") for i in range(256)]
    await world.put(*(life.write(steps={0: step(0)}, history=1) for life in lives))
    writes = [life.write(RUNNING, steps={0: step(1)}, history=2) for life in lives]
    for odd in range(1, 256, 2):
        writes[odd] = changed(writes[odd], follows=5, seq=6)
    verdicts = await world.store.commit(writes, world.fence)
    assert verdicts == [Verdict.OK, Verdict.STALE] * 128
    runs = await world.store.load_runs([life.id for life in lives])
    assert [run and run.seq for run in runs] == [2, 1] * 128


async def test_an_empty_batch_has_no_verdicts(world: World) -> None:
    assert await world.store.commit([], world.fence) == []


async def test_two_writes_of_one_run_in_a_batch_are_a_mistake(world: World) -> None:
    life = Life(1)
    before = await world.contents()
    with pytest.raises(ValueError, match="at most one write a run"):
        await world.store.commit([life.write(), life.write()], world.fence)
    assert await world.contents() == before


# --- repeating -----------------------------------------------------------------------------------


async def test_a_resend_changes_nothing_and_is_ok(world: World) -> None:
    life = Life(1, tags={"a": "b"})
    record = IdempotencyRecord(project_id="project", key="k", data=b"answer")
    writes = [
        life.write(history=2, outbox_add={"m": b"m"}, idempotency=record),
        life.write(RUNNING, steps={0: step(1)}, history=1, job_runs={(0, 1): b"job"}),
        life.write(COMPLETED, history=1, outbox_done=["m"], keep_until_ms=5),
        life.write(RUNNING, history=3),
    ]
    for write in writes:
        await world.put(write)
        before = await world.contents()
        await world.put(write)
        assert await world.contents() == before
    assert len(await world.store.history(life.id, 0, 100)) == 7


async def test_a_resend_under_a_newer_fence_is_stale(world: World) -> None:
    """The new owner must load the run: it cannot know whose write it sees."""
    life = Life(1)
    await world.put(life.write())
    write = life.write(RUNNING)
    await world.put(write)
    await world.store.release("first server", world.fence)
    fence = await world.store.acquire("second server", 60.0)
    assert await world.commit(write, fence) is Verdict.STALE
    assert await world.commit(life.write(PAUSED), fence) is Verdict.OK


# --- what moves together -------------------------------------------------------------------------


async def test_history_is_read_in_parts_oldest_first(world: World) -> None:
    life = Life(1)
    await world.put(life.write(history=3))
    await world.put(life.write(history=4))
    assert await world.store.history(life.id, 0, 100) == [history_item(i) for i in range(1, 8)]
    assert await world.store.history(life.id, 2, 3) == [history_item(i) for i in (3, 4, 5)]
    assert await world.store.history(life.id, 7, 3) == []
    assert await world.store.history(life.id, 0, 0) == []
    assert await world.store.history(Life(2).id, 0, 10) == []


async def test_history_that_overlaps_is_stored_once(world: World) -> None:
    life = Life(1)
    await world.put(life.write(history=3))
    await world.put(changed(life.write(), history=[history_item(i) for i in (2, 3, 4, 5)]))
    assert await world.store.history(life.id, 0, 100) == [history_item(i) for i in range(1, 6)]
    await world.put(changed(life.write(), history=[history_item(i) for i in (4, 5)]))
    assert await world.store.history(life.id, 0, 100) == [history_item(i) for i in range(1, 6)]


async def test_history_with_a_gap_is_stale(world: World) -> None:
    life = Life(1)
    await world.put(life.write(history=3))
    before = await world.contents()
    gap = changed(life.write(), history=[HistoryItem(seq=5, data=b"x")])
    assert await world.commit(gap) is Verdict.STALE
    assert await world.contents() == before


async def test_job_runs_are_kept_by_step_and_attempt(world: World) -> None:
    life = Life(1)
    await world.put(life.write(job_runs={(0, 1): b"01", (12, 3): b"12/3"}))
    await world.put(life.write(job_runs={(0, 1): b"01 again", (0, 2): b"02"}))
    assert await world.store.job_runs(life.id) == {
        (0, 1): b"01 again",
        (0, 2): b"02",
        (12, 3): b"12/3",
    }
    assert await world.store.job_run(life.id, 12, 3) == b"12/3"
    assert await world.store.job_run(life.id, 12, 4) is None
    assert await world.store.job_run(Life(2).id, 0, 1) is None
    assert await world.store.job_runs(Life(2).id) == {}


@pytest.mark.parametrize("attempts", [range(1, 131), [*range(1, 101), 150, 151, 16_383]])
async def test_of_each_step_the_newest_100_job_runs_stay(
    world: World, attempts: range | list[int]
) -> None:
    life = Life(1)
    await world.put(life.write(job_runs={(1, 1): b"other step"}))
    for attempt in attempts:
        await world.put(life.write(job_runs={(0, attempt): b"%d" % attempt}))
    newest = attempts[-1]
    expected = {(0, a): b"%d" % a for a in attempts if a > newest - 100}
    assert await world.store.job_runs(life.id) == {(1, 1): b"other step", **expected}


async def test_many_job_runs_in_one_write_are_bounded_too(world: World) -> None:
    life = Life(1)
    await world.put(life.write(job_runs={(0, a): b"%d" % a for a in range(1, 1_201)}))
    assert sorted(await world.store.job_runs(life.id)) == [(0, a) for a in range(1_101, 1_201)]


async def test_outbox_messages_come_and_go_with_writes(world: World) -> None:
    life = Life(1)
    await world.put(life.write(outbox_add={"a": b"1", "b": b"2"}))
    await world.put(life.write(outbox_done=["a", "unknown"], outbox_add={"c": b"3"}))
    run = await loaded(world, life)
    assert run is not None
    assert run.outbox == {"b": b"2", "c": b"3"}


async def test_the_idempotency_record_comes_with_its_write(world: World) -> None:
    life = Life(1)
    record = IdempotencyRecord(project_id="project", key="POST /x k", data=b"answer")
    stale = changed(life.write(), follows=4, seq=5, idempotency=record)
    assert await world.commit(stale) is Verdict.STALE
    assert await world.store.idempotency("project", "POST /x k") is None
    await world.put(Life(1).write(idempotency=record))
    assert await world.store.idempotency("project", "POST /x k") == b"answer"
    assert await world.store.idempotency("other", "POST /x k") is None


# --- finished runs -------------------------------------------------------------------------------


async def test_a_finished_run_is_one_value(world: World) -> None:
    life = Life(1)
    await world.put(life.write(steps={0: step(0)}, history=1))
    await world.put(life.write(COMPLETED, history=1))
    assert await loaded(world, life) == StoredRun(
        run_id=life.id, seq=2, vitals=life.vitals, blob=life.blob()
    )
    assert len(await world.store.history(life.id, 0, 9)) == 2


async def test_a_run_may_be_created_finished(world: World) -> None:
    life = Life(1)
    write = life.write(FAILED, blob=life.blob())
    await world.put(write)
    run = await loaded(world, life)
    assert run is not None
    assert run.blob == write.blob
    assert await world.store.active_run_ids() == []
    assert await world.store.active_count("workflow") == 0


async def test_a_finished_run_may_change_and_keep_its_blob(world: World) -> None:
    life = Life(1)
    await world.put(life.write(outbox_add={"m": b"m"}))
    await world.put(life.write(COMPLETED))
    blob = life.blob()
    await world.put(life.write(outbox_done=["m"]))
    run = await loaded(world, life)
    assert run == StoredRun(run_id=life.id, seq=3, vitals=life.vitals, blob=blob)
    other = Life(1, payload=b"1")
    await world.put(changed(life.write(), blob=other.blob()))
    run = await loaded(world, life)
    assert run is not None
    assert run.blob == other.blob()


async def test_a_reopened_run_is_in_parts_again(world: World) -> None:
    life = Life(1)
    await world.put(life.write(steps={0: step(0), 1: step(1)}))
    await world.put(life.write(FAILED, keep_until_ms=5))
    await world.put(life.write(RUNNING, steps={1: step(11)}, history=1))
    run = await loaded(world, life)
    assert run == StoredRun(
        run_id=life.id,
        seq=3,
        head=life.encoded_head,
        vitals=life.vitals,
        steps={0: step(0), 1: step(11)},
    )
    assert await world.store.active_run_ids() == [life.id]
    assert await world.store.active_count("workflow") == 1
    assert await world.store.expired_run_ids(10, 10) == []
    await world.put(life.write(COMPLETED))
    assert await world.store.active_run_ids() == []


async def test_a_write_that_lacks_what_it_needs_is_stale(world: World) -> None:
    life = Life(1)
    assert await world.commit(changed(life.write(), head=None)) is Verdict.STALE
    assert await world.commit(changed(Life(1).write(COMPLETED), blob=None)) is Verdict.STALE
    assert await world.store.load_runs([life.id]) == [None]
    life = Life(1)
    await world.put(life.write())
    before = await world.contents()
    assert await world.commit(changed(life.write(COMPLETED), blob=None)) is Verdict.STALE
    assert await world.contents() == before
    life = Life(2)
    await world.put(life.write())
    await world.put(life.write(COMPLETED))
    before = await world.contents()
    assert await world.commit(changed(life.write(RUNNING), head=None)) is Verdict.STALE
    assert await world.contents() == before


# --- which runs are active -----------------------------------------------------------------------


async def test_active_runs_come_by_due_time(world: World) -> None:
    lives = [Life(i) for i in range(4)]
    for life, due in zip(lives, [None, 300, 100, 200], strict=True):
        await world.put(life.write(due_ms=due))
    first, second, third, fourth = (life.id for life in lives)
    assert await world.store.active_run_ids() == [third, fourth, second, first]
    await world.put(lives[2].write(due_ms=None), lives[0].write(due_ms=50))
    assert await world.store.active_run_ids() == [first, fourth, second, third]


async def test_a_finished_run_is_active_until_its_outbox_is_empty(world: World) -> None:
    life = Life(1)
    await world.put(life.write())
    await world.put(life.write(COMPLETED, outbox_add={"a": b"1", "b": b"2"}))
    assert await world.store.active_run_ids() == [life.id]
    assert await world.store.active_count("workflow") == 0
    await world.put(life.write(outbox_done=["a"]))
    assert await world.store.active_run_ids() == [life.id]
    await world.put(life.write(outbox_done=["b"]))
    assert await world.store.active_run_ids() == []


async def test_counts_follow_the_statuses(world: World) -> None:
    lives = [Life(i, workflow_id=f"w{i % 2}") for i in range(6)]
    elsewhere = Life(9, project_id="other", workflow_id="w9")
    await world.put(*(life.write() for life in lives), elsewhere.write())
    await world.put(*(life.write(RUNNING) for life in lives[:4]))
    await world.put(lives[0].write(PAUSED), lives[1].write(COMPLETED), lives[2].write(FAILED))
    counts = await world.store.count_runs("project")
    assert set(counts) == set(RunStatus)
    assert {status: n for status, n in counts.items() if n} == {
        PENDING: 2, RUNNING: 1, PAUSED: 1, COMPLETED: 1, FAILED: 1,
    }  # fmt: skip
    assert await world.store.active_count("w0") == 2
    assert await world.store.active_count("w1") == 2
    assert await world.store.active_count("nothing") == 0
    assert not any((await world.store.count_runs("empty")).values())


async def test_a_status_that_comes_and_goes_leaves_one_entry(world: World) -> None:
    life = Life(1)
    for status in (PENDING, RUNNING, PAUSED, RUNNING, FAILED, RUNNING, COMPLETED):
        await world.put(life.write(status))
    for status in RunStatus:
        page = await world.store.list_runs(RunQuery(project_id="project", limit=9, status=status))
        assert len(page.rows) == (status is COMPLETED)
