"""What has to be done again and again: keep the lease, remove expired runs, mind the store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from pilotage.actors.endings import end_all
from pilotage.actors.kernel import Clock
from pilotage.actors.writer import Writer
from pilotage.persistence.embedded import EmbeddedServer, EmbeddedServerError
from pilotage.persistence.port import FencedError, Store, StoreError

logger = logging.getLogger(__name__)

SWEEP_SECS = 5.0
SWEEP_BATCH = 100
WATCH_SECS, WATCH_TIMEOUT_SECS = 0.5, 5.0
FIRST_PAUSE_SECS, MAX_PAUSE_SECS = 0.1, 5.0
SILENT = "it does not answer"


class Housekeeping:
    """Some tasks. `lost_fence` is called when another process has the lease; the writer is told
    when the store goes away or comes back while nothing is written.
    """

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        owner: str,
        fence: Callable[[], int],
        lease_secs: float,
        lost_fence: Callable[[], None],
        embedded: EmbeddedServer | None,
        writer: Writer,
    ) -> None:
        self._store = store
        self._clock = clock
        self._owner = owner
        self._fence = fence
        self._lease_secs = lease_secs
        self._lost_fence = lost_fence
        self._embedded = embedded
        self._writer = writer
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        work: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            ("lease", self._keep_lease),
            ("store", self._watch_store),
            ("retention", self._sweep),
        ]
        if self._embedded is not None:
            work.append(("embedded store", self._mind_store))
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
        """Remove finished runs whose retention is over, by index, a bounded batch at a time."""
        while True:
            await asyncio.sleep(SWEEP_SECS)
            try:
                while True:
                    expired = await self._store.expired_run_ids(self._clock.now_ms(), SWEEP_BATCH)
                    if not expired:
                        break
                    removed = await self._store.delete_runs(expired, self._fence())
                    if not removed:
                        break
            except StoreError as error:
                logger.debug("expired runs could not be removed: %s", error)

    async def _mind_store(self) -> None:
        """The embedded server died: start it again; what was acknowledged is in its log."""
        assert self._embedded is not None  # the task is started only then
        while True:
            end = await self._embedded.wait_died()
            self._writer.is_away(f"the embedded server ended: {end}")
            logger.error("the embedded store died (%s); it is started again", end)
            await self._restart_store(self._embedded)

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
