"""A fire time that comes while schedules are being armed or stored is not lost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from pilotage.actors.catalog import Catalog
from pilotage.actors.catalog_model import Workflow
from pilotage.actors.runtime import Runtime
from pilotage.persistence.memory import MemoryServer, MemoryStore
from pilotage.runtime.ids import derived_run_id
from pilotage.settings import Settings
from tests.support.clock import FakeClock
from tests.support.waiting import wait_until

HOUR_MS = 3_600_000
ONE_OCLOCK_MS = 1_700_053_200_000

Start = Callable[[], Runtime]


@pytest.fixture
def clock() -> FakeClock:
    assert ONE_OCLOCK_MS % (24 * HOUR_MS) == 13 * HOUR_MS
    return FakeClock(ONE_OCLOCK_MS - 60_000)


@pytest.fixture
def server(clock: FakeClock) -> MemoryServer:
    return MemoryServer(clock_ms=clock.now_ms)


@pytest.fixture
def make(clock: FakeClock, server: MemoryServer, tmp_path: Path) -> Start:
    """A runtime on what the runtimes before it have stored."""
    settings = Settings(data_dir=tmp_path)
    return lambda: Runtime(settings=settings, store=MemoryStore(server), clock=clock)


async def at_one_oclock(runtime: Runtime) -> Workflow:
    steps = [{"step_ref": "a", "step_type": "approval"}]
    raw = {"name": "w", "steps": steps, "cron": "0 13 * * *"}
    parsed = await runtime.catalog.parse_workflow("p", raw)
    return await runtime.catalog.create_workflow(parsed, project_id="p", created_by="test")


async def has_run(server: MemoryServer, workflow: Workflow) -> None:
    run_id = derived_run_id(ONE_OCLOCK_MS, "cron", workflow.id, ONE_OCLOCK_MS)
    await wait_until(lambda: run_id in server.runs, "the run of one o'clock")


async def test_a_fire_time_that_passes_while_the_schedules_are_read_has_its_run(
    make: Start, clock: FakeClock, server: MemoryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make()
    await first.start()
    workflow = await at_one_oclock(first)
    await first.stop(0)
    all_workflows = Catalog.all_workflows

    async def slowly(self: Catalog) -> AsyncIterator[Workflow]:
        clock.advance_ms(120_000)
        async for found in all_workflows(self):
            yield found

    monkeypatch.setattr(Catalog, "all_workflows", slowly)
    second = make()
    await second.start()
    await has_run(server, workflow)
    await second.stop(0)


async def test_a_fire_time_that_passes_while_its_workflow_is_stored_has_its_run(
    make: Start, clock: FakeClock, server: MemoryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = make()
    await runtime.start()
    put_record = MemoryStore.put_record

    async def slowly(self: MemoryStore, *given: Any, **named: Any) -> None:
        await put_record(self, *given, **named)
        clock.advance_ms(120_000)

    monkeypatch.setattr(MemoryStore, "put_record", slowly)
    workflow = await at_one_oclock(runtime)
    monkeypatch.undo()
    await has_run(server, workflow)
    await runtime.stop(0)
