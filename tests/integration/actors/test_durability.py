"""The store goes away, lies, forgets; actors crash; servers follow each other (runs.md §9)."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pilotage.actors import housekeeping, recover
from pilotage.actors.errors import ConflictError, UnavailableError
from pilotage.actors.executors.job_context import JobContext
from pilotage.actors.executors.python_jobs import JobRegistry
from pilotage.actors.idempotency import Idempotency, recall
from pilotage.actors.principal import ADMIN
from pilotage.actors.runtime import Runtime
from pilotage.persistence.embedded import EmbeddedServer
from pilotage.persistence.port import FencedError, Verdict
from pilotage.persistence.redis_store import RedisStore
from pilotage.settings import Settings
from tests.integration.actors.rig import PROJECT, Rig, gate, noop, rig
from tests.support.waiting import wait_until


async def test_while_the_store_is_away_commands_are_refused_and_runs_go_on_afterwards(
    world: Rig,
) -> None:
    flow = await world.workflow("w", [gate("a"), noop("b", "a"), gate("c", "b")])
    run = await world.trigger(flow)
    await world.began_all("a")
    world.store.away = True
    world.let("a")
    await wait_until(lambda: not world.runtime.ready, "not ready")
    started = time.monotonic()
    for _ in range(50):
        with pytest.raises(UnavailableError):
            await world.gateway.cancel(run, ADMIN, None)
        with pytest.raises(UnavailableError):
            await world.trigger(flow)
    assert time.monotonic() - started < 50  # 0.5 s each would be waiting for the store
    assert (await world.step(run, "a")).status.value == "running"  # what the store has
    assert "c" not in world.began
    world.store.away = False
    await world.began_all("c")
    world.let("c")
    await world.until(run, "completed")
    await wait_until(lambda: world.runtime.ready, "ready again")
    assert world.ran == ["a", "c"]


async def test_an_idle_server_notices_that_the_store_is_away_and_that_it_is_back(
    world: Rig,
) -> None:
    world.store.away = True
    await wait_until(lambda: not world.runtime.ready, "not ready")
    world.store.away = False
    await wait_until(lambda: world.runtime.ready, "ready again")


async def test_lost_replies_repeat_nothing(world: Rig) -> None:
    flow = await world.workflow(
        "w", [noop("s0"), *(noop(f"s{i}", f"s{i - 1}") for i in range(1, 9))]
    )
    world.store.lose_replies = 5
    run = await world.trigger(flow)
    world.store.lose_replies = 3
    await world.until(run, "completed")
    history = await world.gateway.history(run, ADMIN, 0, 1000)
    started = [item for item in history if b"step_started" in item]
    assert len(started) == 9


async def test_a_write_the_store_calls_stale_is_decided_again_from_what_is_stored(
    world: Rig,
) -> None:
    flow = await world.workflow("w", [gate("a")])
    run = await world.trigger(flow)
    await world.began_all("a")
    world.store.verdicts[run] = Verdict.STALE
    state = await world.gateway.pause(run, ADMIN)
    assert state.status.value == "paused"
    await world.gateway.resume(run, ADMIN)
    world.let("a")
    await world.until(run, "completed")


async def test_too_many_idempotency_keys_do_not_stop_the_run(world: Rig) -> None:
    flow = await world.workflow("w", [gate("a")])
    run = await world.trigger(flow)
    await world.began_all("a")
    world.store.verdicts[run] = Verdict.FULL
    key = Idempotency(key="POST x", request_hash="h", project_id=PROJECT)
    with pytest.raises(UnavailableError, match="it was done"):
        await world.gateway.pause(run, ADMIN, idempotency=key)
    assert await world.status(run) == "paused"
    await world.gateway.resume(run, ADMIN)
    world.let("a")
    await world.until(run, "completed")
    assert world.began == ["a"]


async def test_the_idempotency_record_is_stored_with_the_command(world: Rig) -> None:
    flow = await world.workflow("w", [gate("a"), gate("b")])
    run = await world.trigger(flow)
    keys = [Idempotency(key=f"POST {n}", request_hash="h", project_id=PROJECT) for n in range(3)]
    await asyncio.gather(
        world.gateway.pause(run, ADMIN, idempotency=keys[0], body=lambda _: b"{}"),
        world.gateway.skip(run, "a", ADMIN, "r", idempotency=keys[1]),
        world.gateway.pause(run, ADMIN, idempotency=keys[2]),  # holds already
    )
    for key, body in zip(keys, (b"{}", None, None), strict=True):
        data = await world.store.idempotency(PROJECT, key.key)
        assert data is not None
        known = recall(data)
        assert (known.status, known.reference, known.body) == (200, run, body)
    refused = Idempotency(key="POST refused", request_hash="h", project_id=PROJECT)
    with pytest.raises(ConflictError):
        await world.gateway.approve(run, "b", ADMIN, None, "me", idempotency=refused)
    assert await world.store.idempotency(PROJECT, refused.key) is None


async def test_an_actor_that_crashes_with_unstored_work_never_writes_it(world: Rig) -> None:
    flow = await world.workflow("w", [gate("a"), noop("b", "a")], max_concurrent_runs=1)
    run = await world.trigger(flow)
    await world.began_all("a")
    supervisor = world.runtime.supervisor
    pausing = asyncio.create_task(world.gateway.pause(run, ADMIN))
    await asyncio.sleep(0)
    supervisor.notify(run, object())  # nothing a run is ever told
    assert (await pausing).status.value == "paused"  # asked again, of the new actor
    await world.gateway.resume(run, ADMIN)
    world.let("a")
    await world.until(run, "completed")
    history = await world.gateway.history(run, ADMIN, 0, 100)
    assert [b'"run_paused"' in item for item in history].count(True) == 1


async def _quarantine(world: Rig, run: str) -> None:
    supervisor = world.runtime.supervisor
    for _ in range(6):
        await wait_until(
            lambda: supervisor.published(run) is not None or run in supervisor.quarantined, "up"
        )
        supervisor.notify(run, object())
        await wait_until(
            lambda: supervisor.published(run) is None or run in supervisor.quarantined, "down"
        )
    await wait_until(lambda: run in world.gateway.quarantined, "quarantined")


async def test_a_finished_run_whose_actor_fails_does_not_stay_in_memory(
    world: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    flow = await world.workflow("w", [noop("a")])
    run = await world.trigger(flow)
    await world.until(run, "completed")
    supervisor = world.runtime.supervisor
    await wait_until(lambda: not supervisor.knows(run), "it has left memory")
    supervisor.wake(run)
    supervisor.notify(run, "nothing that a run is told")
    await wait_until(lambda: "is started again" in caplog.text, "its actor has failed")
    await wait_until(lambda: not supervisor.knows(run), "it has left memory again")
    assert await world.status(run) == "completed"


async def test_a_run_that_fails_too_often_is_quarantined_and_can_be_released(world: Rig) -> None:
    flow = await world.workflow("w", [gate("a", job="gate1"), noop("b", "a")])
    run, other = [await world.trigger(flow, k=f"{n}.") for n in range(2)]
    await world.began_all("0.a")
    await _quarantine(world, run)
    await world.began_all("1.a")  # its job slot did not stay with it
    assert (await world.gateway.get_run_view(run, ADMIN)).quarantined
    with pytest.raises(ConflictError, match="quarantined"):
        await world.gateway.cancel(run, ADMIN, None)
    world.let("1.a", "0.a")
    await world.until(other, "completed")
    await world.gateway.release_quarantined(run, ADMIN)
    await world.until(run, "completed")


async def test_a_quarantined_run_can_be_discarded(world: Rig) -> None:
    child = await world.workflow("child", [gate("a")])
    parent = await world.workflow(
        "parent",
        [{"step_ref": "sub", "step_type": "sub_workflow", "sub_workflow_id": child.slug}],
        max_concurrent_runs=1,
    )
    run, queued = [await world.trigger(parent) for _ in range(2)]
    await world.began_all("a")
    child_run = (await world.step(run, "sub")).child_run_id
    assert child_run is not None
    await _quarantine(world, child_run)
    await world.gateway.discard_quarantined(child_run, ADMIN)
    assert await world.status(child_run) == "canceled"
    failed = await world.until(run, "failed")
    assert "discarded from quarantine" in (failed.vitals.error or "")
    world.let("a")
    await world.until(queued, "completed")
    assert not world.gateway.quarantined


async def test_a_stop_hands_attempts_back_and_says_nothing_alarming(
    world: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    flow = await world.workflow("w", [gate("a"), noop("b", "a")])
    runs = [await world.trigger(flow, k=f"{n}.") for n in range(20)]
    await world.began_all(*(f"{n}.a" for n in range(20)))
    with caplog.at_level(logging.INFO):
        caplog.clear()
        await world.stop(0)
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []
    world.began.clear()
    await world.start()
    await world.began_all(*(f"{n}.a" for n in range(20)))
    world.let(*(f"{n}.a" for n in range(20)))
    for run in runs:
        await world.until(run, "completed")
        assert (await world.step(run, "a")).attempt == 1


async def test_what_ends_within_the_grace_is_not_done_again(world: Rig) -> None:
    flow = await world.workflow("w", [gate("a"), gate("b", "a")])
    run = await world.trigger(flow)
    await world.began_all("a")
    stopping = asyncio.create_task(world.stop(10))
    await wait_until(lambda: not world.runtime.ready, "stopping")
    with pytest.raises(UnavailableError):
        await world.trigger(flow)
    world.let("a")
    await stopping
    assert world.began == ["a"]
    await world.start()
    await world.began_all("b")
    assert world.began == ["a", "b"]
    world.let("b")
    await world.until(run, "completed")


async def test_logs_of_an_attempt_survive_a_crash(valkey_url: str, tmp_path: Path) -> None:
    world = Rig(valkey_url, tmp_path)
    go = asyncio.Event()

    async def chatty(_: dict[str, object], ctx: JobContext) -> None:
        ctx.log("before")
        await go.wait()

    world.registry.register(chatty, name="chatty", inline=True)
    await world.start()
    flow = await world.workflow("w", [{"step_ref": "a", "job_id": "chatty"}])
    run = await world.trigger(flow)

    async def lines() -> int:
        (job_run,) = await world.gateway.job_runs(run, ADMIN)
        return len(job_run.logs or ())

    async def logged(n: int) -> bool:
        return await lines() == n

    await wait_until(lambda: logged(1), "logged")
    await world.crash_and_start()
    await wait_until(lambda: logged(2), "logged by the second delivery too")
    go.set()
    await world.until(run, "completed")
    assert await lines() == 2
    await world.stop()


async def test_nothing_grows_with_finished_runs(world: Rig) -> None:
    flow = await world.workflow(
        "w",
        [
            noop("a"),
            {"step_ref": "e", "step_type": "wait_for_event", "event_key": "k{{ payload.n }}"},
            noop("l", "a", job_id="gate2", payload={"key": "open"}),
        ],
        timeout_secs=60,
        max_concurrent_runs=50,
    )
    world.let("open")
    runs = [await world.trigger(flow, n=n) for n in range(100)]
    for n, run in enumerate(runs):
        await world.until_step(run, "e", "waiting", "event")
        await world.gateway.send_event(PROJECT, f"k{n}", b"1", 0, actor="test")
        await world.until(run, "completed")
    runtime = world.runtime
    await wait_until(lambda: len(runtime.supervisor) == 0, "no run is in memory")
    await wait_until(lambda: not runtime._tasks, "no task is left")
    assert len(runtime.timers) == 0
    assert runtime.executors.active == 0
    assert not runtime.hub._parked
    admission = runtime.admission
    assert not any(p.holders or p.queue for p in admission._runs.values())
    assert not any(p.holders or p.queue for p in admission._jobs.values())


async def test_a_second_server_takes_over_and_the_first_moves_nothing_any_more(
    valkey_url: str, tmp_path: Path
) -> None:
    async with rig(valkey_url, tmp_path / "1") as first:
        flow = await first.workflow("w", [gate("a"), noop("b", "a")])
        run = await first.trigger(flow)
        await first.began_all("a")
        await first.runtime.housekeeping.close()  # its lease runs out, as if it were suspended
        async with rig(valkey_url, tmp_path / "2") as second:
            await second.began_all("a")
            first.let("a")
            await wait_until(first.runtime.fenced.is_set, "the first sees the fence")
            assert not first.runtime.ready
            with pytest.raises(UnavailableError):
                await first.gateway.cancel(run, ADMIN, None)
            assert await second.status(run) == "running"
            second.let("a")
            await second.until(run, "completed")
            assert (await second.step(run, "b")).attempt == 1


WAIT = {"step_ref": "a", "step_type": "approval", "approval_timeout_secs": 600}


async def test_a_server_that_is_superseded_while_it_recovers_says_so_and_moves_nothing(
    world: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    flow = await world.workflow("w", [WAIT, noop("b", "a")], cron="0 0 1 1 *")
    run = await world.trigger(flow)
    await world.crash()
    open_records: Any = vars(recover)["open_records"]

    async def superseded(*args: Any) -> Any:
        world.runtime._lost_fence()
        await asyncio.sleep(0)
        return await open_records(*args)

    monkeypatch.setitem(vars(recover), "open_records", superseded)
    with pytest.raises(FencedError, match="took over during the start"):
        await world.start()
    assert "Unhandled exception" not in caplog.text
    monkeypatch.undo()
    await world.start()
    assert await world.status(run) == "running"


async def test_a_second_server_is_refused_while_the_first_renews_its_lease(
    world: Rig, tmp_path: Path
) -> None:
    second = Rig(world.url, tmp_path / "2")
    with pytest.raises(Exception, match="another server owns"):
        await second.start()
    assert world.runtime.ready


async def test_expired_runs_are_removed_and_pinned_ones_stay(
    valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "SWEEP_SECS", 0.01)
    async with rig(valkey_url, tmp_path, retention_completed_secs=0) as world:
        flow = await world.workflow("w", [gate("a")])
        run, pinned = [await world.trigger(flow, k=str(n)) for n in range(2)]
        await world.gateway.pin(pinned, ADMIN, pinned=True)
        world.let("0a", "1a")

        async def gone(run_id: str) -> bool:
            return (await world.store.load_runs([run_id]))[0] is None

        await wait_until(lambda: gone(run), "it was removed")
        await world.until(pinned, "completed")
        await world.gateway.pin(pinned, ADMIN, pinned=False)
        await wait_until(lambda: gone(pinned), "it was removed, too")


async def test_at_most_so_many_runs_are_active(valkey_url: str, tmp_path: Path) -> None:
    async with rig(valkey_url, tmp_path, max_active_runs=2) as world:
        flow = await world.workflow("w", [gate("a")])
        first = await world.trigger(flow)
        await world.trigger(flow)
        with pytest.raises(UnavailableError, match="PILOTAGE_MAX_ACTIVE_RUNS"):
            await world.trigger(flow)
        await world.gateway.cancel(first, ADMIN, None)
        await wait_until(lambda: len(world.runtime.supervisor) < 2, "it left memory")
        await world.trigger(flow)


@pytest.mark.slow
async def test_the_embedded_store_is_killed_and_runs_go_on(tmp_path: Path) -> None:
    registry = JobRegistry()
    ran: list[int] = []

    def count(given: dict[str, Any]) -> None:
        ran.append(given["n"])

    registry.register(count, name="count", inline=True)
    runtime = Runtime(settings=Settings(data_dir=tmp_path), registry=registry)
    world = Rig("", tmp_path)
    await runtime.start()
    assert isinstance(runtime.store, RedisStore)
    world.runtime = runtime
    steps = [
        {
            "step_ref": f"s{i}",
            "job_id": "count",
            "payload": {"n": i},
            **({"depends_on": [f"s{i - 1}"]} if i else {}),
        }
        for i in range(400)
    ]
    flow = await world.workflow("w", steps)
    run = await world.trigger(flow)

    def more_than(count: int) -> bool:
        return len(ran) >= count

    for beginning in (20, 120, 250):
        await wait_until(partial(more_than, beginning), f"{beginning} steps ran")
        assert runtime.embedded is not None
        pid = runtime.embedded.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    await world.until(run, "completed", within_secs=30)
    assert sorted(ran) == list(range(400))  # the process lived: nothing ran twice
    await wait_until(lambda: runtime.ready, "ready again")
    await runtime.stop(0)


def left_asleep(_: EmbeddedServer) -> None:
    """Nobody wakes it."""


async def test_an_embedded_store_that_stays_silent_is_replaced_and_runs_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "WATCH_SECS", 0.05)
    monkeypatch.setattr(housekeeping, "WATCH_TIMEOUT_SECS", 0.2)
    monkeypatch.setattr(housekeeping, "HUNG_SECS", 0.0)
    monkeypatch.setattr(EmbeddedServer, "wake", left_asleep)  # so that it hangs for good
    world = Rig("", tmp_path)
    world.runtime = runtime = Runtime(settings=Settings(data_dir=tmp_path), registry=world.registry)
    await runtime.start()
    flow = await world.workflow("w", [gate("a"), noop("b", "a")])
    run = await world.trigger(flow, k="0.")
    await world.began_all("0.a")
    assert runtime.embedded is not None
    hung = runtime.embedded.pid
    assert hung is not None
    os.kill(hung, signal.SIGSTOP)
    world.let("0.a")
    await world.until(run, "completed", within_secs=30)
    assert runtime.embedded.pid != hung
    assert world.ran == ["0.a"], "the process lived: nothing ran twice"
    await runtime.stop(0)
