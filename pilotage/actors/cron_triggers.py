"""Cron: runs of workflows at their fire times.

Each fire time is decided once: it makes a run, or is skipped because one is active. The id of the
run is derived from (workflow, fire time) and created if absent, and what was decided last is stored
for each workflow: so a fire time never makes two runs, and one that was skipped is not made up for,
however many processes see it and however often they restart. After downtime, and likewise while the
store is away, only the latest missed fire time is made up for, if it is less than an hour old.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

import msgspec

from pilotage.actors.catalog import Catalog
from pilotage.actors.catalog_lookup import each
from pilotage.actors.catalog_model import Workflow
from pilotage.actors.catalog_records import Filing, Shelf
from pilotage.actors.creation import Creation
from pilotage.actors.errors import (
    ApplicationError,
    ConflictError,
    NotFoundError,
    UnavailableError,
)
from pilotage.actors.kernel import Clock, Moved, Timers
from pilotage.actors.messages import AlreadyExistsError
from pilotage.actors.services import TimerKey
from pilotage.persistence.codec import decode_definition, encode_definition
from pilotage.persistence.port import Store, StoreError
from pilotage.runtime.cron import MAX_MISSED_AGE_MS, CronSchedule, parse_cron
from pilotage.runtime.ids import derived_run_id
from pilotage.runtime.validation import ParsedTrigger

logger = logging.getLogger(__name__)

CRON_TIMER = -2
"""Step index of cron timers: they belong to no run."""
RETRY_SECS = 1.0
NOTICED_MS = 5_000
"""That the wall clock was set is noticed within that time."""


class Decided(msgspec.Struct, frozen=True, kw_only=True):
    """The latest fire time of a workflow that was decided. `id` is the workflow's."""

    id: str
    project_id: str
    created_at_ms: int
    fire_ms: int
    revision: int = 1

    def covers(self, fire_ms: int) -> bool:
        """Whether this fire time was decided too. One far ahead was decided by a wrong clock."""
        return fire_ms <= self.fire_ms <= fire_ms + MAX_MISSED_AGE_MS


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
        fence: Callable[[], int],
        is_open: Callable[[], bool],
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._creation = creation
        self._clock = clock
        self._timers = timers
        self._is_open = is_open
        self._decided: Shelf[Decided] = Shelf(
            store,
            Filing(
                kind="cron",
                encode=encode_definition,
                decode=partial(decode_definition, as_type=Decided),
            ),
            fence,
        )
        self._schedules: dict[str, CronSchedule] = {}
        self._undecided: dict[str, int] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Arm all workflows, and make up for the latest missed fire time of each: missed until the
        very moment when the next one is armed.
        """
        self._timers.on_jump.append(self._jumped)
        last = {mark.id: mark.fire_ms async for mark in each(self._decided, None)}
        async for workflow in self._catalog.all_workflows():
            since = max(workflow.updated_at_ms, last.pop(workflow.id, 0))
            schedule = self._watch(workflow, self._clock.now_ms())
            missed = None if schedule is None else schedule.missed(since, self._clock.now_ms())
            if missed is not None:
                self._fire(workflow.id, missed)
        for workflow_id in last:  # it was deleted, and the process ended before this was
            await self._decided.delete(workflow_id)

    def watch(self, workflow: Workflow) -> None:
        """Arm the next fire time after the change, or disarm it if there is none (any more).

        A fire time that came while the change was being stored counts.
        """
        self._watch(workflow, min(workflow.updated_at_ms, self._clock.now_ms()))

    def _watch(self, workflow: Workflow, after_ms: int) -> CronSchedule | None:
        key = (workflow.id, CRON_TIMER)
        spec = workflow.spec
        if spec.cron is None or not workflow.enabled:
            self._disarm(workflow.id)
            return None
        schedule = self._schedules[workflow.id] = parse_cron(spec.cron, spec.cron_timezone)
        self._arm(key, schedule, after_ms)
        return schedule

    def forget(self, workflow_id: str) -> None:
        """The workflow was deleted."""
        self._disarm(workflow_id)
        self._fire(workflow_id, 0)  # which finds it gone

    def _disarm(self, workflow_id: str) -> None:
        self._schedules.pop(workflow_id, None)
        self._timers.cancel((workflow_id, CRON_TIMER))

    def _jumped(self, by_ms: int, _: Moved[TimerKey]) -> None:
        """Set back, the clock may have fire times before those that are armed. What was decided
        already stays so.
        """
        since = self._clock.now_ms() - NOTICED_MS
        for workflow_id, schedule in self._schedules.items() if by_ms < 0 else ():
            key = (workflow_id, CRON_TIMER)
            due, armed = schedule.next_after(since), self._timers.due_ms(key)
            if due is not None and (armed is None or due < armed):
                self._arm(key, schedule, since)

    def close(self) -> None:
        for task in list(self._tasks.values()):
            task.cancel()

    def _arm(self, key: TimerKey, schedule: CronSchedule, after_ms: int) -> None:
        due = schedule.next_after(after_ms)
        if due is None:
            return

        def fired(key: TimerKey) -> None:
            self._arm(key, schedule, self._clock.now_ms())
            # A machine that slept was down: what counts is the latest, if it is recent.
            latest = schedule.missed(due - 1, self._clock.now_ms())
            if latest is not None:
                self._fire(key[0], latest)

        self._timers.set(key, due, fired)

    def _fire(self, workflow_id: str, fire_ms: int) -> None:
        """To be decided; an older fire time of the workflow that still is undecided was missed."""
        self._undecided[workflow_id] = fire_ms
        if workflow_id not in self._tasks:
            task = asyncio.create_task(self._work(workflow_id), name=f"cron {workflow_id}")
            self._tasks[workflow_id] = task

    async def _work(self, workflow_id: str) -> None:
        """Decide what is undecided; while the store is away, again and again for up to an hour."""
        try:
            while (fire_ms := self._undecided.get(workflow_id)) is not None:
                if await self._settled(workflow_id, fire_ms):
                    if self._undecided[workflow_id] == fire_ms:
                        del self._undecided[workflow_id]
                else:
                    await asyncio.sleep(RETRY_SECS)
        finally:
            del self._tasks[workflow_id]

    async def _settled(self, workflow_id: str, fire_ms: int) -> bool:
        """False: it is to be tried again."""
        try:
            await self._decide(workflow_id, fire_ms)
        except (UnavailableError, StoreError):
            if 0 < fire_ms < self._clock.now_ms() - MAX_MISSED_AGE_MS:
                logger.error(  # noqa: TRY400 - what went wrong was told where it did
                    "cron of workflow %s: the fire time %d was lost", workflow_id, fire_ms
                )
                return True
            return False
        except ApplicationError as error:
            logger.warning("cron of workflow %s: %s", workflow_id, error)
        return True

    async def _decide(self, workflow_id: str, fire_ms: int) -> None:
        if not self._is_open():
            raise UnavailableError("the server is not ready")
        try:
            workflow = await self._catalog.workflow_by_id(workflow_id)
        except NotFoundError:
            await self._decided.delete(workflow_id)
            return
        if workflow.spec.cron is None or not workflow.enabled:
            return
        last = await self._last(workflow_id)
        if last is not None and last.covers(fire_ms):
            return
        if workflow.spec.skip_if_running and await self._store.active_count(workflow_id):
            logger.info("cron of workflow %s: a run is active, skipped", workflow.slug)
        else:
            await self._trigger(workflow, fire_ms)
        await self._remember(workflow, last, fire_ms)

    async def _last(self, workflow_id: str) -> Decided | None:
        try:
            return await self._decided.get(workflow_id)
        except ConflictError as error:  # damaged: the ids of the runs still keep them from doubling
            logger.error("cron of workflow %s: %s", workflow_id, error)  # noqa: TRY400
            await self._decided.delete(workflow_id)
            return None

    async def _trigger(self, workflow: Workflow, fire_ms: int) -> None:
        run_id = derived_run_id(fire_ms, "cron", workflow.id, fire_ms)
        trigger = ParsedTrigger(triggered_by="cron")
        try:
            await self._creation.trigger(workflow, trigger, actor="cron", run_id=run_id)
        except AlreadyExistsError:
            logger.info("cron of workflow %s: run %s was made already", workflow.slug, run_id)

    async def _remember(self, workflow: Workflow, last: Decided | None, fire_ms: int) -> None:
        mark = Decided(
            id=workflow.id,
            project_id=workflow.project_id,
            created_at_ms=workflow.created_at_ms,
            fire_ms=fire_ms,
            revision=1 if last is None else last.revision + 1,
        )
        await self._decided.put(mark, mark.project_id, revision=mark.revision)
