"""Changes whose outcome is not known: the store's answer was lost, or nobody waited for it.

Such a change may have been made, may still be made (a request that is on its way), or never. What
is in memory must not say otherwise than the store for long: as soon as the store answers, and some
more times until nothing can arrive any more, what is stored is looked up, and whoever goes by it
is told. Meanwhile nothing of it is cached.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Final

import msgspec

from pilotage.actors.errors import ApplicationError, UnavailableError
from pilotage.persistence.codec import SnapshotError
from pilotage.persistence.port import (
    BoundReachedError,
    FencedError,
    RevisionError,
    SlugTakenError,
    StoreFullError,
)

logger = logging.getLogger(__name__)

MAX_DOUBTS: Final = 1_000
"""Beyond that nothing is changed any more until some are settled."""
LOOKS_SECS: Final = (0.05, 1.0, 4.0, 10.0, 15.0)
"""Pauses before the looks. A request that is on its way arrives with the store, or is lost."""
FIRST_PAUSE_SECS, MAX_PAUSE_SECS = 0.1, 5.0

_REFUSED = (
    BoundReachedError, FencedError, RevisionError, SlugTakenError, SnapshotError, StoreFullError,
)  # fmt: skip
"""What the store says when it has changed nothing."""


class Doubt(msgspec.Struct, kw_only=True):
    """What may have been changed: an item, of a partition, and by which slugs it may be known.

    told  what was told of it last, so that nothing is told twice
    last  it is looked up for the last time
    """

    item_id: str
    partition: str
    slugs: tuple[str, ...] = ()
    told: object = ...
    last: bool = False


Look = Callable[[Doubt], Awaitable[object]]
"""Look up what is stored, and tell whoever goes by it unless it is what was told; gives it."""


class Doubts:
    """Those of one kind of definition. On the actors' loop; may raise `UnavailableError`."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._closed = False

    def __bool__(self) -> bool:
        return bool(self._tasks)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._tasks

    @contextmanager
    def unless_known(self, doubt: Doubt) -> Generator[None]:
        """Around a change at the store: note it, unless its outcome is known."""
        if len(self._tasks) >= MAX_DOUBTS:
            raise UnavailableError(
                f"the store has not answered {MAX_DOUBTS} changes; what became of them is looked"
                " up first",
                5,
            )
        try:
            yield
        except _REFUSED:
            raise
        except BaseException:
            self.note(doubt)
            raise

    def note(self, doubt: Doubt) -> None:
        """Look it up from now on."""
        if self._closed:
            return
        known = self._tasks.get(doubt.item_id)
        if known is not None:
            known.cancel()
        name = f"doubt about {doubt.item_id}"
        self._tasks[doubt.item_id] = asyncio.create_task(self._settle(doubt), name=name)

    def close(self) -> None:
        """Nobody is told any more; the next start reads everything."""
        self._closed = True
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()

    async def _settle(self, doubt: Doubt) -> None:
        for n, secs in enumerate(LOOKS_SECS, 1):
            await asyncio.sleep(secs)
            doubt.last = n == len(LOOKS_SECS)
            await self._insist(doubt)
        del self._tasks[doubt.item_id]

    async def _insist(self, doubt: Doubt) -> None:
        pause = FIRST_PAUSE_SECS
        while True:
            try:
                doubt.told = await self._look(doubt)
            except UnavailableError:
                await asyncio.sleep(pause)
                pause = min(pause * 2, MAX_PAUSE_SECS)
            except ApplicationError as error:
                logger.warning("%s may have been changed: %s", doubt.item_id, error)
                return
            else:
                return
