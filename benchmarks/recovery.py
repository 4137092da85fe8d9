"""recovery: how fast a server has its runs again after it was killed with SIGKILL.

A server process fills the store with runs of five steps that wait for an approval with a deadline,
and is killed. A new process starts; the clock runs from the store's answer (it is a server of its
own that survives, its data loaded) until the runtime takes work: fence raised, every run in
memory and reachable, every timer armed. Then a server comes back, adds runs up to the next size,
and is killed as well. Each start that is measured is a new process; the median of some.

runs_per_s          the least of the sizes below. Goal: 12,000
runs_per_s_N        with N runs (full size: 10,000 and 100,000)
ready_ms_N          the whole of it
cpu_us_N            processor time of the new process a run
store_cpu_us_N      processor time of the store a run
floor_ms_N          a bare loop that reads the same records from the store and decodes nothing
"""

from __future__ import annotations

import asyncio
import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks._actors import Spent, spent_on
from benchmarks.idle_approvals import JOB, approval_flow, noop_part, park
from pilotage.actors.executors.python_jobs import JobRegistry
from pilotage.actors.runtime import Runtime
from pilotage.persistence.embedded import EmbeddedServer
from pilotage.persistence.redis_store import RedisStore
from pilotage.settings import Settings

NAME = "recovery"
RUNS = {"smoke": (1_000,), "full": (10_000, 100_000)}
ROUNDS = {"smoke": 1, "full": 3}
AT_ONCE = 500


def registry() -> JobRegistry:
    jobs = JobRegistry()
    jobs.register(noop_part, name=JOB, inline=True)
    return jobs


def fill(url: str, more: int, told: Connection) -> None:
    """The server that will be killed."""

    async def work() -> None:
        store = RedisStore(url)
        await store.open()
        await store.forget_lease()
        runtime = Runtime(settings=Settings(), registry=registry(), store=store)
        await runtime.start()
        flow = await approval_flow(runtime, f"approvals {more}")
        await park(runtime, flow, more)
        told.send(more)
        await asyncio.Event().wait()

    asyncio.run(work())


def killed_after_filling(url: str, more: int) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=fill, args=(url, more, theirs))
    server.start()
    theirs.close()
    try:
        ours.recv()
    finally:
        server.kill()
        server.join()


async def _read_only(url: str) -> float:
    """Seconds to read every record, with nothing made of it."""
    store = RedisStore(url)
    await store.open()
    started = time.perf_counter()
    ids = await store.active_run_ids()
    for k in range(0, len(ids), AT_ONCE):
        await store.load_runs(ids[k : k + AT_ONCE])
    took = time.perf_counter() - started
    await store.close()
    return took


async def _recovered(url: str, count: int) -> Spent:
    """Until everything is back. It ends as a kill would."""
    store = RedisStore(url)
    await store.open()
    await store.forget_lease()  # its owner is dead; waiting for the lease to end is no work
    runtime = Runtime(settings=Settings(), registry=registry(), store=store)
    before = await spent_on(store)
    await runtime.start()
    while len(runtime.timers) < count:  # noqa: ASYNC110 - the first moment at which all are
        await asyncio.sleep(0)
    used = (await spent_on(store)).since(before)
    if len(runtime.supervisor) != count:
        raise RuntimeError(f"{len(runtime.supervisor)} of {count} runs are back")
    await runtime.stop(0)
    return used


async def _in_this_store(folder: str, size: str) -> dict[str, float]:
    server = EmbeddedServer(Path(folder))
    url = await server.start()
    figures: dict[str, float] = {}
    there = 0
    try:
        for count in RUNS[size]:
            await asyncio.to_thread(killed_after_filling, url, count - there)
            there = count
            figures |= await _rounds(url, count, ROUNDS[size])
    finally:
        await server.stop()
    return {"runs_per_s": min(figures[f"runs_per_s_{count}"] for count in RUNS[size]), **figures}


async def _rounds(url: str, count: int, rounds: int) -> dict[str, float]:
    floor = min([await _read_only(url) for _ in range(2)])
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:  # each start is a new process
        starts = [
            await asyncio.to_thread(pool.apply, recovered, (url, count)) for _ in range(rounds)
        ]
    used = sorted(starts)[rounds // 2]
    return {
        f"runs_per_s_{count}": count / used.wall,
        f"ready_ms_{count}": used.wall * 1e3,
        f"cpu_us_{count}": used.cpu / count * 1e6,
        f"store_cpu_us_{count}": used.store_cpu / count * 1e6,
        f"floor_ms_{count}": floor * 1e3,
    }


def recovered(url: str, count: int) -> Spent:
    """In a process of its own, as a server that starts."""
    return asyncio.run(_recovered(url, count))


def run(size: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_in_this_store(folder, size))
