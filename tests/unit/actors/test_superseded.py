"""A server that stood still and has lost its store unawares acknowledges nothing by its memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pilotage.actors.catalog_model import Workflow
from pilotage.actors.errors import UnavailableError
from pilotage.actors.principal import ADMIN
from pilotage.actors.runtime import Runtime
from pilotage.persistence.memory import MemoryServer, MemoryStore
from pilotage.persistence.port import StoreUnavailableError
from pilotage.runtime.status import RunStatus
from pilotage.runtime.validation import ParsedTrigger
from pilotage.settings import Settings

PROJECT = "p"


class Pair:
    """Two servers on one store; the first has not noticed that it is the second's."""

    def __init__(self, folder: Path) -> None:
        self.store = MemoryServer()
        settings = Settings(data_dir=folder, lease_secs=60)
        self.first, self.second = (
            Runtime(settings=settings, store=MemoryStore(self.store)) for _ in range(2)
        )

    async def take_over(self) -> None:
        self.store.lease = None  # it stood still for longer than that
        await self.second.start()
        assert not self.first.fenced.is_set(), "it has not noticed yet"


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    made = Pair(tmp_path)
    await made.first.start()
    yield made
    await made.second.stop(0)
    await made.first.stop(0)


async def new_workflow(runtime: Runtime) -> Workflow:
    steps = [{"step_ref": "a", "step_type": "wait_for_event", "event_key": "paid"}]
    parsed = await runtime.catalog.parse_workflow(PROJECT, {"name": "w", "steps": steps})
    return await runtime.catalog.create_workflow(parsed, project_id=PROJECT, created_by="test")


async def test_it_does_not_say_that_nobody_waits_for_an_event(pair: Pair) -> None:
    await pair.take_over()
    flow = await new_workflow(pair.second)
    await pair.second.gateway.trigger(flow, ParsedTrigger(), actor="test")
    with pytest.raises(UnavailableError, match="another server has taken over"):
        await pair.first.gateway.send_event(PROJECT, "paid", None, 0, actor="test")
    receipt = await pair.second.gateway.send_event(PROJECT, "paid", None, 0, actor="test")
    assert receipt.delivered == 1


async def test_it_does_not_say_that_a_command_holds_already(pair: Pair) -> None:
    flow = await new_workflow(pair.first)
    run = await pair.first.gateway.trigger(flow, ParsedTrigger(), actor="test")
    await pair.first.gateway.pause(run.id, ADMIN)
    again = await pair.first.gateway.pause(run.id, ADMIN)
    assert again.status is RunStatus.PAUSED
    await pair.take_over()
    assert (await pair.second.gateway.resume(run.id, ADMIN)).status is RunStatus.RUNNING
    with pytest.raises(UnavailableError, match="another server has taken over"):
        await pair.first.gateway.pause(run.id, ADMIN)


async def test_it_refuses_nothing_by_what_it_remembers(pair: Pair) -> None:
    flow = await new_workflow(pair.first)
    run = await pair.first.gateway.trigger(flow, ParsedTrigger(), actor="test")
    await pair.take_over()
    await pair.second.gateway.send_event(PROJECT, "paid", None, 0, actor="test")
    await pair.second.gateway.replay_subtree(run.id, "a", ADMIN)
    with pytest.raises(UnavailableError):  # a conflict for the state that it knows
        await pair.first.gateway.retry_step(run.id, "a", ADMIN)


async def test_a_store_that_is_away_is_not_taken_for_another_owner(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_: MemoryStore) -> int:
        raise StoreUnavailableError("no answer")

    await pair.take_over()
    monkeypatch.setattr(MemoryStore, "fence", away)
    with pytest.raises(UnavailableError, match="the store is away: no answer"):
        await pair.first.gateway.send_event(PROJECT, "paid", None, 0, actor="test")
