"""Heartbeats and the clocks: what is missed is measured by how long was really waited."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from pilotage.actors import heartbeats as heartbeats_module
from pilotage.actors.heartbeats import Heartbeats
from pilotage.actors.kernel import Timers
from pilotage.actors.services import Directory, TimerKey
from pilotage.runtime.commands import AttemptFailed
from pilotage.runtime.state import RunState
from tests.support.clock import FakeClock

HOUR_MS = 3_600_000


class Heard:
    """What the run is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def notify(self, run_id: str, command: Any) -> None:
        self.told.append((run_id, command))


class World:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.timers: Timers[TimerKey] = Timers(self.clock, None)
        self.heard = Heard()
        self.heartbeats = Heartbeats(
            directory=cast("Directory", self.heard),
            published=lambda _: cast("RunState", object()),
            clock=self.clock,
            timers=self.timers,
        )


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    def always(*_: object) -> bool:
        return True

    monkeypatch.setattr(heartbeats_module, "in_progress", always)
    made = World()
    yield made
    made.timers.close()


@pytest.mark.parametrize("hours", [5, -5])
def test_a_clock_that_is_set_fails_no_attempt_and_gives_none_more_time(
    world: World, hours: int
) -> None:
    world.heartbeats.expect("run", 0, 1, 30.0)
    world.clock.advance_ms(10_000)
    world.clock.jump_ms(hours * HOUR_MS)
    world.timers.fire_due()
    assert world.heard.told == []
    assert world.heartbeats.expected("run", 0, 1)
    world.clock.advance_ms(19_999)
    world.timers.fire_due()
    assert world.heard.told == []
    world.clock.advance_ms(1)
    world.timers.fire_due()
    ((run, command),) = world.heard.told
    assert run == "run"
    assert isinstance(command, AttemptFailed)
    assert command.error == "no heartbeat for 30 s"
    assert not world.heartbeats.expected("run", 0, 1)


def test_the_next_heartbeat_counts_from_when_the_last_one_came(world: World) -> None:
    world.heartbeats.expect("run", 0, 1, 30.0)
    world.clock.advance_ms(20_000)
    world.heartbeats.expect("run", 0, 1, 30.0)
    world.clock.jump_ms(HOUR_MS)
    world.timers.fire_due()
    world.clock.jump_ms(-3 * HOUR_MS)
    world.clock.advance_ms(29_000)
    world.timers.fire_due()
    assert world.heard.told == []
    world.heartbeats.forget("run", 0, 1)
    world.clock.advance_ms(HOUR_MS)
    world.timers.fire_due()
    assert world.heard.told == []
