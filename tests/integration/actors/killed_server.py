"""A runtime in a process of its own, to be killed: `python -m … DATA_DIR LOG NUMBER_OF_RUNS`.

Jobs append `run step attempt` to the log. Acknowledged commands and completed steps as the store
has acknowledged them are reported on standard output, one line each, before anything else
happens.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from pilotage.actors.catalog_model import Workflow
from pilotage.actors.executors.job_context import JobContext
from pilotage.actors.executors.python_jobs import JobRegistry
from pilotage.actors.principal import ADMIN
from pilotage.actors.run_actor import RunActor
from pilotage.actors.runtime import Runtime
from pilotage.persistence.port import Verdict
from pilotage.runtime.status import StepStatus
from pilotage.runtime.validation import ParsedTrigger
from pilotage.settings import Settings

STEPS = 12


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def steps() -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = [{"step_ref": "s0", "job_id": "mark"}]
    for i in range(1, STEPS):
        kind = {"step_type": "sleep", "sleep_duration_secs": 0.01} if i % 5 == 4 else {}
        kind = kind or {"job_id": "limited" if i % 3 == 1 else "mark"}
        made.append({"step_ref": f"s{i}", "depends_on": [f"s{(i - 1) // 2}"], **kind})
    child = {"step_type": "sub_workflow", "sub_workflow_id": "child"}
    return [*made, {"step_ref": "sub", "depends_on": ["s3"], **child}]


def report_what_is_stored() -> None:
    """After each acknowledged write: which steps of the run the store has as completed."""
    stored = RunActor.stored
    said: set[tuple[str, int]] = set()

    def and_say(self: RunActor, verdict: Verdict) -> None:
        if verdict is Verdict.OK:
            state = self._working
            for i, step in enumerate(state.steps()):
                if step.status is StepStatus.COMPLETED and (state.id, i) not in said:
                    said.add((state.id, i))
                    say("stored", state.id, state.graph.steps[i].step_ref)
        stored(self, verdict)

    RunActor.stored = and_say  # type: ignore[method-assign]


async def main(data_dir: Path, log: Path, count: int) -> None:
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def mark(_: dict[str, Any], ctx: JobContext) -> None:
        os.write(fd, f"{ctx.run_id} {ctx.step_ref} {ctx.attempt}\n".encode())

    registry = JobRegistry()
    registry.register(mark, name="mark", inline=True)
    registry.register(mark, name="limited", max_concurrency=2)
    runtime = Runtime(settings=Settings(data_dir=data_dir), registry=registry)
    report_what_is_stored()
    await runtime.start()
    catalog = runtime.catalog
    child = {"name": "child", "steps": [{"step_ref": "c", "job_id": "mark"}]}
    parent = {"name": "parent", "steps": steps(), "max_concurrent_runs": 8}
    flows: dict[str, Workflow] = {}
    for raw in (child, parent):
        try:
            flows[str(raw["name"])] = await catalog.workflow("p", str(raw["name"]))
        except Exception:  # noqa: BLE001  it is the first start
            parsed = await catalog.parse_workflow("p", raw)
            made = await catalog.create_workflow(parsed, project_id="p", created_by="test")
            flows[str(raw["name"])] = made
    say("ready")
    for _ in range(count):
        view = await runtime.gateway.trigger(flows["parent"], ParsedTrigger(), actor="test")
        say("triggered", view.id)
    while len(runtime.supervisor):
        await asyncio.sleep(0.005)
    say("done")
    for line in sys.stdin:
        run_id = line.strip()
        say("status", run_id, (await runtime.gateway.get_run(run_id, ADMIN)).status.value)
    await runtime.stop(0)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
