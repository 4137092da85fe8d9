"""What a run looks like to somebody who wants to know why: graph, timeline, explanation. Pure.

`explain` has one line for each step that has not ended: what it waits for, since and until when,
and what would unblock it. `timeline` and `graph` name the critical path: the chain of steps that
determined how long the run took.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from heapq import heappop, heappush

import msgspec

from pilotage.runtime.graph import StepGraph, bits
from pilotage.runtime.ids import step_run_id
from pilotage.runtime.insight_reasons import Note, Reasons
from pilotage.runtime.state import RunState, StepState
from pilotage.runtime.status import PARKING_TYPES, RunStatus, StepStatus, StepType
from pilotage.runtime.views import rfc3339

# --- explain -----------------------------------------------------------------------------------


class Explanation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why one step has not ended."""

    step_ref: str
    status: StepStatus
    waiting_for: str
    reason: str
    since: str
    until: str | None = None


class Explained(msgspec.Struct, frozen=True, kw_only=True):
    workflow_run_id: str
    status: RunStatus
    steps: list[Explanation]


def explain(
    state: RunState,
    notes: Mapping[int | None, Note] | None = None,
    quarantined: str | None = None,
) -> Explained:
    """One line for each step that has not ended, in definition order.

    `notes`: what is known beyond the state, by step (None: about the run as a whole), e.g. a place
    in a queue or why an attempt is held back. `quarantined`: why nothing moves the run.
    """
    reasons = Reasons(state, notes or {})
    lines: list[Explanation] = []
    for i in bits(state.masks.open):
        step = state.step(i)
        why = reasons.of(i, step)
        if quarantined is not None:
            text = f"the run is quarantined, release or discard it: {quarantined}"
            why = msgspec.structs.replace(why, text=text, until_ms=None)
        lines.append(
            Explanation(
                step_ref=state.graph.steps[i].step_ref,
                status=step.status,
                waiting_for=why.waiting_for,
                reason=why.text,
                since=rfc3339(why.since_ms),
                until=None if why.until_ms is None else rfc3339(why.until_ms),
            )
        )
    return Explained(workflow_run_id=state.id, status=state.status, steps=lines)


# --- graph -------------------------------------------------------------------------------------


class Edge(msgspec.Struct, frozen=True, kw_only=True, rename={"from_": "from"}):
    """`to` depends on `from`."""

    from_: str
    to: str


class Node(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A step of a run in its graph."""

    step_ref: str
    type: StepType
    status: StepStatus
    depends_on: Sequence[str]
    attempt: int
    started_at: str | None = None
    finished_at: str | None = None
    duration_ms: int | None = None


class RunGraph(msgspec.Struct, frozen=True, kw_only=True):
    """`runnable`: ready to start, and held back only by limits, a pause or the queue."""

    workflow_run_id: str
    status: RunStatus
    nodes: list[Node]
    edges: list[Edge]
    roots: list[str]
    runnable: list[str]
    critical_path: list[str]


class PlannedNode(msgspec.Struct, frozen=True, kw_only=True):
    """A step of a workflow in its graph."""

    step_ref: str
    type: StepType
    depends_on: Sequence[str]


class WorkflowGraph(msgspec.Struct, frozen=True, kw_only=True):
    """`critical_path`: the longest chain of steps."""

    workflow_id: str
    version: int
    nodes: list[PlannedNode]
    edges: list[Edge]
    roots: list[str]
    critical_path: list[str]


def run_graph(state: RunState, now_ms: int) -> RunGraph:
    graph = state.graph
    nodes: list[Node] = []
    for i, step in enumerate(state.steps()):
        spec = graph.steps[i]
        end = _end(step, now_ms)
        started = step.started_at_ms
        nodes.append(
            Node(
                step_ref=spec.step_ref,
                type=spec.step_type,
                status=step.status,
                depends_on=spec.depends_on,
                attempt=step.attempt,
                started_at=None if started is None else rfc3339(started),
                finished_at=None if step.finished_at_ms is None else rfc3339(step.finished_at_ms),
                duration_ms=None if started is None or end is None else max(0, end - started),
            )
        )
    return RunGraph(
        workflow_run_id=state.id,
        status=state.status,
        nodes=nodes,
        edges=edges(graph),
        roots=_refs(graph, list(bits(graph.roots))),
        runnable=_refs(graph, _runnable(state)),
        critical_path=_refs(graph, critical_path(state, now_ms)),
    )


def workflow_graph(workflow_id: str, version: int, graph: StepGraph) -> WorkflowGraph:
    return WorkflowGraph(
        workflow_id=workflow_id,
        version=version,
        nodes=[
            PlannedNode(step_ref=s.step_ref, type=s.step_type, depends_on=s.depends_on)
            for s in graph.steps
        ],
        edges=edges(graph),
        roots=_refs(graph, list(bits(graph.roots))),
        critical_path=_refs(graph, longest_chain(graph)),
    )


def edges(graph: StepGraph) -> list[Edge]:
    return [
        Edge(from_=graph.steps[j].step_ref, to=graph.steps[i].step_ref)
        for i, deps in enumerate(graph.deps)
        for j in deps
    ]


def start_waves(
    graph: StepGraph, disabled: Container[str] = (), max_parallel: int = 0
) -> list[list[str]]:
    """The steps in the order in which they would start if each took as long as any other.

    A wave needs only those before it. `disabled` steps are skipped when the run is made: they are
    in no wave, and hold nothing up. Of steps that run, at most `max_parallel` are in one wave (0:
    no limit), and one of each concurrency key; parked ones have no limits.
    """
    off = [step.step_ref in disabled for step in graph.steps]
    missing = [sum(not off[j] for j in set(deps)) for deps in graph.deps]
    line = _Line(graph, max_parallel)
    for i in range(graph.size):
        if not off[i] and not missing[i]:
            line.join(i)
    waves: list[list[str]] = []
    while wave := line.take():
        waves.append(_refs(graph, wave))
        for i in wave:
            line.leave(i)
            for k in graph.dependents[i]:
                missing[k] -= 1
                if not missing[k] and not off[k]:
                    line.join(k)
    return waves


class _Line:
    """Steps whose dependencies have ended, first in the definition first."""

    def __init__(self, graph: StepGraph, max_parallel: int) -> None:
        self._graph = graph
        self._room = max_parallel or graph.size
        self._parked: list[int] = []
        self._first: list[int] = []
        self._behind: dict[str, list[int]] = {}
        """By concurrency key: those that wait for the one of them that is among the first."""

    def join(self, i: int) -> None:
        step = self._graph.steps[i]
        if step.step_type in PARKING_TYPES:
            self._parked.append(i)
        elif step.concurrency_key in self._behind:
            heappush(self._behind[step.concurrency_key], i)
        else:
            if step.concurrency_key:
                self._behind[step.concurrency_key] = []
            heappush(self._first, i)

    def take(self) -> list[int]:
        """The next wave; empty when there is nobody left."""
        running = [heappop(self._first) for _ in range(min(self._room, len(self._first)))]
        wave, self._parked = sorted(self._parked + running), []
        return wave

    def leave(self, i: int) -> None:
        """Step i has ended: the next of its concurrency key comes up."""
        step = self._graph.steps[i]
        if step.concurrency_key not in self._behind or step.step_type in PARKING_TYPES:
            return
        behind = self._behind.pop(step.concurrency_key)
        if behind:
            heappush(self._first, heappop(behind))
            self._behind[step.concurrency_key] = behind


def _runnable(state: RunState) -> list[int]:
    ready: list[int] = []
    for i in bits(state.masks.open & ~state.masks.running):
        step = state.step(i)
        missing = state.graph.deps_mask[i] & ~state.masks.satisfied
        if step.status is StepStatus.PENDING or (step.wait is None and not missing):
            ready.append(i)
    return ready


# --- timeline ----------------------------------------------------------------------------------


class TimelineStep(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`wait_ms`: from when its dependencies had ended until it started."""

    step_ref: str
    step_run_id: str
    status: StepStatus
    started_at: str | None = None
    finished_at: str | None = None
    duration_ms: int
    wait_ms: int
    on_critical_path: bool


class Timeline(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    workflow_run_id: str
    status: RunStatus
    started_at: str | None = None
    finished_at: str | None = None
    total_ms: int
    steps: list[TimelineStep]


def timeline(state: RunState, now_ms: int) -> Timeline:
    """When each step started and ended; what has not ended counts until now."""
    vitals = state.vitals
    begin, finish = vitals.started_at_ms, vitals.finished_at_ms
    critical = set(critical_path(state, now_ms))
    return Timeline(
        workflow_run_id=state.id,
        status=state.status,
        started_at=None if begin is None else rfc3339(begin),
        finished_at=None if finish is None else rfc3339(finish),
        total_ms=0 if begin is None else max(0, (finish or now_ms) - begin),
        steps=[
            _timeline_step(state, i, step, now_ms, critical=i in critical)
            for i, step in enumerate(state.steps())
        ],
    )


def _timeline_step(
    state: RunState, i: int, step: StepState, now_ms: int, *, critical: bool
) -> TimelineStep:
    started, end = step.started_at_ms, _end(step, now_ms)
    return TimelineStep(
        step_ref=state.graph.steps[i].step_ref,
        step_run_id=step_run_id(state.id, i),
        status=step.status,
        started_at=None if started is None else rfc3339(started),
        finished_at=None if step.finished_at_ms is None else rfc3339(step.finished_at_ms),
        duration_ms=0 if started is None or end is None else max(0, end - started),
        wait_ms=_wait(state, i, step, now_ms),
        on_critical_path=critical,
    )


def _wait(state: RunState, i: int, step: StepState, now_ms: int) -> int:
    begin = state.vitals.started_at_ms
    ends = [state.step(j).finished_at_ms for j in state.graph.deps[i]]
    if begin is None or any(end is None for end in ends):
        return 0
    ready = max([begin, *(end for end in ends if end is not None)])
    until = step.started_at_ms
    if until is None:
        until = step.finished_at_ms if step.status.is_terminal else now_ms
    return max(0, (until or ready) - ready)


# --- critical path -------------------------------------------------------------------------------


def critical_path(state: RunState, now_ms: int) -> list[int]:
    """The chain that determined the run's end, first step first.

    From the step that ended last, backwards to the dependency that ended last, and so on; a step
    in progress ends now. Before anything has started: the longest chain of the graph.
    """
    ends = [_end(step, now_ms) for step in state.steps()]
    last, latest = None, -1
    for i in state.graph.order:
        end = ends[i]
        if end is not None and end >= latest and state.step(i).started_at_ms is not None:
            last, latest = i, end
    if last is None:
        return longest_chain(state.graph)
    path = [last]
    while deps := state.graph.deps[path[-1]]:
        path.append(max(deps, key=lambda j: -1 if ends[j] is None else ends[j] or 0))
    return path[::-1]


def longest_chain(graph: StepGraph) -> list[int]:
    """The longest chain of dependencies by number of steps; the first of equal ones."""
    depth = _depths(graph)
    if not depth:
        return []
    path = [max(range(graph.size), key=depth.__getitem__)]
    while deps := graph.deps[path[-1]]:
        path.append(max(deps, key=depth.__getitem__))
    return path[::-1]


def _depths(graph: StepGraph) -> list[int]:
    """For each step the length of the longest chain that ends with it."""
    depth = [1] * graph.size
    for i in graph.order:
        for j in graph.deps[i]:
            depth[i] = max(depth[i], depth[j] + 1)
    return depth


def _end(step: StepState, now_ms: int) -> int | None:
    """When the step ended; now, if it is in progress; None if it has not started."""
    if step.finished_at_ms is not None:
        return step.finished_at_ms
    return None if step.started_at_ms is None else now_ms


def _refs(graph: StepGraph, steps: list[int]) -> list[str]:
    return [graph.steps[i].step_ref for i in steps]
