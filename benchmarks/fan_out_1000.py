"""fan_out_1000: a run of a thousand steps side by side, ten at a time, from trigger to end.

The workflow is that of `fan_out`: root, 1,000 steps, join. Durable (embedded store, append-only
file, everysec).

median_ms         no-op jobs that run inline. Goal: 400 on an idle machine
async_median_ms   ordinary `async def` jobs, on the loop of the jobs
cpu_ms            processor time of this process in a run of inline jobs
store_cpu_ms      processor time of the store in such a run
writes            round trips to the store in a run of inline jobs
"""

from __future__ import annotations

import asyncio
import statistics
from typing import Any

from benchmarks._actors import running, spent
from benchmarks.fan_out import JOB, LARGE, fan, noop, timed

NAME = "fan_out_1000"
ROUNDS = {"smoke": 2, "full": 20}


async def _async_noop(_: dict[str, Any]) -> dict[str, int]:
    return {"ok": 1}


async def _measure(size: str) -> dict[str, float]:
    inline: list[tuple[float, float]] = []
    ordinary: list[float] = []
    writes: list[int] = []
    store_cpu: list[float] = []
    async with running(**{JOB: noop, "noop": _async_noop}) as runtime:
        flow, other = await fan(runtime, LARGE), await fan(runtime, LARGE, "noop")
        await timed(runtime, flow)
        await timed(runtime, other)
        for _ in range(ROUNDS[size]):
            before, used = runtime.writer.batches, await spent(runtime)
            inline.append(await timed(runtime, flow))
            store_cpu.append((await spent(runtime)).since(used).store_cpu * 1e3)
            writes.append(runtime.writer.batches - before)
            ordinary.append((await timed(runtime, other))[0])
    return {
        "median_ms": statistics.median(took for took, _ in inline),
        "async_median_ms": statistics.median(ordinary),
        "cpu_ms": statistics.median(cpu for _, cpu in inline),
        "store_cpu_ms": statistics.median(store_cpu),
        "writes": statistics.median(writes),
    }


def run(size: str) -> dict[str, float]:
    return asyncio.run(_measure(size))
