"""What holds after every transition of every run, whatever came before."""

from __future__ import annotations

import msgspec

from pilotage.runtime import backoff
from pilotage.runtime.commands import Command
from pilotage.runtime.effects import (
    ParkEvent,
    QueueRun,
    RequestSlot,
    ScheduleTimer,
    StartAttempt,
    StartChild,
    TellParent,
)
from pilotage.runtime.events import RunCreated, RunEnded, StepCompleted
from pilotage.runtime.graph import bits
from pilotage.runtime.machine import Transition, evolve
from pilotage.runtime.recovery import recovery_effects, undeliverable
from pilotage.runtime.replies import Late
from pilotage.runtime.state import RunState, delay_ms, rebuild, run_due_ms, satisfies
from pilotage.runtime.status import RunStatus, StepStatus, StepType, WaitingFor
from pilotage.runtime.views import step_views
from tests.support.run_world import World

_SEQ = {"seq": 0, "history_seq": 0}


def check_all(world: World, before: RunState, command: Command, done: Transition) -> None:
    check_alone(world, before, command, done)
    children_match(world)


def check_alone(world: World, before: RunState, command: Command, done: Transition) -> None:
    """Everything but what concerns child runs."""
    state = world.state
    derived_is_rebuilt(state)
    dependencies_are_counted(state)
    nothing_is_left_standing(state)
    limits_hold(state)
    terminal_is_terminal(state)
    folding_gives_the_state(before, done)
    attempts_never_fall(before, done)
    late_changes_nothing(done)
    changed_names_the_changes(before, done)
    attempts_match(world)
    slots_match(world)
    timers_match(world)
    waits_match(world)
    queue_matches(world)
    messages_match(done)
    recovery_matches(world)


def derived_is_rebuilt(state: RunState) -> None:
    assert rebuild(state.head, state.graph, state.vitals, state.chunks).masks == state.masks


def dependencies_are_counted(state: RunState) -> None:
    steps = list(state.steps())
    for i, view in enumerate(step_views(state)):
        count = sum(satisfies(state.graph, j, steps[j]) for j in set(state.graph.deps[i]))
        assert (view.deps_completed, view.deps_required) == (count, len(set(state.graph.deps[i])))


def nothing_is_left_standing(state: RunState) -> None:
    """A ready step is pending, and a pending step of a running run has a reason."""
    graph, masks = state.graph, state.masks
    limit = state.head.max_parallel_steps
    running = masks.running.bit_count()
    for i, step in enumerate(state.steps()):
        ready = not graph.deps_mask[i] & ~masks.satisfied
        if step.status is StepStatus.WAITING and step.wait is None:
            assert not ready, f"step {i} is ready and left waiting"
        if step.status is not StepStatus.PENDING:
            continue
        assert ready, f"step {i} is pending and not ready"
        if state.status is not RunStatus.RUNNING or step.wait is WaitingFor.JOB_LIMIT:
            continue
        spec = graph.steps[i]
        key = spec.concurrency_key
        policy = backoff.policy_of(spec, state.head.policies)
        asked = (masks.requested & graph.job_mask.get(spec.job_id or "", 0)).bit_count()
        assert (
            (limit and running >= limit)
            or (key and graph.key_mask[key] & masks.running)
            or (policy.limited and limit and asked >= limit - running)
        ), f"step {i} is pending for no reason"


def limits_hold(state: RunState) -> None:
    limit = state.head.max_parallel_steps
    assert not limit or state.masks.running.bit_count() <= limit
    for mask in state.graph.key_mask.values():
        assert (mask & state.masks.running).bit_count() <= 1


def terminal_is_terminal(state: RunState) -> None:
    if state.status.is_terminal:
        assert all(step.status.is_terminal for step in state.steps())
        assert state.vitals.finished_at_ms is not None
        assert (state.vitals.error is None) == (state.status is RunStatus.COMPLETED)
    else:
        assert state.vitals.error is None
        assert state.vitals.finished_at_ms is None
        assert state.status is RunStatus.PENDING or state.masks.open
        assert all(step.status is not StepStatus.CANCELED for step in state.steps())
    for i in bits(state.masks.open & ~state.masks.running):
        assert state.step(i).finished_at_ms is None


def folding_gives_the_state(before: RunState, done: Transition) -> None:
    state = before
    for event in done.events:
        state = evolve(state, event)
    after = done.state
    assert msgspec.structs.replace(state.vitals, **_SEQ) == msgspec.structs.replace(
        after.vitals, **_SEQ
    )
    assert state.chunks == after.chunks
    assert state.masks == after.masks
    assert after.vitals.seq == before.vitals.seq + bool(done.events)


def attempts_never_fall(before: RunState, done: Transition) -> None:
    if done.events and isinstance(done.events[0], RunCreated):
        return
    for old, new in zip(before.steps(), done.state.steps(), strict=True):
        assert old.attempt <= new.attempt <= old.attempt + 1
        assert new.budget_start <= new.attempt


def late_changes_nothing(done: Transition) -> None:
    if isinstance(done.reply, Late):
        assert not done.events
        assert not done.effects


def changed_names_the_changes(before: RunState, done: Transition) -> None:
    pairs = zip(before.steps(), done.state.steps(), strict=True)
    assert {i for i, (old, new) in enumerate(pairs) if old != new} == set(done.changed)


def attempts_match(world: World) -> None:
    state = world.state
    wanted = {
        (i, state.step(i).attempt)
        for i in bits(state.masks.running)
        if state.graph.steps[i].step_type is StepType.JOB
    }
    assert wanted == world.attempts


def slots_match(world: World) -> None:
    state = world.state
    requested = set(bits(state.masks.requested))
    granted = {g.step for g in world.grants if g.step in world.holders}
    assert set(world.requests) <= requested
    assert requested <= set(world.requests) | granted
    limited = {
        i
        for i in bits(state.masks.running)
        if state.graph.steps[i].step_type is StepType.JOB
        and backoff.policy_of(state.graph.steps[i], state.head.policies).limited
    }
    assert limited <= world.holders, "a step runs without the slot it needs"
    assert world.holders <= limited | granted, "a slot is held by nobody"
    for i in requested:
        since = state.step(i).ready_since_ms
        grants = [g for g in world.grants if g.step == i and g.since_ms == since]
        assert world.requests.get(i) == since or grants


def timers_match(world: World) -> None:
    state = world.state
    wanted = {i: s.due_ms for i, s in enumerate(state.steps()) if s.due_ms is not None}
    assert wanted == {i: due for i, due in world.timers.items() if i is not None}
    for i in wanted:
        step = state.step(i)
        running = step.attempt if step.status is StepStatus.RUNNING else None
        assert world.measured[i] == running, "a timer ends what it was armed for, and nothing else"
    due, armed = run_due_ms(state.head, state.vitals, world.now), world.timers.get(None)
    if due is not None:
        assert armed is not None
        assert armed <= due
        assert armed == due or armed <= world.now


def waits_match(world: World) -> None:
    wanted = {
        i: (s.attempt, s.event_key)
        for i, s in enumerate(world.state.steps())
        if s.wait is WaitingFor.EVENT
    }
    assert wanted == world.parked


def children_match(world: World) -> None:
    state = world.state
    waited = {
        state.step(i).child_run_id: state.step(i).attempt
        for i in bits(state.masks.running)
        if state.graph.steps[i].step_type is StepType.SUB_WORKFLOW
    }
    for child_id, attempt in waited.items():
        child = world.children[child_id or ""]
        on_the_way = any(r.child_run_id == child_id and r.attempt == attempt for r in world.reports)
        assert (child.active and child.attempt == attempt) or on_the_way
        assert not child.active or child.paused == (state.status is RunStatus.PAUSED)
    for child_id, child in world.children.items():
        assert not child.active or child_id in waited, "a child has no parent any more"
    for step in state.steps():
        assert step.child_run_id is None or step.child_run_id in world.children
    for effect in recovery_effects(state, world.now):
        assert not isinstance(effect, StartChild) or effect.child_run_id in world.children


def queue_matches(world: World) -> None:
    state = world.state
    if state.status.is_terminal:
        assert not world.slot
        assert not world.queued
    elif state.status is RunStatus.PENDING:
        assert not world.slot
        assert world.queued or world.timers.get(None) is not None
    else:
        assert world.slot
        assert not world.queued


def messages_match(done: Transition) -> None:
    ends = [e for e in done.events if isinstance(e, RunEnded)]
    told = [e for e in done.effects if isinstance(e, TellParent)]
    if done.state.head.parent_run_id is None:
        assert not told
    elif ends:
        assert [t.attempt for t in told] == [done.state.vitals.parent_attempt]
    emitted = [e for e in done.effects if type(e).__name__ == "EmitEvent"]
    completed = [e for e in done.events if isinstance(e, StepCompleted)]
    with_key = [e for e in completed if done.state.graph.emit_keys[e.step] is not None]
    assert len(emitted) == len(with_key)


def recovery_matches(world: World) -> None:
    """What is derived from the state is exactly what is armed."""
    state = world.state
    effects = recovery_effects(state, world.now)
    lost = {(r.step, r.attempt) for r in undeliverable(state)}
    started = {(e.step, e.attempt) for e in effects if isinstance(e, StartAttempt)}
    accepted = {(i, s.attempt) for i, s in enumerate(state.steps()) if s.accepted}
    assert not started & lost
    assert started | lost | accepted == world.attempts
    timers = {
        e.step: e.due_ms for e in effects if isinstance(e, ScheduleTimer) if e.step is not None
    }
    armed = {i: due for i, due in world.timers.items() if i is not None}
    again = {step for step, _ in started | lost}  # dispatched again: they get their whole time
    assert timers.keys() == armed.keys()
    assert all(timers[i] >= armed[i] if i in again else timers[i] == armed[i] for i in armed)
    assert {(e.step, e.event_key) for e in effects if isinstance(e, ParkEvent)} == {
        (i, key) for i, (_, key) in world.parked.items()
    }
    requests = {e.step for e in effects if isinstance(e, RequestSlot)}
    assert requests == set(bits(state.masks.requested))
    queued = [e for e in effects if isinstance(e, QueueRun)]
    if queued:
        assert world.queued or (world.timers.get(None) or 0) <= world.now
    elif state.status is RunStatus.PENDING:
        assert delay_ms(state.head, state.vitals, world.now) is not None
