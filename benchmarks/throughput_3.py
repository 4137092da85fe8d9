"""throughput_3: runs of three steps in a row, as many as go through, beside the bare writes.

Up to 256 runs are under way at any time. Everything is durable (embedded store, append-only file,
everysec, history and job runs on). The floor is a bare loop that writes as many transitions in
batches of the same average size to the same store, with nothing decided and nothing executed; it
is measured before and after the runs and the mean of both counts.

runs_per_s              runs from trigger to end a second, sustained (full size: 30 s). In-process
                        triggers, inline jobs
async_runs_per_s        the same with ordinary `async def` jobs, on the loop of the jobs
rest_runs_per_s         the same with inline jobs, triggered by `POST` from another process over 32
                        connections: until the last of them has ended
floor_runs_per_s        the bare writes, counted in runs
floor_share             runs_per_s / floor_runs_per_s. Goal: 0.20
writes_per_batch        transitions of different runs that went out in one round trip, on average
cpu_us_per_run          processor time of this process (not of the store) a run
store_cpu_us_per_run    processor time of the store a run
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from benchmarks._actors import (
    PROJECT,
    Spent,
    chain,
    make_workflow,
    running,
    spent,
    start_run,
)
from benchmarks.http_api import TRIGGERING, started
from benchmarks.store_commit import Run as WrittenRun
from pilotage.actors.catalog_model import Workflow
from pilotage.actors.runtime import Runtime
from pilotage.runtime.status import RunStatus

NAME = "throughput_3"
STEPS, AT_ONCE = 3, 256
LOOK_SECS = 0.002
SECONDS = {"smoke": 1.0, "full": 30.0}
WRITES = STEPS + 1
SEED = 3
TRIGGER = '{"payload":{"order":17}}'


def _noop(_: dict[str, Any]) -> dict[str, int]:
    return {"ok": 1}


async def _async_noop(_: dict[str, Any]) -> dict[str, int]:
    return {"ok": 1}


async def drive(runtime: Runtime, flow: Workflow, secs: float) -> int:
    """Keep `AT_ONCE` runs under way for so long, then let them end; how many there were."""
    begun = 0
    under_way: set[asyncio.Task[str]] = set()
    until = time.perf_counter() + secs
    while True:
        if time.perf_counter() < until:
            for _ in range(AT_ONCE - len(runtime.supervisor)):
                task = asyncio.create_task(start_run(runtime, flow))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
                begun += 1
            await asyncio.sleep(0)  # the new ones are counted from here on
        elif not under_way and not len(runtime.supervisor):
            return begun
        await asyncio.sleep(LOOK_SECS)


async def timed(runtime: Runtime, flow: Workflow, secs: float) -> tuple[int, Spent]:
    """(runs, what they took); every one of them has completed."""
    completed = (await runtime.store.count_runs(PROJECT)).get(RunStatus.COMPLETED, 0)
    before = await spent(runtime)
    count = await drive(runtime, flow, secs)
    used = (await spent(runtime)).since(before)
    completed = (await runtime.store.count_runs(PROJECT))[RunStatus.COMPLETED] - completed
    if completed != count:
        raise RuntimeError(f"{completed} of {count} runs have completed")
    return count, used


async def _floor(runtime: Runtime, first: int, count: int, per_batch: int) -> float:
    """Seconds for the writes of so many runs, `per_batch` in a round trip."""
    dice = random.Random(SEED)
    fence = await runtime.store.fence()
    runs = [WrittenRun(first + n, dice) for n in range(count)]
    took = 0.0
    for k in range(0, count, per_batch):
        some = runs[k : k + per_batch]
        for number in range(WRITES):
            batch = [run.create() if number == 0 else run.advance() for run in some]
            began = time.perf_counter()
            await runtime.store.commit(batch, fence)
            took += time.perf_counter() - began
    return took


async def _over_rest(size: str) -> float:
    """Runs a second, triggered from this process in a server of its own, until all have ended."""
    count = 300 if size == "smoke" else 10_000
    with started("ours") as server:
        await server.connect()
        chain_of_3 = server.post(f"/v1/workflows/{server.where.chain_id}/trigger", TRIGGER)
        await server.burst(chain_of_3, TRIGGERING, TRIGGERING)
        began = time.perf_counter()
        await server.burst(chain_of_3, count, TRIGGERING)
        active = f"/v1/workflow-runs?project_id={PROJECT}&status=running&limit=1"
        active += f"&workflow_id={server.where.chain_id}"
        while b'"id"' in await server.ask(server.path(active)):  # noqa: ASYNC110
            await asyncio.sleep(LOOK_SECS)
        took = time.perf_counter() - began
        server.close()
    return (count - count % TRIGGERING) / took


async def _measure(size: str) -> dict[str, float]:
    secs = SECONDS[size]
    async with running(inline_noop=_noop, noop=_async_noop) as runtime:
        flow = await make_workflow(runtime, "three", chain(STEPS, "inline_noop"))
        other = await make_workflow(runtime, "three async", chain(STEPS, "noop"))
        warm, _ = await timed(runtime, flow, secs / 10)
        await drive(runtime, other, secs / 10)
        per_batch = max(1, round(runtime.writer.writes / runtime.writer.batches))
        floor = await _floor(runtime, 1_000_000, warm, per_batch)
        batches, writes = runtime.writer.batches, runtime.writer.writes
        count, used = await timed(runtime, flow, secs)
        batches, writes = runtime.writer.batches - batches, runtime.writer.writes - writes
        floor = (floor + await _floor(runtime, 2_000_000, warm, per_batch)) / 2
        async_count, async_used = await timed(runtime, other, secs / 5)
    rate, floor_rate = count / used.wall, warm / floor
    return {
        "runs_per_s": rate,
        "async_runs_per_s": async_count / async_used.wall,
        "rest_runs_per_s": await _over_rest(size),
        "floor_runs_per_s": floor_rate,
        "floor_share": rate / floor_rate,
        "writes_per_batch": writes / batches,
        "cpu_us_per_run": used.cpu / count * 1e6,
        "store_cpu_us_per_run": used.store_cpu / count * 1e6,
    }


def run(size: str) -> dict[str, float]:
    return asyncio.run(_measure(size))
