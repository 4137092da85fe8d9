"""fan_out: does a step cost more when a thousand wait beside it than when a hundred do?

One root, N steps side by side of which at most 10 may run at once (`max_parallel_steps`), one join.
The jobs do nothing and run inline. Everything is durable (embedded store, append-only file,
everysec). Rounds of both sizes take turns.

small_step_us, large_step_us   processor time of this process a step, N = 100 and N = 1,000
cost_ratio                     large / small, median of the rounds. Goal: 1.3
small_ms                       one run of 100 from trigger to end
"""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

from benchmarks._actors import PROJECT, finish, running, start_run
from pilotage.actors.catalog_model import Workflow
from pilotage.actors.runtime import Runtime

NAME = "fan_out"
SMALL, LARGE, LIMIT = 100, 1_000, 10
JOB = "inline_noop"
ROUNDS = {"smoke": 2, "full": 15}


def noop(_: dict[str, Any]) -> dict[str, int]:
    return {"ok": 1}


async def fan(runtime: Runtime, width: int, job: str = JOB) -> Workflow:
    """The workflow of that width."""
    middle: list[dict[str, Any]] = [
        {"step_ref": f"m{i}", "job_id": job, "depends_on": ["root"]} for i in range(width)
    ]
    join = {"step_ref": "join", "job_id": job, "depends_on": [step["step_ref"] for step in middle]}
    spec = {
        "name": f"fan {width} {job}",
        "max_parallel_steps": LIMIT,
        "steps": [{"step_ref": "root", "job_id": job}, *middle, join],
    }
    parsed = await runtime.catalog.parse_workflow(PROJECT, spec)
    return await runtime.catalog.create_workflow(parsed, project_id=PROJECT, created_by="bench")


async def timed(runtime: Runtime, flow: Workflow, times: int = 1) -> tuple[float, float]:
    """(milliseconds, processor milliseconds) of one run, of `times` one after another."""
    started, used = time.perf_counter(), time.process_time()
    for _ in range(times):
        await finish(runtime, await start_run(runtime, flow))
    took, cpu = time.perf_counter() - started, time.process_time() - used
    return took * 1e3 / times, cpu * 1e3 / times


async def _measure(size: str) -> dict[str, float]:
    async with running(**{JOB: noop}) as runtime:
        small, large = await fan(runtime, SMALL), await fan(runtime, LARGE)
        await timed(runtime, small, 5)
        await timed(runtime, large)
        small_us: list[float] = []
        large_us: list[float] = []
        small_ms: list[float] = []
        for _ in range(ROUNDS[size]):
            took, cpu = await timed(runtime, small, LARGE // SMALL)
            small_ms.append(took)
            small_us.append(cpu * 1e3 / (SMALL + 2))
            _, cpu = await timed(runtime, large)
            large_us.append(cpu * 1e3 / (LARGE + 2))
    return {
        "small_step_us": statistics.median(small_us),
        "large_step_us": statistics.median(large_us),
        "cost_ratio": statistics.median(b / a for a, b in zip(small_us, large_us, strict=True)),
        "small_ms": statistics.median(small_ms),
    }


def run(size: str) -> dict[str, float]:
    return asyncio.run(_measure(size))
