"""Ending tasks for sure.

A cancellation can get lost: `asyncio.wait_for` of Python 3.11, which the store's client uses,
swallows one that arrives together with the result. So it is repeated until the task has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

AGAIN_SECS = 0.1


async def end_all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel the tasks and wait until they have ended, however they do."""
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=AGAIN_SECS)
