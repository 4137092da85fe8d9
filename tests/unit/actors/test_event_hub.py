"""The hub between those who send and those who park: races, and events that are given back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pilotage.actors.errors import UnavailableError
from pilotage.actors.event_hub import EventHub
from pilotage.actors.kernel import SystemClock
from pilotage.actors.messages import Answer
from pilotage.actors.store_room import StoreRoom
from pilotage.persistence.memory import MemoryServer, MemoryStore
from pilotage.runtime.commands import EventReceived
from pilotage.runtime.graph import StepGraph
from pilotage.runtime.machine import blank_run
from pilotage.runtime.replies import Done, Late
from pilotage.runtime.state import RunHead, RunState
from pilotage.runtime.validation import parse_workflow
from tests.support.waiting import wait_until


class AnyRef:
    """Resolves whatever a definition refers to."""

    def job(self, id_or_slug: str) -> str | None:
        return id_or_slug

    def workflow(self, id_or_slug: str) -> str | None:
        return id_or_slug


def blank(run_id: str) -> RunState:
    steps = [
        {"step_ref": f"s{i}", "step_type": "wait_for_event", "event_key": "k"} for i in range(9)
    ]
    spec = parse_workflow({"name": "w", "steps": steps}, resolve=AnyRef()).spec
    head = RunHead(
        id=run_id,
        project_id="p",
        workflow_id="w",
        workflow_slug="w",
        version=1,
        version_id="v",
        created_at_ms=1,
    )
    return blank_run(head, StepGraph(spec))


class World:
    """Runs that take events while they are parked; `gone` do not any more, `away` cannot answer."""

    def __init__(self, store: MemoryStore, fence: int) -> None:
        self.hub = EventHub(store, SystemClock(), lambda: fence, self._deliver, StoreRoom(store))
        self.taken: list[tuple[str, bytes | None]] = []
        self.gone: set[str] = set()
        self.away: set[str] = set()
        self.gate: asyncio.Event | None = None

    async def _deliver(self, run_id: str, command: EventReceived) -> Answer | None:
        if self.gate is not None:
            await self.gate.wait()
        if run_id in self.away:
            raise UnavailableError("the store is away")
        if run_id in self.gone:
            return Answer(result=Late(superseded=False), state=blank(run_id))
        self.gone.add(run_id)  # a step takes one event
        self.taken.append((run_id, command.payload))
        self.hub.unpark("p", "k", run_id, command.step)
        return Answer(result=Done(), state=blank(run_id))

    async def park(self, run_id: str, since_ms: int = 0) -> None:
        self.hub.park("p", "k", run_id, 0, 1, since_ms)
        await self.hub.take_early("p", "k", run_id, 0, 1)

    async def send(
        self, payload: bytes, buffer_secs: int = 60, parked_by_ms: int | None = None
    ) -> int:
        receipt = await self.hub.send(
            "p",
            "k",
            payload,
            event_id=payload.decode(),
            actor="test",
            buffer_secs=buffer_secs,
            now_ms=SystemClock().now_ms(),
            parked_by_ms=parked_by_ms,
        )
        return receipt.delivered


@pytest.fixture
async def world() -> AsyncIterator[World]:
    store = MemoryStore(MemoryServer())
    await store.open()
    yield World(store, await store.acquire("me", 60))
    await store.close()


async def test_everybody_parked_gets_it_and_nobody_twice(world: World) -> None:
    for run in ("a", "b", "c"):
        await world.park(run)
    assert await world.send(b"1") == 3
    assert sorted(world.taken) == [("a", b"1"), ("b", b"1"), ("c", b"1")]
    assert await world.send(b"2", 0) == 0


async def test_kept_events_go_out_in_order_one_to_each(world: World) -> None:
    for payload in (b"1", b"2", b"3"):
        assert await world.send(payload) == 0
    for run in ("a", "b"):
        await world.park(run)
    assert world.taken == [("a", b"1"), ("b", b"2")]


async def test_an_event_that_is_not_taken_goes_to_the_next(world: World) -> None:
    await world.send(b"1")
    world.gone.add("a")
    await world.park("a")
    world.hub.unpark("p", "k", "a", 0)
    assert world.taken == []
    await world.park("b")
    assert world.taken == [("b", b"1")]


async def test_a_step_that_parks_while_an_event_is_being_kept_gets_it_once(world: World) -> None:
    world.gate = asyncio.Event()
    sending = asyncio.create_task(world.send(b"1"))
    parking = asyncio.create_task(world.park("a"))
    await asyncio.sleep(0)
    world.gate.set()
    await asyncio.gather(sending, parking)
    await wait_until(lambda: world.taken == [("a", b"1")], "it was delivered, once")
    world.gone.discard("b")
    await world.park("b")
    assert world.taken == [("a", b"1")]


class SlowStore(MemoryStore):
    """Keeps an event when it may; looks for one at once, and tells when it may."""

    def __init__(self) -> None:
        super().__init__(MemoryServer())
        self.keep = asyncio.Event()
        self.looked = asyncio.Event()
        self.tell = asyncio.Event()

    async def buffer_event(self, *event: Any, **named: Any) -> bool:
        await self.keep.wait()
        return await super().buffer_event(*event, **named)

    async def take_event(self, *taker: Any, **named: Any) -> bytes | None:
        found = await super().take_event(*taker, **named)
        self.looked.set()
        await self.tell.wait()
        return found


async def test_an_event_kept_between_a_look_and_its_answer_is_not_left_behind() -> None:
    store = SlowStore()
    await store.open()
    world = World(store, await store.acquire("me", 60))
    sending = asyncio.create_task(world.send(b"1"))
    await asyncio.sleep(0)  # nobody is parked, so it is to be kept
    parking = asyncio.create_task(world.park("a"))
    await store.looked.wait()  # there was nothing; the answer is on its way
    store.keep.set()
    await sending
    store.tell.set()
    await parking
    assert world.taken == [("a", b"1")]


async def test_a_receiver_that_cannot_answer_makes_the_sender_try_again(world: World) -> None:
    await world.park("a")
    await world.park("b")
    world.away.add("b")
    with pytest.raises(UnavailableError):
        await world.send(b"1")
    world.away.clear()
    assert await world.send(b"1") == 1
    assert world.taken == [("a", b"1"), ("b", b"1")]


async def test_an_early_event_stays_the_steps_own_while_its_run_cannot_answer(
    world: World,
) -> None:
    await world.send(b"1")
    world.away.add("a")
    with pytest.raises(UnavailableError):
        await world.park("a")
    await world.park("b")
    assert world.taken == []
    world.away.clear()
    await world.hub.take_early("p", "k", "a", 0, 1)
    assert world.taken == [("a", b"1")]


async def test_an_event_sent_again_goes_to_those_only_who_waited_when_it_was_sent(
    world: World,
) -> None:
    await world.park("before", since_ms=99)
    await world.park("at", since_ms=100)
    await world.park("after", since_ms=101)
    assert await world.send(b"1", buffer_secs=0, parked_by_ms=100) == 2
    assert world.taken == [("before", b"1"), ("at", b"1")]
    assert await world.send(b"1", buffer_secs=0, parked_by_ms=100) == 0
    assert await world.send(b"2", buffer_secs=0) == 1


async def test_what_is_left_of_a_plan_is_done_and_nothing_else(world: World) -> None:
    await world.park("a")
    await world.park("b")
    plan = world.hub.plan("p", "k", event_id="e", buffer_secs=60, now_ms=SystemClock().now_ms())
    world.away.add("b")
    with pytest.raises(UnavailableError):
        await world.hub.carry_out("p", "k", b"1", plan, actor="test")
    world.away.clear()
    await world.park("late")
    receipt = await world.hub.carry_out("p", "k", b"1", plan, actor="test", again=True)
    assert world.taken == [("a", b"1"), ("b", b"1")]
    assert not receipt.buffered


async def test_a_planned_event_whose_time_is_over_is_not_kept_again(world: World) -> None:
    plan = world.hub.plan("p", "k", event_id="e", buffer_secs=60, now_ms=0)
    receipt = await world.hub.carry_out("p", "k", b"1", plan, actor="test", again=True)
    assert (receipt.buffered, receipt.expires_at_ms) == (True, 60_000)
    await world.park("a")
    assert world.taken == []
