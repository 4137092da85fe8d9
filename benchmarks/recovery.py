"""recovery: how fast a server has its runs again after it was killed with SIGKILL.

A server process fills the store with runs of five steps that wait for an approval with a deadline,
and is killed. A new process starts; the clock runs from the store's answer (it is a server of its
own that survives, its data loaded) until the runtime takes work: fence raised, every run in
memory and reachable, every timer armed.

runs_per_s     Goal: 12,000
ready_ms       the whole of it
cpu_us         processor time of the new process a run
floor_ms       a bare loop that reads the same records from the store and decodes nothing
"""

from __future__ import annotations

import asyncio
import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.idle_approvals import JOB, approval_flow, noop_part, park
from pilotage.actors.executors.python_jobs import JobRegistry
from pilotage.actors.runtime import Runtime
from pilotage.persistence.embedded import EmbeddedServer
from pilotage.persistence.redis_store import RedisStore
from pilotage.settings import Settings

NAME = "recovery"
RUNS = {"smoke": 1_000, "full": 10_000}
ROUNDS = {"smoke": 1, "full": 5}
AT_ONCE = 500


def registry() -> JobRegistry:
    jobs = JobRegistry()
    jobs.register(noop_part, name=JOB, inline=True)
    return jobs


def fill(url: str, count: int, told: Connection) -> None:
    """The server that will be killed."""

    async def work() -> None:
        runtime = Runtime(settings=Settings(), registry=registry(), store=RedisStore(url))
        await runtime.start()
        await park(runtime, await approval_flow(runtime), count)
        told.send(count)
        await asyncio.Event().wait()

    asyncio.run(work())


def killed_after_filling(url: str, count: int) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=fill, args=(url, count, theirs))
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


async def _recovered(url: str, count: int) -> tuple[float, float]:
    """(seconds, processor seconds) until everything is back. It ends as a kill would."""
    store = RedisStore(url)
    await store.open()
    await store.forget_lease()  # its owner is dead; waiting for the lease to end is no work
    runtime = Runtime(settings=Settings(), registry=registry(), store=store)
    started, used = time.perf_counter(), time.process_time()
    await runtime.start()
    while len(runtime.timers) < count:  # noqa: ASYNC110 - the first moment at which all are
        await asyncio.sleep(0)
    took, cpu = time.perf_counter() - started, time.process_time() - used
    if len(runtime.supervisor) != count:
        raise RuntimeError(f"{len(runtime.supervisor)} of {count} runs are back")
    await runtime.stop(0)
    return took, cpu


async def _in_this_store(folder: str, size: str) -> dict[str, float]:
    count = RUNS[size]
    server = EmbeddedServer(Path(folder))
    url = await server.start()
    try:
        await asyncio.to_thread(killed_after_filling, url, count)
        floor = min([await _read_only(url) for _ in range(2)])
        context = multiprocessing.get_context("spawn")
        rounds: list[tuple[float, float]] = []
        with context.Pool(1, maxtasksperchild=1) as pool:  # each start is a new process
            rounds += [
                await asyncio.to_thread(pool.apply, recovered, (url, count))
                for _ in range(ROUNDS[size])
            ]
    finally:
        await server.stop()
    took, cpu = sorted(rounds)[len(rounds) // 2]
    return {
        "runs_per_s": count / took,
        "ready_ms": took * 1e3,
        "cpu_us": cpu / count * 1e6,
        "floor_ms": floor * 1e3,
    }


def recovered(url: str, count: int) -> tuple[float, float]:
    """In a process of its own, as a server that starts."""
    return asyncio.run(_recovered(url, count))


def run(size: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_in_this_store(folder, size))
