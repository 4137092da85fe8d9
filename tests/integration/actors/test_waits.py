"""Events, approvals, sleeps, delays and deadlines, with the store in between."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from pilotage.actors.errors import ForbiddenError
from pilotage.actors.event_hub import EventHub, EventReceipt
from pilotage.actors.principal import ADMIN
from pilotage.runtime.validation import ParsedTrigger
from tests.integration.actors.rig import PROJECT, Rig, gate, noop
from tests.support.waiting import wait_until


def event(ref: str, *depends_on: str, key: str = "k", **rest: Any) -> dict[str, Any]:
    return {
        "step_ref": ref,
        "step_type": "wait_for_event",
        "event_key": key,
        "depends_on": list(depends_on),
        **rest,
    }


async def send(world: Rig, payload: Any, *, buffer_secs: int = 0, key: str = "k") -> int:
    receipt = await world.gateway.send_event(
        PROJECT, key, msgspec.json.encode(payload), buffer_secs, actor="test"
    )
    return receipt.delivered


async def output(world: Rig, run: str, ref: str) -> Any:
    return msgspec.json.decode((await world.step(run, ref)).output or b"null")


async def test_an_event_completes_every_step_that_waits_and_the_key_can_be_used_again(
    world: Rig,
) -> None:
    flow = await world.workflow("w", [event("e"), event("again", "e")])
    runs = [await world.trigger(flow) for _ in range(3)]
    for run in runs:
        await world.until_step(run, "e", "waiting", "event")
    assert await send(world, 1) == 3
    for run in runs:
        await world.until_step(run, "again", "waiting", "event")
    assert await send(world, 2) == 3
    for run in runs:
        await world.until(run, "completed")
        assert [await output(world, run, r) for r in ("e", "again")] == [1, 2]
    assert await send(world, 3) == 0


async def test_early_events_go_to_one_step_each_oldest_first(world: Rig) -> None:
    for n in range(3):
        assert await send(world, n, buffer_secs=60) == 0
    flow = await world.workflow("w", [event("a"), event("b", "a"), event("c", "b")])
    run = await world.trigger(flow)
    await world.until(run, "completed")
    assert [await output(world, run, r) for r in "abc"] == [0, 1, 2]


async def test_events_and_parking_steps_race_and_every_event_is_taken_once(world: Rig) -> None:
    flow = await world.workflow("w", [event("e")])

    async def trigger() -> str:
        return await world.trigger(flow)

    work: list[Any] = []
    for n in range(20):
        work += [trigger(), send(world, n, buffer_secs=60)]
    done = await asyncio.gather(*work)
    runs = [found for found in done if isinstance(found, str)]
    for n in range(20, 40):  # more than enough for those that shared an event with others
        if all([await world.status(run) == "completed" for run in runs]):
            break
        await send(world, n, buffer_secs=60)
    for run in runs:
        await world.until(run, "completed")


async def test_an_early_event_is_not_lost_with_a_step_that_is_canceled_while_it_takes_it(
    world: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = await world.workflow("w", [event("e")])
    assert await send(world, "once", buffer_secs=60) == 0
    taking, go = asyncio.Event(), asyncio.Event()
    take = world.store.take_event

    async def slow(*args: Any) -> bytes | None:
        data = await take(*args)
        taking.set()
        await go.wait()
        return data

    monkeypatch.setattr(world.store, "take_event", slow)
    first = await world.trigger(flow)
    await taking.wait()
    await world.gateway.cancel(first, ADMIN, None)
    go.set()
    second = await world.trigger(flow)
    await world.until(second, "completed")
    assert await output(world, second, "e") == "once"


async def test_parked_steps_and_early_events_survive_a_crash(world: Rig) -> None:
    flow = await world.workflow("w", [event("e"), event("f", "e", key="other")])
    run = await world.trigger(flow)
    await world.until_step(run, "e", "waiting", "event")
    await send(world, "early", buffer_secs=60, key="other")
    await world.crash_and_start()
    assert await send(world, "parked") == 1
    await world.until(run, "completed")
    assert await output(world, run, "f") == "early"


async def test_a_step_can_send_an_event_that_another_run_waits_for(world: Rig) -> None:
    waits = await world.workflow("waits", [event("e", key="done-{{ payload.n }}")])
    sends = await world.workflow(
        "sends", [noop("s", payload={"value": 5}, event_emit_key="done-{{ payload.n }}")]
    )
    run = await world.trigger(waits, n=1)
    await world.until_step(run, "e", "waiting", "event")
    await world.until(await world.trigger(sends, n=1), "completed")
    await world.until(run, "completed")
    assert await output(world, run, "e") == 5


@pytest.mark.parametrize("delivered", [True, False])
async def test_an_emitted_event_that_was_not_acknowledged_is_for_those_who_waited_then(
    world: Rig, monkeypatch: pytest.MonkeyPatch, delivered: bool
) -> None:
    """The crash comes after its delivery or before it; it is taken once, and by the first wait."""
    send_event = EventHub.send
    again, receipts = asyncio.Event(), list[EventReceipt]()

    async def unacknowledged(hub: EventHub, *args: Any, **rest: Any) -> EventReceipt:
        if again.is_set():
            receipts.append(await send_event(hub, *args, **rest))
            return receipts[-1]
        if delivered:
            await send_event(hub, *args, **rest)
        again.set()
        await asyncio.Event().wait()  # until the crash
        raise AssertionError

    monkeypatch.setattr(EventHub, "send", unacknowledged)
    waits = await world.workflow("waits", [event("e"), event("next", "e")])
    sends = await world.workflow("sends", [noop("s", payload={"value": 5}, event_emit_key="k")])
    run = await world.trigger(waits)
    await world.until_step(run, "e", "waiting", "event")
    await world.trigger(sends)
    await asyncio.wait_for(again.wait(), 30)
    late = await world.trigger(waits)
    await world.until_step(late, "e", "waiting", "event")
    if delivered:
        await world.until_step(run, "next", "waiting", "event")
    await world.crash_and_start()
    await wait_until(lambda: len(receipts) == 1, "it is sent again")
    await world.until_step(run, "next", "waiting", "event")
    assert receipts[0].delivered == (0 if delivered else 1)
    assert await output(world, run, "e") == 5
    assert (await world.step(run, "next")).status == "waiting"
    assert (await world.step(late, "e")).status == "waiting"
    assert await send(world, 6) == 2
    await world.until(run, "completed")


async def test_an_approval_survives_a_crash_and_is_decided_by_approvers_only(world: Rig) -> None:
    step = {"step_ref": "ok", "step_type": "approval", "approval_approvers": ["ann"]}
    flow = await world.workflow("w", [step, noop("b", "ok")])
    run = await world.trigger(flow)
    await world.until_step(run, "ok", "waiting", "approval")
    await world.crash_and_start()
    with pytest.raises(ForbiddenError):
        await world.gateway.approve(run, "ok", ADMIN, None, "bob")
    await world.gateway.approve(run, "ok", ADMIN, "fine", "ann")
    await world.until(run, "completed")
    assert (await output(world, run, "ok"))["approved_by"] == "ann"


async def test_sleeps_delays_and_deadlines_are_kept_over_a_crash(world: Rig) -> None:
    nap = {"step_ref": "nap", "step_type": "sleep", "sleep_duration_secs": 0.4}
    flow = await world.workflow("w", [nap])
    short = await world.workflow("short", [gate("x")], timeout_secs=0.4)
    sleeping, late = await world.trigger(flow), await world.trigger(short)
    trigger = ParsedTrigger(delay_secs=0.4)
    delayed = (await world.gateway.trigger(flow, trigger, actor="test")).id
    assert await world.status(delayed) == "pending"
    await world.crash_and_start()
    await world.until(sleeping, "completed")
    assert (await world.until(late, "timed_out")).vitals.error == "run timed out after 0.4 s"
    await world.until(delayed, "completed")
    await wait_until(lambda: len(world.runtime.timers) == 0, "no timer is left")
