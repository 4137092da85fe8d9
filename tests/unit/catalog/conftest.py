"""A catalog over a store in memory that can be switched off, and a clock that is set by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from pilotage.actors.catalog import Catalog
from pilotage.actors.catalog_model import Job, Workflow
from pilotage.actors.executors.python_jobs import JobRegistry
from pilotage.persistence.memory import MemoryServer, MemoryStore
from pilotage.persistence.port import StoreUnavailableError
from pilotage.runtime.validation import parse_job


class HandClock:
    def __init__(self) -> None:
        self.ms = 1_700_000_000_000

    def now_ms(self) -> int:
        return self.ms

    def monotonic(self) -> float:
        return self.ms / 1000


class CountingStore(MemoryStore):
    """Counts reads, and is away when told to."""

    def __init__(self, server: MemoryServer | None = None) -> None:
        super().__init__(server)
        self.reads = 0
        self.away = False

    async def get_record(self, kind: str, record_id: str) -> Any:
        self._count()
        return await super().get_record(kind, record_id)

    async def find_slug(self, kind: str, project_id: str, slug: str) -> str | None:
        self._count()
        return await super().find_slug(kind, project_id, slug)

    async def put_record(self, *args: Any, **kwargs: Any) -> None:
        if self.away:
            raise StoreUnavailableError("away")
        await super().put_record(*args, **kwargs)

    def _count(self) -> None:
        self.reads += 1
        if self.away:
            raise StoreUnavailableError("away")


class Kit:
    """A catalog and what it is made of."""

    def __init__(
        self, server: MemoryServer | None = None, store: type[CountingStore] = CountingStore
    ) -> None:
        self.clock = HandClock()
        self.store = store(server)
        self.registry = JobRegistry()
        self.fence = 0
        self.catalog = Catalog(
            self.store, clock=self.clock, fence=lambda: self.fence, python_jobs=self.registry
        )

    async def open(self) -> None:
        await self.store.open()
        self.fence = await self.store.acquire("tests", 60)

    async def job(self, slug: str = "j", project: str = "p", **more: Any) -> Job:
        body = {"slug": slug, "endpoint_url": "http://host/x", **more}
        return await self.catalog.create_job(parse_job(body), project_id=project)

    async def workflow(
        self, slug: str = "w", project: str = "p", job: str = "j", **more: Any
    ) -> Workflow:
        body = {"slug": slug, "steps": [{"step_ref": "a", "job_id": job}], **more}
        parsed = await self.catalog.parse_workflow(project, body)
        return await self.catalog.create_workflow(parsed, project_id=project, created_by="me")

    async def patch(self, workflow: Workflow, **body: Any) -> Workflow:
        parsed = await self.catalog.parse_patch(workflow, body)
        return await self.catalog.update_workflow(workflow, parsed, updated_by="me")


@pytest.fixture
async def kit() -> AsyncIterator[Kit]:
    kit = Kit()
    await kit.open()
    yield kit
    await kit.store.close()
