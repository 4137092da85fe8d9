"""Whose store it is: taking it at the start, being sure of it, giving it back, and what a server is
told that has lost it.

A store that is away at the start, or loads its data, is waited for: machines boot in any order, and
a store with much data loads for minutes. The wait is bounded, and said in the log. A store that
will not do, or that is somebody else's, is refused at once.
"""

from __future__ import annotations

import asyncio
import logging

from pilotage.actors.errors import UnavailableError
from pilotage.persistence.port import Store, StoreError, StoreLoadingError, StoreUnavailableError

logger = logging.getLogger(__name__)

ANSWER_SECS = 2.0
"""What the store gets at an end, which must not wait for it."""
FIRST_PAUSE_SECS, MAX_PAUSE_SECS = 0.05, 1.0
SAID_EVERY_SECS = 5.0


class Patience:
    """How long a store is waited for: `secs` since it last came nearer, as it does that loads."""

    def __init__(self, secs: float) -> None:
        self._secs = secs
        self._clock = asyncio.get_running_loop().time
        self._since = self._nearer_at = self._clock()
        self._said_at = 0.0
        self._said: type[StoreError] | None = None
        self._loaded = -1
        self._pause = FIRST_PAUSE_SECS

    async def endure(self, error: StoreUnavailableError) -> None:
        """Wait a moment; raises the error when that has been done for long enough."""
        now = self._clock()
        loaded = error.loaded if isinstance(error, StoreLoadingError) else None
        if loaded is not None and loaded > self._loaded:
            self._loaded, self._nearer_at = loaded, now
        left = self._nearer_at + self._secs - now
        if left <= 0 and self._secs:
            waited = f"(waited for it for {self._secs:g} s, PILOTAGE_STORE_WAIT_SECS)"
            raise StoreUnavailableError(f"{error} {waited}") from error
        if left <= 0:
            raise error
        if type(error) is not self._said or now - self._said_at >= SAID_EVERY_SECS:
            self._said, self._said_at = type(error), now
            logger.warning("waiting for the store, for %.0f s if nothing changes: %s", left, error)
        await asyncio.sleep(min(self._pause, left))
        self._pause = min(self._pause * 2, MAX_PAUSE_SECS)

    def rewarded(self) -> None:
        if self._said is not None:
            logger.info("the store is there, after %.1f s", self._clock() - self._since)


async def take_store(store: Store, owner: str, *, lease_secs: float, wait_secs: float) -> int:
    """Open the store and raise its fence, waiting for it if need be. Raises `StoreError`s."""
    patience = Patience(wait_secs)
    while True:
        try:
            await store.open()
            fence = await store.acquire(owner, lease_secs)
        except StoreUnavailableError as error:
            await store.close()
            await patience.endure(error)
        else:
            patience.rewarded()
            return fence


async def give_lease_back(store: Store, owner: str, fence: int) -> None:
    """So that the next server need not wait for the lease to run out."""
    try:
        async with asyncio.timeout(ANSWER_SECS):
            await store.release(owner, fence)
    except (StoreError, TimeoutError):
        logger.info("the lease was not given back; it runs out by itself")


async def confirm_owner(store: Store, fence: int) -> None:
    """`UnavailableError` unless the store is this server's. For answers that no write stands
    behind: a server that stood still for long remembers what another one may have changed.
    """
    try:
        newest = await store.fence()
    except StoreError as error:
        raise UnavailableError(f"the store is away: {error}") from None
    if newest != fence:
        raise UnavailableError("another server has taken over", 5)


async def why_fenced(store: Store, fence: int) -> str:
    """Why the store refuses `fence`: a newer owner, or a store that is not what it was."""
    try:
        async with asyncio.timeout(ANSWER_SECS):
            found = await store.fence()
    except (StoreError, TimeoutError):
        return "another server has taken over the store"
    if found > fence:
        return "another server has taken over the store"
    return (
        f"the store has lost what was written, or is another one: this server has raised its fence "
        f"to {fence}, it has {found or 'none'}; look at the store before you start again"
    )
