"""What `explain` says of a run that waits is true: it names what the run really waits for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pilotage.actors.runtime import Runtime
from pilotage.actors.services import RUN_TIMER
from pilotage.runtime.insight import Explanation, explain
from pilotage.runtime.state import RunState, delay_ms
from pilotage.runtime.status import RunStatus
from pilotage.runtime.views import rfc3339

if TYPE_CHECKING:
    from tests.simulation.ledger import Shadow
    from tests.simulation.world import World

_BY_TIMER = frozenset({"timer", "retry", "approval", "event"})


def told_wrong(world: World, runtime: Runtime, run: Shadow) -> Iterator[str]:
    """Where the explanation of an active run differs from what is there."""
    state = run.state
    notes = runtime.gateway.notes(state)
    told = {line.step_ref: line for line in explain(state, notes).steps}
    for i, step in enumerate(run.steps):
        if step.status.is_terminal:
            continue
        line = told.pop(run.graph.steps[i].step_ref, None)
        if line is None:
            yield f"nothing is said about step {i}"
        elif not line.reason or line.status is not step.status:
            yield f"of step {i} is said {line}"
        else:
            yield from _untrue(world, runtime, state, i, line, is_placed=i in notes)
    if told:
        yield f"it is said to wait for what is over: {sorted(told)}"
    if state.status is RunStatus.PENDING and not run.head.slotless:
        now = world.servers.clock.now_ms()
        queued = not run.vitals.held and delay_ms(run.head, run.vitals, now) is None
        if queued and None not in notes:
            yield "it is in a queue, and nobody knows its place"


def _untrue(
    world: World, runtime: Runtime, state: RunState, i: int, line: Explanation, *, is_placed: bool
) -> Iterator[str]:
    has_asked = bool(state.masks.requested >> i & 1)  # it waits for others of its run if not
    if line.waiting_for == "job_limit" and has_asked and not is_placed:
        yield f"step {i} is said to wait for a slot, and nobody knows its place"
    if line.waiting_for in _BY_TIMER:
        due = runtime.timers.due_ms((state.id, i))
        armed = None if due is None else rfc3339(due)
        if line.until != armed:
            yield f"step {i} is said to wait until {line.until}, and {armed} is armed"
    if line.waiting_for == "run_queue" and line.until is not None:
        due = runtime.timers.due_ms((state.id, RUN_TIMER))
        if due is None and not world.plan.jumps:
            yield f"the run is said to wait until {line.until}, and no timer is armed"
