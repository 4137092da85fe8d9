"""Job slots of runs that are quarantined: kept while their server may work on, and not longer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from aiohttp import web
from redis.asyncio import Redis

from pilotage.actors.catalog_model import Workflow
from pilotage.actors.errors import ConflictError, NotFoundError, UnavailableError
from pilotage.actors.kernel import SystemClock
from pilotage.actors.messages import Release
from pilotage.actors.principal import ADMIN
from pilotage.persistence.port import RunWrite, StoredRun, StoreUnavailableError, Verdict
from pilotage.runtime.definition import JobSpec
from pilotage.runtime.insight import explain
from pilotage.runtime.status import ExecutionMode
from pilotage.runtime.validation_jobs import ParsedJob
from tests.integration.actors.rig import PROJECT, Rig, gate, rig
from tests.integration.executors.peers import Peer
from tests.support.idle import passivate
from tests.support.waiting import wait_until

TIMEOUT_SECS = 300
AHEAD_MS = 200_000


class Remote:
    """A remote job with one slot, that takes what it is given and reports when a test says so."""

    def __init__(self, world: Rig, peer: Peer) -> None:
        self.world = world
        self.peer = peer
        peer.handler = self._take
        self.flow: Workflow

    async def _take(self, _request: web.Request) -> web.StreamResponse:
        return web.Response(status=202)

    async def define(self) -> None:
        spec = JobSpec(
            execution_mode=ExecutionMode.HTTP,
            endpoint_url=self.peer.url,
            max_concurrency=1,
            max_attempts=1,
            timeout_secs=TIMEOUT_SECS,
        )
        parsed = ParsedJob(name="web", slug="web", tags={}, enabled=True, spec=spec)
        await self.world.runtime.catalog.create_job(parsed, project_id=PROJECT)
        steps = [{"step_ref": "a", "job_id": "web"}]
        self.flow = await self.world.workflow("w", steps)

    def has(self, run_id: str) -> bool:
        """Whether it was given an attempt of the run."""
        return any(run_id in r.headers["Idempotency-Key"] for r in self.peer.requests)

    async def taken(self) -> str:
        """A run whose attempt it works on."""
        run = await self.world.trigger(self.flow)
        await self.takes(run)
        return run

    async def takes(self, run: str) -> None:
        async def taken() -> bool:
            return (await self.world.step(run, "a")).accepted

        await wait_until(taken, "the job has taken it")

    async def waiting(self) -> str:
        run = await self.world.trigger(self.flow)
        await self.world.until_step(run, "a", "pending", "job_limit")
        return run

    async def reports(self, run: str) -> None:
        (request,) = [r for r in self.peer.requests if run in r.headers["Idempotency-Key"]]
        job_run, token = request.headers["X-Run-ID"], request.headers["X-Run-Token"]
        await self.world.gateway.callback_complete(job_run, token, None)

    def time_passes(self, run: str) -> None:
        """That of its attempt; nobody waits five minutes for it."""
        set_apart = self.world.runtime.supervisor.set_apart
        handle = set_apart._kept[run, 0]
        assert isinstance(handle, asyncio.TimerHandle)
        left_secs = handle.when() - asyncio.get_running_loop().time()
        assert 0 < left_secs <= TIMEOUT_SECS
        handle.cancel()
        set_apart._lapse((run, 0))

    async def reason(self, run: str) -> str:
        state = await self.world.state(run)
        return explain(state, self.world.gateway.notes(state)).steps[0].reason


@pytest.fixture
async def remote(valkey_url: str, tmp_path: Path) -> AsyncIterator[Remote]:
    async with rig(valkey_url, tmp_path, allow_private_endpoints=True) as world, Peer() as peer:
        yield Remote(world, peer)


async def test_what_a_remote_job_has_taken_keeps_its_slot_until_the_run_has_it_back(
    remote: Remote,
) -> None:
    await remote.define()
    world, first = remote.world, await remote.taken()
    await world.quarantine(first)
    second = await remote.waiting()
    reason = await remote.reason(second)
    assert "1 of them kept by quarantined runs whose remote jobs work on, the first until" in reason
    await world.gateway.release_quarantined(first, ADMIN)
    await wait_until(lambda: world.runtime.supervisor.published(first) is not None, "it is loaded")
    assert "quarantined" not in await remote.reason(second)
    assert not remote.has(second)
    await remote.reports(first)
    await world.until(first, "completed")
    await remote.takes(second)
    await remote.reports(second)
    await world.until(second, "completed")


async def test_a_start_takes_a_quarantined_run_in_again_with_the_slot_of_its_attempt(
    remote: Remote,
) -> None:
    await remote.define()
    world, first = remote.world, await remote.taken()
    await world.quarantine(first)
    second = await remote.waiting()
    await world.crash_and_start()
    assert not world.gateway.quarantined
    await world.until_step(second, "a", "pending", "job_limit")
    assert not remote.has(second)
    await remote.reports(first)
    await world.until(first, "completed")
    await remote.takes(second)


async def test_an_actor_that_starts_again_before_a_set_clock_is_noticed_shortens_no_attempt(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    await remote.define()
    world, first = remote.world, await remote.taken()
    supervisor, timers = world.runtime.supervisor, world.runtime.timers
    due_ms, now_ms = timers.due_ms((first, 0)), SystemClock.now_ms
    assert due_ms is not None

    def ahead(clock: SystemClock) -> int:
        return now_ms(clock) + AHEAD_MS

    monkeypatch.setattr(SystemClock, "now_ms", ahead)
    supervisor.notify(first, object())
    await wait_until(lambda: supervisor.published(first) is None, "its actor has ended")
    await wait_until(lambda: supervisor.published(first) is not None, "it is up again")

    def kept() -> bool:
        moved_ms = (timers.due_ms((first, 0)) or 0) - due_ms
        return abs(moved_ms - AHEAD_MS) < 1_000

    await wait_until(kept, "it has the seconds that it had")


async def test_the_slot_of_a_discarded_run_goes_on(remote: Remote) -> None:
    await remote.define()
    first = await remote.taken()
    await remote.world.quarantine(first)
    second = await remote.waiting()
    await remote.world.gateway.discard_quarantined(first, ADMIN)
    await remote.takes(second)


@pytest.mark.parametrize("clock", ["goes on", "has been set back"])
async def test_a_run_that_nobody_looks_after_keeps_a_slot_for_as_long_as_its_attempt_may_take(
    remote: Remote, monkeypatch: pytest.MonkeyPatch, clock: str
) -> None:
    """When it comes back its attempt is over, whatever the clock says: another one has the slot."""
    await remote.define()
    world, first = remote.world, await remote.taken()
    await world.quarantine(first)
    second = await remote.waiting()
    remote.time_passes(first)
    await remote.takes(second)
    if clock == "goes on":
        later_ms = world.runtime.clock.now_ms() + TIMEOUT_SECS * 1000

        def later(_clock: SystemClock) -> int:
            return later_ms

        monkeypatch.setattr(SystemClock, "now_ms", later)
    holders = world.runtime.admission._jobs
    await world.gateway.release_quarantined(first, ADMIN)
    failed = await world.until(first, "failed")
    assert "timed out" in (failed.vitals.error or "")
    assert all(len(pool.holders) <= 1 for pool in holders.values())


async def test_a_run_set_apart_at_the_start_has_the_slots_that_its_state_tells_of(
    remote: Remote, client: Redis
) -> None:
    """Its state can be read, a message it owes cannot."""
    await remote.define()
    world, first = remote.world, await remote.taken()
    flow = await world.workflow("one", [gate("a")], max_concurrent_runs=1)
    slow = await world.trigger(flow, k="0.")
    await world.began_all("0.a")
    await world.crash()
    for run in (first, slow):
        await client.hset(f"pilotage:{{s0}}:out:{run}", "1.0", b"\x01what")
    await world.start()
    assert set(world.gateway.quarantined) == {first, slow}
    second, next_slow = await remote.waiting(), await world.trigger(flow, k="1.")
    assert "kept by quarantined runs" in await remote.reason(second)
    assert await world.status(next_slow) == "pending"
    for run in (first, slow):
        await world.gateway.discard_quarantined(run, ADMIN)
    await remote.takes(second)
    await world.began_all("1.a")


@pytest.mark.parametrize("then", ["its time is up", "it is discarded"])
async def test_a_run_that_left_memory_and_cannot_be_read_keeps_its_slot_for_its_time(
    remote: Remote, client: Redis, then: str
) -> None:
    await remote.define()
    world, first = remote.world, await remote.taken()
    await passivate(world.runtime.supervisor, first)
    await spoil_head(client, first)
    with pytest.raises(ConflictError, match="cannot be read"):
        await world.gateway.get_run(first, ADMIN)
    second = await remote.waiting()
    assert "kept by quarantined runs" in await remote.reason(second)
    if then == "it is discarded":
        await world.gateway.discard_quarantined(first, ADMIN)
    else:
        remote.time_passes(first)
    await remote.takes(second)


async def test_a_run_that_left_memory_and_cannot_be_read_gives_up_its_place(
    remote: Remote, client: Redis
) -> None:
    await remote.define()
    world, first = remote.world, await remote.taken()
    second, third = await remote.waiting(), await remote.waiting()
    await passivate(world.runtime.supervisor, second)
    await spoil_head(client, second)
    with pytest.raises(ConflictError, match="cannot be read"):
        await world.gateway.get_run(second, ADMIN)
    place = await world.gateway.place(third, ADMIN, "a")
    assert place is not None
    assert place.position == 1
    await remote.reports(first)
    await remote.takes(third)
    assert not remote.has(second)


async def test_a_released_run_is_loaded_though_the_store_goes_away_meanwhile(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    await remote.define()
    world, first = remote.world, await remote.taken()
    await world.quarantine(first)
    store, supervisor = world.store, world.runtime.supervisor
    load, tries = store.load_runs, 0

    async def away(run_ids: Sequence[str]) -> list[StoredRun | None]:
        nonlocal tries
        tries += 1
        if 1 < tries < 4:
            raise StoreUnavailableError("away")
        return await load(run_ids)

    monkeypatch.setattr(store, "load_runs", away)
    await world.gateway.release_quarantined(first, ADMIN)
    await wait_until(lambda: supervisor.published(first) is not None, "it is loaded")
    assert tries >= 4
    await remote.reports(first)
    await world.until(first, "completed")


async def test_a_discard_whose_reply_was_lost_is_known_before_anything_else_is_done(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store may still get it: a run that was released meanwhile would not see it coming."""
    await remote.define()
    world, first = remote.world, await remote.taken()
    await world.quarantine(first)
    store = world.store
    commit = store.commit
    sent = list[object]()

    async def delayed(batch: Sequence[object], fence: int) -> list[object]:
        sent.append((tuple(batch), fence))
        raise StoreUnavailableError("no answer")

    monkeypatch.setattr(store, "commit", delayed)
    with pytest.raises(UnavailableError):
        await world.gateway.discard_quarantined(first, ADMIN)
    with pytest.raises(UnavailableError):
        await world.gateway.release_quarantined(first, ADMIN)
    assert len(sent) == 2
    assert sent[0] == sent[1], "the very same write"
    monkeypatch.setattr(store, "commit", commit)
    await world.gateway.release_quarantined(first, ADMIN)
    await world.until(first, "canceled")
    assert first not in world.gateway.quarantined
    second = await world.trigger(remote.flow)
    await remote.takes(second)


async def test_the_parent_of_a_discarded_run_hears_of_it_though_the_store_goes_away_at_once(
    world: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.workflow("inner", [gate("a")])
    step = {"step_ref": "s", "step_type": "sub_workflow", "sub_workflow_id": "inner"}
    outer = await world.workflow("outer", [{**step, "on_failure": "continue"}])
    parent = await world.trigger(outer, k="0.")
    await world.began_all("0.a")
    child = (await world.step(parent, "s")).child_run_id or ""
    await world.quarantine(child)
    commit, load = world.store.commit, world.store.load_runs
    away = 3

    async def committed(batch: Sequence[RunWrite], fence: int) -> list[Verdict]:
        verdicts = await commit(batch, fence)
        monkeypatch.setattr(world.store, "load_runs", refused)
        return verdicts

    async def refused(run_ids: Sequence[str]) -> list[StoredRun | None]:
        nonlocal away
        away -= 1
        if not away:
            monkeypatch.setattr(world.store, "load_runs", load)
        raise StoreUnavailableError("away")

    monkeypatch.setattr(world.store, "commit", committed)
    with suppress(UnavailableError):
        await world.gateway.discard_quarantined(child, ADMIN)
    monkeypatch.setattr(world.store, "commit", commit)
    await world.until(parent, "completed")
    assert (await world.step(parent, "s")).status == "failed"


async def test_two_operators_do_not_both_have_their_way(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is released while it is about to be discarded: its actor must not write meanwhile."""
    await remote.define()
    world, first = remote.world, await remote.taken()
    await world.quarantine(first)
    commit, writing, go_on = world.store.commit, asyncio.Event(), asyncio.Event()

    async def late(batch: Sequence[RunWrite], fence: int) -> list[Verdict]:
        writing.set()
        await go_on.wait()
        return await commit(batch, fence)

    monkeypatch.setattr(world.store, "commit", late)
    discarding = asyncio.create_task(world.gateway.discard_quarantined(first, ADMIN))
    await writing.wait()
    releasing = asyncio.create_task(world.gateway.release_quarantined(first, ADMIN))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not releasing.done()
    go_on.set()
    await discarding
    with pytest.raises(NotFoundError):
        await releasing
    assert await world.status(first) == "canceled"


async def test_nothing_ends_an_actor_whose_write_is_on_its_way(
    world: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one would make another write of the same number, and the store would take the one
    for a repeat of the other.
    """
    flow = await world.workflow("w", [gate("a"), gate("b")])
    run = await world.trigger(flow, k="0.")
    await world.began_all("0.a", "0.b")
    supervisor, sent = world.runtime.supervisor, list[RunWrite]()
    commit, writing, go_on = world.store.commit, asyncio.Event(), asyncio.Event()

    async def late(batch: Sequence[RunWrite], fence: int) -> list[Verdict]:
        sent.extend(batch)
        writing.set()
        await go_on.wait()
        return await commit(batch, fence)

    monkeypatch.setattr(world.store, "commit", late)
    actor = supervisor._entries[run].actor
    skipping = asyncio.create_task(world.gateway.skip(run, "b", ADMIN, "not wanted"))
    await writing.wait()
    supervisor.notify(run, Release())
    supervisor.notify(run, object())  # which ends it, once it is told
    supervisor.wake(run)
    supervisor.quarantine_unreadable(run, ValueError("somebody cannot read it"))
    for _ in range(3):
        await supervisor.put_aside()
    assert run not in supervisor.quarantined
    assert supervisor._entries[run].actor is actor
    assert len(sent) == 1
    go_on.set()
    await skipping
    await wait_until(lambda: supervisor.published(run) is not None, "it is up again")
    world.let("0.a")
    state = await world.until(run, "completed")
    assert [step.status for step in state.steps()] == ["completed", "skipped"]
    numbers = [write.seq for write in sent if write.run_id == run]
    assert numbers == sorted(set(numbers)), "no number twice"


async def spoil_head(client: Redis, run: str) -> None:
    name = f"pilotage:{{s0}}:run:{run}"
    head = await client.hget(name, "h")
    assert isinstance(head, bytes)
    await client.hset(name, "h", head[: len(head) // 2])


@pytest.fixture
async def client(valkey_url: str) -> AsyncIterator[Redis]:
    made = Redis.from_url(valkey_url, protocol=2)
    yield made
    await made.aclose()
