"""What has to be done again and again: keep the lease, remove expired runs, mind the store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from pilotage.actors.endings import end_all
from pilotage.actors.retention import Retention
from pilotage.actors.store_room import StoreRoom
from pilotage.actors.writer import Writer
from pilotage.persistence.embedded import EmbeddedServer, EmbeddedServerError
from pilotage.persistence.port import FencedError, Store, StoreError

logger = logging.getLogger(__name__)

SWEEP_SECS = 5.0
ROOM_SECS = 1.0
WATCH_SECS, WATCH_TIMEOUT_SECS = 0.5, 5.0
HUNG_SECS = 30.0
"""Silence after which the embedded server is taken for hung, and another one is started."""
FIRST_PAUSE_SECS, MAX_PAUSE_SECS = 0.1, 5.0
SILENT = f"the store did not answer within {WATCH_TIMEOUT_SECS:g} s"


class Upkeep(NamedTuple):
    """What keeps the store from filling up, and what is done when it does."""

    retention: Retention
    room: StoreRoom


class Housekeeping:
    """Some tasks. `lost_fence` is called when another process has the lease; the writer is told
    when the store goes away or comes back while nothing is written.
    """

    def __init__(
        self,
        *,
        store: Store,
        owner: str,
        fence: Callable[[], int],
        lease_secs: float,
        lost_fence: Callable[[], None],
        embedded: EmbeddedServer | None,
        writer: Writer,
        upkeep: Upkeep,
    ) -> None:
        self._store = store
        self._owner = owner
        self._fence = fence
        self._lease_secs = lease_secs
        self._lost_fence = lost_fence
        self._embedded = embedded
        self._writer = writer
        self._upkeep = upkeep
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        work: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            ("lease", self._keep_lease),
            ("store", self._watch_store),
            ("retention", self._sweep),
            ("room", self._watch_room),
        ]
        if self._embedded is not None:
            work.append(("embedded store", self._mind_store))
            work.append(("silent embedded store", self._mind_silence))
        for name, forever in work:
            self._tasks.append(asyncio.create_task(_run(forever), name=name))

    async def close(self) -> None:
        await end_all(self._tasks)
        self._tasks.clear()

    async def _keep_lease(self) -> None:
        held = True
        while held:
            await asyncio.sleep(self._lease_secs / 3)
            held = await self._renew()

    async def _watch_store(self) -> None:
        """Notice that the store is away although nothing is written, and that it is back: when it
        takes a write. The lease is the one that is always due.
        """
        held = True
        while held:
            await asyncio.sleep(WATCH_SECS)
            if not self._writer.healthy:
                held = await self._renew()
                continue
            try:
                async with asyncio.timeout(WATCH_TIMEOUT_SECS):
                    await self._store.ping()
            except (StoreError, TimeoutError) as error:
                self._writer.is_away(str(error) or SILENT)

    async def _renew(self) -> bool:
        """Keep the lease, which tells whether the store takes writes. False: it is lost."""
        try:
            async with asyncio.timeout(WATCH_TIMEOUT_SECS):
                await self._store.renew(self._owner, self._fence(), self._lease_secs)
        except FencedError:
            self._lost_fence()
            return False
        except (StoreError, TimeoutError) as error:
            self._writer.is_away(str(error) or SILENT)
        else:
            self._writer.is_back()
        return True

    async def _sweep(self) -> None:
        """Remove what is over, also while the store is full: that is what makes room."""
        while True:
            await asyncio.sleep(SWEEP_SECS)
            await self._upkeep.retention.sweep()

    async def _watch_room(self) -> None:
        while True:
            await self._upkeep.room.check()
            await asyncio.sleep(ROOM_SECS)

    async def _mind_store(self) -> None:
        """The embedded server died: start it again; what was acknowledged is in its log."""
        assert self._embedded is not None  # the task is started only then
        while True:
            end = await self._embedded.wait_died()
            self._writer.is_away(f"the embedded server ended: {end}")
            logger.error("the embedded store died (%s); it is started again", end)
            await self._restart_store(self._embedded)

    async def _mind_silence(self) -> None:
        """The embedded server says nothing any more. It may have been suspended: then it is told to
        go on. One that stays silent hangs, which is as bad as dead, and is made so.
        """
        embedded = self._embedded
        assert embedded is not None  # the task is started only then
        clock = asyncio.get_running_loop().time
        since: float | None = None
        while True:
            await asyncio.sleep(WATCH_SECS)
            if self._writer.healthy or await embedded.answers():
                since = None
                continue
            if since is None:
                since = clock()
                logger.warning("the embedded store is silent; it is told to go on, if suspended")
            embedded.wake()
            if clock() - since >= HUNG_SECS:
                logger.error("the embedded store was silent for %g s; it is ended", HUNG_SECS)
                embedded.kill()
                since = None

    async def _restart_store(self, embedded: EmbeddedServer) -> None:
        pause = FIRST_PAUSE_SECS
        while True:
            try:
                await embedded.restart()
            except EmbeddedServerError as error:
                logger.error("the embedded store cannot be started: %s", error)  # noqa: TRY400
                await asyncio.sleep(pause)
                pause = min(pause * 2, MAX_PAUSE_SECS)
            else:
                return


async def _run(forever: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await forever()
        except Exception:
            logger.exception("housekeeping failed; it goes on")
            await asyncio.sleep(MAX_PAUSE_SECS)
        else:
            return
