"""Cron: runs of workflows at their fire times.

The id of a run is derived from (workflow, fire time) and created if absent, so that a fire time
never makes two runs, however many processes see it and however often they restart. After downtime
the latest missed fire time is made up if it is less than an hour old.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from pilotage.actors.catalog import Catalog
from pilotage.actors.catalog_model import Workflow
from pilotage.actors.creation import Creation
from pilotage.actors.errors import ApplicationError, NotFoundError, UnavailableError
from pilotage.actors.kernel import Clock, Timers
from pilotage.actors.messages import AlreadyExistsError
from pilotage.actors.services import TimerKey
from pilotage.persistence.port import Store, StoreError
from pilotage.runtime.cron import CronSchedule, parse_cron
from pilotage.runtime.ids import derived_run_id
from pilotage.runtime.validation import ParsedTrigger

logger = logging.getLogger(__name__)

CRON_TIMER = -2
"""Step index of cron timers: they belong to no run."""
RETRY_SECS, MAX_RETRIES = 1.0, 300


class CronTriggers:
    """All on the actors' loop. `watch` is called for every workflow that is made or changed."""

    def __init__(
        self,
        *,
        store: Store,
        catalog: Catalog,
        creation: Creation,
        clock: Clock,
        timers: Timers[TimerKey],
        is_open: Callable[[], bool],
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._creation = creation
        self._clock = clock
        self._timers = timers
        self._is_open = is_open
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Arm all workflows, and make up for the latest missed fire time of each: missed until the
        very moment when the next one is armed.
        """
        async for workflow in self._catalog.all_workflows():
            schedule = self.watch(workflow)
            if schedule is not None:
                missed = schedule.missed(workflow.updated_at_ms, self._clock.now_ms())
                if missed is not None:
                    self._spawn(workflow.id, missed)

    def watch(self, workflow: Workflow) -> CronSchedule | None:
        """Arm the workflow's next fire time, or disarm it if it has no schedule (any more)."""
        key = (workflow.id, CRON_TIMER)
        spec = workflow.spec
        if spec.cron is None or not workflow.enabled:
            self._timers.cancel(key)
            return None
        schedule = parse_cron(spec.cron, spec.cron_timezone)
        self._arm(key, schedule)
        return schedule

    def forget(self, workflow_id: str) -> None:
        self._timers.cancel((workflow_id, CRON_TIMER))

    def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()

    def _arm(self, key: TimerKey, schedule: CronSchedule) -> None:
        due = schedule.next_after(self._clock.now_ms())
        if due is None:
            return

        def fired(key: TimerKey) -> None:
            self._spawn(key[0], due)
            self._arm(key, schedule)

        self._timers.set(key, due, fired)

    def _spawn(self, workflow_id: str, fire_ms: int) -> None:
        task = asyncio.create_task(self._fire(workflow_id, fire_ms), name=f"cron {workflow_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fire(self, workflow_id: str, fire_ms: int) -> None:
        """Make the run; while the store is away, again and again for some minutes."""
        for _ in range(MAX_RETRIES):
            try:
                await self._trigger(workflow_id, fire_ms)
            except AlreadyExistsError:
                return
            except (UnavailableError, StoreError):
                await asyncio.sleep(RETRY_SECS)
                continue
            except NotFoundError:
                return
            except ApplicationError as error:
                logger.warning("cron of workflow %s: %s", workflow_id, error)
                return
            else:
                return
        logger.error("cron of workflow %s: the fire time %d was lost", workflow_id, fire_ms)

    async def _trigger(self, workflow_id: str, fire_ms: int) -> None:
        if not self._is_open():
            raise UnavailableError("the server is not ready")
        workflow = await self._catalog.workflow_by_id(workflow_id)
        if workflow.spec.cron is None or not workflow.enabled:
            return
        if workflow.spec.skip_if_running and await self._store.active_count(workflow_id):
            logger.info("cron of workflow %s: a run is active, skipped", workflow.slug)
            return
        run_id = derived_run_id(fire_ms, "cron", workflow_id, fire_ms)
        trigger = ParsedTrigger(triggered_by="cron")
        await self._creation.trigger(workflow, trigger, actor="cron", run_id=run_id)
