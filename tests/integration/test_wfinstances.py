"""Recorded executions of real scientific workflows run to their end, in the order they demand.

The recordings are not part of this repository; `shared/data/wfinstances` beside it has them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pilotage.actors.executors.python_jobs import JobRegistry
from pilotage.actors.principal import ADMIN
from pilotage.actors.runtime import Runtime
from pilotage.cli.wfformat import WFFORMAT_JOB, convert
from pilotage.persistence.redis_store import RedisStore
from pilotage.runtime.status import StepStatus
from pilotage.runtime.validation import ParsedTrigger
from pilotage.settings import Settings
from tests.support.waiting import wait_until

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data" / "wfinstances"
FILES = sorted(FOLDER.glob("*.json"))


def test_there_are_recordings() -> None:
    if not FOLDER.is_dir():
        pytest.skip("no recordings: shared/data/wfinstances is not beside the repository")
    assert len(FILES) == 8 or len(FILES) == 9


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
async def test_a_recorded_execution_completes_each_step_after_its_parents(
    path: Path, valkey_url: str, tmp_path: Path
) -> None:
    order: list[str] = []

    def replay(given: dict[str, Any]) -> dict[str, Any]:
        order.append(given["task"])
        return {"task": given["task"]}

    registry = JobRegistry()
    registry.register(replay, name=WFFORMAT_JOB, inline=True)
    settings = Settings(data_dir=tmp_path)
    runtime = Runtime(settings=settings, registry=registry, store=RedisStore(valkey_url))
    await runtime.start()
    made = convert(json.loads(path.read_text()))
    parsed = await runtime.catalog.parse_workflow("p", made.workflow)
    flow = await runtime.catalog.create_workflow(parsed, project_id="p", created_by="test")
    run = await runtime.gateway.trigger(flow, ParsedTrigger(), actor="test")

    async def ended() -> bool:
        return (await runtime.gateway.get_run(run.id, ADMIN)).status.is_terminal

    await wait_until(ended, f"{path.name} ended", within_secs=50)
    state = await runtime.gateway.get_run(run.id, ADMIN)
    assert state.status == "completed", state.vitals.error
    assert {step.status for step in state.steps()} == {StepStatus.COMPLETED}
    steps = made.workflow["steps"]
    task_of = {step["step_ref"]: step["payload"]["task"] for step in steps}
    assert sorted(order) == sorted(task_of.values())  # each once
    place = {task: n for n, task in enumerate(order)}
    for step in steps:
        for parent in step.get("depends_on", ()):
            assert place[task_of[parent]] < place[task_of[step["step_ref"]]]
    await runtime.stop(0)
