"""Definitions were changed, and the store's answer was lost: the server goes by what is stored.

Nothing is restarted and nobody asks again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from pilotage.actors.cron_triggers import CRON_TIMER
from pilotage.actors.errors import UnavailableError
from pilotage.runtime.definition import JobSpec
from pilotage.runtime.status import ExecutionMode
from pilotage.runtime.validation_jobs import ParsedJob
from tests.integration.actors.rig import PROJECT, Rig, gate, rig
from tests.integration.executors.peers import Peer
from tests.support.waiting import wait_until


@pytest.fixture
async def world(valkey_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig(valkey_url, tmp_path, allow_private_endpoints=True) as made:
        yield made


async def test_a_raised_limit_of_a_workflow_lets_queued_runs_start(world: Rig) -> None:
    flow = await world.workflow("w", [gate("a")], max_concurrent_runs=1)
    first, second = [await world.trigger(flow, k=f"{n}.") for n in range(2)]
    await world.began_all("0.a")
    world.lose_the_next_answer("put_record")
    with pytest.raises(UnavailableError):
        await world.patch(flow, max_concurrent_runs=2)
    await world.began_all("1.a")
    world.let("0.a", "1.a")
    for run in (first, second):
        await world.until(run, "completed")


async def test_a_raised_limit_of_a_job_lets_queued_steps_start(world: Rig) -> None:
    async def later(_: web.Request) -> web.StreamResponse:
        return web.Response(status=202)

    async with Peer(later) as peer:

        def at_most(limit: int) -> ParsedJob:
            mode = ExecutionMode.HTTP
            spec = JobSpec(execution_mode=mode, endpoint_url=peer.url, max_concurrency=limit)
            return ParsedJob(name="web", slug="web", tags={}, enabled=True, spec=spec)

        catalog = world.runtime.catalog
        job = await catalog.create_job(at_most(1), project_id=PROJECT)
        flow = await world.workflow("w", [{"step_ref": "a", "job_id": "web"}])
        await world.trigger(flow)
        await wait_until(lambda: len(peer.requests) == 1, "the first is taken")
        second = await world.trigger(flow)
        await world.until_step(second, "a", "pending", "job_limit")
        world.lose_the_next_answer("put_record")
        with pytest.raises(UnavailableError):
            await catalog.update_job(job, at_most(2))
        await wait_until(lambda: len(peer.requests) == 2, "the second is taken")


async def test_a_workflow_with_a_schedule_is_armed_and_disarmed(world: Rig) -> None:
    timers = world.runtime.timers

    def armed() -> int:
        return sum(key[1] == CRON_TIMER for key in timers._live)

    world.lose_the_next_answer("put_record")
    with pytest.raises(UnavailableError):
        await world.workflow("w", [gate("a")], cron="0 3 1 1 *")
    await wait_until(lambda: armed() == 1, "its fire time is armed")
    flow = await world.runtime.catalog.workflow(PROJECT, "w")
    world.lose_the_next_answer("delete_record")
    with pytest.raises(UnavailableError):
        await world.runtime.catalog.delete_workflow(flow)
    await wait_until(lambda: armed() == 0, "nothing is armed")
