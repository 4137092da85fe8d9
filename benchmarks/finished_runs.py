"""finished_runs: what a run costs in the store once it has ended, and how fast it is removed.

Runs of five inline steps in a row, each with an input and an output of some fifty bytes. When all
have ended the store is asked; then their retention is over and all are removed.

store_bytes_per_run   growth of the store's memory a run, all in all
record_bytes          of which the run itself: head, vitals, steps, one compressed value
history_bytes         its history
job_runs_bytes        the records of its attempts
index_bytes           the rest: lists, retention, the keys' own overhead
removed_per_s         runs removed a second, by index, a hundred at a time
removed_store_cpu_us  processor time of the store a removed run
left_bytes            the store's memory that is not back when all are gone, a run
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from benchmarks._actors import make_workflow, running, spent, start_run
from pilotage.actors.catalog_model import Workflow
from pilotage.actors.runtime import Runtime
from pilotage.persistence import scripts
from pilotage.persistence.redis_store import RedisStore

NAME = "finished_runs"
RUNS = {"smoke": 1_000, "full": 50_000}
AT_ONCE = 200
STEPS = 5
JOB = "inline_ship"
BATCH = 100
SAMPLED = 50
FAR_MS: Final = 1 << 45
"""Later than every retention."""


def ship(_: dict[str, Any]) -> dict[str, Any]:
    return {"order": 42, "status": "shipped", "items": ["a", "b"]}


async def used(store: RedisStore) -> int:
    told: bytes = await store.link.read(scripts.MEMORY, [])
    known = dict(line.split(":", 1) for line in told.decode().splitlines() if ":" in line)
    return int(known["used_memory"])


async def shipping(runtime: Runtime) -> Workflow:
    chain = [
        {
            "step_ref": f"s{i}",
            "job_id": JOB,
            "payload": {"order": "{{ payload.order }}", "step": i},
            "depends_on": [f"s{i - 1}"] if i else [],
        }
        for i in range(STEPS)
    ]
    return await make_workflow(runtime, "shipping", chain)


async def make(runtime: Runtime, flow: Workflow, count: int) -> list[str]:
    """So many runs that have ended and have left memory."""
    ids: list[str] = []

    async def some(number: int) -> None:
        for _ in range(number):
            ids.append(await start_run(runtime, flow))
            while len(runtime.supervisor) > AT_ONCE:  # noqa: ASYNC110 - it is not measured
                await asyncio.sleep(0.001)

    await asyncio.gather(*(some(count // AT_ONCE) for _ in range(AT_ONCE)))
    while len(runtime.supervisor):  # noqa: ASYNC110 - the same
        await asyncio.sleep(0.01)
    return ids


async def sizes(store: RedisStore, ids: list[str]) -> dict[str, float]:
    """Mean bytes of the keys that belong to a run alone."""
    names = store.keys
    kinds = {
        "record_bytes": names.run,
        "history_bytes": names.history,
        "job_runs_bytes": names.job_runs,
    }
    some = ids[:: max(1, len(ids) // SAMPLED)]
    found: dict[str, float] = {}
    for kind, name in kinds.items():
        taken = [
            int(await store.link.command("MEMORY", "USAGE", name(run_id), "SAMPLES", 0))
            for run_id in some
        ]
        found[kind] = sum(taken) / len(taken)
    return found


async def remove_all(runtime: Runtime) -> int:
    store, fence, removed = runtime.store, await runtime.store.fence(), 0
    while expired := await store.expired_run_ids(FAR_MS, BATCH):
        removed += await store.delete_runs(expired, fence)
    return removed


async def measure(size: str) -> dict[str, float]:
    async with running(inline_ship=ship) as runtime:
        store = runtime.store
        assert isinstance(store, RedisStore)
        flow = await shipping(runtime)
        await make(runtime, flow, AT_ONCE)  # scripts, the workflow, the first of every index
        before = await used(store)
        ids = await make(runtime, flow, RUNS[size])
        growth = (await used(store) - before) / len(ids)
        parts = await sizes(store, ids)
        start = await spent(runtime)
        removed = await remove_all(runtime)
        took = (await spent(runtime)).since(start)
        left = await used(store) - before
    return {
        "store_bytes_per_run": growth,
        **parts,
        "index_bytes": growth - sum(parts.values()),
        "removed_per_s": removed / took.wall,
        "removed_store_cpu_us": took.store_cpu / removed * 1e6,
        "left_bytes": max(left, 0) / len(ids),
    }


def run(size: str) -> dict[str, float]:
    return asyncio.run(measure(size))
