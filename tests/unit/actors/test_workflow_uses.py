"""A workflow is deleted, or a run of it is made: never both, whichever comes first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from pilotage.actors.catalog_model import Workflow
from pilotage.actors.errors import ConflictError, NotFoundError
from pilotage.actors.runtime import Runtime
from pilotage.persistence.memory import MemoryServer, MemoryStore
from pilotage.runtime.state import RunState
from pilotage.runtime.validation import ParsedTrigger
from pilotage.settings import Settings

PROJECT = "p"
APPROVAL = {"step_ref": "a", "step_type": "approval"}


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[Runtime]:
    made = Runtime(settings=Settings(data_dir=tmp_path), store=MemoryStore(MemoryServer()))
    await made.start()
    yield made
    await made.stop(0)


async def new_workflow(runtime: Runtime, name: str, *steps: dict[str, Any]) -> Workflow:
    raw = {"name": name, "slug": name, "steps": list(steps) or [APPROVAL]}
    parsed = await runtime.catalog.parse_workflow(PROJECT, raw)
    return await runtime.catalog.create_workflow(parsed, project_id=PROJECT, created_by="test")


def trigger(runtime: Runtime, workflow: Workflow) -> Awaitable[Any]:
    return runtime.gateway.trigger(workflow, ParsedTrigger(), actor="test")


class Held:
    """One method of the store goes on when the test lets it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.begun, self.go = asyncio.Event(), asyncio.Event()
        original: Callable[..., Awaitable[object]] = getattr(MemoryStore, name)

        async def held(store: MemoryStore, *given: Any, **named: Any) -> object:
            self.begun.set()
            await self.go.wait()
            return await original(store, *given, **named)

        monkeypatch.setattr(MemoryStore, name, held)


async def some_turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_deletion_waits_for_the_run_that_is_being_made(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow = await new_workflow(runtime, "w")
    commit = Held(monkeypatch, "commit")
    making = asyncio.ensure_future(trigger(runtime, workflow))
    await commit.begun.wait()
    deleting = asyncio.create_task(runtime.catalog.delete_workflow(workflow))
    await some_turns()
    assert not deleting.done()
    commit.go.set()
    assert (await making).status == "running"
    with pytest.raises(ConflictError, match="1 active run"):
        await deleting
    assert await runtime.catalog.workflow(PROJECT, "w") == workflow
    assert not len(runtime.catalog.uses)


async def test_what_comes_while_it_is_deleted_finds_it_gone(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow = await new_workflow(runtime, "w")
    removal = Held(monkeypatch, "delete_record")
    deleting = asyncio.create_task(runtime.catalog.delete_workflow(workflow))
    await removal.begun.wait()
    making = asyncio.ensure_future(trigger(runtime, workflow))
    await some_turns()
    assert not making.done()
    removal.go.set()
    await deleting
    with pytest.raises(NotFoundError, match="has just been deleted"):
        await making
    assert not await runtime.store.active_run_ids()
    assert not len(runtime.catalog.uses)


async def test_a_deletion_that_fails_lets_runs_be_made(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow = await new_workflow(runtime, "w")
    removal = Held(monkeypatch, "delete_record")
    deleting = asyncio.create_task(runtime.catalog.delete_workflow(workflow))
    await removal.begun.wait()
    making = asyncio.ensure_future(trigger(runtime, workflow))
    await some_turns()
    deleting.cancel()
    assert (await making).status == "running"


async def test_a_child_of_a_workflow_that_is_deleted_fails_its_step(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = await new_workflow(runtime, "below")
    above = await new_workflow(
        runtime, "above", {"step_ref": "s", "step_type": "sub_workflow", "sub_workflow_id": "below"}
    )
    removal = Held(monkeypatch, "delete_record")
    deleting = asyncio.create_task(runtime.catalog.delete_workflow(below))
    await removal.begun.wait()
    run: RunState = await runtime.creation.trigger(above, ParsedTrigger(), actor="test")
    removal.go.set()
    await deleting
    while (state := await runtime.supervisor.state(run.id)) is None or not state.status.is_terminal:
        await asyncio.sleep(0)
    assert "sub-workflow could not be started" in (state.step(0).error or "")


@pytest.mark.parametrize("turns", range(12))
async def test_in_a_race_there_is_a_run_or_no_workflow(runtime: Runtime, turns: int) -> None:
    """`turns`: how many turns of the loop the run has before the deletion."""
    workflow = await new_workflow(runtime, "w")
    making = asyncio.ensure_future(trigger(runtime, workflow))
    for _ in range(turns):
        await asyncio.sleep(0)
    deleting = asyncio.create_task(runtime.catalog.delete_workflow(workflow))
    results: tuple[object, ...] = tuple(
        await asyncio.gather(making, deleting, return_exceptions=True)
    )
    made, deleted = results
    assert isinstance(made, NotFoundError) is not isinstance(deleted, ConflictError)
