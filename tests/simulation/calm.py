"""What holds when nothing is going wrong (any more)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pilotage.actors.runtime import Runtime
from pilotage.actors.services import RUN_TIMER
from pilotage.persistence import codec
from pilotage.runtime.effects import ParkEvent, ScheduleTimer
from pilotage.runtime.history import HistoryEntry
from pilotage.runtime.recovery import recovery_effects
from pilotage.runtime.state import RunState, StepState, delay_ms, satisfies
from pilotage.runtime.status import RunStatus, StepStatus, StepType, WaitingFor
from pilotage.runtime.views import step_views
from tests.simulation.explained import told_wrong
from tests.simulation.ledger import AttemptKey, Shadow, ViolationError, is_limited
from tests.simulation.outside import SimExecutor

LOOKS = 4
LOOK_SECS = 0.4
RESTART_SECS = 6.0
"""The actor of a run that cannot be loaded is tried again every 5 s at the latest."""
CLOCK_SECS = 1.0
"""What does not differ by more is not due to a clock that was set."""
PATIENCE_SECS = 36.0
"""What could not be delivered while the store was away is tried again every 30 s at the latest."""

if TYPE_CHECKING:
    from tests.simulation.world import World


def same_as_memory(runtime: Runtime, run: Shadow) -> None:
    """What was stored is what the actor has decided, and what it derives is what follows from it.

    Called at the instant of the write, which the actor waits for.
    """
    supervisor = getattr(runtime, "supervisor", None)
    entry = None if supervisor is None else supervisor._entries.get(run.head.id)
    actor = None if entry is None else entry.actor
    if actor is None or actor._working.vitals.seq != run.vitals.seq:
        return
    _had_its_time(runtime, run)
    working, stored = actor._working, run.state
    if working.vitals != stored.vitals or list(working.steps()) != run.steps:
        raise ViolationError(f"run {run.head.id}: what is stored is not what was decided")
    if working.masks != stored.masks:
        raise ViolationError(f"run {run.head.id}: derived {working.masks}, not {stored.masks}")
    if working.masks.satisfied & working.masks.blocking:
        raise ViolationError(f"run {run.head.id}: steps are satisfied and blocking at once")
    for i, view in enumerate(step_views(working)):
        deps = set(run.graph.deps[i])
        count = sum(satisfies(run.graph, j, run.steps[j]) for j in deps)
        if (view.deps_completed, view.deps_required) != (count, len(deps)):
            raise ViolationError(
                f"run {run.head.id}: step {i} has {count} of {len(deps)} dependencies, shown are"
                f" {view.deps_completed} of {view.deps_required}"
            )


def _had_its_time(runtime: Runtime, run: Shadow) -> None:
    """An attempt that this process began timed out no earlier than it may, whatever was done to
    the wall clock. Its time may end while its run is loaded again, which dispatches it once more.
    """
    for i, step in enumerate(run.steps):
        began = _began(runtime, (run.head.id, i, step.attempt))
        if began is None or not (step.error or "").startswith("timed out after"):
            continue
        since, _, secs = began
        had_secs = runtime.clock.monotonic() - since
        if had_secs < secs - CLOCK_SECS:
            raise ViolationError(
                f"run {run.head.id}: attempt {step.attempt} of step {i} has timed out after"
                f" {had_secs:.3f} s instead of {secs}"
            )


def _began(runtime: Runtime, key: AttemptKey) -> tuple[float, float, float] | None:
    for executor in runtime.executors._others.values():
        assert isinstance(executor, SimExecutor)
        if key in executor.began:
            return executor.began[key]
    return None


def history_of(world: World, run_id: str) -> list[HistoryEntry]:
    return [
        codec.decode_history(item.data, HistoryEntry) for item in world.store.runs[run_id].history
    ]


def active_runs(world: World) -> list[Shadow]:
    return [run for run in world.ledger.runs.values() if not run.vitals.status.is_terminal]


async def nothing_stands_still(world: World) -> None:
    """Everything that waits waits for something that will come; no slot is free that is wanted.

    What moves at this very moment looks the same as what stands still: only what is found again
    and again counts.
    """
    server = world.servers.current
    assert server is not None
    if server.runtime.supervisor.quarantined:
        raise ViolationError(f"quarantined: {dict(server.runtime.supervisor.quarantined)}")
    away = world.plan.outages or world.plan.partitions
    passivated = away and world.plan.passivate_secs  # what woke a run then waits for its load
    restarts = world.plan.failures or world.plan.poisons or passivated
    await _persisting(world, _unmoved, RESTART_SECS if restarts else LOOKS * LOOK_SECS)
    patience = away or world.plan.unheard or world.plan.poisons
    await _persisting(world, _undelivered, PATIENCE_SECS if patience else PATIENCE_SECS / 6)


async def _persisting(
    world: World, look: Callable[[World, Runtime], Iterator[str]], secs: float
) -> None:
    server = world.servers.current
    assert server is not None
    found, until = set(look(world, server.runtime)), world.loop.now + secs
    while found and world.loop.now < until:
        await asyncio.sleep(LOOK_SECS)
        found &= set(look(world, server.runtime))
    if found:
        raise ViolationError("; ".join(sorted(found)))


def _unmoved(world: World, runtime: Runtime) -> Iterator[str]:
    for run in active_runs(world):
        for problem in _standing(world, runtime, run):
            yield f"run {run.head.id} ({run.vitals.status}): {problem}"
    yield from _unused_slots(world)


def _undelivered(world: World, _: Runtime) -> Iterator[str]:
    """What goes from run to run, and early events."""
    for run in active_runs(world):
        for problem in (*_orphaned(world, run), *_apart(world, run)):
            yield f"run {run.head.id} ({run.vitals.status}): {problem}"
    for run_id, stored in world.store.runs.items():
        for message_id in stored.outbox:
            yield f"run {run_id}: message {message_id} of its outbox is not delivered"
    yield from _untaken_events(world)


def _standing(world: World, runtime: Runtime, run: Shadow) -> Iterator[str]:
    yield from _not_armed(world, runtime, run)
    yield from told_wrong(world, runtime, run)
    state = run.state
    for i, step in enumerate(run.steps):
        if step.status is StepStatus.RUNNING:
            yield from _running(world, runtime, run, i)
        elif step.status is StepStatus.PENDING and run.vitals.status is RunStatus.RUNNING:
            yield from _held(run, i)
        elif _is_left_out(state, i):
            yield f"step {i} is ready and left waiting"


def _orphaned(world: World, run: Shadow) -> Iterator[str]:
    """A child runs on only as long as its parent's step waits for it, or if it was reopened."""
    head = run.head
    if head.parent_run_id is None or head.parent_step is None:
        return
    ledger = world.ledger
    parent = ledger.runs.get(head.parent_run_id) or ledger.removed[head.parent_run_id]
    step = parent.steps[head.parent_step]
    if step.status is StepStatus.RUNNING and step.child_run_id == head.id:
        return
    if not any(entry.type == "run_reopened" for entry in history_of(world, head.id)):
        yield f"the step of its parent is {step.status} and does not wait for it"


def _keeps_its_time(world: World, run: Shadow, timer: ScheduleTimer) -> bool:
    """Whether it may fire later than is stored: an attempt that is held back burns no time, and
    none does when the clock is set forward.
    """
    running = timer.step is not None and run.steps[timer.step].status is StepStatus.RUNNING
    return running or bool(world.plan.jumps)


def _is_left_out(state: RunState, i: int) -> bool:
    step, unmet = state.step(i), state.graph.deps_mask[i] & ~state.masks.satisfied
    return step.status is StepStatus.WAITING and step.wait is None and not unmet


def _not_armed(world: World, runtime: Runtime, run: Shadow) -> Iterator[str]:
    """Timers and subscriptions that follow from the state and are not there."""
    run_id = run.head.id
    for effect in recovery_effects(run.state, world.servers.clock.now_ms()):
        if isinstance(effect, ScheduleTimer):
            if effect.step is None and run.vitals.status is RunStatus.PENDING and world.plan.jumps:
                continue  # its delay had ended already when the clock was set back
            key = (run_id, RUN_TIMER if effect.step is None else effect.step)
            due = runtime.timers.due_ms(key)
            if due is None or (due > effect.due_ms and not _keeps_its_time(world, run, effect)):
                yield f"the timer of step {effect.step} is {due}, not {effect.due_ms}"
        elif isinstance(effect, ParkEvent):
            key_of = (run.head.project_id, effect.event_key)
            parked: Any = runtime.hub._parked.get(key_of, {}).get((run_id, effect.step))
            if getattr(parked, "attempt", parked) != effect.attempt:
                yield f"step {effect.step} is not parked on {effect.event_key}"


def _running(world: World, runtime: Runtime, run: Shadow, i: int) -> Iterator[str]:
    step = run.steps[i]
    is_job = run.graph.steps[i].step_type is StepType.JOB
    key = (run.head.id, i, step.attempt)
    if is_job and not step.accepted and key not in runtime.executors._entries:
        yield f"attempt {step.attempt} of step {i} is not in progress anywhere"
    # a quarantined run does not hear of a clock that is set
    unheard = world.plan.jumps and run.head.id in world.ledger.set_apart
    if step.accepted and not unheard:
        yield from _accepted(runtime, step, key)


def _accepted(runtime: Runtime, step: StepState, key: AttemptKey) -> Iterator[str]:
    """What is stored of its time is what is measured, and that is no longer than it may be."""
    run_id, i, attempt = key
    armed, began = runtime.timers.due_ms((run_id, i)), _began(runtime, key)
    if armed is None or step.due_ms is None or abs(armed - step.due_ms) >= CLOCK_SECS * 1000:
        yield f"the time of attempt {attempt} of step {i} is up at {armed}, not {step.due_ms}"
    if began is not None and runtime.clock.monotonic() > sum(began[1:]) + 2 * CLOCK_SECS:
        yield f"attempt {attempt} of step {i} should have timed out"


def _apart(world: World, run: Shadow) -> Iterator[str]:
    """A step that runs a child has one that runs, too."""
    for i, step in enumerate(run.steps):
        if step.status is not StepStatus.RUNNING or step.child_run_id is None:
            continue
        child = world.ledger.runs.get(step.child_run_id)
        if child is None:
            yield f"the child of step {i} does not exist"
        elif child.vitals.status.is_terminal:
            yield f"the child of step {i} is {child.vitals.status} and the step does not know"


def _held(run: Shadow, i: int) -> Iterator[str]:
    """A pending step of a running run has a reason."""
    masks, spec = run.state.masks, run.graph.steps[i]
    if run.steps[i].wait is WaitingFor.JOB_LIMIT:
        return  # see `_unused_slots`
    most, running = run.head.max_parallel_steps, masks.running.bit_count()
    asked = (masks.requested & run.graph.job_mask.get(spec.job_id or "", 0)).bit_count()
    key = spec.concurrency_key
    if not (
        (most and running >= most)
        or (key and run.graph.key_mask[key] & masks.running)
        or (is_limited(run, i) and most and asked >= most - running)
    ):
        yield f"step {i} is pending for no reason"


def _unused_slots(world: World) -> Iterator[str]:
    wanted: Counter[str] = Counter()
    queued: Counter[str] = Counter()
    for run in active_runs(world):
        if run.vitals.status is RunStatus.RUNNING:
            wanted.update(
                run.graph.steps[i].job_id or ""
                for i, step in enumerate(run.steps)
                if step.wait is WaitingFor.JOB_LIMIT
            )
        elif _waits_for_a_slot(world, run):
            if run.head.slotless:
                yield f"run {run.head.id} needs no slot and does not start"
            queued[run.head.workflow_id] += 1
    ledger = world.ledger
    for job, count in _sure(world, wanted):
        limit, used = world.slots_of("job", job), ledger.attempts_of(job)
        if not limit or used < limit:
            yield f"{count} steps want job {job}: {used} of {limit} slots are used"
    for workflow_id, count in _sure(world, queued):
        limit, used = world.slots_of("workflow", workflow_id), ledger.slots_in_use(workflow_id)
        if not limit or used < limit:
            yield f"{count} runs of {workflow_id} are queued: {used} of {limit} slots are used"


def _sure(world: World, wanted: Counter[str]) -> list[tuple[str, int]]:
    return [item for item in wanted.items() if item[0] not in world.unsure_limits]


def _waits_for_a_slot(world: World, run: Shadow) -> bool:
    vitals, now = run.vitals, world.servers.clock.now_ms()
    waits = vitals.status is RunStatus.PENDING and not vitals.held
    return waits and delay_ms(run.head, vitals, now) is None


def _untaken_events(world: World) -> Iterator[str]:
    """No kept event lies beside a step that waits for it."""
    now = world.servers.clock.now_ms()
    for run in active_runs(world):
        for i, step in enumerate(run.steps):
            if step.wait is WaitingFor.EVENT and step.event_key is not None:
                kept = world.store.events.get(run.head.project_id, {}).get(step.event_key, [])
                if any(event.expires_at_ms > now for event in kept):
                    yield f"run {run.head.id}: step {i} waits for {step.event_key}, which is kept"
