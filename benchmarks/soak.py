"""soak: the same load for a long time. Does memory stay, does the latency stay?

So many runs a second are triggered in this process, each when it is due whether or not the others
have been answered; a run has an inline job, an ordinary `async def` job, a short sleep and an
approval, which is given half a second later. Runs that wait for weeks lie beside them. The time is
cut into windows; after each, garbage is collected, free memory given back, and what is left is
counted. A finished run must leave nothing in the process (the store keeps it: that is shown apart).

`make bench SCENARIO=soak SIZE=full MINUTES=60` sets the time (full size: 5 minutes without it).

grows                   1 if objects or resident bytes rise with the number of runs done and do not
                        come to rest; else 0. Goal: 0
objects_per_run         Python objects that a finished run left behind (slope over the windows)
bytes_per_run           resident bytes that it left behind
resident_mb_first/last  of this process, in the first window after warming up and in the last
store_bytes_per_run     growth of the store's memory a run
ms_p50_first/last       trigger and approve, from when each was due until it was answered, durably;
ms_p99_first/last       in the first third after warming up and in the last
ms_max                  the worst of all
latency_ratio           p50 of the last third / of the first
runs                    runs that were made and have completed
cpu_us_per_run          processor time of this process a run
"""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import time
from collections.abc import Awaitable
from typing import Any

import msgspec

from benchmarks._actors import PROJECT, make_workflow, running, spent, start_run
from benchmarks._growth import grows, settled, slope
from benchmarks.idle_approvals import in_turns, resident_bytes, store_bytes
from pilotage.actors.catalog_model import Workflow
from pilotage.actors.principal import ADMIN
from pilotage.actors.runtime import Runtime
from pilotage.runtime.status import RunStatus

NAME = "soak"
MINUTES = "BENCHMARK_SOAK_MINUTES"
SECONDS = {"smoke": 2.4, "full": 300.0}
WINDOWS = {"smoke": 4, "full": 30}
PARKED = {"smoke": 20, "full": 5_000}
RATE_PER_S = 100
APPROVED_AFTER_SECS = 0.5
NOISE_OBJECTS, NOISE_BYTES = 1_000, 4_000_000
"""A rise over the whole time that is less is what pools, caches and the allocator do."""


def _noop(_: dict[str, Any]) -> dict[str, int]:
    return {"ok": 1}


async def _async_noop(_: dict[str, Any]) -> dict[str, int]:
    return {"ok": 1}


STEPS: list[dict[str, Any]] = [
    {"step_ref": "inline", "job_id": "inline_noop"},
    {"step_ref": "async", "job_id": "noop", "depends_on": ["inline"]},
    {
        "step_ref": "nap",
        "step_type": "sleep",
        "sleep_duration_secs": 0.05,
        "depends_on": ["async"],
    },
    {
        "step_ref": "gate",
        "step_type": "approval",
        "approval_timeout_secs": 600,
        "depends_on": ["nap"],
    },
]


class Window(msgspec.Struct, frozen=True):
    """What was there at the end of a part of the time."""

    done: int
    objects: int
    resident: int
    took_ms: list[float]


class Soak:
    """The load, and what it measures."""

    def __init__(self, runtime: Runtime, flow: Workflow) -> None:
        self.runtime = runtime
        self.flow = flow
        self.done = 0
        self.took_ms: list[float] = []
        self._loop = asyncio.get_running_loop()

    async def _late(self, due: float, doing: Awaitable[Any]) -> Any:
        answer = await doing
        self.took_ms.append((self._loop.time() - due) * 1e3)
        return answer

    async def _one(self, due: float) -> None:
        run_id = await self._late(due, start_run(self.runtime, self.flow))
        approved_at = due + APPROVED_AFTER_SECS
        await asyncio.sleep(approved_at - self._loop.time())
        while not self._waits(run_id):
            await asyncio.sleep(0.01)
            approved_at = self._loop.time()
        gateway = self.runtime.gateway
        await self._late(approved_at, gateway.approve(run_id, "gate", ADMIN, None, "soak"))
        self.done += 1

    def _waits(self, run_id: str) -> bool:
        state = self.runtime.supervisor.published(run_id)
        return state is not None and state.step(len(STEPS) - 1).wait is not None

    async def window(self, secs: float, resident_runs: int) -> Window:
        """Load for so long, and let it come to rest."""
        begin = self._loop.time() + 0.01
        async with asyncio.TaskGroup() as group:
            for n in range(int(secs * RATE_PER_S)):
                due = begin + n / RATE_PER_S
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                group.create_task(self._one(due))
        while len(self.runtime.supervisor) > resident_runs:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        took, self.took_ms = sorted(self.took_ms), []
        resident = resident_bytes()  # collects the garbage first
        return Window(self.done, len(gc.get_objects()), resident, took)


def figures_of(windows: list[Window]) -> dict[str, float]:
    """What the windows say. `done` rises from each to the next."""
    done = [float(window.done) for window in windows]
    objects = [float(window.objects) for window in windows]
    resident = [float(window.resident) for window in windows]
    rest = list(settled(windows))
    third = max(1, len(rest) // 3)
    first = sorted(ms for window in rest[:third] for ms in window.took_ms)
    last = sorted(ms for window in rest[-third:] for ms in window.took_ms)
    growing = grows(done, objects, NOISE_OBJECTS) or grows(done, resident, NOISE_BYTES)
    return {
        "grows": float(growing),
        "objects_per_run": slope(settled(done), settled(objects)),
        "bytes_per_run": slope(settled(done), settled(resident)),
        "resident_mb_first": rest[0].resident / 1e6,
        "resident_mb_last": rest[-1].resident / 1e6,
        "ms_p50_first": statistics.median(first),
        "ms_p50_last": statistics.median(last),
        "ms_p99_first": first[len(first) * 99 // 100],
        "ms_p99_last": last[len(last) * 99 // 100],
        "ms_max": max(ms for window in windows for ms in window.took_ms),
        "latency_ratio": statistics.median(last) / statistics.median(first),
        "runs": done[-1],
    }


async def _measure(size: str) -> dict[str, float]:
    minutes = os.environ.get(MINUTES)
    secs = float(minutes) * 60 if minutes else SECONDS[size]
    windows: list[Window] = []
    async with running(inline_noop=_noop, noop=_async_noop) as runtime:
        waiting = await make_workflow(runtime, "waiting", [STEPS[-1] | {"depends_on": []}])
        await in_turns(lambda _: start_run(runtime, waiting), range(PARKED[size]))
        soak = Soak(runtime, await make_workflow(runtime, "soak", STEPS))
        before, stored = await spent(runtime), await store_bytes(runtime)
        for _ in range(WINDOWS[size]):
            windows.append(await soak.window(secs / WINDOWS[size], PARKED[size]))
            print(
                f"  {windows[-1].done} runs, {windows[-1].objects} objects, "
                f"{windows[-1].resident / 1e6:.1f} MB, "
                f"p50 {statistics.median(windows[-1].took_ms):.2f} ms",
                flush=True,
            )
        used = (await spent(runtime)).since(before)
        stored = await store_bytes(runtime) - stored
        completed = (await runtime.store.count_runs(PROJECT)).get(RunStatus.COMPLETED, 0)
    if completed != soak.done:
        raise RuntimeError(f"{completed} of {soak.done} runs have completed")
    return figures_of(windows) | {
        "store_bytes_per_run": stored / soak.done,
        "cpu_us_per_run": used.cpu / soak.done * 1e6,
        "minutes": (time.perf_counter() - before.wall) / 60,
    }


def run(size: str) -> dict[str, float]:
    return asyncio.run(_measure(size))
