"""Cron with a store in between: every fire time makes one run, whatever happens around it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import available_timezones

import pytest

from pilotage.actors.catalog_model import Workflow
from pilotage.actors.principal import ADMIN
from pilotage.actors.runtime import Runtime
from pilotage.persistence.port import Record, RunQuery
from pilotage.runtime.cron import parse_cron
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
        return await self.workflow(
            rest.pop("name", "w"), steps, cron=expression, cron_timezone=zone, **rest
        )

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


@pytest.mark.parametrize(
    ("zone", "expression", "since", "expected"),
    [
        ("Europe/Berlin", "30 2 * * *", "2024-03-30T12",
         ["2024-03-31T01:00", "2024-04-01T00:30"]),
        ("America/New_York", "30 2 * * *", "2024-03-09T12",
         ["2024-03-10T07:00", "2024-03-11T06:30"]),
        # at midnight, and by half an hour
        ("America/Sao_Paulo", "0 0 * * *", "2018-11-03T12",
         ["2018-11-04T03:00", "2018-11-05T02:00"]),
        ("Australia/Lord_Howe", "15 2 * * *", "2024-10-05T12",
         ["2024-10-05T15:30", "2024-10-06T15:15"]),
        # a whole day that never was
        ("Pacific/Apia", "0 12 * * *", "2011-12-29T00",
         ["2011-12-29T22:00", "2011-12-30T10:00", "2011-12-30T22:00"]),
    ],
)  # fmt: skip
async def test_a_local_time_that_is_skipped_fires_at_the_change(
    world: CronRig, zone: str, expression: str, since: str, expected: list[str]
) -> None:
    await check_zone(world, zone, expression, since, expected)


@pytest.mark.parametrize(
    ("zone", "expression", "since", "expected"),
    [
        ("Europe/Berlin", "30 2 * * *", "2024-10-26T12",
         ["2024-10-27T00:30", "2024-10-28T01:30"]),
        ("America/New_York", "30 1 * * *", "2024-11-02T12",
         ["2024-11-03T05:30", "2024-11-04T06:30"]),
        ("America/Sao_Paulo", "30 23 * * *", "2018-02-17T12",
         ["2018-02-18T01:30", "2018-02-19T02:30"]),
        ("Australia/Lord_Howe", "45 1 * * *", "2024-04-06T00",
         ["2024-04-06T14:45", "2024-04-07T15:15"]),
    ],
)  # fmt: skip
async def test_a_local_time_that_comes_twice_fires_once(
    world: CronRig, zone: str, expression: str, since: str, expected: list[str]
) -> None:
    await check_zone(world, zone, expression, since, expected)


async def check_zone(
    world: CronRig, zone: str, expression: str, since: str, expected: list[str]
) -> None:
    """The first runs of the schedule."""
    world.clock.jump_ms(ms(since) - world.clock.now_ms())
    flow = await world.cron(expression, zone)
    await world.to(expected[-1])
    assert await world.made(flow) == expected


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


async def test_a_fire_time_that_was_skipped_is_not_made_up_for(world: CronRig) -> None:
    flow = await world.cron("0 * * * *", gated=True, skip_if_running=True)
    await world.to("2024-03-30T14:00:00")  # 13:00 made a run, 14:00 was skipped
    [run] = (await world.gateway.list_runs(RunQuery(project_id=PROJECT, limit=9)))[0]
    await world.gateway.cancel(run.id, ADMIN, None)
    world.clock.advance_ms(5 * MINUTE)
    await world.crash_and_start()
    assert await world.made(flow) == ["2024-03-30T13:00"]
    await world.to("2024-03-30T15:00:00")
    assert await world.made(flow) == ["2024-03-30T13:00", "2024-03-30T15:00"]


async def test_a_fire_time_whose_run_was_removed_is_not_made_up_for(world: CronRig) -> None:
    flow = await world.cron("0 * * * *")
    await world.to("2024-03-30T13:00:00")
    [run] = (await world.gateway.list_runs(RunQuery(project_id=PROJECT, limit=9)))[0]
    await world.until(run.id, "completed")
    await world.store.delete_runs([run.id], world.runtime._fence)
    world.clock.advance_ms(5 * MINUTE)
    await world.crash_and_start()
    assert await world.made(flow) == []


async def test_a_machine_that_slept_makes_up_for_the_latest_only(world: CronRig) -> None:
    flow = await world.cron("*/20 * * * *")
    old = await world.cron("5 13 * * *", name="x")
    world.clock.advance_ms(2 * HOUR + 50 * MINUTE)  # at once: no timer fired on the way
    world.runtime.timers.fire_due()
    await world.settled()
    assert await world.made(flow) == ["2024-03-30T14:50"]
    assert await world.made(old) == []
    await world.to("2024-03-30T15:00:00")
    assert await world.made(flow) == ["2024-03-30T14:50", "2024-03-30T15:00"]


async def test_a_clock_that_was_far_ahead_stops_nothing(world: CronRig) -> None:
    flow = await world.cron("0 * * * *")
    world.clock.jump_ms(1000 * HOUR)
    world.runtime.timers.fire_due()
    await world.settled()
    ahead = await world.made(flow)
    world.clock.jump_ms(-1000 * HOUR)
    await world.crash_and_start()
    await world.to("2024-03-30T13:00:00")
    assert await world.made(flow) == ["2024-03-30T13:00", *ahead]


async def test_a_clock_that_is_put_right_while_the_server_runs_stops_nothing(
    world: CronRig,
) -> None:
    world.clock.jump_ms(1000 * HOUR)
    world.runtime.timers.fire_due()
    flow = await world.cron("0 * * * *")
    gone = await world.cron("0 * * * *", name="gone")
    world.clock.jump_ms(-1000 * HOUR)
    await world.patch(gone, enabled=False)
    world.clock.advance_ms(2_000)
    world.runtime.timers.fire_due()
    await world.to("2024-03-30T13:00:00")
    assert await world.made(flow) == ["2024-03-30T13:00"]
    world.clock.jump_ms(-MINUTE)
    world.clock.advance_ms(2_000)
    world.runtime.timers.fire_due()
    assert world.runtime.timers.next_due_ms() == ms("2024-03-30T13:00:00")
    await world.to("2024-03-30T14:00:00")
    assert await world.made(flow) == ["2024-03-30T13:00", "2024-03-30T14:00"]
    assert await world.made(gone) == []


async def test_a_fire_time_makes_one_run_though_two_servers_see_it(world: CronRig) -> None:
    flow = await world.cron("0 * * * *")
    first = world.runtime
    await first.housekeeping.close()  # it hangs: its lease runs out
    await world.start()
    world.clock.advance_ms(HOUR)
    first.timers.fire_due()
    world.runtime.timers.fire_due()
    await world.settled()
    await wait_until(first.fenced.is_set, "the first learns that it was replaced")
    assert await world.made(flow) == ["2024-03-30T13:00"]
    await first.stop(0)


async def test_what_was_decided_goes_with_its_workflow(world: CronRig) -> None:
    async def kept() -> list[str]:
        page = await world.store.list_records("cron", None, 10, None)
        return [row.id for row in page.rows]

    flow, other = await world.cron("0 * * * *"), await world.cron("0 * * * *", name="x")
    await world.to("2024-03-30T13:00:00")
    assert sorted(await kept()) == sorted([flow.id, other.id])
    await world.runtime.catalog.delete_workflow(flow)
    await world.settled()
    assert await kept() == [other.id]
    orphan = Record(kind="cron", project_id="p", id="gone", data=(await damaged(world, other)))
    await world.store.put_record(orphan, world.runtime._fence)
    await world.crash_and_start()
    await world.to("2024-03-30T14:00:00")
    assert await world.made(other) == ["2024-03-30T13:00", "2024-03-30T14:00"]


async def damaged(world: CronRig, flow: Workflow) -> bytes:
    """Spoils what is kept of a workflow; what it was."""
    kept = await world.store.get_record("cron", flow.id)
    assert kept is not None
    await world.store.delete_record("cron", flow.id, world.runtime._fence)
    spoiled = Record(kind="cron", project_id=PROJECT, id=flow.id, data=b"nonsense")
    await world.store.put_record(spoiled, world.runtime._fence)
    return kept.data


@pytest.mark.parametrize("seed", range(3))
def test_every_zone_has_one_fire_a_local_day(seed: int) -> None:
    """Whatever a zone does to its clocks: as many fires as there are days, never two of one day."""
    dice = random.Random(seed)
    for zone in dice.sample(sorted(available_timezones()), 40):
        minute, hour = dice.randrange(60), dice.randrange(24)
        schedule = parse_cron(f"{minute} {hour} * * *", zone)
        end = ms("2025-01-01T00:00:00")
        at = schedule.next_after(ms("2024-01-01T00:00:00"))
        found: list[int] = []
        while at is not None and at < end:
            found.append(at)
            at = schedule.next_after(at)
        gaps = {round((b - a) / HOUR) for a, b in pairwise(found)}
        assert len(found) in {365, 366, 367}, (seed, zone, minute, hour, len(found))
        assert gaps <= {22, 23, 24, 25, 26}, (seed, zone, minute, hour, gaps)


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
    for _ in range(3):  # the later ones replace the earlier ones
        world.clock.advance_ms(HOUR)
        world.runtime.timers.fire_due()
        await wait_until(lambda: bool(world.runtime.cron._tasks), "it has fired")
    world.store.away = False
    world.runtime.writer.is_back()
    await world.settled()
    assert await world.made(flow) == ["2024-03-30T15:00"]


async def test_a_fire_time_is_given_up_after_an_hour_without_a_store(
    world: CronRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilotage.actors.cron_triggers.RETRY_SECS", 0.01)
    flow = await world.cron("0 13 * * *")
    world.store.away = True
    world.runtime.writer.is_away("the test says so")
    world.clock.advance_ms(HOUR)
    world.runtime.timers.fire_due()
    await wait_until(lambda: bool(world.runtime.cron._tasks), "it has fired")
    world.clock.advance_ms(HOUR + MINUTE)
    await world.settled()
    world.store.away = False
    world.runtime.writer.is_back()
    assert await world.made(flow) == []
