"""How the timers of runs are armed, what they call, and how runs hear that the clock was set."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pilotage.actors import run_timers as run_timers_module
from pilotage.actors.executors.port import Accepted
from pilotage.actors.kernel import Timers
from pilotage.actors.run_timers import RunTimers
from pilotage.actors.services import RUN_TIMER, Services, TimerKey
from pilotage.runtime.commands import AttemptAccepted, MoveTimeout, TimerFired
from pilotage.runtime.effects import ScheduleTimer
from pilotage.runtime.state import RunState, StepState
from tests.support.clock import START_MS, FakeClock
from tests.support.waiting import wait_until

HOUR_MS = 3_600_000


class World:
    """Timers without a loop, and what the runs are told. It stands for directory and executors."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.timers: Timers[TimerKey] = Timers(self.clock, None)
        self.told: list[tuple[str, Any]] = []
        self.held_until_ms: int | None = None
        self.stored_due_ms: int | None = None
        services = SimpleNamespace(
            clock=self.clock,
            timers=self.timers,
            directory=self,
            executors=self,
        )
        self.run_timers = RunTimers(cast("Services", services), self.published)

    def published(self, run_id: str) -> RunState | None:
        if self.stored_due_ms is None:
            return None
        return cast("RunState", self)

    def step(self, _: int) -> StepState:
        return StepState(due_ms=self.stored_due_ms)

    def notify(self, run_id: str, message: object) -> None:
        self.told.append((run_id, message))

    def times_out_ms(self, *_: object) -> int | None:
        return self.held_until_ms

    def attempt(self, run_id: str, attempt: int = 1, left_ms: int = 60_000) -> None:
        due_ms = self.clock.now_ms() + left_ms
        effect = ScheduleTimer(step=0, due_ms=due_ms, attempt=attempt, left_ms=left_ms)
        self.run_timers.arm(run_id, effect)

    def pass_ms(self, duration_ms: int) -> None:
        self.clock.advance_ms(duration_ms)
        self.timers.fire_due()

    def moves(self) -> list[tuple[str, int]]:
        return [(run, m.due_ms) for run, m in self.told if isinstance(m, MoveTimeout)]


@pytest.fixture
def world() -> World:
    return World()


def test_times_of_day_are_told_as_they_are(world: World) -> None:
    world.run_timers.arm("run", ScheduleTimer(step=None, due_ms=START_MS + 10))
    world.run_timers.arm("run", ScheduleTimer(step=3, due_ms=START_MS + 20))
    assert ("run", RUN_TIMER) in world.timers
    world.pass_ms(20)
    assert world.told == [("run", TimerFired(step=None)), ("run", TimerFired(step=3))]


def test_an_attempt_is_told_by_its_number(world: World) -> None:
    world.attempt("run", attempt=7)
    assert world.run_timers.measures("run", 0, 7)
    assert not world.run_timers.measures("run", 0, 6)
    assert not world.run_timers.measures("other", 0, 7)
    world.pass_ms(60_000)
    assert world.told == [("run", TimerFired(step=0, attempt=7))]
    assert not world.run_timers.measures("run", 0, 7)


async def test_what_holds_an_attempt_back_does_not_burn_it(world: World) -> None:
    world.attempt("run")
    world.held_until_ms = START_MS + 90_000
    world.pass_ms(60_000)
    assert world.told == []
    assert world.run_timers.measures("run", 0, 1)
    world.clock.jump_ms(HOUR_MS)
    world.held_until_ms += HOUR_MS
    world.pass_ms(30_000)
    assert world.told == [("run", TimerFired(step=0, attempt=1))]


def test_callbacks_are_shared_and_there_are_not_many(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_timers_module, "KEPT_CALLBACKS", 2)
    for attempt in range(1, 6):
        world.attempt(f"a{attempt}", attempt)
        world.attempt(f"b{attempt}", attempt)
        one, other = (world.timers.callback((f"{c}{attempt}", 0)) for c in "ab")
        assert one is other
        assert len(world.run_timers._callbacks) <= 2
    world.pass_ms(60_000)
    assert [(run, m.attempt) for run, m in world.told] == [
        (f"{c}{n}", n) for n in range(1, 6) for c in "ab"
    ]


@pytest.mark.parametrize(
    ("stored_ms", "told_ms"),
    [
        (None, None),
        (START_MS + 60_000, None),
        (START_MS + 59_001, None),
        (START_MS + 59_000, START_MS + 60_000),
        (START_MS + HOUR_MS, START_MS + 60_000),
    ],
)
def test_a_run_whose_attempt_is_taken_hears_when_its_time_is_up_if_it_does_not_know(
    world: World, stored_ms: int | None, told_ms: int | None
) -> None:
    world.attempt("run")
    world.stored_due_ms = stored_ms
    told = world.run_timers.accepted("run", 0, 1, Accepted())
    assert told == AttemptAccepted(step=0, attempt=1, due_ms=told_ms)


def test_an_attempt_that_was_held_back_is_measured_from_when_it_was_begun(world: World) -> None:
    later_ms = START_MS + 90_000
    told = world.run_timers.accepted("run", 0, 1, Accepted(later_ms))
    assert told == AttemptAccepted(step=0, attempt=1, due_ms=later_ms)
    assert ("run", 0) not in world.timers, "it is over"
    world.attempt("run")
    assert world.run_timers.accepted("run", 0, 1, Accepted(later_ms)) == told
    world.pass_ms(89_999)
    assert world.told == []
    world.pass_ms(1)
    assert world.told == [("run", TimerFired(step=0, attempt=1))]


async def test_runs_hear_of_a_jump_some_at_a_time_and_each_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_timers_module, "TELL_PAUSE_SECS", 0.001)
    count = run_timers_module.TOLD_AT_ONCE * 3 + 1
    for n in range(count):
        world.attempt(f"{n:04}")
    world.run_timers.arm("sleeps", ScheduleTimer(step=0, due_ms=START_MS + HOUR_MS * 9))
    world.clock.jump_ms(-HOUR_MS)
    world.timers.fire_due()
    assert world.told == []
    await asyncio.sleep(0)
    assert len(world.told) == run_timers_module.TOLD_AT_ONCE
    await wait_until(lambda: len(world.told) == count, "all have heard of it")
    assert world.moves() == [(f"{n:04}", START_MS - HOUR_MS + 60_000) for n in range(count)]
    await asyncio.sleep(0.01)
    assert len(world.told) == count


async def test_who_has_not_heard_of_one_jump_hears_of_both_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.attempt("run")
    for hours in (1, -3):
        world.clock.jump_ms(hours * HOUR_MS)
        world.timers.fire_due()
    await wait_until(lambda: bool(world.told), "it has heard")
    assert world.moves() == [("run", START_MS - 2 * HOUR_MS + 60_000)]


async def test_a_time_that_is_up_meanwhile_is_told_and_nothing_after_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.attempt("run")
    world.clock.jump_ms(HOUR_MS)
    world.pass_ms(60_000)
    await asyncio.sleep(0)
    assert world.told == [("run", TimerFired(step=0, attempt=1))]


async def test_when_it_is_closed_nobody_hears_of_anything(world: World) -> None:
    world.run_timers.close()
    world.attempt("run")
    world.clock.jump_ms(HOUR_MS)
    world.timers.fire_due()
    world.run_timers.close()
    await asyncio.sleep(0)
    assert world.told == []
