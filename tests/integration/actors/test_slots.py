"""Slots of workflows and jobs: never exceeded, never leaked, never idle while somebody waits."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import pytest

from pilotage.actors.errors import ConflictError, NotFoundError
from pilotage.actors.kernel import SystemClock
from pilotage.actors.principal import ADMIN
from pilotage.persistence.port import RunWrite, Verdict
from tests.integration.actors.rig import PROJECT, Rig, gate, noop
from tests.support.clock import START_MS
from tests.support.waiting import wait_until

HOUR_MS = 3_600_000


async def test_runs_beyond_the_limit_queue_and_start_in_order(world: Rig) -> None:
    flow = await world.workflow("w", [gate("a")], max_concurrent_runs=1)
    runs = [await world.trigger(flow, k=f"{n}.") for n in range(3)]
    await world.began_all("0.a")
    assert [await world.status(r) for r in runs] == ["running", "pending", "pending"]
    place = await world.gateway.place(runs[2], ADMIN)
    assert place is not None
    assert (place.position, place.used, place.limit) == (2, 1, 1)
    world.let("0.a", "1.a", "2.a")
    for run in runs:
        await world.until(run, "completed")
    assert world.ran == ["0.a", "1.a", "2.a"]
    assert world.most["gate"] == 1


async def test_a_queued_run_that_is_canceled_gives_up_its_place(world: Rig) -> None:
    flow = await world.workflow("w", [gate("a")], max_concurrent_runs=1)
    first, second, third = [await world.trigger(flow, k=f"{n}.") for n in range(3)]
    await world.gateway.cancel(second, ADMIN, "not needed")
    assert (await world.state(second)).vitals.error == "canceled by admin: not needed"
    await world.gateway.cancel(first, ADMIN, None)
    await world.began_all("2.a")
    world.let("2.a")
    await world.until(third, "completed")


async def test_a_limit_that_is_raised_lets_waiting_runs_start_at_once(world: Rig) -> None:
    flow = await world.workflow("w", [gate("a")], max_concurrent_runs=1)
    runs = [await world.trigger(flow, k=f"{n}.") for n in range(4)]
    await world.patch(flow, max_concurrent_runs=3)
    await world.began_all("0.a", "1.a", "2.a")
    assert await world.status(runs[3]) == "pending"
    await world.patch(flow, max_concurrent_runs=0)
    await world.began_all("3.a")


async def test_a_limit_that_is_lowered_holds_for_who_comes_next(world: Rig) -> None:
    flow = await world.workflow("w", [gate("a")], max_concurrent_runs=2)
    runs = [await world.trigger(flow, k=f"{n}.") for n in range(3)]
    await world.began_all("0.a", "1.a")
    await world.patch(flow, max_concurrent_runs=1)
    world.let("0.a")
    await world.until(runs[0], "completed")
    assert await world.status(runs[2]) == "pending"
    world.let("1.a", "2.a")
    await world.until(runs[2], "completed")


async def test_job_slots_are_never_exceeded_across_runs(world: Rig) -> None:
    flow = await world.workflow("w", [gate(f"s{i}", job="gate2") for i in range(4)])
    runs = [await world.trigger(flow, k=f"{n}.") for n in range(3)]
    keys = [f"{n}.s{i}" for n in range(3) for i in range(4)]
    for key in keys:  # whoever has a slot is let go one by one
        await wait_until(lambda: len(world.began) > len(world.ran), "somebody runs")
        running = next(k for k in world.began if k not in world.ran)
        world.let(running)
        await wait_until(partial(world.ran.__contains__, running), f"{running} ended, not {key}")
    for run in runs:
        await world.until(run, "completed")
    assert world.most["gate2"] == 2
    assert sorted(world.ran) == sorted(keys)


async def test_a_job_slot_goes_on_when_its_run_has_no_room_or_is_canceled(world: Rig) -> None:
    flow = await world.workflow("w", [gate("a", job="gate1"), gate("b")], max_parallel_steps=1)
    other = await world.workflow("o", [gate("x", job="gate1")])
    first = await world.trigger(flow)
    await world.began_all("b")  # it took the run's only room before a was given the slot
    second = await world.trigger(other)
    await world.began_all("x")
    world.let("b")
    await world.until_step(first, "a", "pending", "job_limit")
    third = await world.trigger(other, k="3")
    await world.until_step(third, "x", "pending", "job_limit")
    place = await world.gateway.place(third, ADMIN, "x")
    assert place is not None
    assert (place.position, place.used, place.limit) == (2, 1, 1)
    await world.gateway.cancel(second, ADMIN, None)
    await world.began_all("a")
    world.let("a", "3x")
    await world.until(first, "completed")
    await world.until(third, "completed")
    assert world.ran == ["b", "a", "3x"]
    assert world.most["gate1"] == 1


async def test_a_step_canceled_while_it_waits_for_a_job_slot_leaves_no_hole(world: Rig) -> None:
    flow = await world.workflow("w", [gate("a", job="gate1")])
    runs = [await world.trigger(flow, k=f"{n}.") for n in range(4)]
    await world.began_all("0.a")
    await world.gateway.cancel(runs[1], ADMIN, None)
    await world.gateway.skip(runs[2], "a", ADMIN, "no")
    world.let("0.a", "3.a")
    await world.until(runs[3], "completed")
    assert world.ran == ["0.a", "3.a"]


async def test_after_a_crash_limits_hold_and_queues_keep_their_order(world: Rig) -> None:
    flow = await world.workflow("w", [gate("a", job="gate1")], max_concurrent_runs=2)
    runs = [await world.trigger(flow, k=f"{n}.") for n in range(5)]
    await world.began_all("0.a")
    for _ in range(3):
        await world.crash_and_start()
        statuses = [await world.status(r) for r in runs]
        assert statuses == ["running", "running", "pending", "pending", "pending"]
    world.let(*(f"{n}.a" for n in range(5)))
    for run in runs:
        await world.until(run, "completed")
    assert world.ran == [f"{n}.a" for n in range(5)]
    assert world.most["gate1"] == 1


async def test_a_reopened_run_queues_when_the_slots_are_taken_also_after_a_restart(
    world: Rig,
) -> None:
    fail = {"step_ref": "f", "job_id": "fail", "depends_on": ["a"]}
    flow = await world.workflow("w", [gate("a"), fail], max_concurrent_runs=1)
    world.broken.add("fail")
    runs: list[str] = []
    for n in range(2):
        world.let(f"{n}.a")
        runs.append(await world.trigger(flow, k=f"{n}."))
        await world.until(runs[n], "failed")
    await world.crash_and_start()  # nothing of the workflow is in memory any more
    world.gates.clear()
    await world.gateway.replay_subtree(runs[0], "a", ADMIN)
    await world.gateway.retry_step(runs[1], "f", ADMIN)
    assert [await world.status(r) for r in runs] == ["running", "pending"]
    world.broken.clear()
    world.let("0.a")
    await world.until(runs[1], "completed")
    assert await world.status(runs[0]) == "completed"


async def test_a_slot_that_was_passed_on_to_a_run_before_it_ended_does_not_start_it_again(
    world: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told of the slot while its end is being written; then it is reopened and told. The
    slot has gone back with its end and is another run's by then.
    """
    flow = await world.workflow("w", [gate("a")], max_concurrent_runs=1)
    first, second, third = [await world.trigger(flow, k=f"{n}.") for n in range(3)]
    await world.began_all("0.a")
    mail = world.runtime.supervisor._entries[second].ref
    assert mail is not None
    commit, writing, written = world.store.commit, asyncio.Event(), asyncio.Event()

    async def late(batch: Sequence[RunWrite], fence: int) -> list[Verdict]:
        writing.set()
        await written.wait()
        return await commit(batch, fence)

    monkeypatch.setattr(world.store, "commit", late)
    canceling = asyncio.create_task(world.gateway.cancel(second, ADMIN, None))
    await writing.wait()
    replaying = asyncio.create_task(world.gateway.replay_subtree(second, "a", ADMIN))
    await wait_until(lambda: mail.cell.depth() == 1, "the replay is in the mailbox")
    await world.patch(flow, max_concurrent_runs=2)
    await wait_until(lambda: mail.cell.depth() == 2, "so is the slot")
    written.set()
    await asyncio.gather(canceling, replaying)
    await world.began_all("2.a")
    assert [await world.status(run) for run in (first, second, third)] == [
        "running",
        "pending",
        "running",
    ]
    world.let("0.a", "1.a", "2.a")
    for run in (first, second, third):
        await world.until(run, "completed")
    assert world.most["gate"] == 2


async def test_a_paused_run_keeps_its_slot_and_pausing_a_queued_one_is_refused(world: Rig) -> None:
    flow = await world.workflow("w", [gate("a"), noop("b", "a")], max_concurrent_runs=1)
    first, second = [await world.trigger(flow, k=f"{n}.") for n in range(2)]
    await world.gateway.pause(first, ADMIN)
    world.let("0.a", "1.a")
    await world.until_step(first, "a", "completed")
    assert await world.status(second) == "pending"
    assert (await world.step(first, "b")).status.value == "pending"
    await world.gateway.resume(first, ADMIN)
    await world.until(second, "completed")


async def test_a_canceled_and_a_deleted_workflow_leave_nothing_behind(world: Rig) -> None:
    flow = await world.workflow("w", [gate("a")], max_concurrent_runs=1)
    runs = [await world.trigger(flow, k=f"{n}.") for n in range(3)]
    for run in reversed(runs):
        await world.gateway.cancel(run, ADMIN, None)
    await world.runtime.catalog.delete_workflow(flow)
    await wait_until(lambda: len(world.runtime.supervisor) == 0, "no run is in memory")
    assert world.runtime.admission.run_slot_free(flow.id)


async def test_a_storm_of_commands_on_limited_runs_ends_with_every_slot_free(world: Rig) -> None:
    seed = random.SystemRandom().randrange(10**6)
    dice = random.Random(seed)
    steps = [gate(f"s{i}", job="gate2") for i in range(3)]
    flow = await world.workflow(
        "w", [*steps, gate("end", "s0", "s1")], max_concurrent_runs=3, max_parallel_steps=2
    )
    runs = [await world.trigger(flow, k=f"{n}.") for n in range(12)]
    keys = [f"{n}.{ref}" for n in range(12) for ref in ("s0", "s1", "s2", "end")]
    gateway = world.gateway
    commands: list[Callable[[str], Awaitable[Any]]] = [
        lambda run: gateway.pause(run, ADMIN),
        lambda run: gateway.resume(run, ADMIN),
        lambda run: gateway.cancel(run, ADMIN, None),
        lambda run: gateway.retry_step(run, dice.choice(["s0", "s1", "s2"]), ADMIN),
        lambda run: gateway.replay_subtree(run, "s0", ADMIN),
        lambda run: gateway.skip(run, "s1", ADMIN, "storm"),
    ]
    for n in range(150):
        if n % 50 == 49:
            await world.crash_and_start()
            gateway = world.gateway
        some = [dice.choice(commands)(dice.choice(runs)) for _ in range(dice.randrange(1, 4))]
        answers = await asyncio.gather(*some, return_exceptions=True)
        unexpected = [a for a in answers if isinstance(a, Exception)]
        assert all(isinstance(a, ConflictError) for a in unexpected), (seed, unexpected)
        world.let(*dice.sample(keys, 1))
        assert world.most["gate2"] <= 2, seed
        states = [world.runtime.supervisor.published(run) for run in runs]  # at one instant
        running = [s.id for s in states if s is not None and s.status in {"running", "paused"}]
        assert len(running) <= 3, (seed, running)
    world.let(*keys)
    for run in runs:
        if await world.status(run) == "paused":
            await gateway.resume(run, ADMIN)

    async def over() -> bool:
        for run in runs:
            if await world.status(run) == "paused":
                await gateway.resume(run, ADMIN)
        return all([(await world.state(run)).status.is_terminal for run in runs])

    await wait_until(over, f"every run has ended, {seed=}")
    await wait_until(lambda: len(world.runtime.supervisor) == 0, f"none is in memory, {seed=}")
    admission = world.runtime.admission
    assert not any(p.holders or p.queue for p in admission._runs.values()), seed
    assert not any(p.holders or p.queue for p in admission._jobs.values()), seed


@pytest.mark.parametrize("job", ["gate", "gate1"])
async def test_a_slot_passed_on_during_a_restart_is_not_given_twice(
    world: Rig, monkeypatch: pytest.MonkeyPatch, job: str
) -> None:
    """Of a workflow, or of a job: the second run is being restarted when it is its turn."""
    limit = 1 if job == "gate" else 0
    flow = await world.workflow("w", [gate("a", job=job)], max_concurrent_runs=limit)
    runs = [await world.trigger(flow, k=f"{n}.") for n in range(3)]
    await world.began_all("0.a")
    if not limit:
        await world.until_step(runs[2], "a", "pending", "job_limit")
    supervisor, go = world.runtime.supervisor, asyncio.Event()
    restart = supervisor._restart

    async def late(*args: Any) -> None:
        await go.wait()
        await restart(*args)

    monkeypatch.setattr(supervisor, "_restart", late)
    entry = supervisor._entries[runs[1]]
    assert entry.ref is not None
    entry.ref.tell("nothing that a run is told")
    world.let("0.a")
    await wait_until(lambda: len(world.runtime._tasks) == 1, "the slot is on its way to the run")
    go.set()
    await world.began_all("1.a")
    await wait_until(lambda: not world.runtime._tasks, "nobody is told of a slot any more")
    await world.state(runs[2])
    assert world.most[job] == 1
    assert "2.a" not in world.began
    world.let("1.a", "2.a")
    await world.until(runs[2], "completed")
    assert world.ran == ["0.a", "1.a", "2.a"]


async def test_a_run_that_is_removed_while_it_is_reopened_leaves_its_slot(world: Rig) -> None:
    flow = await world.workflow("w", [noop("a"), gate("b", "a")], max_concurrent_runs=1)
    run = await world.trigger(flow, k="1.")
    world.let("1.b")
    await world.until(run, "completed")
    commit = world.store.commit

    async def removed_first(batch: Any, fence: int) -> Any:
        world.store.commit = commit  # type: ignore[method-assign]
        world.store.verdicts[run] = Verdict.STALE
        await world.store.delete_runs([run], fence)
        return await commit(batch, fence)

    world.store.commit = removed_first  # type: ignore[method-assign]
    with pytest.raises(NotFoundError):
        await world.gateway.retry_step(run, "b", ADMIN)
    other = await world.trigger(flow, k="2.")
    world.let("2.b")
    await world.until(other, "completed")


async def test_a_slot_that_answers_a_request_of_the_same_millisecond_is_not_taken_for_the_next(
    world: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step asks for a slot, is skipped and retried, and hears of the slot for its first request
    then: that goes back with the skip, and to somebody else, as soon as the skip is stored.
    """
    set_clock(monkeypatch, START_MS)
    flow = await world.workflow("w", [gate("a", job="gate1"), gate("b"), gate("c")])
    runs = [await world.trigger(flow, k=f"{n}.") for n in range(3)]
    await world.began_all("0.a")
    for run in runs[1:]:
        await world.until_step(run, "a", "pending", "job_limit")
    mail = world.runtime.supervisor._entries[runs[1]].ref
    assert mail is not None
    commit, writing, written = world.store.commit, asyncio.Event(), asyncio.Event()

    async def late(batch: Sequence[RunWrite], fence: int) -> list[Verdict]:
        writing.set()
        await written.wait()
        return await commit(batch, fence)

    monkeypatch.setattr(world.store, "commit", late)
    gateway = world.gateway
    doing = [asyncio.create_task(gateway.skip(runs[1], "b", ADMIN, "so that it is being written"))]
    await writing.wait()
    doing.append(asyncio.create_task(gateway.skip(runs[1], "a", ADMIN, "not wanted")))
    await wait_until(lambda: mail.cell.depth() == 1, "the skip is in the mailbox")
    doing.append(asyncio.create_task(gateway.retry_step(runs[1], "a", ADMIN)))
    await wait_until(lambda: mail.cell.depth() == 2, "so is the retry")
    world.runtime.admission.set_job_limit((PROJECT, "gate1"), 2)
    await wait_until(lambda: mail.cell.depth() == 3, "so is the slot")
    written.set()
    await asyncio.gather(*doing)
    await world.began_all("2.a")
    await wait_until(lambda: not world.runtime._tasks, "nobody is told of a slot any more")
    step = await world.step(runs[1], "a")
    assert (step.status, step.wait) == ("pending", "job_limit")
    assert world.most["gate1"] == 2
    world.let(*[f"{n}.{ref}" for n in range(3) for ref in "abc"])
    for run in runs:
        await world.until(run, "completed")
    assert world.most["gate1"] == 2


@pytest.mark.parametrize("job", ["gate", "gate1"])
async def test_a_clock_that_is_set_back_lets_nobody_pass_in_a_queue(
    world: Rig, monkeypatch: pytest.MonkeyPatch, job: str
) -> None:
    """In that of a workflow, and in that of a job."""
    limit = 1 if job == "gate" else 0
    flow = await world.workflow("w", [gate("a", job=job)], max_concurrent_runs=limit)
    runs = list[str]()
    for n, by_hours in enumerate((0, 0, -1, -1, -2, 0)):
        set_clock(monkeypatch, START_MS + n + by_hours * HOUR_MS)
        runs.append(await world.trigger(flow, k=f"{n}."))
        if n and not limit:
            await world.until_step(runs[n], "a", "pending", "job_limit")
        place = await world.gateway.place(runs[n], ADMIN, None if limit else "a")
        assert (0 if place is None else place.position) == n
    monkeypatch.undo()
    for n, run in enumerate(runs):
        await world.began_all(f"{n}.a")
        world.let(f"{n}.a")
        await world.until(run, "completed")
    assert world.ran == [f"{n}.a" for n in range(len(runs))]


def set_clock(monkeypatch: pytest.MonkeyPatch, now_ms: int) -> None:
    """It stands there from now on."""

    def now(_clock: SystemClock) -> int:
        return now_ms

    monkeypatch.setattr(SystemClock, "now_ms", now)
