"""A host that cannot be reached: its attempts are held back, not burnt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from pilotage.actors.executors.port import Attempt
from tests.integration.executors.http_client import Client, answering
from tests.integration.executors.peers import Peer
from tests.integration.executors.recorder import Recorder
from tests.support.waiting import wait_until


class Timers:
    """Takes what is scheduled; the test says when it is due."""

    def __init__(self) -> None:
        self.due: list[tuple[float, Any]] = []

    def call_later(self, delay: float, callback: Any) -> Any:
        entry = (delay, callback)
        self.due.append(entry)
        timers = self.due

        class Handle:
            def cancel(self) -> None:
                if entry in timers:
                    timers.remove(entry)

        return Handle()

    def fire(self) -> None:
        due, self.due = self.due, []
        for _, callback in due:
            callback()


class Broken(Client):
    """A client whose endpoint has been unreachable five times."""

    def __init__(self) -> None:
        self.timers = Timers()
        super().__init__(call_later=self.timers.call_later)

    async def trip(self, peer: Peer) -> None:
        await peer.close()
        for _ in range(5):
            await self.post(peer.url).failed()

    async def held(self, peer: Peer) -> tuple[Attempt, Recorder]:
        order, recorder = self.begin(peer.url)
        await wait_until(
            lambda: self.executor.why_held(order.key) is not None, "the attempt is held back"
        )
        return order, recorder

    def half_open(self) -> None:
        self.clock.advance_ms(30_000)
        self.timers.fire()


@pytest.fixture
async def broken(peer: Peer) -> AsyncIterator[Broken]:
    client = Broken()
    await client.trip(peer)
    yield client
    await client.executor.aclose()


async def test_an_open_breaker_holds_attempts_back_and_says_why(broken: Broken, peer: Peer) -> None:
    order, recorder = await broken.held(peer)
    assert broken.executor.why_held(order.key) == (
        f"127.0.0.1:{peer.port} could not be reached 5 times in a row; it is tried again in 30 s"
    )
    assert broken.executor.held_until_ms(order.key) == broken.clock.now_ms() + 30_000
    assert recorder.reports == []
    assert [delay for delay, _ in broken.timers.due] == [30]


async def test_other_hosts_are_not_held_back(broken: Broken) -> None:
    async with Peer() as other:
        order, recorder = broken.begin(other.url)
        assert await recorder.output() == b'{"ok":true}'
        assert recorder.begun == 0
        assert broken.executor.held_until_ms(order.key) is None


async def test_a_probe_that_gets_an_answer_lets_all_others_go(broken: Broken, peer: Peer) -> None:
    recorders = [(await broken.held(peer))[1] for _ in range(4)]
    await peer.open()
    broken.half_open()
    for recorder in recorders:
        assert await recorder.output() == b'{"ok":true}'
        assert recorder.begun == 1  # its time counts from then
    assert not broken.timers.due


async def test_an_answer_of_any_status_closes_the_breaker(broken: Broken, peer: Peer) -> None:
    peer.handler = answering(status=500)
    recorders = [(await broken.held(peer))[1] for _ in range(2)]
    await peer.open()
    broken.half_open()
    for recorder in recorders:
        assert (await recorder.failed()).error_class == "http_500"


async def test_only_the_probe_is_spent_while_the_host_stays_away(
    broken: Broken, peer: Peer
) -> None:
    _, probe = await broken.held(peer)
    order, other = await broken.held(peer)
    broken.half_open()
    assert not (await probe.failed()).final
    assert not other.is_over
    assert "6 times in a row; it is tried again in 30 s" in str(broken.executor.why_held(order.key))
    await peer.open()
    broken.half_open()
    assert await other.output() == b'{"ok":true}'


async def test_while_the_probe_is_under_way_the_others_wait(broken: Broken, peer: Peer) -> None:
    release = asyncio.Event()

    async def handler(_request: web.Request) -> web.StreamResponse:
        await release.wait()
        return web.json_response(1)

    peer.handler = handler
    _, probe = await broken.held(peer)
    await peer.open()
    broken.half_open()
    await wait_until(lambda: len(peer.requests) == 1, "the probe has arrived")
    order, late = await broken.held(peer)
    assert "it is tried just now" in str(broken.executor.why_held(order.key))
    assert broken.executor.held_until_ms(order.key) is None
    assert not broken.timers.due
    release.set()
    assert await probe.output() == await late.output() == b"1"


async def test_a_stopped_probe_leaves_its_place_to_the_next(broken: Broken, peer: Peer) -> None:
    block = asyncio.Event()

    async def handler(_request: web.Request) -> web.StreamResponse:
        if len(peer.requests) == 1:
            await block.wait()
        return web.json_response(1)

    peer.handler = handler
    first, probe = await broken.held(peer)
    _, second = await broken.held(peer)
    await peer.open()
    broken.half_open()
    await wait_until(lambda: len(peer.requests) == 1, "the probe has arrived")
    broken.executor.stop(first.key, timed_out=True)
    assert await second.output() == b"1"
    assert probe.reports == []


async def test_an_attempt_that_is_woken_and_stopped_at_once_wakes_the_next(
    broken: Broken, peer: Peer
) -> None:
    first, stopped = await broken.held(peer)
    _, second = await broken.held(peer)
    await peer.open()
    broken.half_open()
    broken.executor.stop(first.key, timed_out=False)
    assert await second.output() == b'{"ok":true}'
    assert stopped.reports == []


async def test_a_held_back_attempt_can_be_stopped(broken: Broken, peer: Peer) -> None:
    order, recorder = await broken.held(peer)
    broken.executor.stop(order.key, timed_out=True)
    await wait_until(lambda: broken.executor.why_held(order.key) is None, "it is let go")
    assert recorder.reports == []
