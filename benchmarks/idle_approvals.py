"""idle_approvals: what a run costs that waits for a person, and how fast many are let go.

Runs of five steps: four inline jobs side by side with small outputs, then an approval with a
deadline (a timer is armed). All of them are resident: nothing is moved out of memory, each is as
small as an idle run gets after some seconds (no actor, its step states encoded). Then each is
approved by an in-process message, and the clock stops when the last one has ended, durably.

bytes_per_run         growth of this process's resident memory a run, without payload and outputs
payload_bytes         payload and outputs of a run, as JSON text
store_bytes_per_run   growth of the store's memory a run, all in all (state, history, job runs)
make_per_s            runs a second from trigger to parked
release_s             from the first approval to the end of the last run. Goal: 30 (full size)
release_per_s         the same as a rate
release_cpu_us        processor time of this process a released run
release_store_cpu_us  processor time of the store a released run
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks._actors import info, make_workflow, running, spent, start_run
from pilotage.actors.catalog_model import Workflow
from pilotage.actors.principal import ADMIN
from pilotage.actors.runtime import Runtime
from pilotage.persistence.redis_store import RedisStore
from pilotage.runtime.status import WaitingFor

NAME = "idle_approvals"
RUNS = {"smoke": 2_000, "full": 100_000}
AT_ONCE = 500
JOB = "inline_part"
PARTS = 4
PAYLOAD_BYTES = len('{"order":17}') + PARTS * len('{"part":1}')


def noop_part(_: dict[str, Any]) -> dict[str, int]:
    return {"part": 1}


async def approval_flow(runtime: Runtime, name: str = "approvals") -> Workflow:
    """Four steps side by side, then the approval."""
    parts = [{"step_ref": f"part{i}", "job_id": JOB} for i in range(PARTS)]
    gate = {
        "step_ref": "gate",
        "step_type": "approval",
        "approval_timeout_secs": 7 * 86_400,
        "depends_on": [part["step_ref"] for part in parts],
    }
    return await make_workflow(runtime, name, [*parts, gate])


async def in_turns(do: Callable[[Any], Awaitable[object]], items: Iterable[Any]) -> None:
    """Do it for each, `AT_ONCE` under way at any time."""
    left = iter(items)

    async def some() -> None:
        for item in left:
            await do(item)

    await asyncio.gather(*(some() for _ in range(AT_ONCE)))


async def park(runtime: Runtime, flow: Workflow, count: int) -> list[str]:
    """Runs that all wait for their approval, timers armed."""
    ids: list[str] = []

    async def one(_: int) -> None:
        ids.append(await start_run(runtime, flow))

    await in_turns(one, range(count))
    for run_id in ids:
        while not parked(runtime, run_id):  # noqa: ASYNC110 - an event would cost what is measured
            await asyncio.sleep(0.001)
    return ids


def parked(runtime: Runtime, run_id: str) -> bool:
    """Whether the run waits for its approval, as stored."""
    state = runtime.supervisor.published(run_id)
    return state is not None and state.step(PARTS).wait is WaitingFor.APPROVAL


async def folded(runtime: Runtime, count: int) -> None:
    """Wait until the runs are kept as idle ones are; all of them stay in memory."""
    while len(runtime.supervisor.idle) < count:  # noqa: ASYNC110 - as above
        await asyncio.sleep(0.1)


async def emptied(runtime: Runtime) -> None:
    """Wait until every run has ended and left memory."""
    while len(runtime.supervisor):  # noqa: ASYNC110 - as above
        await asyncio.sleep(0.001)


def resident_bytes() -> int:
    """Of this process, after giving back what is free."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def store_bytes(runtime: Runtime) -> int:
    assert isinstance(runtime.store, RedisStore)
    return int((await info(runtime.store, "memory"))["used_memory"])


async def _measure(size: str) -> dict[str, float]:
    count = RUNS[size]
    async with running(**{JOB: noop_part}) as runtime:
        flow = await approval_flow(runtime)
        for run_id in await park(runtime, flow, 50):  # what is made once is not a run's
            await runtime.gateway.approve(run_id, "gate", ADMIN, None, "warm")
        await emptied(runtime)
        memory, stored = resident_bytes(), await store_bytes(runtime)
        started = time.perf_counter()
        ids = await park(runtime, flow, count)
        made = time.perf_counter() - started
        await folded(runtime, count)
        memory, stored = resident_bytes() - memory, await store_bytes(runtime) - stored

        async def approve(run_id: str) -> None:
            await runtime.gateway.approve(run_id, "gate", ADMIN, None, "bench")

        before = await spent(runtime)
        await in_turns(approve, ids)
        await emptied(runtime)
        used = (await spent(runtime)).since(before)
    return {
        "bytes_per_run": memory / count - PAYLOAD_BYTES,
        "payload_bytes": float(PAYLOAD_BYTES),
        "store_bytes_per_run": stored / count,
        "make_per_s": count / made,
        "release_s": used.wall,
        "release_per_s": count / used.wall,
        "release_cpu_us": used.cpu / count * 1e6,
        "release_store_cpu_us": used.store_cpu / count * 1e6,
    }


def run(size: str) -> dict[str, float]:
    return asyncio.run(_measure(size))
