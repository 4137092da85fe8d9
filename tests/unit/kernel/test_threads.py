"""Stress with real threads: order, one message at a time, and no ask without an answer."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

from pilotage.actors.kernel import (
    ActorDeadError,
    AwaitableFuture,
    LoopActor,
    LoopDispatcher,
    LoopRef,
    MailboxFullError,
)
from tests.unit.kernel.conftest import Recorder

SEED = 20_240_717
SENDERS = 4
ACTORS = 50
MESSAGES = 4_000
"""A sender sends so many."""


@pytest.fixture(autouse=True)
def _frequent_switches() -> Iterator[None]:
    """Make the interpreter change threads far more often than by itself."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


class OrderKeeper(LoopActor):
    """Fails its test when a sender's numbers come out of order or two handlers overlap."""

    mailbox_capacity = 1_000

    def __init__(self, dispatcher: LoopDispatcher, urn: str) -> None:
        super().__init__(dispatcher, urn)
        self.last: dict[int, int] = defaultdict(lambda: -1)
        self.received = 0
        self.busy = False

    def on_receive(self, message: tuple[int, int] | None) -> Any:
        if message is None:
            return self.received
        self.enter(message)
        if message[1] % 7 == 0:
            return self.wait_a_turn()
        self.busy = False
        return None

    def enter(self, message: tuple[int, int]) -> None:
        assert not self.busy, "two handlers of one actor overlap"
        self.busy = True
        sender, number = message
        assert number == self.last[sender] + 1, f"{sender}: {number} after {self.last[sender]}"
        self.last[sender] = number
        self.received += 1

    async def wait_a_turn(self) -> None:
        await asyncio.sleep(0)
        self.busy = False


def send_all(refs: list[LoopRef[OrderKeeper]], sender: int, pause: threading.Event) -> None:
    """Send numbered messages to actors in random order, again when a mailbox is full."""
    choose = random.Random(SEED + sender)
    following = [0] * len(refs)
    for _ in range(MESSAGES):
        index = choose.randrange(len(refs))
        while True:
            try:
                refs[index].tell((sender, following[index]))
            except MailboxFullError:
                pause.wait(0.001)
                continue
            break
        following[index] += 1


async def test_each_sender_is_heard_in_order_by_every_actor(dispatcher: LoopDispatcher) -> None:
    refs = [dispatcher.spawn(OrderKeeper, f"keeper-{n}") for n in range(ACTORS)]
    pause = threading.Event()
    threads = [
        threading.Thread(target=send_all, args=(refs, sender, pause)) for sender in range(SENDERS)
    ]
    for thread in threads:
        thread.start()
    choose = random.Random(SEED - 1)
    following = [0] * ACTORS
    for _ in range(MESSAGES // 100):
        for _ in range(100):
            index = choose.randrange(ACTORS)
            refs[index].tell((SENDERS, following[index]))
            following[index] += 1
        await asyncio.sleep(0)
    async with asyncio.timeout(50):
        while any(thread.is_alive() for thread in threads):
            await asyncio.sleep(0.001)
        received = [await ref.ask(None, block=False) for ref in refs]
    assert sum(received) == (SENDERS + 1) * MESSAGES
    stats = dispatcher.stats()
    assert (stats.crashes, stats.dead_letters) == (0, 0)
    assert all(ref.cell.remote_pending == 0 for ref in refs)


async def test_no_ask_that_races_with_a_stop_stays_unanswered(
    dispatcher: LoopDispatcher,
) -> None:
    current: list[LoopRef[Recorder]] = [dispatcher.spawn(Recorder, "first")]
    asked: list[AwaitableFuture[Any]] = []
    done = threading.Event()

    def ask_all_the_time() -> None:
        while not done.is_set():
            burst = [current[0].ask("?", block=False) for _ in range(20)]
            asked.extend(burst)
            wait_for(burst[-1])  # so that the threads do not run ahead of the loop

    threads = [threading.Thread(target=ask_all_the_time) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        async with asyncio.timeout(40):
            number = 0
            while number < 300 or len(asked) < 10_000:
                number += 1
                old, current[0] = current[0], dispatcher.spawn(Recorder, f"next-{number}")
                if number % 3 == 0:
                    old.kill(RuntimeError("killed"))
                else:
                    await old.stop(block=False)
                await asyncio.sleep(0)
    finally:
        done.set()
    async with asyncio.timeout(10):
        await asyncio.gather(*(asyncio.to_thread(thread.join) for thread in threads))
        outcomes = [await outcome_of(future) for future in asked]
    assert set(outcomes) == {"answered", "dead"}


def wait_for(future: AwaitableFuture[Any]) -> None:
    """Wait on this thread until `future` is complete, whatever with."""
    with contextlib.suppress(ActorDeadError):
        future.get(timeout=30)


async def outcome_of(future: AwaitableFuture[Any]) -> str:
    """What became of an ask; waits for it."""
    try:
        await future
    except ActorDeadError:
        return "dead"
    return "answered"


async def test_blocking_asks_of_many_threads_are_all_answered(
    dispatcher: LoopDispatcher,
) -> None:
    ref = dispatcher.spawn(Recorder, "a")

    def ask_some() -> list[int]:
        return [ref.ask("?", timeout=20) for _ in range(100)]

    results = await asyncio.gather(*(asyncio.to_thread(ask_some) for _ in range(4)))
    assert sorted(n for numbers in results for n in numbers) == list(range(1, 401))
