"""core_transition: what one transition of a run costs in the core, without actors and store.

us_10_steps    CPU time of one `step`: a chain of that many job steps, each completed with a small
us_50_steps    output; the median of the rounds
us_5000_steps
us_wide_5000   the same in a run of 5,000 independent steps, of which 10 run at a time

A completed step makes two to three events and two effects. Goal: under 25 us at 10 steps, and a
cost that follows what changed, not the size of the run.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from typing import Final

from pilotage.runtime.commands import AttemptCompleted, CreateRun
from pilotage.runtime.definition import StepSpec, WorkflowSpec
from pilotage.runtime.graph import StepGraph
from pilotage.runtime.ids import make_run_id
from pilotage.runtime.machine import Transition, create, step
from pilotage.runtime.state import RunHead
from pilotage.runtime.status import RunStatus

NAME: Final = "core_transition"
ROUNDS: Final = {"smoke": 3, "full": 15}
TRANSITIONS: Final = {"smoke": 500, "full": 5_000}
"""Transitions measured in one round; small runs are played again and again."""
NOW: Final = 1_700_000_000_000
OUTPUT: Final = b'{"x":1}'


def chain(size: int) -> StepGraph:
    return StepGraph(
        WorkflowSpec(
            steps=tuple(
                StepSpec(step_ref=f"s{i}", job_id="job", depends_on=(f"s{i - 1}",) if i else ())
                for i in range(size)
            )
        )
    )


def wide(size: int) -> StepGraph:
    steps = tuple(StepSpec(step_ref=f"s{i}", job_id="job") for i in range(size))
    return StepGraph(WorkflowSpec(steps=steps))


def head(max_parallel_steps: int = 0) -> RunHead:
    return RunHead(
        id=make_run_id(NOW, 17),
        project_id="bench",
        workflow_id="w",
        workflow_slug="w",
        version=1,
        version_id="ver_1",
        created_at_ms=NOW,
        payload=b'{"order_id":42}',
        max_parallel_steps=max_parallel_steps,
    )


def us_per_transition(graph: StepGraph, run_head: RunHead, transitions: int) -> float:
    """CPU microseconds of one transition. Steps end in definition order."""
    spent = 0.0
    done = 0
    while done < transitions:
        state = create(graph, CreateRun(head=run_head), NOW).state
        commands = [AttemptCompleted(step=i, attempt=1, output=OUTPUT) for i in range(graph.size)]
        started = time.process_time()
        for command in commands:
            result = step(state, command, NOW)
            assert isinstance(result, Transition)
            state = result.state
        spent += time.process_time() - started
        done += graph.size
        assert state.status is RunStatus.COMPLETED
    return spent / done * 1e6


def run(size: str) -> dict[str, float]:
    cases = {
        "us_10_steps": (chain(10), head()),
        "us_50_steps": (chain(50), head()),
        "us_5000_steps": (chain(5_000), head()),
        "us_wide_5000": (wide(5_000), head(max_parallel_steps=10)),
    }
    found: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(ROUNDS[size]):
        for name, (graph, run_head) in cases.items():
            gc.collect()
            found[name].append(us_per_transition(graph, run_head, TRANSITIONS[size]))
    return {name: round(statistics.median(values), 2) for name, values in found.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=sorted(ROUNDS), default="smoke")
    print(json.dumps(run(parser.parse_args().size), indent=2))
