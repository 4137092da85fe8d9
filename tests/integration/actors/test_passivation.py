"""Runs that wait for long leave memory, and nobody can tell: on a real store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pilotage.actors.errors import UnavailableError
from pilotage.actors.kernel import MailboxFullError
from pilotage.actors.principal import ADMIN
from pilotage.actors.run_actor import RunActor
from pilotage.actors.supervisor import Supervisor
from pilotage.persistence.port import StoredRun, StoreUnavailableError
from pilotage.runtime.commands import ApproveStep, TimerFired
from pilotage.runtime.state import PackedChunk, unpacked
from tests.integration.actors.rig import Rig, gate, noop, rig
from tests.support import idle
from tests.support.waiting import wait_until

APPROVAL: dict[str, Any] = {"step_ref": "ok", "step_type": "approval"}


def sub(ref: str, workflow: str) -> dict[str, Any]:
    return {"step_ref": ref, "step_type": "sub_workflow", "sub_workflow_id": workflow}


@pytest.fixture
async def world(valkey_url: str, tmp_path: Path) -> AsyncGenerator[Rig]:
    """Runs are put aside by the tests, not by the time that passes."""
    async with rig(valkey_url, tmp_path, passivate_after_secs=3_600) as made:
        made.runtime.supervisor.idle.passivate_after_secs = 0
        yield made


def memory(world: Rig) -> Supervisor:
    return world.runtime.supervisor


async def fold(world: Rig, *runs: str) -> None:
    await idle.fold(memory(world), *runs)


async def passivate(world: Rig, *runs: str) -> None:
    await idle.passivate(memory(world), *runs)


async def shown(world: Rig, run: str) -> list[Any]:
    """Everything that a client can ask about a run."""
    gateway = world.gateway
    state = await gateway.get_run(run, ADMIN)
    return [
        await gateway.get_run_view(run, ADMIN),
        await gateway.steps(run, ADMIN),
        await gateway.history(run, ADMIN, 0, 100),
        await gateway.job_runs(run, ADMIN),
        gateway.notes(state),
        msgspec.msgpack.encode([state.head, state.vitals, list(state.steps()), state.masks]),
    ]


async def test_a_folded_and_a_passivated_run_are_shown_as_one_with_an_actor(world: Rig) -> None:
    flow = await world.workflow("f", [noop("a"), {**APPROVAL, "depends_on": ["a"]}])
    run = await world.trigger(flow)
    await world.until_step(run, "ok", "waiting", "approval")
    with_actor = await shown(world, run)
    await fold(world, run)
    assert len(memory(world)) == memory(world).active == 1
    assert await shown(world, run) == with_actor
    folded = memory(world).idle.state(run)
    assert folded is not None
    assert all(isinstance(chunk, PackedChunk) for chunk in folded.chunks)
    assert list(unpacked(folded).steps()) == list(folded.steps())
    await passivate(world, run)
    assert (len(memory(world)), memory(world).active) == (0, 1)
    assert await shown(world, run) == with_actor
    assert run in memory(world).idle.away, "reading never wakes a run"


@pytest.mark.parametrize("aside", [fold, passivate])
async def test_an_approval_reaches_a_run_that_was_put_aside(world: Rig, aside: Any) -> None:
    flow = await world.workflow("f", [APPROVAL, noop("b", "ok")])
    run = await world.trigger(flow)
    await world.until_step(run, "ok", "waiting", "approval")
    await aside(world, run)
    await world.gateway.approve(run, "ok", ADMIN, None, "somebody")
    await world.until(run, "completed")
    await wait_until(lambda: memory(world).active == 0, "it is over and out of memory")


@pytest.mark.parametrize("aside", [fold, passivate])
async def test_an_event_reaches_a_run_that_was_put_aside_once(world: Rig, aside: Any) -> None:
    wait = {"step_ref": "w", "step_type": "wait_for_event", "event_key": "k"}
    flow = await world.workflow("f", [wait])
    run = await world.trigger(flow)
    await world.until_step(run, "w", "waiting", "event")
    await aside(world, run)
    receipt = await world.gateway.send_event("p", "k", b'{"v":1}', 0, actor="x")
    assert receipt.delivered == 1
    assert (await world.until(run, "completed")).step(0).output == b'{"v":1}'
    assert (await world.gateway.send_event("p", "k", None, 0, actor="x")).delivered == 0


async def test_timers_of_a_passivated_run_bring_it_back(world: Rig) -> None:
    nap = {"step_ref": "s", "step_type": "sleep", "sleep_duration_secs": 2}
    flow = await world.workflow("f", [nap])
    run = await world.trigger(flow)
    await world.until_step(run, "s", "waiting", "timer")
    await passivate(world, run)
    await world.until(run, "completed")


async def test_a_child_and_its_parent_find_each_other_from_outside_memory(world: Rig) -> None:
    await world.workflow("child", [APPROVAL])
    flow = await world.workflow("parent", [sub("c", "child")])
    run = await world.trigger(flow)
    await world.until_step(run, "c", "running")
    child = (await world.step(run, "c")).child_run_id
    assert child is not None
    await world.until_there(child)
    await world.until_step(child, "ok", "waiting", "approval")
    await passivate(world, run, child)
    await world.gateway.pause(run, ADMIN)
    await world.until(child, "paused")
    await passivate(world, run, child)
    await world.gateway.resume(run, ADMIN)
    await world.until(child, "running")
    await passivate(world, run, child)
    await world.gateway.approve(child, "ok", ADMIN, None, "x")
    await world.until(run, "completed")


async def test_a_queued_run_that_left_memory_gets_its_slot(world: Rig) -> None:
    flow = await world.workflow("f", [APPROVAL], max_concurrent_runs=1)
    first, second = await world.trigger(flow), await world.trigger(flow)
    await world.until(second, "pending")
    await world.until_step(first, "ok", "waiting", "approval")
    await passivate(world, first, second)
    await world.gateway.approve(first, "ok", ADMIN, None, "x")
    await world.until_step(second, "ok", "waiting", "approval")
    await world.gateway.approve(second, "ok", ADMIN, None, "x")
    await world.until(second, "completed")


async def test_a_run_whose_attempt_is_under_way_is_folded_with_its_record_and_stays(
    world: Rig,
) -> None:
    flow = await world.workflow("f", [gate("g")])
    run = await world.trigger(flow)
    await world.began_all("g")
    await fold(world, run)
    memory(world).idle.passivate_after_secs = 0.000_001
    await memory(world).put_aside()
    await memory(world).put_aside()
    assert memory(world).idle.state(run) is not None
    world.let("g")
    await world.until(run, "completed")
    (job_run,) = await world.gateway.job_runs(run, ADMIN)
    assert job_run.status == "completed"


async def test_a_passivated_run_counts_as_active(valkey_url: str, tmp_path: Path) -> None:
    async with rig(valkey_url, tmp_path, max_active_runs=1) as world:
        flow = await world.workflow("f", [APPROVAL])
        run = await world.trigger(flow)
        await world.until_step(run, "ok", "waiting", "approval")
        await passivate(world, run)
        with pytest.raises(UnavailableError, match="PILOTAGE_MAX_ACTIVE_RUNS"):
            await world.trigger(flow)


async def test_what_comes_while_a_run_is_loaded_is_taken_once_and_in_order(world: Rig) -> None:
    flow = await world.workflow("f", [APPROVAL, {**APPROVAL, "step_ref": "two"}])
    run = await world.trigger(flow)
    await world.until_step(run, "two", "waiting", "approval")
    await passivate(world, run)
    loads = counted_loads(world)
    gateway = world.gateway
    await asyncio.gather(
        gateway.approve(run, "ok", ADMIN, None, "x"),
        gateway.approve(run, "two", ADMIN, None, "x"),
        *(gateway.pin(run, ADMIN, pinned=True) for _ in range(20)),
    )
    assert loads.count(run) <= 1 + 24, "each command looks at the run, and it is loaded once"
    state = await world.until(run, "completed")
    assert (state.vitals.pinned, [s.attempt for s in state.steps()]) == (True, [1, 1])


def counted_loads(world: Rig) -> list[str]:
    loads: list[str] = []
    load = world.store.load_runs

    async def counting(run_ids: Any) -> list[StoredRun | None]:
        loads.extend(run_ids)
        return await load(run_ids)

    world.store.load_runs = counting  # type: ignore[method-assign]
    return loads


async def test_what_happened_while_a_run_cannot_be_loaded_is_kept(world: Rig) -> None:
    flow = await world.workflow("f", [{**APPROVAL, "approval_timeout_secs": 86_400}])
    run = await world.trigger(flow)
    await world.until_step(run, "ok", "waiting", "approval")
    await passivate(world, run)
    load, away = world.store.load_runs, True

    async def failing(run_ids: Any) -> list[StoredRun | None]:
        if away:
            raise StoreUnavailableError("taken away by the test")
        return await load(run_ids)

    world.store.load_runs = failing  # type: ignore[method-assign]
    with pytest.raises(UnavailableError):
        await memory(world).ask(run, TimerFired(step=None))
    assert run in memory(world).idle.away, "nobody waits for it any more"
    memory(world).notify(run, ApproveStep(actor="x", step=0))
    with pytest.raises(UnavailableError):
        await memory(world).ask(run, TimerFired(step=None))
    away = False
    await world.until(run, "completed")


async def test_too_many_that_wait_for_a_run_are_refused(
    world: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = await world.workflow("f", [APPROVAL])
    run = await world.trigger(flow)
    await world.until_step(run, "ok", "waiting", "approval")
    await passivate(world, run)
    monkeypatch.setattr(RunActor, "mailbox_capacity", 2)
    asked = [memory(world).ask(run, TimerFired(step=None)) for _ in range(5)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    refused = [a for a in answers if isinstance(a, UnavailableError)]
    assert 1 <= len(refused) <= 3
    assert not [a for a in answers if isinstance(a, MailboxFullError)]


async def test_runs_put_aside_are_there_after_a_crash(world: Rig) -> None:
    flow = await world.workflow("f", [APPROVAL])
    run, other = await world.trigger(flow), await world.trigger(flow)
    for one in (run, other):
        await world.until_step(one, "ok", "waiting", "approval")
    await fold(world, run)
    await passivate(world, other)
    await world.crash_and_start()
    for one in (run, other):
        await world.gateway.approve(one, "ok", ADMIN, None, "x")
        await world.until(one, "completed")


async def test_time_alone_puts_runs_aside(valkey_url: str, tmp_path: Path) -> None:
    async with rig(valkey_url, tmp_path, passivate_after_secs=1) as world:
        flow = await world.workflow("f", [APPROVAL])
        run = await world.trigger(flow)
        await wait_until(
            lambda: run in memory(world).idle.away, "it has left memory", within_secs=60
        )
        await world.gateway.approve(run, "ok", ADMIN, None, "x")
        await world.until(run, "completed")
