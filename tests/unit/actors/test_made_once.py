"""A run of a derived id (a schedule's, a step's) is made once, however often it is tried."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pilotage.actors.catalog_model import Workflow
from pilotage.actors.errors import UnavailableError
from pilotage.actors.messages import AlreadyExistsError
from pilotage.actors.runtime import Runtime
from pilotage.persistence.memory import MemoryServer, MemoryStore
from pilotage.persistence.port import RunWrite, StoreFullError, Verdict
from pilotage.runtime.ids import derived_run_id
from pilotage.runtime.state import RunState
from pilotage.runtime.validation import ParsedTrigger
from pilotage.settings import Settings
from tests.support.waiting import wait_until

PROJECT = "p"
RUN_ID = derived_run_id(1_700_000_000_000, "cron", "w", 1_700_000_000_000)
APPROVAL = {"step_ref": "a", "step_type": "approval"}
NOTHING = {**APPROVAL, "condition": {"type": "eq", "left": 1, "right": 2}}
"""A step that is skipped: its run is over as soon as it is made."""


class Gate:
    """Commits go on when the test lets them, and fail when it says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go = asyncio.Event(), asyncio.Event()
        self.full = False
        commit = MemoryStore.commit

        async def held(store: MemoryStore, batch: Sequence[RunWrite], fence: int) -> list[Verdict]:
            self.begun.set()
            await self.go.wait()
            if self.full:
                raise StoreFullError("no room")
            return await commit(store, batch, fence)

        monkeypatch.setattr(MemoryStore, "commit", held)


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[Runtime]:
    made = Runtime(settings=Settings(data_dir=tmp_path), store=MemoryStore(MemoryServer()))
    await made.start()
    yield made
    await made.stop(0)


async def new_workflow(runtime: Runtime, step: dict[str, Any]) -> Workflow:
    parsed = await runtime.catalog.parse_workflow(PROJECT, {"name": "w", "steps": [step]})
    return await runtime.catalog.create_workflow(parsed, project_id=PROJECT, created_by="test")


async def make(runtime: Runtime, workflow: Workflow) -> RunState:
    return await runtime.creation.trigger(workflow, ParsedTrigger(), actor="cron", run_id=RUN_ID)


async def test_one_that_is_half_made_does_not_count_as_made(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store may have no room for it."""
    workflow = await new_workflow(runtime, APPROVAL)
    gate = Gate(monkeypatch)
    first = asyncio.create_task(make(runtime, workflow))
    await gate.begun.wait()
    with pytest.raises(UnavailableError, match="is being made"):
        await make(runtime, workflow)
    gate.full = True
    gate.go.set()
    with pytest.raises(UnavailableError, match="no room"):
        await first
    gate.full = False
    assert (await make(runtime, workflow)).id == RUN_ID
    with pytest.raises(AlreadyExistsError):
        await make(runtime, workflow)


async def test_one_that_is_over_and_gone_from_memory_counts_as_made(runtime: Runtime) -> None:
    workflow = await new_workflow(runtime, NOTHING)
    made = await make(runtime, workflow)
    assert made.status.is_terminal
    await wait_until(lambda: not runtime.supervisor.knows(RUN_ID), "it has left memory")
    with pytest.raises(AlreadyExistsError):
        await make(runtime, workflow)
    stored = await runtime.supervisor.state(RUN_ID)
    assert stored is not None
    assert stored.vitals == made.vitals
