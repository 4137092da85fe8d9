"""chain_40: how long a run of 40 steps in a row takes, beside what its writes alone take.

Durable: every transition is acknowledged by the embedded store (append-only file, everysec) before
the next step starts. The floor is a bare loop that sends the very writes of such a run (recorded
once, under other ids) to the same store, in the same minute, each acknowledged before the next is
sent; nothing is decided or encoded there.

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
import statistics
import time
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import msgspec

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
from pilotage.actors.catalog_model import Workflow
from pilotage.actors.runtime import Runtime
from pilotage.persistence.port import RunWrite, Verdict
from pilotage.runtime.ids import make_run_id

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


async def _writes_of(runtime: Runtime, flow: Workflow) -> list[RunWrite]:
    """What a run of the workflow writes, in order."""
    kept: list[RunWrite] = []
    commit = runtime.store.commit

    async def commit_and_keep(batch: Sequence[RunWrite], fence: int) -> list[Verdict]:
        kept.extend(batch)
        return await commit(batch, fence)

    with patch.object(runtime.store, "commit", commit_and_keep):
        await finish(runtime, await start_run(runtime, flow))
    return kept


async def _floor(runtime: Runtime, number: int, writes: list[RunWrite]) -> float:
    run_id = make_run_id(writes[0].index.created_at_ms, number)
    same = [msgspec.structs.replace(write, run_id=run_id) for write in writes]
    return await bare_writes(runtime, same) * 1000


async def _measure(size: str) -> dict[str, float]:
    rounds = 5 if size == "smoke" else 60
    inline: list[float] = []
    ordinary: list[float] = []
    floor: list[float] = []
    writes = 0
    async with running(inline_noop=_noop, noop=_async_noop) as runtime:
        flow = await make_workflow(runtime, "inline", chain(STEPS, "inline_noop"))
        other = await make_workflow(runtime, "async", chain(STEPS, "noop"))
        same = await _writes_of(runtime, flow)
        for number in range(rounds + 3):
            took, writes = await _one(runtime, flow)
            took_async, _ = await _one(runtime, other)
            took_floor = await _floor(runtime, number, same)
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
