"""A definition that cannot be read keeps nobody waiting for a slot."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, cast

from pilotage.actors.catalog import Catalog
from pilotage.actors.errors import ConflictError
from pilotage.actors.slots import LIMIT_OF_DAMAGED, Slots


class DamagedCatalog:
    async def workflow_by_id(self, workflow_id: str) -> None:
        raise ConflictError(f"the workflow {workflow_id} cannot be read")

    async def job_for_attempt(self, project_id: str, ref: str) -> None:
        raise ConflictError(f"the job {ref} of {project_id} cannot be read")


async def test_steps_of_a_damaged_job_and_runs_of_a_damaged_workflow_go_on() -> None:
    asked: asyncio.Queue[str] = asyncio.Queue()
    tasks: list[asyncio.Task[object]] = []

    async def ask(run_id: str, _message: object) -> Any:
        asked.put_nowait(run_id)
        raise LookupError("that is all we wanted to know")

    async def seen_through(work: Awaitable[object]) -> object:
        return await work

    slots = Slots(
        catalog=cast("Catalog", DamagedCatalog()),
        ask=ask,
        background=lambda work: tasks.append(asyncio.create_task(seen_through(work))),
        occupied=lambda _job: 0,
    )
    slots.admission.open()
    slots.admission.request_step(("p", "j"), "run", 0, 1)
    async with asyncio.timeout(10):
        assert await asked.get() == "run"
        assert await slots.run_limit("w") == LIMIT_OF_DAMAGED
        await asyncio.gather(*tasks)
