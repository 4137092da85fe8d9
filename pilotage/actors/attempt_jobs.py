"""What does the attempts of a job now: looked up at each attempt anew.

A stored Python job is the function of its slug. What the catalog has at hand is found at once,
without waiting; why a job cannot be used is only ever said by `look_up`. A disabled job keeps its
attempts waiting until it is enabled, or deleted: `changed` is told of every change of a job.
"""

from __future__ import annotations

import asyncio

from pilotage.actors.catalog import Catalog
from pilotage.actors.catalog_model import Job
from pilotage.actors.errors import NotFoundError
from pilotage.actors.executors.port import JobHeldError
from pilotage.actors.executors.python_jobs import JobRegistry, PythonJob
from pilotage.runtime.definition import JobSpec
from pilotage.runtime.status import ExecutionMode


class AttemptJobs:
    """The catalog's jobs, as executors need them."""

    def __init__(self, catalog: Catalog, registry: JobRegistry) -> None:
        self._catalog = catalog
        self._registry = registry
        self._changes = 0
        self._next: dict[tuple[str, str], asyncio.Future[None]] = {}

    def changed(self, project_id: str, ref: str) -> None:
        """The job has been made, changed or deleted: who waits for that looks at it again."""
        self._changes += 1
        waited_for = self._next.pop((project_id, ref), None)
        if waited_for is not None:
            waited_for.set_result(None)

    def at_hand(self, project_id: str, ref: str) -> JobSpec | PythonJob | None:
        """None: look it up."""
        job = self._catalog.job_at_hand(project_id, ref)
        return None if job is None or not job.enabled else self._does(job)

    async def look_up(self, project_id: str, ref: str) -> JobSpec | PythonJob:
        """Raises `NotFoundError`, `UnavailableError` and `JobHeldError`."""
        seen = self._changes
        job = await self._catalog.job_for_attempt(project_id, ref)
        if not job.enabled and seen != self._changes:  # it may have been enabled meanwhile
            return await self.look_up(project_id, ref)
        if not job.enabled:
            why = f'job "{job.slug}" is disabled; enable it, or skip the step'
            raise JobHeldError(why, self._next_change(project_id, ref))
        found = self._does(job)
        if found is None:
            raise NotFoundError(
                f'job "{job.slug}" is a Python job, but no function of that name is registered;'
                " start the server with the app that has it"
            )
        return found

    def _next_change(self, project_id: str, ref: str) -> asyncio.Future[None]:
        found = self._next.get((project_id, ref))
        if found is None:
            found = self._next[project_id, ref] = asyncio.get_running_loop().create_future()
        return found

    def _does(self, job: Job) -> JobSpec | PythonJob | None:
        if job.spec.execution_mode is not ExecutionMode.PYTHON:
            return job.spec
        return self._registry.get(job.slug)
