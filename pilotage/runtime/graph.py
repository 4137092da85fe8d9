"""The step graph of one workflow version, computed once and shared by all its runs.

Sets of steps are Python integers used as bit masks (bit i = step i in definition order): testing
whether a step with thousands of dependencies is ready is one `and`, whatever the size of the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from pilotage.runtime.conditions import Condition, compile_condition
from pilotage.runtime.definition import StepSpec, WorkflowSpec
from pilotage.runtime.status import PARKING_TYPES
from pilotage.runtime.templates import Template, compile_template


def bits(mask: int) -> Iterator[int]:
    """The indices of the set bits, lowest first."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


class StepGraph:
    """Immutable, validated graph. All sequences are in definition order, indexed by step.

    deps[i], dependents[i]   tuples of step indices
    deps_mask[i]             the same as a mask
    roots                    mask of the steps without dependencies
    order                    all step indices in a topological order
    parking                  mask of the steps that park: approval, event, sleep
    key_mask[key]            mask of the steps with that concurrency key
    job_mask[job_id]         mask of the job steps of that job
    conditions[i], payloads[i], event_keys[i]   compiled forms, None where absent
    """

    def __init__(self, spec: WorkflowSpec) -> None:
        self.spec = spec
        self.steps: tuple[StepSpec, ...] = spec.steps
        self.size = len(spec.steps)
        self.index: dict[str, int] = {s.step_ref: i for i, s in enumerate(spec.steps)}
        self.all_mask = (1 << self.size) - 1
        self.deps: tuple[tuple[int, ...], ...] = tuple(
            tuple(self.index[ref] for ref in s.depends_on) for s in spec.steps
        )
        dependents: list[list[int]] = [[] for _ in spec.steps]
        self.roots = 0
        for i, deps in enumerate(self.deps):
            if not deps:
                self.roots |= 1 << i
            for j in deps:
                dependents[j].append(i)
        self.dependents: tuple[tuple[int, ...], ...] = tuple(map(tuple, dependents))
        self.deps_mask: tuple[int, ...] = tuple(sum(1 << j for j in set(d)) for d in self.deps)
        self.parking = 0
        self.key_mask: dict[str, int] = {}
        self.job_mask: dict[str, int] = {}
        for i, s in enumerate(spec.steps):
            if s.concurrency_key:
                self.key_mask[s.concurrency_key] = self.key_mask.get(s.concurrency_key, 0) | 1 << i
            if s.step_type in PARKING_TYPES:
                self.parking |= 1 << i
            if s.job_id:
                self.job_mask[s.job_id] = self.job_mask.get(s.job_id, 0) | 1 << i
        self.conditions: tuple[Condition | None, ...] = tuple(
            compile_condition(s.condition) if s.condition is not None else None for s in spec.steps
        )
        self.payloads: tuple[Template | None, ...] = tuple(
            compile_template(s.payload) if s.payload is not None else None for s in spec.steps
        )
        self.event_keys: tuple[Template | None, ...] = tuple(
            compile_template(s.event_key) if s.event_key is not None else None for s in spec.steps
        )
        self.emit_keys: tuple[Template | None, ...] = tuple(
            compile_template(s.event_emit_key) if s.event_emit_key is not None else None
            for s in spec.steps
        )

    @cached_property
    def order(self) -> tuple[int, ...]:
        """A topological order: dependencies first, definition order among equals (Kahn 1962)."""
        missing = [len(d) for d in self.deps]
        ready = list(bits(self.roots))
        for i in ready:  # grows while it is read
            for j in self.dependents[i]:
                missing[j] -= 1
                if missing[j] == 0:
                    ready.append(j)
        return tuple(ready)

    def descendants(self, step: int) -> tuple[int, ...]:
        """All transitive dependents of `step`, without itself, in topological order."""
        seen = 1 << step
        queue = [step]
        for i in queue:
            for j in self.dependents[i]:
                if not seen >> j & 1:
                    seen |= 1 << j
                    queue.append(j)
        if len(queue) <= 2:
            return tuple(queue[1:])
        found = seen ^ (1 << step)
        return tuple(i for i in self.order if found >> i & 1)
