from __future__ import annotations

import asyncio
import threading
from typing import Any

from pilotage.actors.executors.handover import ITEMS_PER_TURN, Handover
from tests.support.waiting import wait_until


async def test_items_of_many_threads_arrive_complete_and_in_the_order_of_each() -> None:
    received: list[tuple[int, int]] = []
    handover: Handover[tuple[int, int]] = Handover(asyncio.get_running_loop(), received.append)

    def post(sender: int) -> None:
        for i in range(2_000):
            handover.post((sender, i))

    threads = [threading.Thread(target=post, args=(sender,)) for sender in range(4)]
    for thread in threads:
        thread.start()
    await wait_until(lambda: len(received) == 8_000, "all items arrived")
    for sender in range(4):
        assert [i for who, i in received if who == sender] == list(range(2_000))


async def test_one_wake_up_serves_all_items_posted_before_it() -> None:
    loop = asyncio.get_running_loop()
    wakes: list[Any] = []

    class Counting:
        def call_soon_threadsafe(self, callback: Any) -> None:
            wakes.append(callback)
            loop.call_soon(callback)

    received: list[int] = []
    handover: Handover[int] = Handover(Counting(), received.append)  # type: ignore[arg-type]
    for i in range(50):
        handover.post(i)
    await wait_until(lambda: len(received) == 50, "all items arrived")
    assert len(wakes) == 1


async def test_a_flood_leaves_turns_to_others() -> None:
    received: list[int] = []
    handover: Handover[int] = Handover(asyncio.get_running_loop(), received.append)
    for i in range(ITEMS_PER_TURN * 3):
        handover.post(i)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert 0 < len(received) < ITEMS_PER_TURN * 3
    await wait_until(lambda: len(received) == ITEMS_PER_TURN * 3, "all items arrived")
    assert received == sorted(received)


async def test_an_item_that_raises_does_not_hold_up_the_next() -> None:
    loop = asyncio.get_running_loop()
    told: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: told.append(context))
    received: list[int] = []

    def receive(item: int) -> None:
        if item == 0:
            raise ValueError("zero")
        received.append(item)

    handover: Handover[int] = Handover(loop, receive)
    handover.post(0)
    handover.post(1)
    await wait_until(lambda: received == [1], "the second item arrived")
    assert isinstance(told[0]["exception"], ValueError)


def test_posting_to_a_closed_loop_is_harmless() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    Handover[int](loop, print).post(1)
