"""How much work the hot paths are: bytecode instructions executed, counted one by one.

Counts do not depend on the machine, its load or its clock, so a change of some percent is a change
of the code. Counted are instructions of this package (not of libraries) and the calls it makes to
what is written in C, each once the path is warm. The store is the one in memory; its own
instructions are left out.

    python -m benchmarks.instructions            what the paths cost now, beside the baseline
    python -m benchmarks.instructions --accept   make what they cost now the baseline
    python -m benchmarks.instructions --json     for tests/performance

The baseline holds for one minor version of Python (another compiles other instructions).
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Self

import msgspec

import pilotage
from benchmarks._actors import chain, left, make_workflow, start_run
from benchmarks.core_transition import NOW, OUTPUT, chain as chain_graph, head, wide
from benchmarks.store_commit import Run as WrittenRun
from pilotage.actors.catalog_model import Workflow
from pilotage.actors.executors.python_jobs import JobRegistry
from pilotage.actors.principal import ADMIN
from pilotage.actors.runtime import Runtime
from pilotage.persistence.keys import Keys
from pilotage.persistence.memory import MemoryStore
from pilotage.persistence.redis_runs import Batch
from pilotage.runtime.commands import AttemptCompleted, CreateRun
from pilotage.runtime.graph import StepGraph
from pilotage.runtime.machine import Transition, create, step
from pilotage.settings import Settings

BASELINE = Path(__file__).parent.parent / "tests" / "performance" / "instructions.json"
PACKAGE = str(Path(pilotage.__file__).parent)
NOT_COUNTED = (str(Path(PACKAGE, "persistence", "memory.py")),)
SHOWN = 0.005
"""Functions with a smaller share of a path are not kept in the baseline."""
AGAIN = 3
"""A path is counted so often and the least counts: a turn of the loop more or less is no work."""


class Count(msgspec.Struct, frozen=True):
    """One path. `by_function`: the instructions of the functions that matter."""

    instructions: int
    c_calls: int
    by_function: dict[str, int]


class Baseline(msgspec.Struct, frozen=True):
    python: str
    paths: dict[str, Count]


class Counting:
    """Counts what this thread executes between enter and exit."""

    def __init__(self) -> None:
        self._instructions: Counter[CodeType] = Counter()
        self._c_calls = 0
        self._counted: dict[str, bool] = {}

    def __enter__(self) -> Self:
        sys.setprofile(self._profile)
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        sys.setprofile(None)

    def _ours(self, code: CodeType) -> bool:
        name = code.co_filename
        ours = self._counted.get(name)
        if ours is None:
            ours = name.startswith(PACKAGE) and name not in NOT_COUNTED
            self._counted[name] = ours
        return ours

    def _called(self, frame: FrameType, _event: str, _arg: object) -> Any:
        if not self._ours(frame.f_code):
            return None
        frame.f_trace_lines = False
        frame.f_trace_opcodes = True
        return self._executed

    def _executed(self, frame: FrameType, event: str, _arg: object) -> Any:
        if event == "opcode":
            self._instructions[frame.f_code] += 1
        return self._executed

    def _profile(self, frame: FrameType, event: str, _arg: object) -> None:
        if event == "c_call" and self._ours(frame.f_code):
            self._c_calls += 1

    def count(self, times: int) -> Count:
        """Of one of `times` repetitions."""
        total = self._instructions.total()
        names: Counter[str] = Counter()
        for code, number in self._instructions.items():
            module = Path(code.co_filename).relative_to(PACKAGE).with_suffix("")
            names[f"{module.as_posix()}:{code.co_qualname}"] += number
        kept = {
            name: round(number / times)
            for name, number in names.most_common()
            if number > total * SHOWN
        }
        return Count(round(total / times), round(self._c_calls / times), kept)


# --- the paths -----------------------------------------------------------------------------------


def _transitions(graph: StepGraph, max_parallel: int) -> Count:
    """A transition, on average over the run."""

    def play() -> None:
        state = create(graph, CreateRun(head=head(max_parallel)), NOW).state
        for i in range(graph.size):
            result = step(state, AttemptCompleted(step=i, attempt=1, output=OUTPUT), NOW)
            assert isinstance(result, Transition)
            state = result.state

    play()
    with Counting() as counting:
        play()
    return counting.count(graph.size + 1)


def _commit() -> Count:
    """Keys and arguments of a write, in a batch of 32."""
    dice = random.Random(1)
    keys = Keys("bench")
    writes = [run.create() for run in (WrittenRun(n, dice) for n in range(32))]

    def build() -> None:
        batch = Batch(keys, 1)
        for write in writes:
            batch.add(write)

    build()
    with Counting() as counting:
        build()
    return counting.count(len(writes))


async def _run_of_three(runtime: Runtime, flow: Workflow) -> None:
    await left(runtime, await start_run(runtime, flow), 0)


async def _approved(runtime: Runtime, flow: Workflow) -> None:
    run_id = await start_run(runtime, flow)
    await runtime.gateway.approve(run_id, "gate", ADMIN, None, "bench")
    await left(runtime, run_id, 0)


async def _loaded(runtime: Runtime, flow: Workflow) -> None:
    """A run that has ended, read from the store and decoded."""
    if not _ENDED:
        run_id = await start_run(runtime, flow)
        await left(runtime, run_id, 0)
        while len(runtime.supervisor):  # noqa: ASYNC110 - it leaves memory soon
            await asyncio.sleep(0)
        _ENDED.append(run_id)
    state = await runtime.gateway.get_run(_ENDED[0], ADMIN)
    assert state.status.is_terminal


_ENDED: list[str] = []
Path_ = Callable[[Runtime, Workflow], Awaitable[None]]
GATE = {"step_ref": "gate", "step_type": "approval", "approval_timeout_secs": 3_600}
REPEATS = 20


def noop(_: dict[str, Any]) -> dict[str, int]:
    return {"ok": 1}


async def _in_process() -> dict[str, Count]:
    """Whole runs: actors, writer, codec, executors, timers."""
    registry = JobRegistry()
    registry.register(noop, name="inline_noop", inline=True)
    runtime = Runtime(settings=Settings(), registry=registry, store=MemoryStore())
    await runtime.start()
    try:
        three = await make_workflow(runtime, "three", chain(3, "inline_noop"))
        gate = await make_workflow(runtime, "gate", [GATE])
        paths: dict[str, tuple[Path_, Workflow]] = {
            "run_of_three_steps": (_run_of_three, three),
            "approval": (_approved, gate),
            "finished_run_read": (_loaded, three),
        }
        return {name: await _counted(runtime, *path) for name, path in paths.items()}
    finally:
        await runtime.stop(0)


async def _counted(runtime: Runtime, path: Path_, flow: Workflow) -> Count:
    for _ in range(REPEATS):
        await path(runtime, flow)
    with Counting() as counting:
        for _ in range(REPEATS):
            await path(runtime, flow)
    return counting.count(REPEATS)


def count_all() -> dict[str, Count]:
    rounds = [_count_once() for _ in range(AGAIN)]
    return {
        name: min((counts[name] for counts in rounds), key=lambda count: count.instructions)
        for name in rounds[0]
    }


def _count_once() -> dict[str, Count]:
    _ENDED.clear()
    return {
        "transition_of_10": _transitions(chain_graph(10), 0),
        "transition_of_500_wide": _transitions(wide(500), 10),
        "commit_arguments": _commit(),
        **asyncio.run(_in_process()),
    }


# --- comparing -----------------------------------------------------------------------------------


def python_version() -> str:
    return f"{sys.implementation.name} {sys.version_info.major}.{sys.version_info.minor}"


def load(path: Path = BASELINE) -> Baseline:
    return msgspec.json.decode(path.read_bytes(), type=Baseline)


def growth(before: Count, now: Count, most: int = 5) -> str:
    """The functions whose share of the difference is the largest, one a line."""
    differences = {
        name: now.by_function.get(name, 0) - before.by_function.get(name, 0)
        for name in {*before.by_function, *now.by_function}
    }
    largest = sorted(differences.items(), key=lambda item: -abs(item[1]))[:most]
    return "\n".join(f"    {change:+7,d}  {name}" for name, change in largest if change)


def table(before: Mapping[str, Count], now: Mapping[str, Count]) -> str:
    lines = [f"{'path':<26}{'instructions':>14}{'baseline':>12}{'C calls':>10}{'baseline':>12}"]
    for name, count in now.items():
        base = before.get(name, Count(0, 0, {}))
        lines.append(
            f"{name:<26}{count.instructions:>14,}{base.instructions:>12,}"
            f"{count.c_calls:>10,}{base.c_calls:>12,}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accept", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    now = Baseline(python_version(), count_all())
    text = msgspec.json.format(msgspec.json.encode(now)) + b"\n"
    if options.json:
        sys.stdout.buffer.write(text)
        return
    print(table(load().paths if BASELINE.exists() else {}, now.paths))
    if options.accept:
        BASELINE.write_bytes(text)


if __name__ == "__main__":
    main()
