"""timers: do sleeps and retries fire on time while many wait, and what does waiting cost?

A runtime with a store has 10,000 sleeps and retries pending, in runs of 100 steps: half of the
steps sleep, half have failed once and wait for their backoff. They become due over some seconds;
each is late by as much as its completion (the next attempt) comes after its due time, storing
included.

fired              timers that were measured
late_ms_p50/p99    how late the sleeps and retries were. Goal: 99 % within 50 ms
late_ms_max        the worst
heap_mb_100k       memory of 100,000 pending timers as the runtime keeps them (key, due time,
                   callback), in megabytes. Goal: under 30
"""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from typing import Any

from benchmarks._actors import make_workflow, running, start_run
from pilotage.actors.executors.job_context import JobContext, Retry
from pilotage.actors.kernel import SystemClock, Timers
from pilotage.actors.runtime import Runtime
from pilotage.runtime.ids import make_run_id
from pilotage.runtime.status import WaitingFor

NAME = "timers"
STEPS = 100
PENDING = 100_000


def heap_mb(count: int) -> float:
    """Megabytes of so many pending timers, with the keys that runs use."""
    run_ids = [make_run_id(1_790_000_000_000 + n, n) for n in range(count // STEPS)]
    due = time.time_ns() // 1_000_000 + 3_600_000
    tracemalloc.start()
    timers: Timers[tuple[str, int]] = Timers(SystemClock(), None)
    before = tracemalloc.get_traced_memory()[0]
    for run_id in run_ids:
        for step in range(STEPS):
            timers.set((run_id, step), due + step, print)
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return (after - before) / 1e6


def _steps(least_secs: float, spread_secs: float, first: int, total: int) -> list[dict[str, Any]]:
    """Of one run; `first` of `total` timers come before it, so that all are spread evenly."""
    steps: list[dict[str, Any]] = []
    for n in range(STEPS):
        secs = least_secs + spread_secs * ((first + n) * 7_919 % total) / total
        if n % 2:
            sleep = {"step_type": "sleep", "sleep_duration_secs": round(secs, 3)}
            steps.append({"step_ref": f"sleep{n}", **sleep})
        else:
            retry = {"job_id": "inline_again", "payload": {"after": round(secs, 3)}}
            steps.append({"step_ref": f"retry{n}", **retry})
    return steps


class _Lateness:
    """When attempts were to come and came; sleeps are read from the runs."""

    def __init__(self) -> None:
        self.due_ms: dict[tuple[str, str], float] = {}
        self.late_ms: list[float] = []

    def attempt(self, given: dict[str, Any], ctx: JobContext) -> None:
        if ctx.attempt == 1:
            raise Retry(after=given["after"])
        self.late_ms.append(time.time() * 1000 - self.due_ms[ctx.run_id, ctx.step_ref])

    def backoffs(self, runtime: Runtime, run_ids: list[str]) -> None:
        """Note when the retries are due, once they all wait."""
        for run_id in run_ids:
            state = runtime.supervisor.published(run_id)
            assert state is not None
            for spec, step in zip(state.graph.steps, state.steps(), strict=True):
                if step.wait is WaitingFor.RETRY:
                    assert step.due_ms is not None
                    self.due_ms[run_id, spec.step_ref] = step.due_ms

    def sleeps(self, runtime: Runtime, run_ids: list[str]) -> None:
        for run_id in run_ids:
            state = runtime.supervisor.published(run_id)
            if state is None:
                raise RuntimeError(f"run {run_id} is not in memory any more")
            for spec, step in zip(state.graph.steps, state.steps(), strict=True):
                if spec.sleep_duration_secs is not None:
                    assert step.started_at_ms is not None
                    assert step.finished_at_ms is not None
                    took_ms = step.finished_at_ms - step.started_at_ms
                    self.late_ms.append(took_ms - spec.sleep_duration_secs * 1000)


async def _measure(size: str) -> dict[str, float]:
    runs, least, spread = (10, 1.0, 1.0) if size == "smoke" else (100, 12.0, 10.0)
    lateness = _Lateness()
    async with running(inline_again=lateness.attempt) as runtime:
        flows = [
            await make_workflow(
                runtime,
                f"timers {n}",
                # the last step keeps the run in memory until its sleeps have been read
                [
                    *_steps(least, spread, n * STEPS, runs * STEPS),
                    {"step_ref": "end", "step_type": "approval"},
                ],
            )
            for n in range(runs)
        ]
        run_ids = [await start_run(runtime, flow) for flow in flows]
        while len(lateness.due_ms) < runs * STEPS // 2:
            await asyncio.sleep(0.2)
            lateness.backoffs(runtime, run_ids)
        while any(map(_waiting(runtime), run_ids)):  # noqa: ASYNC110 - looking costs little
            await asyncio.sleep(0.2)
        lateness.sleeps(runtime, run_ids)
    late = sorted(lateness.late_ms)
    return {
        "fired": len(late),
        "late_ms_p50": late[len(late) // 2],
        "late_ms_p99": late[len(late) * 99 // 100],
        "late_ms_max": late[-1],
        "heap_mb_100k": heap_mb(PENDING),
    }


def _waiting(runtime: Runtime) -> Any:
    def waiting(run_id: str) -> bool:
        state = runtime.supervisor.published(run_id)
        return state is None or state.masks.open.bit_count() > 1

    return waiting


def run(size: str) -> dict[str, float]:
    return asyncio.run(_measure(size))
