"""wfinstances: recorded executions of real scientific workflows, with their real graphs.

Each recording (WfFormat, JSON) becomes a workflow with one inline job a task that gives back the
task's name: what is left is the cost of the engine. The graphs are of all shapes: chains, forks and
joins of hundreds, several levels. Durable. Every step must have completed after its parents.

The recordings are not part of this repository; a folder `shared/data/wfinstances` beside it has
them. Without it `graphs` is 0 and that is all there is to say.

graphs            recordings that were run
steps             steps of all of them together
step_us           processor time of this process a step, over all graphs
store_step_us     processor time of the store a step
steps_per_s       steps a second, one run after the other
ms_GRAPH          one run from trigger to end, the median of the rounds
steps_GRAPH       its steps
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks._actors import PROJECT, left, running, spent, start_run
from pilotage.actors.catalog_model import Workflow
from pilotage.actors.executors.python_jobs import JobRegistry
from pilotage.actors.principal import ADMIN
from pilotage.actors.runtime import Runtime
from pilotage.cli.wfformat import WFFORMAT_JOB, convert

NAME = "wfinstances"
FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data" / "wfinstances"
ROUNDS = {"smoke": 1, "full": 15}


def _replay(given: dict[str, Any]) -> dict[str, Any]:
    return {"task": given["task"]}


async def _made(runtime: Runtime, text: str) -> Workflow:
    made = convert(json.loads(text))
    parsed = await runtime.catalog.parse_workflow(PROJECT, made.workflow)
    return await runtime.catalog.create_workflow(parsed, project_id=PROJECT, created_by="bench")


async def _once(runtime: Runtime, flow: Workflow) -> float:
    """Milliseconds from trigger to end; the run has completed, each step after its parents."""
    began = time.perf_counter()
    run_id = await start_run(runtime, flow)
    await left(runtime, run_id)
    took = (time.perf_counter() - began) * 1e3
    state = await runtime.gateway.get_run(run_id, ADMIN)
    if state.status != "completed":
        raise RuntimeError(f"{flow.slug}: run {run_id} is {state.status}: {state.vitals.error}")
    for i, parents in enumerate(state.graph.deps):
        began_ms = state.step(i).started_at_ms or 0
        if any((state.step(parent).finished_at_ms or 0) > began_ms for parent in parents):
            raise RuntimeError(f"{flow.slug}: step {i} of {run_id} began before its parents' end")
    return took


async def _measure(texts: dict[str, str], rounds: int) -> dict[str, float]:
    took: dict[str, list[float]] = {}
    sizes: dict[str, int] = {}
    registry = JobRegistry()
    registry.register(_replay, name=WFFORMAT_JOB, inline=True)
    async with running(registry) as runtime:
        flows = {path: await _made(runtime, text) for path, text in texts.items()}
        for flow in flows.values():  # warm up
            await _once(runtime, flow)
        before = await spent(runtime)
        for _ in range(rounds):
            for name, flow in flows.items():
                took.setdefault(name, []).append(await _once(runtime, flow))
                sizes[name] = len(flow.spec.steps)
        used = (await spent(runtime)).since(before)
    steps = sum(sizes.values())
    figures: dict[str, float] = {
        "graphs": len(texts),
        "steps": steps,
        "step_us": used.cpu / rounds / steps * 1e6,
        "store_step_us": used.store_cpu / rounds / steps * 1e6,
        "steps_per_s": steps * rounds / used.wall,
    }
    for name, values in took.items():
        figures[f"ms_{name}"] = statistics.median(values)
        figures[f"steps_{name}"] = sizes[name]
    return figures


def run(size: str) -> dict[str, float]:
    texts = {
        re.sub(r"[^a-z0-9]+", "_", path.stem.lower()): path.read_text()
        for path in sorted(FOLDER.glob("*.json"))
    }
    if not texts:
        print(f"  no recordings in {FOLDER}: nothing measured", file=sys.stderr)
        return {"graphs": 0.0}
    return asyncio.run(_measure(texts, ROUNDS[size]))
