"""A fire time that comes while the schedules are being armed is not lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

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


async def test_a_fire_time_that_passes_while_the_schedules_are_read_has_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ONE_OCLOCK_MS % (24 * HOUR_MS) == 13 * HOUR_MS
    clock = FakeClock(ONE_OCLOCK_MS - 60_000)
    server = MemoryServer(clock_ms=clock.now_ms)
    settings = Settings(data_dir=tmp_path)
    first = Runtime(settings=settings, store=MemoryStore(server), clock=clock)
    await first.start()
    steps = [{"step_ref": "a", "step_type": "approval"}]
    raw = {"name": "w", "steps": steps, "cron": "0 13 * * *"}
    parsed = await first.catalog.parse_workflow("p", raw)
    workflow = await first.catalog.create_workflow(parsed, project_id="p", created_by="test")
    await first.stop(0)
    all_workflows = Catalog.all_workflows

    async def slowly(self: Catalog) -> AsyncIterator[Workflow]:
        clock.advance_ms(120_000)
        async for found in all_workflows(self):
            yield found

    monkeypatch.setattr(Catalog, "all_workflows", slowly)
    second = Runtime(settings=settings, store=MemoryStore(server), clock=clock)
    await second.start()
    run_id = derived_run_id(ONE_OCLOCK_MS, "cron", workflow.id, ONE_OCLOCK_MS)
    await wait_until(lambda: run_id in server.runs, "the run of one o'clock")
    await second.stop(0)
