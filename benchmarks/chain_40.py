"""chain_40: how long a run of 40 steps in a row takes, beside what its writes alone take.

Durable: every transition is acknowledged by the embedded store (append-only file, everysec) before
the next step starts. The floor is a bare loop that writes as often to the same store, in the same
minute, what such a run writes for a step (one field, one history item), each write acknowledged
before the next is sent.

median_ms               steps are no-op jobs that run inline
async_median_ms         steps are ordinary `async def` jobs (on the loop of the jobs)
floor_ms                the bare loop
floor_ratio             median_ms / floor_ms. Goal: 2.3
writes                  how many acknowledged writes a run needs
cpu_us_per_step         processor time of this process (not of the store) a step, inline jobs
store_cpu_us_per_step   processor time of the store a step
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from typing import Any

from benchmarks._actors import (
    Spent,
    bare_writes,
    chain,
    check,
    finish,
    left,
    make_workflow,
    running,
    spent,
    start_run,
)
from benchmarks.store_commit import Run as WrittenRun
from pilotage.actors.catalog_model import Workflow
from pilotage.actors.runtime import Runtime

NAME = "chain_40"
STEPS = 40


def _noop(_: dict[str, Any]) -> dict[str, int]:
    return {"ok": 1}


async def _async_noop(_: dict[str, Any]) -> dict[str, int]:
    return {"ok": 1}


async def _one(runtime: Runtime, flow: Workflow) -> tuple[float, int]:
    """Milliseconds and acknowledged writes from the trigger to the end."""
    writes = runtime.writer.batches
    started = time.perf_counter()
    run_id = await start_run(runtime, flow)
    await left(runtime, run_id)
    took = (time.perf_counter() - started) * 1000
    await check(runtime, run_id)
    return took, runtime.writer.batches - writes


async def _costs(runtime: Runtime, flow: Workflow, count: int) -> Spent:
    before = await spent(runtime)
    for _ in range(count):
        await finish(runtime, await start_run(runtime, flow))
    return (await spent(runtime)).since(before)


async def _floor(runtime: Runtime, number: int, writes: int) -> float:
    run = WrittenRun(number, random.Random(number))
    first = [run.create()]
    rest = [run.advance() for _ in range(writes - 1)]
    return await bare_writes(runtime, first + rest) * 1000


async def _measure(size: str) -> dict[str, float]:
    rounds = 5 if size == "smoke" else 60
    inline: list[float] = []
    ordinary: list[float] = []
    floor: list[float] = []
    writes = 0
    async with running(inline_noop=_noop, noop=_async_noop) as runtime:
        flow = await make_workflow(runtime, "inline", chain(STEPS, "inline_noop"))
        other = await make_workflow(runtime, "async", chain(STEPS, "noop"))
        for number in range(rounds + 3):
            took, writes = await _one(runtime, flow)
            took_async, _ = await _one(runtime, other)
            took_floor = await _floor(runtime, number, writes)
            if number >= 3:  # warm by then
                inline.append(took)
                ordinary.append(took_async)
                floor.append(took_floor)
        used = await _costs(runtime, flow, rounds)
    median, least = statistics.median(inline), statistics.median(floor)
    return {
        "median_ms": median,
        "async_median_ms": statistics.median(ordinary),
        "floor_ms": least,
        "floor_ratio": median / least,
        "writes": float(writes),
        "cpu_us_per_step": used.cpu / rounds / STEPS * 1e6,
        "store_cpu_us_per_step": used.store_cpu / rounds / STEPS * 1e6,
    }


def run(size: str) -> dict[str, float]:
    return asyncio.run(_measure(size))
