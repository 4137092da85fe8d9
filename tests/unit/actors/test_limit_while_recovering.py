"""A limit that is changed while runs are being recovered holds, though an older one was read."""

from __future__ import annotations

from pathlib import Path

import pytest

from pilotage.actors.runtime import Runtime
from pilotage.actors.slots import Slots
from pilotage.persistence.memory import MemoryServer, MemoryStore
from pilotage.runtime.status import RunStatus
from pilotage.runtime.validation import ParsedTrigger
from pilotage.settings import Settings
from tests.support.waiting import wait_until

PROJECT = "p"


async def test_a_limit_that_is_raised_meanwhile_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, settings = MemoryServer(), Settings(data_dir=tmp_path)
    first, second = (Runtime(settings=settings, store=MemoryStore(server)) for _ in range(2))
    await first.start()
    steps = [{"step_ref": "a", "step_type": "approval"}]
    raw = {"name": "w", "steps": steps, "max_concurrent_runs": 1}
    parsed = await first.catalog.parse_workflow(PROJECT, raw)
    flow = await first.catalog.create_workflow(parsed, project_id=PROJECT, created_by="test")
    runs = [await first.gateway.trigger(flow, ParsedTrigger(), actor="test") for _ in range(2)]
    assert [run.status for run in runs] == [RunStatus.RUNNING, RunStatus.PENDING]
    await first.stop(0)

    run_limit = Slots.run_limit

    async def before_the_change(self: Slots, workflow_id: str) -> int:
        limit = await run_limit(self, workflow_id)
        patch = await second.catalog.parse_patch(flow, {"max_concurrent_runs": 2})
        await second.catalog.update_workflow(flow, patch, updated_by="test")
        return limit

    monkeypatch.setattr(Slots, "run_limit", before_the_change)
    await second.start()
    await wait_until(
        lambda: {_status(second, run.id) for run in runs} == {RunStatus.RUNNING}, "both have a slot"
    )
    await second.stop(0)


def _status(runtime: Runtime, run_id: str) -> RunStatus | None:
    state = runtime.supervisor.published(run_id)
    return None if state is None else state.status
