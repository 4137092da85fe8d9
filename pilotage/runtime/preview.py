"""What a command would do, computed by the machine that would do it (`?dry_run=true`)."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from pilotage.runtime.events import (
    Event,
    StepCanceled,
    StepCompleted,
    StepEvent,
    StepFailed,
    StepHeld,
    StepParked,
    StepReset,
    StepSkipped,
    StepStarted,
)
from pilotage.runtime.graph import StepGraph
from pilotage.runtime.machine import Transition
from pilotage.runtime.status import RunStatus


class Preview(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """step_refs by what would happen to them, each in definition order; a step may stand in
    several lists (reset, then started). `run_status`: the run's status afterwards.
    """

    run_status: RunStatus
    reset: list[str]
    started: list[str]
    skipped: list[str]
    canceled: list[str]
    completed: list[str]
    held: list[str]
    failed: list[str] = []
    reset_steps: int | None = None


def preview(transition: Transition, reset_steps: int | None = None) -> Preview:
    """The lists of a transition that was computed and thrown away."""
    graph, events = transition.state.graph, transition.events
    return Preview(
        run_status=transition.state.status,
        reset=_refs(graph, events, StepReset),
        started=_refs(graph, events, StepStarted, StepParked),
        skipped=_refs(graph, events, StepSkipped),
        canceled=_refs(graph, events, StepCanceled),
        completed=_refs(graph, events, StepCompleted),
        held=_refs(graph, events, StepHeld),
        failed=_refs(graph, events, StepFailed),
        reset_steps=reset_steps,
    )


def _refs(graph: StepGraph, events: Iterable[Event], *kinds: type[StepEvent]) -> list[str]:
    found = {e.step for e in events if isinstance(e, kinds)}
    return [graph.steps[i].step_ref for i in sorted(found)]
