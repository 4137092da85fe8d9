"""A disabled job keeps its attempts waiting: nothing of a run is lost, and others go on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pilotage.actors.catalog_model import Job
from pilotage.actors.errors import UnavailableError
from pilotage.actors.principal import ADMIN
from pilotage.runtime.definition import JobSpec
from pilotage.runtime.insight import explain
from pilotage.runtime.status import ExecutionMode
from pilotage.runtime.validation_jobs import ParsedJob
from tests.integration.actors.rig import PROJECT, Rig, noop, rig
from tests.integration.executors.peers import Peer
from tests.support.waiting import wait_until


class Shop:
    """A job that can be disabled, and a workflow that wants it."""

    def __init__(self, world: Rig, peer: Peer) -> None:
        self.world = world
        self.peer = peer
        self.flows = 0
        self.job: Job

    def _parsed(self, *, enabled: bool) -> ParsedJob:
        mode = ExecutionMode.HTTP
        spec = JobSpec(execution_mode=mode, endpoint_url=self.peer.url, timeout_secs=0.3)
        return ParsedJob(name="web", slug="web", tags={}, enabled=enabled, spec=spec)

    async def define(self) -> None:
        catalog = self.world.runtime.catalog
        self.job = await catalog.create_job(self._parsed(enabled=False), project_id=PROJECT)

    async def enable(self) -> None:
        catalog = self.world.runtime.catalog
        self.job = await catalog.update_job(self.job, self._parsed(enabled=True))

    async def run(self) -> str:
        step = {"step_ref": "a", "job_id": "web", "retry_max_attempts": 1}
        self.flows += 1
        flow = await self.world.workflow(f"w{self.flows}", [step])
        run = await self.world.trigger(flow)
        await wait_until(lambda: self.held(run) is not None, "it is held back")
        return run

    def held(self, run: str) -> str | None:
        why = self.world.runtime.executors.why_held(run, 0, 1)
        return why if why is not None and "disabled" in why else None


@pytest.fixture
async def shop(valkey_url: str, tmp_path: Path) -> AsyncIterator[Shop]:
    async with rig(valkey_url, tmp_path, allow_private_endpoints=True) as world, Peer() as peer:
        made = Shop(world, peer)
        await made.define()
        yield made


@pytest.mark.parametrize("restarted", [False, True])
async def test_an_attempt_of_a_disabled_job_goes_on_when_it_is_enabled(
    shop: Shop, *, restarted: bool
) -> None:
    world, run = shop.world, await shop.run()
    state = await world.state(run)
    reason = explain(state, world.gateway.notes(state)).steps[0].reason
    assert 'attempt 1 is held back: job "web" is disabled; enable it, or skip the step' in reason
    if restarted:
        await world.crash_and_start()
        await wait_until(lambda: shop.held(run) is not None, "it is held back again")
    other = await world.trigger(await world.workflow("free", [noop("a")]))
    await world.until(other, "completed")  # which lasts as long as it lasts
    assert not shop.peer.requests
    await shop.enable()
    assert (await world.until(run, "completed")).step(0).attempt == 1
    assert len(shop.peer.requests) == 1


async def test_it_goes_on_though_nobody_was_told_that_the_job_is_enabled(shop: Shop) -> None:
    run = await shop.run()
    shop.world.lose_the_next_answer("put_record")
    with pytest.raises(UnavailableError):
        await shop.enable()
    await shop.world.until(run, "completed")


async def test_the_time_of_an_attempt_does_not_pass_while_its_job_is_disabled(shop: Shop) -> None:
    world, run = shop.world, await shop.run()
    timers = world.runtime.timers
    armed = timers.due_ms((run, 0))
    assert armed is not None
    await wait_until(lambda: (timers.due_ms((run, 0)) or 0) > armed, "it was put off")
    assert (await world.step(run, "a")).status == "running"
    await shop.enable()
    await world.until(run, "completed")


async def test_a_held_attempt_can_be_skipped_and_fails_when_its_job_is_deleted(shop: Shop) -> None:
    world = shop.world
    skipped, failed = await shop.run(), await shop.run()
    await world.gateway.skip(skipped, "a", ADMIN, "we do without")
    await world.until(skipped, "completed")
    for flow in (await world.runtime.catalog.list_workflows(PROJECT, 10))[0]:
        await world.patch(flow, enabled=False)
    await world.runtime.catalog.delete_job(shop.job)
    state = await world.until(failed, "failed")
    assert "does not exist" in (state.vitals.error or "")
    await wait_until(lambda: world.runtime.executors.active == 0, "nobody has it in hand")
    assert world.runtime.executors._parked == 0


async def test_attempts_of_a_disabled_job_stand_in_nobodys_way(shop: Shop) -> None:
    """They are not counted among the attempts that may be in progress."""
    world = shop.world
    world.runtime.executors._max_in_flight = 1
    runs = [await shop.run() for _ in range(2)]
    other = await world.trigger(await world.workflow("free", [noop("a")]))
    await world.until(other, "completed")
    await shop.enable()
    for run in runs:
        await world.until(run, "completed")


async def test_a_stop_does_not_wait_for_what_a_disabled_job_holds_back(shop: Shop) -> None:
    await shop.run()
    await shop.world.stop(grace_secs=600)
    assert shop.world.runtime.executors.active == 0
    await shop.world.start()
