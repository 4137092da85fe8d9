"""step_cost: does a step cost more in a large run than in a small one?

Processor time of this process (client, actors, executors, not the store) a step, over runs of
different sizes: a scaling curve. The jobs do nothing and run inline, so that all of the time is
ours. In small runs the share of making and ending the run is in the figure. Shapes:

fan     one step, then all the others side by side, then a join
mixed   four chains side by side after one step, then a join: as many steps at once in all sizes

SHAPE_step_us_SIZE         processor time a step, the least of the rounds
SHAPE_store_step_us_SIZE   processor time of the store a step, in the same round
ratio_5000_50              cost of a step in 5,000 against 50, the larger of the two shapes. Goal:
                           at most 1.5
"""

from __future__ import annotations

import asyncio
from typing import Any

from benchmarks._actors import Spent, finish, make_workflow, running, spent, start_run
from pilotage.actors.runtime import Runtime

NAME = "step_cost"
JOB = "inline_noop"
CHAINS = 4
SMALL, LARGE = 50, 5_000
CURVE = {"smoke": (SMALL, LARGE), "full": (10, SMALL, 250, 1_000, LARGE)}
ROUNDS = {"smoke": 1, "full": 4}
STEPS_A_ROUND = {"smoke": 500, "full": 2_000}


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


async def _step_us(
    runtime: Runtime, steps: list[dict[str, Any]], name: str, size: str
) -> tuple[float, float]:
    """(ours, the store's) of the round in which ours was least, after one to warm up."""
    flow = await make_workflow(runtime, name, steps)
    runs = max(1, STEPS_A_ROUND[size] // len(steps))
    rounds: list[Spent] = []
    for _ in range(1 + ROUNDS[size]):
        before = await spent(runtime)
        for _ in range(runs):
            await finish(runtime, await start_run(runtime, flow))
        rounds.append((await spent(runtime)).since(before))
    best = min(rounds[1:], key=lambda used: used.cpu)
    count = runs * len(steps)
    return best.cpu / count * 1e6, best.store_cpu / count * 1e6


async def _measure(size: str) -> dict[str, float]:
    figures: dict[str, float] = {}
    async with running(**{JOB: _noop}) as runtime:
        for shape in (fan, mixed):
            name = shape.__name__
            for steps in CURVE[size]:
                ours, stores = await _step_us(runtime, shape(steps), f"{name} {steps}", size)
                figures[f"{name}_step_us_{steps}"] = ours
                figures[f"{name}_store_step_us_{steps}"] = stores
    figures[f"ratio_{LARGE}_{SMALL}"] = max(
        figures[f"{name}_step_us_{LARGE}"] / figures[f"{name}_step_us_{SMALL}"]
        for name in ("fan", "mixed")
    )
    return figures


def run(size: str) -> dict[str, float]:
    return asyncio.run(_measure(size))
