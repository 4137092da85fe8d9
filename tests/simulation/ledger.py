"""`Ledger`: what was written, seen from the store, and what must hold at every single write.

It keeps its own copy of every run, decoded from the bytes, and never asks the product what is
true; where the product's own state is at hand the two are compared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import msgspec

from pilotage.persistence import codec
from pilotage.persistence.port import RunWrite
from pilotage.runtime.backoff import policy_of
from pilotage.runtime.graph import StepGraph
from pilotage.runtime.state import (
    RunHead,
    RunState,
    RunVitals,
    StepState,
    blank_chunks,
    chunked,
    rebuild,
)
from pilotage.runtime.status import RunStatus, StepStatus, StepType

StepKey = tuple[str, int]
AttemptKey = tuple[str, int, int]


class ViolationError(Exception):
    """Something that was promised does not hold."""


class Shadow(msgspec.Struct):
    """One run as the store has it; `fence` is that of its last write."""

    head: RunHead
    graph: StepGraph
    vitals: RunVitals
    steps: list[StepState]
    fence: int

    @property
    def state(self) -> RunState:
        return rebuild(self.head, self.graph, self.vitals, chunked(self.steps))


class Output(msgspec.Struct, frozen=True):
    """What simulated jobs answer: `by` names the attempt it is the result of."""

    v: int = 0
    by: str | None = None


_OUTPUT = msgspec.json.Decoder(Output)


class Limits(msgspec.Struct, frozen=True):
    """The most slots there have been: of workflows by id, of jobs by reference."""

    runs: dict[str, int]
    jobs: dict[str, int]


class Ledger:
    """`graph_of`: version id -> graph; `keep_ms`: how long finished runs are to be kept."""

    def __init__(self, graph_of: Callable[[str], StepGraph], limits: Limits, keep_ms: int) -> None:
        self._graph_of = graph_of
        self._keep_ms = keep_ms
        self._limits = limits
        self.fence = 0
        self.runs: dict[str, Shadow] = {}
        self.removed: dict[str, Shadow] = {}
        self.set_apart: set[str] = set()
        """Runs that were quarantined: their attempts were stopped, though they stand as running."""
        self._apart_by: dict[str, int] = {}
        self.started: set[AttemptKey] = set()
        self.batched: set[tuple[str, int]] = set()
        """(run, sequence) of the writes that hold more than one transition."""
        self._running_by_job: dict[str, set[StepKey]] = defaultdict(set)
        self._slots: dict[str, set[str]] = defaultdict(set)

    def applied(self, write: RunWrite, fence: int) -> Shadow:
        """Take in a write and check the run by itself. `limits_hold` comes after the batch."""
        if fence < self.fence:
            raise ViolationError(
                f"run {write.run_id}: written with fence {fence}, {self.fence} is the newest"
            )
        before = self.runs.get(write.run_id)
        after = self._decoded(write, before, fence)
        self._in_sequence(write, before, after)
        _steps_move_on(before, after)
        _alone(after)
        self._note(before, after)
        self.runs[write.run_id] = after
        if write.seq - write.follows > 1:
            self.batched.add((write.run_id, write.seq))
        return after

    def _decoded(self, write: RunWrite, before: Shadow | None, fence: int) -> Shadow:
        vitals = codec.decode_vitals(write.vitals)
        if write.blob is not None:
            head, _, chunks = codec.decode_finished(write.blob)
            steps = [step for chunk in chunks for step in chunk]
            return Shadow(head, self._graph_of(head.version_id), vitals, steps, fence)
        if write.head is not None:
            head = codec.decode_head(write.head)
        elif before is not None:
            head = before.head
        else:
            raise ViolationError(f"run {write.run_id} is written without a head")
        graph = self._graph_of(head.version_id)
        if before is not None:
            steps = list(before.steps)
        else:
            steps = [step for chunk in blank_chunks(graph.size) for step in chunk]
        for i, data in write.steps.items():
            steps[i] = codec.decode_step(data)
        return Shadow(head, graph, vitals, steps, fence)

    def _in_sequence(self, write: RunWrite, before: Shadow | None, after: Shadow) -> None:
        follows = 0 if before is None else before.vitals.seq
        if write.follows != follows or not after.vitals.seq == write.seq > follows:
            raise ViolationError(
                f"run {write.run_id}: write {write.follows} -> {write.seq} onto {follows}"
            )
        if write.index.status is not after.vitals.status:
            raise ViolationError(f"run {write.run_id}: the index says {write.index.status}")
        if write.finished != after.vitals.status.is_terminal:
            raise ViolationError(f"run {write.run_id}: finished {write.finished} does not fit")

    def _note(self, before: Shadow | None, after: Shadow) -> None:
        """Slots in use, attempts begun, results kept."""
        run_id = after.head.id
        holds = after.vitals.status in {RunStatus.RUNNING, RunStatus.PAUSED}
        slots = self._slots[after.head.workflow_id]
        if holds and not after.head.slotless:
            slots.add(run_id)
        else:
            slots.discard(run_id)
        for i, step in enumerate(after.steps):
            old = None if before is None else before.steps[i]
            if step is old or step == old:
                continue
            spec = after.graph.steps[i]
            if spec.step_type is StepType.JOB:
                running = self._running_by_job[spec.job_id or ""]
                if step.status is StepStatus.RUNNING:
                    running.add((run_id, i))
                    self.started.add((run_id, i, step.attempt))
                else:
                    running.discard((run_id, i))
                if step.status is StepStatus.COMPLETED and before is not None:
                    _right_result((run_id, i, step.attempt), spec.step_ref, step)

    def deleted(self, run_id: str, now_ms: int) -> None:
        """Only what is over, and was kept for its time, is removed."""
        run = self.runs.pop(run_id)
        self.removed[run_id] = run
        if not run.vitals.status.is_terminal or run.vitals.pinned:
            raise ViolationError(f"run {run_id} is {run.vitals.status} and is removed")
        until = (run.vitals.finished_at_ms or 0) + self._keep_ms
        if until > now_ms:
            raise ViolationError(f"run {run_id} is removed {until - now_ms} ms too early")

    def note_set_apart(self, run_ids: Iterable[str], fence: int) -> None:
        """They are quarantined by the owner of this fence."""
        self.set_apart.update(run_ids)
        self._apart_by.update(dict.fromkeys(run_ids, fence))

    def limits_hold(self, now_ms: float) -> None:
        """No more slots are in use than there are."""
        for workflow_id, limit in self._limits.runs.items():
            held = self._slots[workflow_id]
            if 0 < limit < len(held):
                raise ViolationError(f"{len(held)} runs of workflow {workflow_id}, {limit} may")
        for job, limit in self._limits.jobs.items():
            running = [
                key
                for key in self._running_by_job[job]
                if key[0] not in self.set_apart or self._is_taken(key, now_ms)
            ]
            if 0 < limit < len(running):
                raise ViolationError(f"{len(running)} attempts of job {job} run, {limit} may")

    def _is_taken(self, key: StepKey, now_ms: float) -> bool:
        """Whether a remote job works on for a run that its owner has set apart, or had."""
        run_id, i = key
        step = self.runs[run_id].steps[i]
        by_owner = self._apart_by[run_id] == self.fence
        return by_owner and step.accepted and (step.due_ms or 0) > now_ms

    def slots_in_use(self, workflow_id: str) -> int:
        return len(self._slots[workflow_id])

    def attempts_of(self, job: str) -> int:
        return len(self._running_by_job[job])

    def may_be_dispatched(self, key: AttemptKey) -> None:
        """No effect before its write."""
        if key not in self.started:
            raise ViolationError(f"attempt {key} is dispatched and was never stored")


def _right_result(key: AttemptKey, ref: str, step: StepState) -> None:
    """A job's step has the result of its own attempt."""
    if step.output is None or step.resolution is not None or b'"by"' not in step.output:
        return
    by = _OUTPUT.decode(step.output).by
    if by is not None and by.rpartition("#")[0] != f"{key[0]}/{ref}/{key[2]}":
        raise ViolationError(f"step {ref} at attempt {key[2]} has the result of {by}")


def _steps_move_on(before: Shadow | None, after: Shadow) -> None:
    if before is None:
        return
    for i, (old, new) in enumerate(zip(before.steps, after.steps, strict=True)):
        if new is not old and new.attempt < old.attempt:
            raise ViolationError(
                f"run {after.head.id}: step {i} falls from attempt {old.attempt} to {new.attempt}"
            )


def _alone(run: Shadow) -> None:
    """What holds in every stored state of one run."""
    vitals, steps, graph = run.vitals, run.steps, run.graph
    terminal = vitals.status.is_terminal
    open_steps = [i for i, step in enumerate(steps) if not step.status.is_terminal]
    if terminal and open_steps:
        raise ViolationError(f"run {run.head.id} is {vitals.status}, steps {open_steps} are open")
    if not terminal and not open_steps and vitals.status is not RunStatus.PENDING:
        raise ViolationError(f"run {run.head.id} is {vitals.status} and no step is open")
    if terminal == (vitals.finished_at_ms is None):
        raise ViolationError(f"run {run.head.id} is {vitals.status}, {vitals.finished_at_ms=}")
    running = [i for i, step in enumerate(steps) if step.status is StepStatus.RUNNING]
    most = run.head.max_parallel_steps
    if 0 < most < len(running):
        raise ViolationError(f"run {run.head.id}: steps {running} run, {most} may")
    keys = [key for i in running if (key := graph.steps[i].concurrency_key)]
    if len(set(keys)) != len(keys):
        raise ViolationError(f"run {run.head.id}: {keys} run at the same time")


def is_limited(run: Shadow, i: int) -> bool:
    return policy_of(run.graph.steps[i], run.head.policies).limited
