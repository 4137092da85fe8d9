"""Cron with a store in between: every fire time makes one run, whatever happens around it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pilotage.actors.catalog_model import Workflow
from pilotage.actors.principal import ADMIN
from pilotage.actors.runtime import Runtime
from pilotage.persistence.port import RunQuery
from pilotage.runtime.validation import ParsedTrigger
from tests.integration.actors.rig import PROJECT, BreakableStore, Rig, gate
from tests.support.clock import FakeClock
from tests.support.waiting import wait_until

MINUTE, HOUR = 60_000, 3_600_000


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


class CronRig(Rig):
    """A rig whose clock the test moves, on `to` from one fire time to the next."""

    def __init__(self, url: str, folder: Path) -> None:
        super().__init__(url, folder)
        self.clock = FakeClock(ms("2024-03-30T12:00:00"))

    async def start(self) -> None:
        self.store = BreakableStore(self.url)
        self.runtime = Runtime(
            settings=self.settings, registry=self.registry, store=self.store, clock=self.clock
        )
        await self.runtime.start()
        await self.settled()

    async def settled(self) -> None:
        await wait_until(lambda: not self.runtime.cron._tasks, "what fired has been dealt with")

    async def to(self, text: str) -> None:
        """Let time pass until then, stopping at everything that is due on the way."""
        end = ms(text)
        while self.clock.now_ms() < end:
            due = self.runtime.timers.next_due_ms()
            until = end if due is None else min(end, due)
            self.clock.advance_ms(max(0, until - self.clock.now_ms()))
            self.runtime.timers.fire_due()
            await self.settled()

    async def cron(self, expression: str, zone: str = "UTC", **rest: Any) -> Workflow:
        steps = [gate("a")] if rest.pop("gated", False) else [{"step_ref": "a", "job_id": "noop"}]
        return await self.workflow("w", steps, cron=expression, cron_timezone=zone, **rest)

    async def made(self, flow: Workflow) -> list[str]:
        """When the workflow's runs were made, oldest first."""
        query = RunQuery(project_id=PROJECT, limit=100, workflow_id=flow.id)
        views, _ = await self.gateway.list_runs(query)
        assert all(view.triggered_by == "cron" for view in views)
        return sorted(view.created_at[:16] for view in views)


@pytest.fixture
async def world(valkey_url: str, tmp_path: Path) -> AsyncIterator[CronRig]:
    made = CronRig(valkey_url, tmp_path)
    await made.start()
    yield made
    made.let(*made.gates)
    await made.stop()


async def test_a_local_time_that_is_skipped_fires_at_the_change(world: CronRig) -> None:
    flow = await world.cron("30 2 * * *", "Europe/Berlin")
    await world.to("2024-04-02T00:00:00")
    assert await world.made(flow) == ["2024-03-31T01:00", "2024-04-01T00:30"]


async def test_a_local_time_that_comes_twice_fires_once(world: CronRig) -> None:
    world.clock.jump_ms(ms("2024-10-26T12:00:00") - world.clock.now_ms())
    flow = await world.cron("30 2 * * *", "Europe/Berlin")
    await world.to("2024-10-29T00:00:00")
    assert await world.made(flow) == ["2024-10-27T00:30", "2024-10-28T01:30"]


@pytest.mark.parametrize("state", ["running", "paused", "delayed"])
async def test_with_skip_if_running_every_active_run_counts(world: CronRig, state: str) -> None:
    flow = await world.cron("0 * * * *", gated=True, skip_if_running=True)
    await world.to("2024-03-30T13:00:00")
    run = (await world.gateway.list_runs(RunQuery(project_id=PROJECT, limit=9)))[0][0].id
    await world.began_all("a")
    if state == "paused":
        await world.gateway.pause(run, ADMIN)
    if state == "delayed":  # another one that is not even due
        world.let("a")
        await world.until(run, "completed")
        later = ParsedTrigger(delay_secs=5 * 3600, triggered_by="cron")
        run = (await world.gateway.trigger(flow, later, actor="test")).id
    before = await world.made(flow)
    await world.to("2024-03-30T15:30:00")
    assert await world.made(flow) == before
    await world.gateway.cancel(run, ADMIN, None)
    await world.to("2024-03-30T16:00:00")
    assert await world.made(flow) == [*before, "2024-03-30T16:00"]


async def test_without_skip_if_running_runs_overlap(world: CronRig) -> None:
    flow = await world.cron("*/30 * * * *", gated=True)
    await world.to("2024-03-30T13:00:00")
    assert await world.made(flow) == ["2024-03-30T12:30", "2024-03-30T13:00"]


async def test_a_fire_time_makes_one_run_though_the_clock_is_set_back_and_servers_restart(
    world: CronRig,
) -> None:
    flow = await world.cron("0 * * * *")
    await world.to("2024-03-30T13:00:00")
    world.clock.jump_ms(-5 * MINUTE)
    await world.crash_and_start()
    await world.to("2024-03-30T13:10:00")
    await world.crash_and_start()  # 13:00 is "missed", and was done
    await world.to("2024-03-30T13:50:00")
    assert await world.made(flow) == ["2024-03-30T13:00"]


async def test_of_missed_fire_times_the_latest_is_made_up_for_if_it_is_recent(
    world: CronRig,
) -> None:
    flow = await world.cron("*/20 * * * *")
    await world.stop()
    world.clock.advance_ms(5 * HOUR + 50 * MINUTE)
    await world.start()
    made = await world.made(flow)
    assert len(made) == 1
    (run,) = (await world.gateway.list_runs(RunQuery(project_id=PROJECT, limit=9)))[0]
    assert made == ["2024-03-30T17:50"]  # when it was made; its id is that of 17:40
    await world.crash_and_start()
    assert await world.made(flow) == made
    await world.to("2024-03-30T18:00:00")
    assert await world.made(flow) == ["2024-03-30T17:50", "2024-03-30T18:00"]
    assert run.triggered_by == "cron"


async def test_what_is_older_than_an_hour_is_not_made_up_for(world: CronRig) -> None:
    flow = await world.cron("0 13 * * *")
    await world.stop()
    world.clock.advance_ms(2 * HOUR + MINUTE)
    await world.start()
    assert await world.made(flow) == []
    await world.to("2024-03-31T13:00:00")
    assert await world.made(flow) == ["2024-03-31T13:00"]


async def test_disabled_changed_and_deleted_workflows(world: CronRig) -> None:
    flow = await world.cron("0 * * * *")
    await world.patch(flow, enabled=False)
    await world.to("2024-03-30T13:30:00")
    assert await world.made(flow) == []
    await world.patch(flow, enabled=True)
    await world.crash_and_start()  # what passed while it was disabled was not missed
    assert await world.made(flow) == []
    await world.patch(flow, cron="15 * * * *", cron_timezone="Asia/Kolkata")  # :45 in UTC
    await world.to("2024-03-30T14:30:00")
    assert await world.made(flow) == ["2024-03-30T13:45"]
    changed = await world.patch(flow, cron=None)
    await world.to("2024-03-30T20:00:00")
    assert len(await world.made(flow)) == 1
    await world.patch(flow, cron="0 * * * *")
    flow = await world.runtime.catalog.workflow_by_id(changed.id)
    await world.runtime.catalog.delete_workflow(flow)
    await world.to("2024-03-30T22:00:00")
    assert len(await world.made(flow)) == 1
    assert len(world.runtime.timers) == 0


async def test_a_fire_time_waits_for_a_store_that_is_away(
    world: CronRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilotage.actors.cron_triggers.RETRY_SECS", 0.01)
    flow = await world.cron("0 * * * *")
    world.store.away = True
    world.runtime.writer.is_away("the test says so")
    world.clock.advance_ms(HOUR)
    world.runtime.timers.fire_due()
    await wait_until(lambda: bool(world.runtime.cron._tasks), "it has fired")
    world.store.away = False
    world.runtime.writer.is_back()
    await world.settled()
    assert len(await world.made(flow)) == 1
