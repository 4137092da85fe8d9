"""Passing items to an event loop from any thread, many of them for one wake-up.

Waking a loop from another thread writes to a socket and costs more than most messages. A
`Handover` asks for one wake-up however many items are posted before the loop gets to them, and
hands over a bounded number per turn, so that a flood of items cannot starve the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")

ITEMS_PER_TURN = 128


class Handover(Generic[ItemT]):
    """A queue into `loop`; `receive` is called there with each item, in the order of posting.

    Senders bound what they post (one outcome per attempt, one progress at a time, so many log
    lines); the queue itself never refuses. Items posted to a closed loop are dropped.
    """

    __slots__ = ("_items", "_loop", "_receive", "_woken")

    def __init__(self, loop: asyncio.AbstractEventLoop, receive: Callable[[ItemT], None]) -> None:
        self._loop = loop
        self._receive = receive
        self._items: deque[ItemT] = deque()
        self._woken = False

    def post(self, item: ItemT) -> None:
        """Thread-safe; also from the loop itself, where the item waits for the next turn."""
        # Append before reading the flag and clear the flag before popping: whoever comes in
        # between wakes the loop once too often, never once too few.
        self._items.append(item)
        if not self._woken:
            self._woken = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._drain)

    @property
    def is_empty(self) -> bool:
        """Nothing posted so far is still on its way. On the loop only."""
        return not self._items

    def _drain(self) -> None:
        self._woken = False
        items, receive = self._items, self._receive
        for _ in range(min(len(items), ITEMS_PER_TURN)):
            item = items.popleft()
            try:
                receive(item)
            except Exception as error:  # noqa: BLE001 - one bad item must not hold up the others
                self._loop.call_exception_handler(
                    {"message": "an item that was handed over failed", "exception": error}
                )
        if items and not self._woken:
            self._woken = True
            self._loop.call_soon(self._drain)
