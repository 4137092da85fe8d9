"""What benchmarks of whole runs share: a runtime on a durable store, and a bare loop of writes."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pilotage.actors.catalog_model import Workflow
from pilotage.actors.executors.python_jobs import JobRegistry
from pilotage.actors.principal import ADMIN
from pilotage.actors.runtime import Runtime
from pilotage.persistence.port import RunWrite, Verdict
from pilotage.persistence.redis_store import RedisStore
from pilotage.runtime.validation import ParsedTrigger
from pilotage.settings import Settings

PROJECT = "bench"
LOOK_SECS = 0.0005
"""How often somebody who waits for a run looks: looking costs what is measured."""


class Spent(NamedTuple):
    """Seconds since some moment in the past: of the clock, of this process's processor time, of
    the store's. Subtract two of them.
    """

    wall: float
    cpu: float
    store_cpu: float

    def since(self, before: Spent) -> Spent:
        return Spent(*(now - then for now, then in zip(self, before, strict=True)))


async def spent(runtime: Runtime) -> Spent:
    """Asks the store, so not within what is measured to the microsecond."""
    assert isinstance(runtime.store, RedisStore)
    return await spent_on(runtime.store)


async def info(store: RedisStore, section: str) -> dict[str, str]:
    """What the store's server says of itself."""
    text: bytes = await store.link.command("INFO", section)
    lines = text.decode().splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


async def spent_on(store: RedisStore) -> Spent:
    used = await info(store, "cpu")
    store_cpu = float(used["used_cpu_user"]) + float(used["used_cpu_sys"])
    return Spent(time.perf_counter(), time.process_time(), store_cpu)


@asynccontextmanager
async def running(
    registry: JobRegistry | None = None, /, **jobs: Callable[..., Any]
) -> AsyncGenerator[Runtime]:
    """A runtime with the embedded store (append-only file, everysec). Jobs whose name starts with
    `inline_` run on the actors' loop.
    """
    registry = registry or JobRegistry()
    for name, job in jobs.items():
        registry.register(job, name=name, inline=name.startswith("inline_"))
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder), allow_private_endpoints=True)
        runtime = Runtime(settings=settings, registry=registry)
        await runtime.start()
        try:
            yield runtime
        finally:
            await runtime.stop(0)


async def make_workflow(
    runtime: Runtime, name: str, steps: list[dict[str, Any]], **rest: Any
) -> Workflow:
    definition = {"name": name, "steps": steps, **rest}
    parsed = await runtime.catalog.parse_workflow(PROJECT, definition)
    return await runtime.catalog.create_workflow(parsed, project_id=PROJECT, created_by="bench")


async def start_run(runtime: Runtime, flow: Workflow) -> str:
    trigger = ParsedTrigger(payload={"order": 17})
    return (await runtime.gateway.trigger(flow, trigger, actor="bench")).id


async def left(runtime: Runtime, run_id: str, look_secs: float = LOOK_SECS) -> None:
    """Wait until the run has ended, without looking at the store on the way."""
    while (state := runtime.supervisor.published(run_id)) is not None:
        if state.status.is_terminal:
            break
        await asyncio.sleep(look_secs)


async def check(runtime: Runtime, run_id: str) -> None:
    state = await runtime.gateway.get_run(run_id, ADMIN)
    if state.status != "completed":
        raise RuntimeError(f"run {run_id} is {state.status}: {state.vitals.error}")


async def finish(runtime: Runtime, run_id: str) -> None:
    """Wait for the end of the run, and see that it has completed."""
    await left(runtime, run_id)
    await check(runtime, run_id)


def chain(count: int, job: str) -> list[dict[str, Any]]:
    """Steps in a row, each after the one before."""
    return [
        {"step_ref": f"s{i}", "job_id": job, **({"depends_on": [f"s{i - 1}"]} if i else {})}
        for i in range(count)
    ]


async def bare_writes(runtime: Runtime, writes: list[RunWrite]) -> float:
    """Seconds for these writes one after another, each acknowledged before the next is sent."""
    fence = await runtime.store.fence()
    started = time.perf_counter()
    for write in writes:
        verdicts = await runtime.store.commit([write], fence)
        if verdicts != [Verdict.OK]:
            raise RuntimeError(f"the bare write {write.seq} was refused: {verdicts}")
    return time.perf_counter() - started
