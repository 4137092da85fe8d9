"""store_commit: durable transitions of runs through the Redis store, in batches.

A transition is what a run's actor hands over when one step has ended: the vitals, one changed step
with an output of 120 bytes, one history item. Encoding them is part of the measurement, deciding
is not. The server is the embedded one with its append-only file (everysec); one writer waits for
each batch before it sends the next.

batch_N_per_sec        transitions acknowledged
batch_N_cpu_us         processor time of this process (not of the server) a transition
batch_N_ms_p50, _p99   one batch from hand-over to acknowledgement
create_per_sec         new runs with head and 5 blank steps, batches of 256
finish_per_sec         the same runs finished: snapshot packed, moved between indexes
finished_run_bytes     memory of the server for a finished run: snapshot, indexes, history (3 items)
load_per_sec           active 5-step runs loaded and decoded
page_ms_p50            a page of 50 of these runs, one filter

Goals at full size: 25 µs and 25,000/s in a batch of 256.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from benchmarks._actors import info
from pilotage.persistence import codec
from pilotage.persistence.embedded import EmbeddedServer
from pilotage.persistence.port import HistoryItem, RunIndex, RunQuery, RunWrite, Verdict
from pilotage.persistence.redis_store import RedisStore
from pilotage.runtime.events import StepCompleted
from pilotage.runtime.ids import make_run_id
from pilotage.runtime.state import BLANK, RunHead, RunVitals, StepState, chunked
from pilotage.runtime.status import RunStatus, StepStatus

NAME = "store_commit"
SEED: Final = 11
NOW_MS: Final = 1_790_000_000_000
STEPS: Final = 5
BATCHES: Final = (1, 32, 256)
RUNS: Final = {"smoke": 512, "full": 20_480}
TRANSITIONS: Final = {
    "smoke": {1: 100, 32: 640, 256: 2_560},
    "full": {1: 5_000, 32: 64_000, 256: 256_000},
}
LARGEST: Final = 256


class Run:
    """One run as its actor has it."""

    def __init__(self, number: int, dice: random.Random) -> None:
        run_id = make_run_id(NOW_MS + number, dice.getrandbits(30))
        self.head = RunHead(
            id=run_id,
            project_id="bench",
            workflow_id=f"workflow-{number % 8}",
            workflow_slug=f"workflow-{number % 8}",
            version=1,
            version_id=run_id,
            created_at_ms=NOW_MS + number,
            payload=msgspec.json.encode({"order": number, "note": dice.randbytes(40).hex()}),
            created_by="benchmark",
        )
        self.vitals = RunVitals(
            status=RunStatus.RUNNING, seq=1, history_seq=1, started_at_ms=NOW_MS
        )
        self.steps = [BLANK] * STEPS
        self.output = msgspec.json.encode({"digest": dice.randbytes(48).hex(), "n": number})
        self.index = RunIndex(
            project_id="bench",
            workflow_id=self.head.workflow_id,
            created_at_ms=self.head.created_at_ms,
            status=RunStatus.RUNNING,
        )

    def create(self) -> RunWrite:
        return RunWrite(
            run_id=self.head.id,
            follows=0,
            seq=1,
            index=self.index,
            vitals=codec.encode_vitals(self.vitals),
            head=codec.encode_head(self.head),
            steps={i: codec.encode_step(step) for i, step in enumerate(self.steps)},
            history=self._history(1),
        )

    def advance(self) -> RunWrite:
        """One step ends."""
        follows = self.vitals.seq
        self.vitals = RunVitals(
            status=RunStatus.RUNNING,
            seq=follows + 1,
            history_seq=follows + 1,
            started_at_ms=NOW_MS,
        )
        step = StepState(
            status=StepStatus.COMPLETED,
            attempt=1,
            output=self.output,
            started_at_ms=NOW_MS,
            finished_at_ms=NOW_MS + follows,
        )
        changed = follows % STEPS
        self.steps[changed] = step
        return RunWrite(
            run_id=self.head.id,
            follows=follows,
            seq=follows + 1,
            index=self.index,
            vitals=codec.encode_vitals(self.vitals),
            steps={changed: codec.encode_step(step)},
            history=self._history(follows + 1),
        )

    def finish(self) -> RunWrite:
        follows = self.vitals.seq
        self.vitals = msgspec.structs.replace(
            self.vitals, status=RunStatus.COMPLETED, seq=follows + 1, finished_at_ms=NOW_MS
        )
        return RunWrite(
            run_id=self.head.id,
            follows=follows,
            seq=follows + 1,
            index=msgspec.structs.replace(self.index, status=RunStatus.COMPLETED),
            vitals=codec.encode_vitals(self.vitals),
            finished=True,
            blob=codec.encode_finished(self.head, self.vitals, chunked(self.steps)),
        )

    @staticmethod
    def _history(seq: int) -> tuple[HistoryItem, ...]:
        event = StepCompleted(at_ms=NOW_MS, step=0)
        return (HistoryItem(seq=seq, data=codec.encode_history(event)),)


class Bench:
    def __init__(self, store: RedisStore, fence: int, size: str) -> None:
        dice = random.Random(SEED)
        self.store, self.fence = store, fence
        self.runs = [Run(number, dice) for number in range(RUNS[size])]
        self.transitions = TRANSITIONS[size]
        self.metrics: dict[str, float] = {}

    async def commit(self, writes: list[RunWrite]) -> None:
        verdicts = await self.store.commit(writes, self.fence)
        assert set(verdicts) == {Verdict.OK}, set(verdicts)

    async def all_runs(self, make: Callable[[Run], RunWrite], runs: Sequence[Run]) -> float:
        """Runs a second."""
        started = time.perf_counter()
        for start in range(0, len(runs), LARGEST):
            await self.commit([make(run) for run in runs[start : start + LARGEST]])
        return len(runs) / (time.perf_counter() - started)

    async def batches(self, size: int) -> None:
        rounds = self.transitions[size] // size
        turn, took = 0, [0.0] * rounds
        cpu, started = time.process_time(), time.perf_counter()
        for number in range(rounds):
            some = self.runs[turn : turn + size]
            turn = (turn + size) % (len(self.runs) - len(self.runs) % size)
            began = time.perf_counter()
            await self.commit([run.advance() for run in some])
            took[number] = time.perf_counter() - began
        elapsed, used = time.perf_counter() - started, time.process_time() - cpu
        took.sort()
        self.metrics |= {
            f"batch_{size}_per_sec": rounds * size / elapsed,
            f"batch_{size}_cpu_us": used * 1e6 / (rounds * size),
            f"batch_{size}_ms_p50": took[rounds // 2] * 1e3,
            f"batch_{size}_ms_p99": took[min(rounds - 1, rounds * 99 // 100)] * 1e3,
        }

    async def load(self) -> None:
        ids = [run.head.id for run in self.runs]
        started = time.perf_counter()
        for start in range(0, len(ids), LARGEST):
            for stored in await self.store.load_runs(ids[start : start + LARGEST]):
                assert stored is not None
                assert stored.head is not None
                codec.decode_head(stored.head)
                codec.decode_vitals(stored.vitals)
                for step in stored.steps.values():
                    codec.decode_step(step)
        self.metrics["load_per_sec"] = len(ids) / (time.perf_counter() - started)

    async def pages(self) -> None:
        query = RunQuery(project_id="bench", limit=50, status=RunStatus.COMPLETED)
        took: list[float] = []
        for _ in range(min(40, len(self.runs) // 50)):
            began = time.perf_counter()
            page = await self.store.list_runs(query)
            took.append(time.perf_counter() - began)
            query = msgspec.structs.replace(query, after=page.next_after)
        self.metrics["page_ms_p50"] = sorted(took)[len(took) // 2] * 1e3

    async def server_bytes(self) -> int:
        return int((await info(self.store, "memory"))["used_memory"])

    async def all(self) -> dict[str, float]:
        empty = await self.server_bytes()
        self.metrics["create_per_sec"] = await self.all_runs(Run.create, self.runs)
        await self.load()
        await self.all_runs(Run.advance, self.runs)
        await self.all_runs(Run.advance, self.runs)
        self.metrics["finish_per_sec"] = await self.all_runs(Run.finish, self.runs)
        used = await self.server_bytes() - empty
        self.metrics["finished_run_bytes"] = used / len(self.runs)
        await self.pages()
        dice = random.Random(SEED + 1)
        self.runs = [Run(number, dice) for number in range(len(self.runs), 2 * len(self.runs))]
        await self.all_runs(Run.create, self.runs)
        for size in BATCHES:
            await self.batches(size)
        return self.metrics


async def _measure(size: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedServer(Path(folder))
        store = RedisStore(await server.start())
        try:
            await store.open()
            fence = await store.acquire("benchmark", 600.0)
            return await Bench(store, fence, size).all()
        finally:
            await store.close()
            await server.stop()


def run(size: str) -> dict[str, float]:
    return asyncio.run(_measure(size))
