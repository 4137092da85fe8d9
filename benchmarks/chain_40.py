"""chain_40: how long a run of 40 steps in a row takes, beside what its writes alone take.

Durable: every transition is acknowledged by the embedded store (append-only file, everysec) before
the next step starts. The floor is a bare loop that writes as often to the same store, in the same
minute, what such a run writes for a step (one field, one history item), each write acknowledged
before the next is sent.

median_ms         steps are no-op jobs that run inline
async_median_ms   steps are ordinary `async def` jobs (on the loop of the jobs)
floor_ms          the bare loop
writes            how many acknowledged writes a run needs
floor_ratio       median_ms / floor_ms
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from typing import Any

from benchmarks._actors import bare_writes, chain, finish, make_workflow, running, start_run
from benchmarks.store_commit import Run as WrittenRun
from pilotage.actors.runtime import Runtime

NAME = "chain_40"
STEPS = 40


def _noop(_: dict[str, Any]) -> dict[str, int]:
    return {"ok": 1}


async def _async_noop(_: dict[str, Any]) -> dict[str, int]:
    return {"ok": 1}


async def _one(runtime: Runtime, flow: Any) -> tuple[float, int]:
    """Milliseconds and acknowledged writes from the trigger to the end."""
    writes = runtime.writer.batches
    started = time.perf_counter()
    await finish(runtime, await start_run(runtime, flow))
    return (time.perf_counter() - started) * 1000, runtime.writer.batches - writes


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
    median, least = statistics.median(inline), statistics.median(floor)
    return {
        "median_ms": median,
        "async_median_ms": statistics.median(ordinary),
        "floor_ms": least,
        "writes": float(writes),
        "floor_ratio": median / least,
    }


def run(size: str) -> dict[str, float]:
    return asyncio.run(_measure(size))
