"""Fails when an event, effect, command or row of the rules is not taken by any random run."""

from __future__ import annotations

from random import Random

import pytest

from pilotage.runtime import draft, machine
from pilotage.runtime.commands import Command, CreateRun
from pilotage.runtime.effects import Effect
from pilotage.runtime.events import RunCreated
from pilotage.runtime.machine import Transition
from pilotage.runtime.rules import RUN_MOVES, STEP_MOVES
from pilotage.runtime.state import RunState
from pilotage.runtime.status import RunStatus, StepStatus
from tests.property.runtime.play import finish, new_world, play
from tests.support.run_world import World

SEEDS = 700


class Taken:
    """What the random runs have done."""

    def __init__(self) -> None:
        self.events: set[type] = set()
        self.effects: set[type] = set()
        self.commands: set[type] = set()
        self.run_moves: set[tuple[type, str]] = set()
        self.step_moves: set[tuple[type, str]] = set()

    def note(self, _: World, before: RunState, command: Command, done: Transition) -> None:
        kind = type(command)
        self.commands.add(kind)
        self.events.update(map(type, done.events))
        self.effects.update(map(type, done.effects))
        if kind in RUN_MOVES:
            self.run_moves.add((kind, before.status))
        if kind in STEP_MOVES:
            i: int = getattr(command, "step")  # noqa: B009  not of every command
            self.step_moves.add((kind, before.step(i).status))


@pytest.fixture(scope="module")
def taken() -> Taken:
    found = Taken()
    for seed in range(SEEDS):
        rnd = Random(seed)
        world = new_world(rnd)
        world.checks.append(found.note)
        play(world, rnd, 40)
        finish(world)
    return found


def test_every_event_is_taken(taken: Taken) -> None:
    known = set(draft._APPLY)
    assert taken.events | {RunCreated} == known


def test_every_effect_is_taken(taken: Taken) -> None:
    assert taken.effects == set(Effect.__subclasses__())


def test_every_command_is_taken(taken: Taken) -> None:
    assert taken.commands == set(machine._HANDLERS) - {CreateRun}


def test_every_row_of_the_rules_is_taken(taken: Taken) -> None:
    runs = {(k, s) for k, move in RUN_MOVES.items() for s in move.allowed | move.already}
    steps = {(k, s) for k, move in STEP_MOVES.items() for s in move.allowed | move.already}
    assert runs <= {(k, str(s)) for k, s in taken.run_moves}
    assert steps <= {(k, str(s)) for k, s in taken.step_moves}
    assert {s for _, s in taken.run_moves} <= set(RunStatus)
    assert {s for _, s in taken.step_moves} <= set(StepStatus)
