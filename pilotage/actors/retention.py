"""Retention: what has an end is removed when it has come, by index, a bounded batch at a time.

Finished runs go when the time of their status is over, pinned ones never, damaged ones too: they
are not read for it. The versions of a deleted workflow go once no kept run is of that workflow.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from pilotage.actors.catalog import Catalog
from pilotage.actors.errors import ApplicationError
from pilotage.actors.services import Services
from pilotage.actors.supervisor import Supervisor
from pilotage.persistence.codec import SnapshotCorruptError, decode_finished, decode_vitals
from pilotage.persistence.port import Store, StoredRun, StoreError

logger = logging.getLogger(__name__)

BATCH = 100
VERSIONS_EVERY_SECS = 60.0


class Retention:
    def __init__(
        self,
        store: Store,
        catalog: Catalog,
        supervisor: Supervisor,
        services: Services,
        fence: Callable[[], int],
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._supervisor = supervisor
        self._services = services
        self._fence = fence
        self._versions_next = 0.0
        self.removed = 0
        """Runs removed by this process."""

    async def sweep(self) -> None:
        """Everything that is over now; the rest, if the store is away, the next time."""
        try:
            await self._sweep_runs()
            now = self._services.clock.monotonic()
            if now >= self._versions_next:
                self._versions_next = now + VERSIONS_EVERY_SECS
                await self._catalog.deleted.sweep(self._fence())
        except (StoreError, ApplicationError) as error:
            logger.debug("what is over could not be removed: %s", error)

    async def _sweep_runs(self) -> None:
        stay = 0
        while True:
            now = self._services.clock.now_ms()
            expired = await self._store.expired_run_ids(now, BATCH, stay)
            if not expired:
                return
            removed = await self._store.delete_runs(expired, self._fence())
            if removed < len(expired):
                removed += await self._remove_damaged(expired)
            self.removed += removed
            stay += max(len(expired) - removed, 0)

    async def _remove_damaged(self, expired: list[str]) -> int:
        """Those that were left because what they are could not be read."""
        found = await self._store.load_runs(expired)
        damaged = [
            run_id for run_id, run in zip(expired, found, strict=True) if run is None or _bad(run)
        ]
        if not damaged:
            return 0
        removed = await self._store.purge_runs(damaged, self._fence())
        for run_id in damaged:
            logger.warning("run %s was damaged; its time is over, it is removed", run_id)
            self._supervisor.set_apart.forget(run_id)
        return removed


def _bad(run: StoredRun) -> bool:
    """Damaged, and not merely of a newer version, which a newer server removes."""
    try:
        decode_vitals(run.vitals)
        if run.blob is not None:
            decode_finished(run.blob)
    except SnapshotCorruptError:
        return True
    except StoreError:
        return False
    return False
