"""Tasks that swallow their cancellation are ended all the same."""

from __future__ import annotations

import asyncio

from pilotage.actors.endings import end_all


async def test_a_task_that_swallows_cancellations_is_canceled_again() -> None:
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed == 3:
                    raise

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await end_all([task])
    assert task.cancelled()
    assert swallowed == 3
    await end_all([task])
