"""A run that has had 50,000 items of history keeps them, says so once, and goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from pilotage.actors.principal import ADMIN
from pilotage.actors.runtime import Runtime
from pilotage.persistence.memory import MemoryServer, MemoryStore
from pilotage.runtime.status import RunStatus
from pilotage.runtime.validation import ParsedTrigger
from pilotage.settings import Settings
from tests.support.waiting import wait_until

LIMIT = 50_000
STEPS = [{"step_ref": "a", "step_type": "approval"}, {"step_ref": "b", "step_type": "approval"}]


async def items(runtime: Runtime, run_id: str, after: int) -> list[Any]:
    found = await runtime.gateway.history(run_id, ADMIN, after, 100)
    return [msgspec.json.decode(item) for item in found]


async def test_history_ends_with_one_truncated_item_and_the_run_goes_on(tmp_path: Path) -> None:
    contents = MemoryServer()
    settings = Settings(data_dir=tmp_path)
    runtime = Runtime(settings=settings, store=MemoryStore(contents))
    await runtime.start()
    parsed = await runtime.catalog.parse_workflow("p", {"name": "w", "steps": STEPS})
    flow = await runtime.catalog.create_workflow(parsed, project_id="p", created_by="test")
    run_id = (await runtime.gateway.trigger(flow, ParsedTrigger(), actor="test")).id
    before = (await items(runtime, run_id, 0))[-1]["seq"]
    for _ in range((LIMIT - before) // 2 + 5):
        await runtime.gateway.pause(run_id, ADMIN)
        await runtime.gateway.resume(run_id, ADMIN)
    last = await items(runtime, run_id, LIMIT - 3)
    assert [item["seq"] for item in last] == [LIMIT - 2, LIMIT - 1, LIMIT, LIMIT + 1]
    assert [item["type"] == "truncated" for item in last] == [False, False, False, True]
    assert "50000 items" in last[-1]["reason"]
    await runtime.gateway.approve(run_id, "a", ADMIN, None, "test")
    assert await items(runtime, run_id, LIMIT) == last[-1:]
    await runtime.stop(0)
    again = Runtime(settings=settings, store=MemoryStore(contents))
    await again.start()
    await again.gateway.approve(run_id, "b", ADMIN, None, "test")

    async def completed() -> bool:
        return (await again.gateway.get_run(run_id, ADMIN)).status is RunStatus.COMPLETED

    await wait_until(completed, "the run has completed")
    assert await items(again, run_id, LIMIT) == last[-1:]
    await again.stop(0)
