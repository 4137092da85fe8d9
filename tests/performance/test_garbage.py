"""Nothing on the hot path waits for the garbage collector: what a run used is freed as it ends."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from benchmarks._actors import chain, left, make_workflow, start_run
from pilotage.actors.collector import PYTHONS_OWN, THRESHOLDS, without_collection
from pilotage.actors.executors.job_context import JobContext
from pilotage.actors.executors.python_jobs import JobRegistry
from pilotage.actors.principal import ADMIN
from pilotage.actors.runtime import Runtime
from pilotage.persistence.memory import MemoryStore
from pilotage.settings import Settings
from tests.support.waiting import wait_until

RUNS = 30
GATE = {"step_ref": "gate", "step_type": "approval", "approval_timeout_secs": 3_600}


def inline(_: dict[str, Any]) -> int:
    return 1


def told(_: dict[str, Any], ctx: JobContext) -> int:
    ctx.log("begun")
    ctx.progress(50)
    return 1


async def coroutine(_: dict[str, Any]) -> int:
    return 1


@asynccontextmanager
async def running() -> AsyncGenerator[Runtime]:
    registry = JobRegistry()
    registry.register(inline, name="inline", inline=True)
    registry.register(told, name="told", inline=True)
    registry.register(coroutine, name="coroutine")
    runtime = Runtime(settings=Settings(), registry=registry, store=MemoryStore())
    await runtime.start()
    try:
        yield runtime
    finally:
        await runtime.stop(0)


@contextmanager
def garbage() -> Generator[Counter[str]]:
    """Filled with the types of ours that only the collector could free."""
    found: Counter[str] = Counter()
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        kinds: list[type[object]] = [type(thing) for thing in gc.garbage]
        found.update(k.__qualname__ for k in kinds if k.__module__.startswith("pilotage"))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


@pytest.mark.parametrize("kind", ["inline", "told", "coroutine", "approval"])
async def test_a_run_that_has_ended_is_freed_without_the_collector(kind: str) -> None:
    async with running() as runtime:
        steps = [GATE] if kind == "approval" else chain(3, kind)
        flow = await make_workflow(runtime, "flow", steps)

        async def some() -> None:
            for _ in range(RUNS):
                run_id = await start_run(runtime, flow)
                if kind == "approval":
                    await runtime.gateway.approve(run_id, "gate", ADMIN, None, "test")
                await left(runtime, run_id)
            await wait_until(lambda: not len(runtime.supervisor), "all runs have left memory")
            await asyncio.sleep(0)

        await some()
        with garbage() as found:
            await some()
        assert sum(found.values()) < RUNS / 3, found  # one a run would be a cycle of every run


def test_a_cycle_is_noticed() -> None:
    class Knot:
        __module__ = "pilotage.knot"

        def __init__(self) -> None:
            self.self = self

    with garbage() as found:
        for _ in range(RUNS):
            Knot()
    assert found.total() == RUNS


def test_the_collector_looks_seldom_once_runs_are_there_and_as_the_program_says_if_it_does() -> (
    None
):
    before = gc.get_threshold()
    try:
        gc.set_threshold(*PYTHONS_OWN)
        with without_collection():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_threshold() == THRESHOLDS
        gc.set_threshold(5_000, 5, 5)
        with without_collection():
            pass
        assert gc.get_threshold() == (5_000, 5, 5)
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
