"""Plays a run at random, and brings it to its end."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from pilotage.runtime import commands as c
from pilotage.runtime.graph import bits
from pilotage.runtime.state import RunState, StepState
from pilotage.runtime.status import RunStatus, StepStatus, StepType, WaitingFor
from tests.property.runtime.workflows import random_graph, random_head
from tests.support.run_invariants import check_all
from tests.support.run_world import World

START = 1_700_000_000_000
_ERRORS = ("boom", "x" * 5_000)


def new_world(rnd: Random) -> World:
    graph, head = random_graph(rnd), random_head(rnd, START)
    disabled = tuple(i for i in range(graph.size) if rnd.random() < 0.05)
    held = head.parent_run_id is not None and rnd.random() < 0.2
    create = c.CreateRun(
        head=head,
        slot=rnd.random() < 0.8,
        disabled=disabled,
        parent_attempt=1 if head.parent_run_id else 0,
        held=held,
        carried=tuple(_carried(rnd, graph.size, disabled)) if rnd.random() < 0.1 else (),
    )
    world = World(graph, create, START)
    world.checks.append(check_all)
    world.give(create)
    return world


def _carried(rnd: Random, size: int, disabled: tuple[int, ...]) -> list[tuple[int, StepState]]:
    return [
        (i, StepState(status=StepStatus.COMPLETED, attempt=2, output=b'{"v": 9}', checked=True))
        for i in range(size)
        if i not in disabled and rnd.random() < 0.3
    ]


def play(world: World, rnd: Random, moves: int) -> None:
    for _ in range(moves):
        rnd.choice(_MOVES)(world, rnd)


def play_once(world: World, rnd: Random, *, operators: bool) -> None:
    """One move of a run whose relatives are real runs."""
    rnd.choice(_REPORTS + (_OPERATORS if operators else ()))(world, rnd)


# --- moves ---------------------------------------------------------------------------------------


def _any_step(world: World, rnd: Random) -> int:
    return rnd.randrange(world.state.graph.size)


def _attempt_of(world: World, rnd: Random) -> tuple[int, int]:
    """Mostly one in progress; sometimes an old one, or one that never was."""
    if world.attempts and rnd.random() < 0.8:
        return rnd.choice(sorted(world.attempts))
    if world.past_attempts and rnd.random() < 0.8:
        return rnd.choice(sorted(world.past_attempts))
    return _any_step(world, rnd), rnd.randint(0, 3)


def _complete(world: World, rnd: Random) -> None:
    i, attempt = _attempt_of(world, rnd)
    output = rnd.choice((None, b"null", b'{"v": 1}', b'{"v": "x"}', b'{"w": 1}', b"[1]"))
    world.give(c.AttemptCompleted(step=i, attempt=attempt, output=output))


def _complete_huge(world: World, rnd: Random) -> None:
    if rnd.random() < 0.1:
        i, attempt = _attempt_of(world, rnd)
        world.give(
            c.AttemptCompleted(step=i, attempt=attempt, output=b'"' + b"x" * 1_100_000 + b'"')
        )


def _fail(world: World, rnd: Random) -> None:
    i, attempt = _attempt_of(world, rnd)
    world.give(
        c.AttemptFailed(
            step=i,
            attempt=attempt,
            error=rnd.choice(_ERRORS),
            final=rnd.random() < 0.3,
            retry_after_secs=rnd.choice((None, None, 0.0, 7.0)),
        )
    )


def _accept(world: World, rnd: Random) -> None:
    i, attempt = _attempt_of(world, rnd)
    world.give(c.AttemptAccepted(step=i, attempt=attempt))


def _fire_timer(world: World, rnd: Random) -> None:
    if not world.timers:
        return
    key = rnd.choice(sorted(world.timers, key=lambda k: -1 if k is None else k))
    due = world.timers[key]
    if rnd.random() < 0.8:  # else early
        world.now = max(world.now, due - 1 + rnd.choice((0, 0, 400)))
    world.timers.pop(key)
    world.give(world.fired(key))


def _stray_timer(world: World, rnd: Random) -> None:
    key = rnd.choice((None, _any_step(world, rnd)))
    due = world.timers.get(key)
    stray = c.TimerFired(step=key)  # of a wait: it is nothing to an attempt in progress
    if due is not None and due <= world.now + 1 and world.fired(key) == stray:
        world.timers.pop(key)
    world.give(stray)


def _measured_timer(world: World, rnd: Random) -> None:
    """The time of an attempt is up, whatever the wall clock says."""
    i, attempt = _attempt_of(world, rnd)
    world.give(c.TimerFired(step=i, attempt=attempt))


def _set_clock(world: World, rnd: Random) -> None:
    """An attempt keeps its time: it is up earlier than it was to be, or at another time of day."""
    i, attempt = _attempt_of(world, rnd)
    due = world.now + rnd.choice((0, 1, 400))
    if (i, attempt) in world.attempts:
        world.timers[i] = due
    world.give(c.MoveTimeout(step=i, attempt=attempt, due_ms=due))


def _grant(world: World, rnd: Random) -> None:
    if world.grants:
        world.give(world.grants.pop(rnd.randrange(len(world.grants))))


def _event(world: World, rnd: Random) -> None:
    i = rnd.choice(sorted(world.parked)) if world.parked else _any_step(world, rnd)
    attempt = world.state.step(i).attempt - rnd.choice((0, 0, 0, 1))
    world.give(c.EventReceived(step=i, attempt=attempt, payload=rnd.choice((None, b'{"v": 2}'))))


def _child_ends(world: World, rnd: Random) -> None:
    active = sorted(k for k, child in world.children.items() if child.active)
    if active:
        status = rnd.choice(
            (RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.TIMED_OUT, RunStatus.CANCELED)
        )
        world.end_child(rnd.choice(active), status)


def _child_report(world: World, rnd: Random) -> None:
    if world.reports:
        k = rnd.randrange(len(world.reports))
        report = world.reports[k] if rnd.random() < 0.2 else world.reports.pop(k)
        if report in world.reports and world.state.step(report.step).attempt == report.attempt:
            world.reports.remove(report)  # told twice only when it is late
        world.give(report)


def _on_step(kind: Callable[..., c.Command]) -> Callable[[World, Random], None]:
    def move(world: World, rnd: Random) -> None:
        world.give(kind(step=_any_step(world, rnd), actor=rnd.choice(("ops", "eve"))))

    return move


def _reopening(kind: Callable[..., c.Command], **more: Any) -> Callable[[World, Random], None]:
    def move(world: World, rnd: Random) -> None:
        world.give(kind(step=_any_step(world, rnd), slot=rnd.random() < 0.7, **more))

    return move


def _plain(*given: c.Command) -> Callable[[World, Random], None]:
    def move(world: World, rnd: Random) -> None:
        world.give(rnd.choice(given))

    return move


def _cancel(world: World, rnd: Random) -> None:
    if rnd.random() < 0.3:
        world.give(c.CancelRun(reason=rnd.choice((None, "why"))))


def _admit(world: World, rnd: Random) -> None:
    if world.queued:
        world.give(c.AdmitRun())


def _reopen_as_child(world: World, rnd: Random) -> None:
    if world.state.head.parent_run_id is not None:
        attempt = world.state.vitals.parent_attempt + rnd.choice((0, 1, 1))
        world.give(c.ReopenChild(parent_attempt=attempt, slot=rnd.random() < 0.7))


Move = Callable[[World, Random], None]

_REPORTS: tuple[Move, ...] = (
    *(_complete, _complete, _complete, _complete_huge, _fail, _fail, _accept),
    *(
        _fire_timer,
        _fire_timer,
        _fire_timer,
        _stray_timer,
        _measured_timer,
        _set_clock,
        _grant,
        _grant,
        _grant,
        _event,
    ),
    *(_admit, _admit),
)
_OPERATORS: tuple[Move, ...] = (
    _cancel,
    *(_on_step(c.ApproveStep), _on_step(c.RejectStep)),
    *(_reopening(c.SkipStep, reason="no"), _reopening(c.RetryStep), _reopening(c.ReplaySubtree)),
    *(_reopening(c.ForceCompleteStep), _reopening(c.ForceCompleteStep, result=b'{"v": 5}')),
    *(_plain(c.PauseRun()), _plain(c.ResumeRun()), _plain(c.PinRun(pinned=True))),
)
_RELATIVES: tuple[Move, ...] = (
    *(_child_ends, _child_report, _child_report, _reopen_as_child),
    _plain(c.HoldRun(held=True), c.HoldRun(held=False), c.HoldRun(held=False)),
)
_MOVES = _REPORTS + _OPERATORS + _RELATIVES


# --- to the end ----------------------------------------------------------------------------------


def finish(world: World) -> None:
    """Feed success to everything that is waited for; raise if the run does not come to its end."""
    for _ in range(20 * world.state.graph.size + 60):
        if world.state.status.is_terminal:
            return
        if not help_run(world):
            break
    if not world.state.status.is_terminal:
        raise AssertionError(f"the run hangs: {list(world.state.steps())}")


def help_run(world: World) -> bool:
    """Give the run one thing it waits for; False if there is none."""
    state = world.state
    if state.status is RunStatus.PAUSED:
        world.give(c.ResumeRun())
    elif state.vitals.held:
        world.give(c.HoldRun(held=False))
    elif state.status is RunStatus.PENDING and world.queued:
        world.give(c.AdmitRun())
    elif state.status is RunStatus.PENDING:
        _fire_now(world, None)
    elif world.grants:
        world.give(world.grants.pop(0))
    elif world.reports:
        world.give(world.reports.pop(0))
    elif world.attempts:
        i, attempt = min(world.attempts)
        world.give(c.AttemptCompleted(step=i, attempt=attempt, output=b'{"v": 1}'))
    else:
        return _help_waiting(world, state)
    return True


def _help_waiting(world: World, state: RunState) -> bool:
    for child_id, child in world.children.items():
        if child.active:
            world.end_child(child_id, RunStatus.COMPLETED)
            return True
    for i in bits(state.masks.open):
        step = state.step(i)
        if step.wait is WaitingFor.APPROVAL:
            world.give(c.ApproveStep(step=i, actor="ops"))
        elif step.wait is WaitingFor.EVENT:
            world.give(c.EventReceived(step=i, attempt=step.attempt, payload=b'{"v": 1}'))
        elif step.wait in {WaitingFor.TIMER, WaitingFor.RETRY}:
            _fire_now(world, i)
        else:
            continue
        return True
    return False


def _fire_now(world: World, key: int | None) -> None:
    world.now = max(world.now, world.timers.pop(key))
    world.give(world.fired(key))


__all__ = ["StepType", "finish", "new_world", "play"]
