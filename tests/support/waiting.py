"""Waiting for something to become true, with a deadline and a name, instead of sleeping."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable

POLL_SECS = 0.005


async def wait_until(
    condition: Callable[[], bool | Awaitable[bool]], what: str, *, within_secs: float = 10.0
) -> None:
    """Return once `condition()` holds; fail with `what` when it does not in time."""
    deadline = time.monotonic() + within_secs
    while True:
        held = condition()
        if inspect.isawaitable(held):
            held = await held
        if held:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_secs:g} s: {what}")
        await asyncio.sleep(POLL_SECS)


def wait_until_sync(condition: Callable[[], bool], what: str, *, within_secs: float = 10.0) -> None:
    """The same where no loop runs."""
    deadline = time.monotonic() + within_secs
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_secs:g} s: {what}")
        time.sleep(POLL_SECS)
