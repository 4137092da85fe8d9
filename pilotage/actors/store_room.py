"""Room in the store: while it is nearly full no new run is taken on, so that those under way end.

What is active needs room to come to its end, and what has ended makes room when its time is over.
So triggers, retries and replays are refused before the store refuses everything, and events that
nobody waits for are not kept. Definitions and keys pass: few, made by hand, perhaps the remedy. It
recovers by itself as soon as there is room again; a little more than was missing, so as not to
flicker.
"""

from __future__ import annotations

import logging

from pilotage.actors.errors import UnavailableError
from pilotage.persistence.port import Store, StoreError

logger = logging.getLogger(__name__)

FULL, ROOM_AGAIN = 0.90, 0.87
"""Shares of the memory that the store may use."""
RETRY_AFTER_SECS = 10


class StoreRoom:
    """`check` asks the store; in between `full` is what it said last."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.full = False
        self.used: float | None = None
        """Share of its memory that is in use; None: it has no bound."""

    async def check(self) -> None:
        try:
            self.used = await self._store.fullness()
        except StoreError as error:  # it is away, or does not tell: what was said last holds
            logger.debug("the store does not tell how full it is: %s", error)
            return
        used = self.used or 0.0
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
        return f"the store has used {self.used or 0:.0%} of its memory (maxmemory)"

    def refuse_if_full(self) -> None:
        """Of a new run."""
        if self.full:
            raise UnavailableError(self.why, RETRY_AFTER_SECS)

    def refuse_event_if_full(self, key: str) -> None:
        """Of an event to be kept."""
        if self.full:
            raise UnavailableError(
                f"{self._used}; no step waits for the event {key}, and it is not kept until there"
                " is room: send it again later; one that a step waits for is delivered",
                RETRY_AFTER_SECS,
            )
