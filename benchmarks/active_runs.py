"""active_runs: does a step cost more while a hundred thousand other runs are in memory?

Runs that wait for an approval (with a deadline, so each has a timer) are made until there are so
many; then runs of forty steps in a row are done, twenty side by side: a scaling curve. All is
durable; the jobs do nothing and run inline.

step_us_N            processor time of this process a step, the least of the rounds, with N parked
                     runs in memory
store_step_us_N      processor time of the store a step, in the same round
step_ms_p50_N        wall time of a run / its steps, the median of the runs
held_ms_N            the longest time that the actors' loop took no turn (garbage collection too)
ratio                step_us with the most runs / with none
make_per_s           parked runs made a second, trigger to stored
"""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

from benchmarks._actors import chain, finish, make_workflow, running, spent, start_run
from benchmarks.idle_approvals import in_turns
from pilotage.actors.catalog_model import Workflow
from pilotage.actors.runtime import Runtime

NAME = "active_runs"
JOB = "inline_noop"
STEPS, SIDE_BY_SIDE = 40, 20
PARKED = {"smoke": (0, 1_000), "full": (0, 1_000, 10_000, 100_000)}
ROUNDS = {"smoke": 2, "full": 8}
GATE = {"step_ref": "gate", "step_type": "approval", "approval_timeout_secs": 7 * 86_400}


def _noop(_: dict[str, Any]) -> dict[str, int]:
    return {"ok": 1}


class _Ticker:
    """How long the loop took no turn, at most."""

    def __init__(self) -> None:
        self.worst_ms = 0.0
        self._task = asyncio.create_task(self._tick())

    async def _tick(self) -> None:
        before = time.perf_counter()
        while True:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            self.worst_ms = max(self.worst_ms, (now - before) * 1e3 - 1)
            before = now

    def stop(self) -> float:
        self._task.cancel()
        return self.worst_ms


async def _load(runtime: Runtime, flow: Workflow, rounds: int) -> dict[str, float]:
    """Metrics without their number of parked runs."""
    took: list[float] = []
    costs: list[tuple[float, float]] = []

    async def one() -> None:
        began = time.perf_counter()
        await finish(runtime, await start_run(runtime, flow))
        took.append((time.perf_counter() - began) * 1e3 / STEPS)

    ticker = _Ticker()
    for _ in range(rounds):
        before = await spent(runtime)
        await asyncio.gather(*(one() for _ in range(SIDE_BY_SIDE)))
        used = (await spent(runtime)).since(before)
        steps = SIDE_BY_SIDE * STEPS
        costs.append((used.cpu / steps * 1e6, used.store_cpu / steps * 1e6))
    ours, stores = min(costs)
    return {
        "step_us": ours,
        "store_step_us": stores,
        "step_ms_p50": statistics.median(took),
        "held_ms": ticker.stop(),
    }


async def _measure(size: str) -> dict[str, float]:
    figures: dict[str, float] = {}
    async with running(**{JOB: _noop}) as runtime:
        flow = await make_workflow(runtime, "work", chain(STEPS, JOB))
        waiting = await make_workflow(runtime, "waiting", [GATE])
        await _load(runtime, flow, 2)
        making = 0.0
        for parked in PARKED[size]:
            began = time.perf_counter()
            missing = range(parked - len(runtime.supervisor))
            await in_turns(lambda _: start_run(runtime, waiting), missing)
            making += time.perf_counter() - began
            found = await _load(runtime, flow, ROUNDS[size])
            figures |= {f"{name}_{parked}": value for name, value in found.items()}
    most = PARKED[size][-1]
    figures["ratio"] = figures[f"step_us_{most}"] / figures["step_us_0"]
    figures["make_per_s"] = most / making
    return figures


def run(size: str) -> dict[str, float]:
    return asyncio.run(_measure(size))
