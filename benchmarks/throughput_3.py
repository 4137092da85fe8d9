"""throughput_3: runs of three steps in a row, as many as go through, beside the bare writes.

256 runs are under way at any time; each is triggered when one has ended (looked at every 10 ms).
Everything is durable (embedded store, append-only file, everysec). The floor writes the same
number of transitions in batches of the same average size to the same store, with nothing decided
and nothing executed.

runs_per_s         runs from trigger to end, a second
floor_runs_per_s   the bare writes, counted in runs
writes_per_batch   transitions of different runs that went out in one round trip, on average
cpu_ms_per_run     processor time of this process (not of the server)
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from benchmarks._actors import chain, check, left, make_workflow, running, start_run
from benchmarks.store_commit import Run as WrittenRun
from pilotage.actors.runtime import Runtime

NAME = "throughput_3"
STEPS, AT_ONCE, LOOK_SECS = 3, 256, 0.01


def _noop(_: dict[str, Any]) -> dict[str, int]:
    return {"ok": 1}


async def _drive(runtime: Runtime, flow: Any, count: int) -> tuple[float, float]:
    """Seconds, and processor seconds, for `count` runs, `AT_ONCE` at a time."""
    numbers = iter(range(count))
    made: list[str] = []

    async def one_after_another() -> None:
        for _ in numbers:
            made.append(await start_run(runtime, flow))
            await left(runtime, made[-1], LOOK_SECS)

    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(one_after_another() for _ in range(AT_ONCE)))
    took, cpu = time.perf_counter() - started, time.process_time() - cpu
    for run_id in made:
        await check(runtime, run_id)
    return took, cpu


async def _floor(runtime: Runtime, count: int, writes_per_run: float, per_batch: int) -> float:
    """Seconds for the same number of writes, `per_batch` in a round trip."""
    dice = random.Random(3)
    fence = await runtime.store.fence()
    runs = [WrittenRun(100_000 + n, dice) for n in range(count)]
    took = 0.0
    for k in range(0, count, per_batch):
        some = runs[k : k + per_batch]
        for number in range(round(writes_per_run)):
            batch = [run.create() if number == 0 else run.advance() for run in some]
            started = time.perf_counter()
            await runtime.store.commit(batch, fence)
            took += time.perf_counter() - started
    return took


async def _measure(size: str) -> dict[str, float]:
    count = 256 if size == "smoke" else 8_192
    async with running(inline_noop=_noop) as runtime:
        flow = await make_workflow(runtime, "three", chain(STEPS, "inline_noop"))
        await _drive(runtime, flow, 128)
        batches, writes = runtime.writer.batches, runtime.writer.writes
        took, cpu = await _drive(runtime, flow, count)
        batches, writes = runtime.writer.batches - batches, runtime.writer.writes - writes
        per_batch = max(1, round(writes / batches))
        floor = await _floor(runtime, count, writes / count, per_batch)
    return {
        "runs_per_s": count / took,
        "floor_runs_per_s": count / floor,
        "writes_per_batch": writes / batches,
        "cpu_ms_per_run": cpu / count * 1000,
    }


def run(size: str) -> dict[str, float]:
    return asyncio.run(_measure(size))
