"""Room in the store: while it is nearly full no new run is taken on, so that those under way end.

What is active needs room to come to its end, and what has ended makes room when its time is over.
So triggers, retries and replays are refused before the store refuses everything, and events that
nobody waits for are not kept. Definitions and keys pass: few, made by hand, perhaps the remedy. It
recovers by itself as soon as there is room again; a little more than was missing, so as not to
flicker.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager

from pilotage.actors.errors import UnavailableError
from pilotage.persistence.port import MemoryUse, Store, StoreError

logger = logging.getLogger(__name__)

FULL, ROOM_AGAIN = 0.90, 0.87
"""Shares of the memory that the store may use."""
RETRY_AFTER_SECS = 10
BASE_BYTES = 4_096
"""What a small run takes of the store, or an event; a large one a quarter more than it has."""


class StoreRoom:
    """`check` asks the store; in between `full` is what it said last."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.full = False
        self._use: MemoryUse | None = None
        self._coming = 0
        self._come = 0

    @property
    def used(self) -> float:
        """Share of its memory that is in use; 0 if it has no bound."""
        return 0.0 if self._use is None else self._use.used / self._use.limit

    async def check(self) -> None:
        come = self._come
        try:
            self._use = await self._store.memory_use()
        except StoreError as error:  # it is away, or does not tell: what was said last holds
            logger.debug("the store does not tell how full it is: %s", error)
            return
        self._come -= come
        used = self.used
        if not self.full and used >= FULL:
            self.full = True
            logger.error("%s", self.why)
        elif self.full and used < ROOM_AGAIN:
            self.full = False
            logger.warning("the store has room again: new runs are taken on")

    @property
    def why(self) -> str:
        return (
            f"{self._used}; no new run is taken on until there is room, and no event kept that"
            " nobody waits for: active runs go on, finished ones make room when their retention"
            " is over; give it more memory, or shorten PILOTAGE_RETENTION_*"
        )

    @property
    def _used(self) -> str:
        return f"the store has used {self.used:.0%} of its memory (maxmemory)"

    def refuse_if_full(self) -> None:
        """Of a new run."""
        if self.full:
            raise UnavailableError(self.why, RETRY_AFTER_SECS)

    @contextmanager
    def run(self, size: int) -> Generator[None]:
        """While a run is stored whose payload has `size` bytes."""
        with self._taken(size, lambda: self.why):
            yield

    @contextmanager
    def event(self, key: str, size: int) -> Generator[None]:
        """While an event is stored that is to be kept."""
        why = f"no step waits for the event {key}, and it is not kept until there is room"
        with self._taken(
            size,
            lambda: (
                f"{self._used}; {why}: send it again later; one that a step waits for is delivered"
            ),
        ):
            yield

    @contextmanager
    def _taken(self, size: int, why: Callable[[], str]) -> Generator[None]:
        """What is on its way counts, and what has come since the store was asked: a burst between
        two looks must not fill what is left for the active runs.
        """
        needed = BASE_BYTES + size + size // 4
        use = self._use
        expected = 0 if use is None else use.used + self._come + self._coming + needed
        if self.full or (use is not None and expected >= FULL * use.limit):
            raise UnavailableError(why(), RETRY_AFTER_SECS)
        self._coming += needed
        try:
            yield
        finally:
            self._coming -= needed
            self._come += needed
