"""Whose store it is: giving it back, and what a server is told that has lost it."""

from __future__ import annotations

import asyncio
import logging

from pilotage.persistence.port import Store, StoreError

logger = logging.getLogger(__name__)

ANSWER_SECS = 2.0
"""What the store gets at an end, which must not wait for it."""


async def give_lease_back(store: Store, owner: str, fence: int) -> None:
    """So that the next server need not wait for the lease to run out."""
    try:
        async with asyncio.timeout(ANSWER_SECS):
            await store.release(owner, fence)
    except (StoreError, TimeoutError):
        logger.info("the lease was not given back; it runs out by itself")


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
