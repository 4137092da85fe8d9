"""Attempts of a whole runtime: what holds them back, what that costs them, and what is shown."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from pilotage.actors.catalog_model import Workflow
from pilotage.actors.errors import GoneError, UnauthenticatedError
from pilotage.actors.executors.breaker import Breaker
from pilotage.actors.executors.http_executor import HttpExecutor
from pilotage.actors.executors.job_context import JobContext
from pilotage.actors.principal import ADMIN
from pilotage.runtime.definition import JobSpec
from pilotage.runtime.insight import Explanation, explain
from pilotage.runtime.status import ExecutionMode
from pilotage.runtime.validation_jobs import ParsedJob
from tests.integration.actors.rig import PROJECT, Rig, gate, noop, rig
from tests.integration.executors.peers import Peer
from tests.support.idle import passivate
from tests.support.waiting import wait_until


@pytest.fixture
async def web_world(valkey_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig(valkey_url, tmp_path, allow_private_endpoints=True) as made:
        yield made


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    async with Peer() as made:
        yield made


async def web_job(world: Rig, peer: Peer, **policy: Any) -> Workflow:
    """A workflow of one step whose job is an endpoint of the peer."""
    spec = JobSpec(execution_mode=ExecutionMode.HTTP, endpoint_url=peer.url, **policy)
    parsed = ParsedJob(name="web", slug="web", tags={}, enabled=True, spec=spec)
    await world.runtime.catalog.create_job(parsed, project_id=PROJECT)
    return await world.workflow("w", [{"step_ref": "a", "job_id": "web"}])


async def line(world: Rig, run: str, ref: str = "a") -> Explanation:
    state = await world.state(run)
    told = explain(state, world.gateway.notes(state))
    return next(step for step in told.steps if step.step_ref == ref)


def short_breaker(world: Rig, open_secs: float) -> None:
    executor = world.runtime.executors._others[ExecutionMode.HTTP]
    assert isinstance(executor, HttpExecutor)
    executor._gate._breaker = Breaker(open_secs=open_secs)


async def open_breaker(world: Rig, peer: Peer, flow: Workflow) -> None:
    await peer.close()
    for _ in range(5):
        await world.until(await world.trigger(flow), "failed")


@pytest.mark.parametrize("status", [200, 202])
async def test_time_in_which_an_attempt_is_held_back_does_not_count(
    web_world: Rig, peer: Peer, status: int
) -> None:
    """The timeout passes three times while the host is left alone; the one attempt is still good,
    and has its whole time when it begins."""
    world = web_world
    short_breaker(world, 1.0)

    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=status)

    peer.handler = answer
    flow = await web_job(world, peer, max_attempts=1, timeout_secs=0.3)
    await open_breaker(world, peer, flow)
    run = await world.trigger(flow)

    async def held() -> bool:
        return "held back" in (await line(world, run)).reason

    await wait_until(held, "the attempt is held back")
    told = await line(world, run)
    assert f"127.0.0.1:{peer.port} could not be reached 5 times in a row" in told.reason
    assert told.until is not None
    await peer.open()
    if status == 200:
        await world.until(run, "completed")
        assert (await world.step(run, "a")).attempt == 1
        return

    async def taken() -> bool:
        return (await world.step(run, "a")).accepted

    await wait_until(taken, "the job has taken it")
    failed = await world.until(run, "failed")
    assert "timed out after 0.3 s" in (failed.vitals.error or "")
    assert (await world.step(run, "a")).attempt == 1


async def test_an_attempt_that_was_held_back_still_times_out(web_world: Rig, peer: Peer) -> None:
    world, stop = web_world, threading.Event()
    short_breaker(world, 0.5)

    async def stall(_request: web.Request) -> web.StreamResponse:
        await wait_until(stop.is_set, "the end of the test", within_secs=30)
        return web.Response()

    peer.handler = stall
    flow = await web_job(world, peer, max_attempts=1, timeout_secs=0.2)
    await open_breaker(world, peer, flow)
    await peer.open()
    failed = await world.until(await world.trigger(flow), "failed")
    assert "timed out after 0.2 s" in (failed.vitals.error or "")
    assert len(peer.requests) == 1
    stop.set()


async def test_a_thread_that_does_not_stop_keeps_its_jobs_slot(
    valkey_url: str, tmp_path: Path
) -> None:
    let_go, began = threading.Event(), list[int]()

    def stuck(_: dict[str, Any], ctx: JobContext) -> int:
        began.append(ctx.attempt)
        assert len(began) > 1 or let_go.wait(20)
        return ctx.attempt

    world = Rig(valkey_url, tmp_path)
    world.registry.register(
        stuck, name="stuck", timeout=0.1, max_concurrency=1, max_attempts=2, retry_initial_delay=0
    )
    await world.start()
    try:
        flow = await world.workflow("w", [{"step_ref": "a", "job_id": "stuck"}])
        run = await world.trigger(flow)

        async def waits() -> bool:
            return "1 of them taken by threads that did not" in (await line(world, run)).reason

        await wait_until(waits, "the second attempt waits for the slot")
        assert (await line(world, run)).waiting_for == "job_limit"
        assert began == [1]
        let_go.set()
        await world.until(run, "completed")
        assert began == [1, 2]
    finally:
        let_go.set()
        await world.stop()


async def test_metrics_tell_what_the_parts_do(world: Rig) -> None:
    def shown() -> dict[str, float]:
        lines = [n for n in world.runtime.metrics.text().splitlines() if not n.startswith("#")]
        return {name: float(value) for name, value in (n.rsplit(" ", 1) for n in lines)}

    nap = {"step_ref": "nap", "step_type": "sleep", "sleep_duration_secs": 0.02}
    flow = await world.workflow("w", [nap, gate("a")])
    run = await world.trigger(flow)
    await world.until_step(run, "nap", "completed")
    await world.began_all("a")
    now = shown()
    assert now["pilotage_runs_in_memory"] == 1
    assert now["pilotage_attempts_in_progress"] == 1
    assert now["pilotage_attempts_waiting"] == now["pilotage_abandoned_threads"] == 0
    assert now["pilotage_timers_pending"] == 1  # the timeout of the attempt
    assert now["pilotage_timer_lateness_seconds_count"] == 1
    assert now["pilotage_store_healthy"] == 1
    assert now["pilotage_mailbox_refused_total"] == now["pilotage_actor_crashes_total"] == 0
    assert now["pilotage_writer_batches_total"] == now["pilotage_writer_batch_runs_count"] >= 2
    assert now["pilotage_writer_writes_total"] == now["pilotage_writer_batch_runs_sum"]
    world.let("a")
    await world.until(run, "completed")
    await wait_until(lambda: shown()["pilotage_runs_in_memory"] == 0, "the run left memory")
    assert shown()["pilotage_attempts_in_progress"] == 0


async def taken_job_run(world: Rig, peer: Peer, flow: Workflow) -> tuple[str, str, str]:
    """Run, job run and token of an attempt that a remote job has accepted."""
    run = await world.trigger(flow)

    async def taken() -> bool:
        return (await world.step(run, "a")).accepted

    await wait_until(taken, "the job has taken it")
    headers = peer.requests[-1].headers
    return run, headers["X-Run-ID"], headers["X-Run-Token"]


async def later(_request: web.Request) -> web.StreamResponse:
    return web.Response(status=202)


async def test_announced_heartbeats_are_missed_after_a_crash_too(
    web_world: Rig, peer: Peer
) -> None:
    world, peer.handler = web_world, later
    flow = await web_job(world, peer, max_attempts=1, heartbeat_timeout_secs=0.3)
    run, job_run, token = await taken_job_run(world, peer, flow)
    silent, _, _ = await taken_job_run(world, peer, flow)
    await world.gateway.callback_heartbeat(job_run, token)
    await world.crash_and_start()
    failed = await world.until(run, "failed")
    assert "no heartbeat for 0.3 s" in (failed.vitals.error or "")
    assert await world.status(silent) == "running"  # it has announced none
    with pytest.raises(GoneError):
        await world.gateway.callback_heartbeat(job_run, token)


async def test_heartbeats_keep_an_attempt_and_its_token_is_good_after_a_crash(
    web_world: Rig, peer: Peer
) -> None:
    world, peer.handler = web_world, later
    flow = await web_job(world, peer, max_attempts=1, heartbeat_timeout_secs=0.4)
    run, job_run, token = await taken_job_run(world, peer, flow)
    await world.gateway.callback_heartbeat(job_run, token)
    await world.crash_and_start()
    began = time.monotonic()

    async def beaten() -> bool:
        await world.gateway.callback_heartbeat(job_run, token)
        return time.monotonic() - began > 1.0

    await wait_until(beaten, "it has sent heartbeats for more than its bound")
    await world.gateway.callback_progress(job_run, token, 50, "half")
    await world.gateway.callback_log(job_run, token, "info", "hello", b'{"n":1}')
    with pytest.raises(UnauthenticatedError):
        await world.gateway.callback_complete(job_run, token[:-2], b"1")
    await world.gateway.callback_complete(job_run, token, b"[7]")
    await world.until(run, "completed")
    assert (await world.step(run, "a")).output == b"[7]"
    shown = await world.gateway.job_run(job_run, ADMIN)
    assert shown.progress is not None
    assert shown.progress.percent == 50
    assert [line.message for line in shown.logs or []] == ["hello"]
    with pytest.raises(GoneError):
        await world.gateway.callback_complete(job_run, token, b"[8]")
    assert len(peer.requests) == 1  # nothing was dispatched again
    await wait_until(lambda: len(world.runtime.timers) == 0, "no timer is left")


async def test_a_job_that_blocks_hardly_delays_other_runs(
    valkey_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`time.sleep` and an endless loop in async jobs, while other runs of thread and inline jobs
    come and go: how long each takes, against what it takes without them.
    """
    stop = threading.Event()

    async def sleeper(_: dict[str, Any]) -> None:
        while not stop.is_set():
            time.sleep(0.05)

    def spinner(_: dict[str, Any]) -> None:
        while not stop.is_set():
            pass

    def thread(_: dict[str, Any]) -> None:
        """In a worker thread."""

    world = Rig(valkey_url, tmp_path)
    world.registry.register(sleeper, name="sleeper")
    world.registry.register(spinner, name="spinner")
    world.registry.register(thread, name="thread")
    await world.start()
    try:
        steps = [noop("a"), {"step_ref": "b", "job_id": "thread", "depends_on": ["a"]}]
        others = await world.workflow("others", [*steps, noop("c", "b")])

        async def took() -> list[float]:
            found: list[float] = []
            for _ in range(100):
                began = time.perf_counter()
                await world.until(await world.trigger(others), "completed")
                found.append(time.perf_counter() - began)
            return sorted(found)

        alone = await took()
        guilty = ["sleeper", "spinner"]
        flow = await world.workflow("g", [{"step_ref": job, "job_id": job} for job in guilty])
        run = await world.trigger(flow)
        beside = await took()
        # 100 ms on an idle machine; the rest is for what a shared one does by itself
        assert beside[98] - alone[50] < 0.5, (alone[50], beside[50], beside[98])
        await wait_until(lambda: "has blocked the job loop" in caplog.text, "the watchdog spoke")
        assert f"job 'sleeper' (run {run}, step 'sleeper', attempt 1)" in caplog.text
        stop.set()
        await world.until(run, "completed")
    finally:
        stop.set()
        await world.stop()


async def test_a_callback_reaches_a_run_that_has_left_memory(web_world: Rig, peer: Peer) -> None:
    world, peer.handler = web_world, later
    flow = await web_job(world, peer, max_attempts=1)
    run, job_run, token = await taken_job_run(world, peer, flow)
    supervisor = world.runtime.supervisor
    await passivate(supervisor, run)
    with pytest.raises(UnauthenticatedError):
        await world.gateway.callback_complete(job_run, token[:-2], b"1")
    assert run in supervisor.idle.away, "who may not report wakes nobody"
    await world.gateway.callback_log(job_run, token, "info", "before", None)
    await passivate(supervisor, run)
    await world.gateway.callback_log(job_run, token, "info", "after", None)
    await passivate(supervisor, run)
    await world.gateway.callback_complete(job_run, token, b"[7]")
    await world.until(run, "completed")
    assert (await world.step(run, "a")).output == b"[7]"
    shown = await world.gateway.job_run(job_run, ADMIN)
    assert [line.message for line in shown.logs or []] == ["before", "after"]
    assert len(peer.requests) == 1, "it was dispatched once"
