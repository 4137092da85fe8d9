"""What is read of runs in memory is what the store has acknowledged, also where it is kept."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from pilotage.actors import run_reader
from pilotage.actors.principal import ADMIN
from pilotage.persistence.port import RunQuery
from pilotage.runtime.status import RunStatus
from pilotage.runtime.views import RunView
from tests.integration.actors.rig import PROJECT, Rig, gate

QUERY = RunQuery(project_id=PROJECT, limit=10)


async def shown(world: Rig, query: RunQuery = QUERY) -> list[RunView]:
    """A page, after a look whether its JSON says the same as its views."""
    runs, _ = await world.gateway.shown_page(query)
    views, _ = await world.gateway.list_runs(query)
    assert [msgspec.json.encode(view) for view in views] == [bytes(run.json) for run in runs]
    assert views == [await world.gateway.get_run_view(view.id, ADMIN) for view in views]
    return views


async def test_a_list_shows_each_move_of_a_run_also_after_it_has_left_memory(world: Rig) -> None:
    flow = await world.workflow("w", [gate("a")])
    still, run = [await world.trigger(flow) for _ in range(2)]
    assert [view.status for view in await shown(world)] == [RunStatus.RUNNING] * 2
    await world.gateway.pause(run, ADMIN)
    assert [view.status for view in await shown(world)] == [RunStatus.PAUSED, RunStatus.RUNNING]
    await world.gateway.cancel(run, ADMIN, "enough")
    ended, running = await shown(world)
    assert (ended.id, ended.status) == (run, RunStatus.CANCELED)
    assert (running.id, running.status) == (still, RunStatus.RUNNING)
    await world.gateway.pin(run, ADMIN, pinned=True)
    assert [view.pinned for view in await shown(world)] == [True, False]


async def test_what_is_kept_of_runs_and_what_a_page_takes_from_memory_is_bounded(
    world: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_reader, "VIEWS_KEPT", 2)
    monkeypatch.setattr(run_reader, "MAX_PAYLOADS", 40)
    flow = await world.workflow("w", [gate("a")])
    runs = [await world.trigger(flow, order=n * 1_000) for n in range(6)]
    for _ in range(2):
        views = await shown(world)
        assert [view.id for view in views] == runs[::-1]
        assert [bytes(view.payload or b"") for view in views] == [
            msgspec.json.encode({"order": n * 1_000}) for n in reversed(range(6))
        ]


async def test_pages_of_runs_in_memory_and_in_the_store_are_one_list(world: Rig) -> None:
    flow = await world.workflow("w", [gate("a")])
    runs = [await world.trigger(flow) for _ in range(9)]
    for run in runs[::2]:
        await world.gateway.cancel(run, ADMIN, None)
    found: list[str] = []
    after = None
    for _ in itertools.count():
        query = msgspec.structs.replace(QUERY, limit=2, after=after)
        page, after = await world.gateway.shown_page(query)
        found += [run.view.id for run in page]
        if after is None:
            break
    assert found == runs[::-1]
