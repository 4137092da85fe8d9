"""step_cost: does a step cost more in a large run than in a small one?

Processor time of this process (client, actors, executors, not the server) for a step of a
5,000-step run against a step of a 50-step run, after warming up; the smoke size has 500 steps.
The jobs do nothing and run inline, so that all of the time is ours. Shapes:

fan     one step, then all the others side by side, then a join
mixed   10 chains side by side after one step, then a join: as many steps at once in both sizes

SHAPE_step_us_SIZE     processor time a step, the least of the rounds
ratio_5000_50          the larger of the two shapes' ratios. Goal: at most 1.5
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from benchmarks._actors import finish, make_workflow, running, start_run
from pilotage.actors.runtime import Runtime

NAME = "step_cost"
JOB = "inline_noop"
CHAINS = 10


def _noop(_: dict[str, Any]) -> None:
    return None


def fan(size: int) -> list[dict[str, Any]]:
    middle = [
        {"step_ref": f"m{i}", "job_id": JOB, "depends_on": ["first"]} for i in range(size - 2)
    ]
    refs = [step["step_ref"] for step in middle]
    first = {"step_ref": "first", "job_id": JOB}
    return [first, *middle, {"step_ref": "join", "job_id": JOB, "depends_on": refs}]


def mixed(size: int) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = [{"step_ref": "first", "job_id": JOB}]
    for i in range(size - 2):
        before = f"m{i - CHAINS}" if i >= CHAINS else "first"
        steps.append({"step_ref": f"m{i}", "job_id": JOB, "depends_on": [before]})
    ends = [f"m{i}" for i in range(size - 2 - CHAINS, size - 2)]
    return [*steps, {"step_ref": "join", "job_id": JOB, "depends_on": ends}]


async def _step_us(runtime: Runtime, steps: list[dict[str, Any]], name: str, rounds: int) -> float:
    flow = await make_workflow(runtime, name, steps)
    best = float("inf")
    for _ in range(rounds):
        at_once = max(1, 500 // len(steps))
        before = time.process_time()
        for _ in range(at_once):
            await finish(runtime, await start_run(runtime, flow))
        best = min(best, (time.process_time() - before) / at_once / len(steps) * 1e6)
    return best


async def _measure(size: str) -> dict[str, float]:
    large, rounds = (500, 2) if size == "smoke" else (5_000, 4)
    figures: dict[str, float] = {}
    async with running(**{JOB: _noop}) as runtime:
        ratios: list[float] = []
        for shape in (fan, mixed):
            name = shape.__name__
            small_us = await _step_us(runtime, shape(50), f"{name} 50", rounds + 2)
            large_us = await _step_us(runtime, shape(large), f"{name} {large}", rounds)
            figures[f"{name}_step_us_50"] = small_us
            figures[f"{name}_step_us_{large}"] = large_us
            ratios.append(large_us / small_us)
        figures[f"ratio_{large}_50"] = max(ratios)
    return figures


def run(size: str) -> dict[str, float]:
    return asyncio.run(_measure(size))
