"""The wall clock is set forward or back by hours: nothing is lost, nothing happens twice.

What a run waits for is a time of day, stored with it, so that it survives a restart. Set forward,
whatever has become due happens, once; set back, it waits for its time. What measures how long this
process has waited (an attempt, the lease, pauses, breakers) does not look at the wall clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from pilotage.actors.errors import GoneError, UnauthenticatedError
from pilotage.actors.executors.job_context import Retry
from pilotage.actors.idempotency import Idempotency
from pilotage.actors.kernel import timers
from pilotage.actors.principal import ADMIN
from pilotage.actors.runtime import Runtime
from pilotage.runtime.definition import JobSpec
from pilotage.runtime.status import ExecutionMode
from pilotage.runtime.validation import ParsedTrigger
from pilotage.runtime.validation_jobs import ParsedJob
from tests.integration.actors.rig import PROJECT, BreakableStore, Rig, gate, noop
from tests.integration.executors.peers import Peer
from tests.support import idle
from tests.support.clock import FakeClock
from tests.support.waiting import wait_until

HOUR_MS = 3_600_000


class ClockRig(Rig):
    """The rig with a wall clock that only the test moves."""

    def __init__(self, url: str, folder: Path) -> None:
        super().__init__(url, folder, allow_private_endpoints=True, passivate_after_secs=3_600)
        self.clock = FakeClock()
        self.tries: Counter[str] = Counter()

        def again(_: object) -> str:
            self.tries["again"] += 1
            if self.tries["again"] == 1:
                raise Retry(after=1800)
            return "second"

        self.registry.register(again, name="again", inline=True)

    async def start(self) -> None:
        self.store = BreakableStore(self.url)
        self.runtime = Runtime(
            settings=self.settings, registry=self.registry, store=self.store, clock=self.clock
        )
        await self.runtime.start()

    async def history_types(self, run: str) -> Counter[str]:
        items = await self.gateway.history(run, ADMIN, 0, 1000)
        return Counter(item.split(b'"type":"')[1].split(b'"')[0].decode() for item in items)


@pytest.fixture
async def world(
    valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ClockRig]:
    monkeypatch.setattr(timers, "RECHECK_SECS", 0.01)
    made = ClockRig(valkey_url, tmp_path)
    await made.start()
    yield made
    made.let(*made.gates)
    await made.stop()


def sleep_of(secs: int) -> dict[str, object]:
    return {"step_ref": "s", "step_type": "sleep", "sleep_duration_secs": secs}


async def waiting_runs(world: ClockRig) -> dict[str, str]:
    """One run for each thing that a run can wait for; each is due within the hour."""
    flows = {
        "sleep": [sleep_of(1800)],
        "approval": [{"step_ref": "s", "step_type": "approval", "approval_timeout_secs": 1800}],
        "event": [
            {
                "step_ref": "s",
                "step_type": "wait_for_event",
                "event_key": "k",
                "event_timeout_secs": 1800,
            }
        ],
        "retry": [noop("s", job_id="again", retry_max_delay_secs=3600)],
    }
    runs: dict[str, str] = {}
    for name, steps in flows.items():
        runs[name] = await world.trigger(await world.workflow(name, [*steps, noop("t", "s")]))
    expiring = await world.workflow(
        "deadline", [gate("s", timeout_secs_override=7200)], timeout_secs=1800
    )
    runs["deadline"] = await world.trigger(expiring)
    delayed = await world.workflow("delayed", [noop("s")])
    view = await world.gateway.trigger(delayed, ParsedTrigger(delay_secs=1800), actor="test")
    runs["delayed"] = view.id
    await world.until_step(runs["retry"], "s", "waiting", "retry")
    await world.began_all("s")
    return runs


ENDS = {
    "sleep": "completed",
    "approval": "failed",
    "event": "failed",
    "retry": "completed",
    "deadline": "timed_out",
    "delayed": "completed",
}


async def ended_once(world: ClockRig, runs: dict[str, str]) -> None:
    for name, run in runs.items():
        await world.until(run, ENDS[name])
        types = await world.history_types(run)
        assert types["run_ended"] == 1, name
        assert types["step_retry_scheduled"] == (name == "retry")
    assert world.tries["again"] == 2
    await wait_until(lambda: len(world.runtime.timers) == 0, "no timer is left over")


async def test_set_forward_what_has_become_due_happens_once(world: ClockRig) -> None:
    runs = await waiting_runs(world)
    world.clock.jump_ms(5 * HOUR_MS)
    await ended_once(world, runs)


async def test_set_back_everything_waits_for_its_time_and_is_not_lost(world: ClockRig) -> None:
    runs = await waiting_runs(world)
    before = {name: await world.history_types(run) for name, run in runs.items()}
    world.clock.jump_ms(-5 * HOUR_MS)
    flow = await world.workflow("meanwhile", [noop("a"), noop("b", "a")])
    await world.until(await world.trigger(flow), "completed")  # others go on
    after = {name: await world.history_types(run) for name, run in runs.items()}
    after["deadline"] -= Counter(step_timeout_moved=1)  # its attempt keeps its seconds
    assert after == before
    assert world.runtime.ready
    world.clock.jump_ms(5 * HOUR_MS)
    world.clock.advance_ms(HOUR_MS)
    await ended_once(world, runs)


async def test_a_clock_that_was_set_while_the_server_was_down_loses_nothing(
    world: ClockRig,
) -> None:
    runs = await waiting_runs(world)
    await world.crash()
    world.clock.jump_ms(-5 * HOUR_MS)
    await world.start()
    before = {name: await world.status(run) for name, run in runs.items()}
    assert set(before.values()) == {"running", "pending"}
    await world.crash()
    world.clock.jump_ms(11 * HOUR_MS)
    await world.start()
    await ended_once(world, runs)


@pytest.mark.parametrize("hours", [5, -5])
async def test_an_attempt_in_progress_keeps_its_seconds(world: ClockRig, hours: int) -> None:
    flow = await world.workflow("w", [gate("a", timeout_secs_override=60, retry_max_attempts=1)])
    run = await world.trigger(flow)
    await world.began_all("a")
    world.clock.advance_ms(30_000)
    world.clock.jump_ms(hours * HOUR_MS)
    other = await world.trigger(await world.workflow("other", [sleep_of(29)]))
    world.clock.advance_ms(29_000)
    await world.until(other, "completed")
    assert await world.status(run) == "running"
    world.clock.advance_ms(2_000)
    failed = await world.until(run, "failed")
    assert "timed out after 60 s" in (failed.vitals.error or "")


async def test_an_idempotency_key_is_remembered_whatever_the_clock_says(world: ClockRig) -> None:
    flow = await world.workflow("w", [noop("a")])
    key = Idempotency(key="POST x", request_hash="h", project_id=PROJECT)
    await world.gateway.trigger(flow, ParsedTrigger(), actor="test", idempotency=key)
    for hours in (30, -60):
        world.clock.jump_ms(hours * HOUR_MS)
        assert await world.store.idempotency(PROJECT, key.key) is not None


@pytest.mark.parametrize("hours", [30, -30])
async def test_an_event_that_nobody_waits_for_is_kept_by_the_store_s_clock(
    world: ClockRig, hours: int
) -> None:
    await world.gateway.send_event(PROJECT, "k", b"1", 60, actor="x")
    world.clock.jump_ms(hours * HOUR_MS)
    wait = {"step_ref": "s", "step_type": "wait_for_event", "event_key": "k"}
    run = await world.trigger(await world.workflow("w", [wait]))
    assert (await world.until(run, "completed")).step(0).output == b"1"


@pytest.mark.parametrize("hours", [5, -5])
async def test_the_lease_is_renewed_whatever_the_clock_says(world: ClockRig, hours: int) -> None:
    world.clock.jump_ms(hours * HOUR_MS)
    renewed = world.store.renewals
    await wait_until(lambda: world.store.renewals >= renewed + 3, "it is renewed, again and again")
    assert world.runtime.ready


async def test_what_is_over_is_kept_until_a_day_that_may_come_sooner_or_later(
    world: ClockRig,
) -> None:
    run = await world.trigger(await world.workflow("w", [noop("a")]))
    await world.until(run, "completed")
    keep_ms = world.settings.retention_completed_secs * 1000
    retention = world.runtime.housekeeping._upkeep.retention
    for by_ms, stays in ((-HOUR_MS, True), (keep_ms, True), (HOUR_MS, False)):
        world.clock.jump_ms(by_ms)
        await retention.sweep()
        assert ((await world.store.load_runs([run]))[0] is not None) is stays


async def test_queued_runs_all_get_their_turn_when_the_clock_is_set_back(world: ClockRig) -> None:
    flow = await world.workflow("w", [gate("a")], max_concurrent_runs=1)
    runs = [await world.trigger(flow, k=f"{n}.") for n in range(3)]
    world.clock.jump_ms(-5 * HOUR_MS)
    runs += [await world.trigger(flow, k=f"{n}.") for n in range(3, 6)]
    assert runs == sorted(runs), "ids go on rising"
    world.let(*(f"{n}.a" for n in range(6)))
    for run in runs:
        await world.until(run, "completed")
    assert sorted(world.ran) == [f"{n}.a" for n in range(6)]


# --- an attempt that a job server has taken (202) -------------------------------------------------

ASIDE = pytest.mark.parametrize("aside", ["with an actor", "folded", "passivated"])
HOURS = pytest.mark.parametrize("hours", [5, -5])


class Taken:
    """A run whose one attempt a job server has taken, with a minute's time, 20 s ago."""

    def __init__(self, world: ClockRig, run: str, job_run: str, token: str) -> None:
        self.world, self.run, self.job_run, self.token = world, run, job_run, token

    async def is_put(self, aside: str) -> None:
        supervisor = self.world.runtime.supervisor
        if aside == "folded":
            await idle.fold(supervisor, self.run)
        elif aside == "passivated":
            await idle.passivate(supervisor, self.run)

    async def is_said_to_end_in(self, left_ms: int) -> None:
        """What is stored, and would be armed after a restart."""

        async def said() -> bool:
            due_ms = (await self.world.step(self.run, "a")).due_ms
            return due_ms == self.world.clock.now_ms() + left_ms

        await wait_until(said, f"its time is up in {left_ms} ms")

    async def times_out_in_secs(self, secs: int) -> None:
        """Neither before nor after that."""
        world = self.world
        other = await world.trigger(await world.workflow("other", [sleep_of(secs - 1)]))
        world.clock.advance_ms((secs - 1) * 1000)
        await world.until(other, "completed")
        assert await world.status(self.run) == "running"
        world.clock.advance_ms(1_000)
        failed = await world.until(self.run, "failed")
        assert "timed out after 60 s" in (failed.vitals.error or "")


@pytest.fixture
async def taken(world: ClockRig, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Taken]:
    monkeypatch.setattr(idle, "AT_ONCE", -idle.AT_ONCE)  # no time passes by itself

    async def later(_: web.Request) -> web.StreamResponse:
        return web.Response(status=202)

    async with Peer() as peer:
        peer.handler = later
        spec = JobSpec(
            execution_mode=ExecutionMode.HTTP, endpoint_url=peer.url,
            max_attempts=1, timeout_secs=60, heartbeat_timeout_secs=30,
        )  # fmt: skip
        job = ParsedJob(name="web", slug="web", tags={}, enabled=True, spec=spec)
        await world.runtime.catalog.create_job(job, project_id=PROJECT)
        run = await world.trigger(await world.workflow("w", [{"step_ref": "a", "job_id": "web"}]))

        async def accepted() -> bool:
            return (await world.step(run, "a")).accepted

        await wait_until(accepted, "the job has taken it")
        headers = peer.requests[-1].headers
        world.clock.advance_ms(20_000)
        yield Taken(world, run, headers["X-Run-ID"], headers["X-Run-Token"])


@ASIDE
@HOURS
async def test_an_attempt_that_a_job_has_taken_keeps_its_seconds(
    world: ClockRig, taken: Taken, hours: int, aside: str
) -> None:
    await taken.is_put(aside)
    world.clock.jump_ms(hours * HOUR_MS)
    await taken.is_said_to_end_in(40_000)
    assert "pilotage_clock_jumps_total 1" in world.runtime.metrics.text()
    await taken.is_put(aside)  # again: it was awakened to hear of it
    await taken.times_out_in_secs(40)
    types = await world.history_types(taken.run)
    assert (types["step_accepted"], types["step_timeout_moved"]) == (1, 1)


@HOURS
async def test_what_was_told_of_the_clock_is_known_after_a_restart(
    world: ClockRig, taken: Taken, hours: int
) -> None:
    world.clock.jump_ms(hours * HOUR_MS)
    await taken.is_said_to_end_in(40_000)
    await world.crash_and_start()
    await taken.times_out_in_secs(40)


@HOURS
async def test_a_run_that_fails_before_it_has_stored_what_it_was_told_hears_of_it_again(
    world: ClockRig, taken: Taken, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.runtime.supervisor.run_timers, "_tell_some", lambda: None)
    world.clock.jump_ms(hours * HOUR_MS)
    await wait_until(lambda: world.runtime.timers.jumps == 1, "the jump is noticed")
    ref = world.runtime.supervisor._entries[taken.run].ref
    assert ref is not None
    ref.kill(RuntimeError("planted"))
    await taken.is_said_to_end_in(40_000)
    await taken.times_out_in_secs(40)


async def test_set_back_while_nobody_looks_a_taken_attempt_has_its_whole_time_at_most(
    world: ClockRig, taken: Taken
) -> None:
    await world.crash()
    world.clock.jump_ms(-5 * HOUR_MS)
    await world.start()
    await taken.is_said_to_end_in(60_000)
    await taken.times_out_in_secs(60)


async def test_set_forward_while_nobody_looks_the_time_of_a_taken_attempt_is_up(
    world: ClockRig, taken: Taken
) -> None:
    await world.crash()
    world.clock.jump_ms(5 * HOUR_MS)
    await world.start()
    await world.until(taken.run, "failed")


@HOURS
async def test_the_result_of_a_taken_attempt_is_welcome_whatever_the_clock_says(
    world: ClockRig, taken: Taken, hours: int
) -> None:
    world.clock.jump_ms(hours * HOUR_MS)
    with pytest.raises(UnauthenticatedError):
        await world.gateway.callback_complete(taken.job_run, taken.token + "x", b"1")
    await world.gateway.callback_complete(taken.job_run, taken.token, b"1")
    await world.until(taken.run, "completed")


async def test_the_token_of_an_attempt_that_is_over_expires(world: ClockRig, taken: Taken) -> None:
    await world.gateway.callback_complete(taken.job_run, taken.token, b"1")
    with pytest.raises(GoneError):
        await world.gateway.callback_complete(taken.job_run, taken.token, b"1")
    world.clock.jump_ms(5 * HOUR_MS)
    with pytest.raises(UnauthenticatedError):
        await world.gateway.callback_complete(taken.job_run, taken.token, b"1")


@HOURS
async def test_heartbeats_of_a_taken_attempt_are_missed_when_they_are(
    world: ClockRig, taken: Taken, hours: int
) -> None:
    await world.gateway.callback_heartbeat(taken.job_run, taken.token)
    world.clock.jump_ms(hours * HOUR_MS)
    await taken.is_said_to_end_in(40_000)
    world.clock.advance_ms(29_999)
    await taken.is_said_to_end_in(10_001)
    await world.gateway.callback_heartbeat(taken.job_run, taken.token)
    world.clock.advance_ms(5_000)
    assert await world.status(taken.run) == "running"
    world.clock.advance_ms(4_999)
    await world.gateway.callback_heartbeat(taken.job_run, taken.token)
    assert await world.status(taken.run) == "running"


@HOURS
async def test_a_jump_between_the_decision_and_the_dispatch_costs_an_attempt_nothing(
    world: ClockRig, taken: Taken, hours: int
) -> None:
    """The store is away in between; what is stored is the time as it was then."""
    flow = await world.workflow("late", [gate("g"), {"step_ref": "a", "job_id": "web",
                                                      "depends_on": ["g"]}])  # fmt: skip
    taken.run = await world.trigger(flow)
    await world.began_all("g")
    world.store.away = True
    world.let("g")
    await wait_until(lambda: not world.runtime.writer.healthy, "the store is away")
    world.clock.jump_ms(hours * HOUR_MS)
    await wait_until(lambda: world.runtime.timers.jumps == 1, "the jump is noticed")
    world.store.away = False

    async def accepted() -> bool:
        return (await world.step(taken.run, "a")).accepted

    await wait_until(accepted, "the job has taken it")
    await taken.is_said_to_end_in(60_000)
    await taken.times_out_in_secs(60)
