"""Slots on their way: runs are told of those that were passed on to them, limits are looked up.

Who is told must have it, however long that takes; a slot that its run has no use for goes on. What
is looked up is the definition that is stored; when that changes, `Admission` is told at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from pilotage.actors.admission import Admission, JobKey, Passed
from pilotage.actors.catalog import Catalog
from pilotage.actors.errors import ConflictError, NotFoundError, UnavailableError
from pilotage.actors.messages import Answer, Granted
from pilotage.runtime.commands import AdmitRun
from pilotage.runtime.status import RunStatus

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECS, MAX_PAUSE_SECS = 0.05, 1.0
LOOK_AGAIN_SECS = 0.2
LIMIT_OF_DAMAGED = 1


class Slots:
    """`ask(run_id, message)` reaches a run; `background` sees work through to its end."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        ask: Callable[[str, object], Awaitable[Any]],
        background: Callable[[Awaitable[object]], None],
        occupied: Callable[[JobKey], int],
    ) -> None:
        self._catalog = catalog
        self._ask = ask
        self._background = background
        self.admission = Admission(
            admit=self._admit, grant=self._grant, limit_of=self._limit_of, occupied=occupied
        )

    async def run_limit(self, workflow_id: str) -> int:
        """The `max_concurrent_runs` of a workflow; 0: there is none. One that is damaged keeps
        nobody waiting: its runs go on one at a time, which exceeds no limit.
        """
        try:
            workflow = await self._catalog.workflow_by_id(workflow_id)
        except NotFoundError:
            return 0
        except ConflictError as error:
            logger.error("workflow %s, limit of its runs: %s", workflow_id, error)  # noqa: TRY400
            return LIMIT_OF_DAMAGED
        return workflow.spec.max_concurrent_runs

    def _admit(self, workflow_id: str, run_id: str, passed: Passed) -> None:
        self._background(self._admitted(workflow_id, run_id, passed))

    async def _admitted(self, workflow_id: str, run_id: str, passed: Passed) -> None:
        def still() -> bool:
            return self.admission.is_passed_on(workflow_id, run_id, passed)

        answer = await self._insist(run_id, AdmitRun(), still)
        if answer is None or answer.state.status is RunStatus.PENDING:
            self.admission.decline_run(workflow_id, run_id, passed)

    def _grant(self, job: JobKey, run_id: str, step: int, passed: Passed) -> None:
        self._background(self._granted(job, run_id, step, passed))

    async def _granted(self, job: JobKey, run_id: str, step: int, passed: Passed) -> None:
        """A slot that is not taken comes back by the effects of the run, unless it is gone."""

        def still() -> bool:
            return self.admission.holds_job_slot(job, run_id, step, passed)

        answer = await self._insist(run_id, Granted(job=job, step=step, passed=passed), still)
        if answer is None and still():
            self.admission.release_step(job, run_id, step)

    async def _insist(
        self, run_id: str, message: object, still: Callable[[], bool]
    ) -> Answer | None:
        """The answer of a run that must have it; None if the run is gone or it is pointless."""
        pause = FIRST_PAUSE_SECS
        while still():
            try:
                answer: Answer = await self._ask(run_id, message)
            except UnavailableError:
                await asyncio.sleep(pause)
                pause = min(pause * 2, MAX_PAUSE_SECS)
            except Exception as error:  # noqa: BLE001  whatever it is, the slot must not be lost with it
                logger.warning("run %s takes no slot: %s", run_id, error)
                return None
            else:
                return answer
        return None

    def _limit_of(self, job: JobKey) -> None:
        self._background(self._look_up(job))

    async def job_limit(self, job: JobKey) -> int:
        """The `max_concurrency` of a job; 0: there is none."""
        try:
            found = await self._catalog.job_for_attempt(*job)
        except (NotFoundError, ConflictError):  # gone or damaged
            return 0  # its attempts fail with a clear error
        return found.spec.max_concurrency or 0

    async def _look_up(self, job: JobKey) -> None:
        try:
            limit = await self.job_limit(job)
        except UnavailableError:
            await asyncio.sleep(LOOK_AGAIN_SECS)
            self._limit_of(job)
            return
        self.admission.know_job_limit(job, limit)
