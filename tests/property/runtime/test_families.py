"""Parents and children as real runs, with messages that are late: nothing is orphaned or hangs.

Messages between two runs keep their order and may take any time; between other pairs they cross.
"""

from __future__ import annotations

from collections import deque
from random import Random

import msgspec
import pytest
from hypothesis import given, note, strategies as st

from pilotage.runtime import commands as c
from pilotage.runtime.definition import StepSpec, WorkflowSpec
from pilotage.runtime.effects import StartChild, TellChild, TellParent
from pilotage.runtime.graph import StepGraph, bits
from pilotage.runtime.ids import make_run_id
from pilotage.runtime.state import RunHead
from pilotage.runtime.status import RunStatus, StepType
from tests.property.runtime.play import START, help_run, play_once
from tests.property.runtime.workflows import FREE_JOB, random_graph
from tests.support.run_invariants import check_alone
from tests.support.run_world import World

DEEPEST = 2


class Member(World):
    """One run of a family. What goes to relatives goes through the family's post."""

    def __init__(self, family: Family, graph: StepGraph, create: c.CreateRun, now: int) -> None:
        super().__init__(graph, create, now)
        self.family = family
        self.checks.append(check_alone)

    def _start_child(self, effect: StartChild) -> None:
        self.family.send(self.state.id, effect.child_run_id, effect)

    def _tell_child(self, effect: TellChild) -> None:
        self.family.send(self.state.id, effect.child_run_id, effect)

    def _tell_parent(self, effect: TellParent) -> None:
        self.family.send(self.state.id, effect.parent_run_id, effect)


class Family:
    """A tree of runs and the messages under way between them."""

    def __init__(self, rnd: Random) -> None:
        self.rnd = rnd
        self.members: dict[str, Member] = {}
        self.post: dict[tuple[str, str], deque[StartChild | TellChild | TellParent]] = {}
        self.root = self._create(RunHead(
            id=make_run_id(START, 1), project_id="p", workflow_id="w", workflow_slug="w",
            version=1, version_id="v", created_at_ms=START,
        ), step=None)  # fmt: skip

    def send(self, sender: str, to: str, what: StartChild | TellChild | TellParent) -> None:
        self.post.setdefault((sender, to), deque()).append(what)

    def _create(self, head: RunHead, step: tuple[int, bool] | None) -> Member:
        attempt, held = step or (0, False)
        graph = _with_children(random_graph(self.rnd, 4), root=step is None)
        command = c.CreateRun(
            head=head, slot=self.rnd.random() < 0.7, parent_attempt=attempt, held=held
        )
        member = self.members[head.id] = Member(self, graph, command, START)
        member.give(command)
        return member

    def deliver(self) -> bool:
        """Deliver one message, of any pair; False if none is under way."""
        pairs = sorted(pair for pair, queue in self.post.items() if queue)
        if not pairs:
            return False
        sender, to = pair = self.rnd.choice(pairs)
        message = self.post[pair].popleft()
        if isinstance(message, StartChild):
            self._start(sender, message)
        elif isinstance(message, TellChild):
            self._tell(to, message)
        else:
            end = c.ChildEnded(
                step=message.step, attempt=message.attempt, child_run_id=sender,
                status=message.status, output=message.output, error=message.error,
            )  # fmt: skip
            self.members[to].give(end)
        return True

    def _start(self, parent_id: str, message: StartChild) -> None:
        parent = self.members[parent_id].state
        head = msgspec.structs.replace(
            parent.head,
            id=message.child_run_id,
            parent_run_id=parent_id,
            parent_step=message.step,
            depth=parent.head.depth + 1,
            payload=message.payload,
        )
        self._create(head, (message.attempt, parent.status is RunStatus.PAUSED))

    def _tell(self, child_id: str, message: TellChild) -> None:
        child = self.members[child_id]
        if message.what == "cancel":
            child.give(c.CancelRun())
        elif message.what == "reopen":
            slot = self.rnd.random() < 0.7
            child.give(c.ReopenChild(parent_attempt=message.parent_attempt, slot=slot))
        else:
            child.give(c.HoldRun(held=message.what == "pause"))

    def settle_post(self) -> None:
        while self.deliver():
            pass

    def bring_home(self) -> None:
        """Feed success to every run until all have ended."""
        for _ in range(3_000):
            self.settle_post()
            active = [m for m in self.members.values() if not m.state.status.is_terminal]
            if not active:
                return
            helped = [help_run(member) for member in active]
            if not any(helped):
                break
        stuck = [m.state.vitals for m in self.members.values() if not m.state.status.is_terminal]
        raise AssertionError(f"runs hang: {stuck}")


def _with_children(graph: StepGraph, *, root: bool) -> StepGraph:
    """Bounded depth; the root has a child for certain."""
    steps = [
        msgspec.structs.replace(s, max_nesting_depth=DEEPEST)
        if s.step_type is StepType.SUB_WORKFLOW
        else s
        for s in graph.steps
    ]
    if root:
        child = StepSpec(
            step_ref="child", step_type=StepType.SUB_WORKFLOW, sub_workflow_id="w",
            retry_max_attempts=2, retry_initial_delay_secs=0.0, max_nesting_depth=DEEPEST,
        )  # fmt: skip
        steps += [child, StepSpec(step_ref="beside", job_id=FREE_JOB)]
    return StepGraph(WorkflowSpec(steps=tuple(steps)))


def relatives_agree(family: Family) -> None:
    """With no message under way, and operators acting on the root alone."""
    waited: set[str | None] = set()
    for member in family.members.values():
        state = member.state
        for i in bits(state.masks.running):
            step = state.step(i)
            if state.graph.steps[i].step_type is not StepType.SUB_WORKFLOW:
                continue
            waited.add(step.child_run_id)
            child = family.members[step.child_run_id or ""].state
            assert not child.status.is_terminal, "a parent waits for a run that is over"
            assert child.vitals.parent_attempt == step.attempt
            if state.status is RunStatus.PAUSED:
                assert child.status is RunStatus.PAUSED or child.vitals.held
            else:
                assert child.status is not RunStatus.PAUSED
                assert not child.vitals.held
    for run_id, member in family.members.items():
        if member is not family.root and not member.state.status.is_terminal:
            assert run_id in waited, "a child runs that nobody waits for"


def play_family(seed: int, moves: int, *, root_only: bool) -> None:
    rnd = Random(seed)
    family = Family(rnd)
    try:
        for _ in range(moves):
            for _ in range(rnd.choice((0, 1, 3))):
                family.deliver()
            member = rnd.choice(list(family.members.values()))
            play_once(member, rnd, operators=member is family.root or not root_only)
            if root_only and rnd.random() < 0.3:
                family.settle_post()
                relatives_agree(family)
        family.bring_home()
    except Exception:
        note(f"seed {seed}, {moves} moves")
        for run_id, member in family.members.items():
            note(f"--- {run_id}")
            for line in member.log:
                note(line)
        raise


SEEDS = st.integers(0, 2**32)


@given(seed=SEEDS, moves=st.integers(0, 60))
def test_relatives_agree_once_no_message_is_under_way(seed: int, moves: int) -> None:
    play_family(seed, moves, root_only=True)


@given(seed=SEEDS, moves=st.integers(0, 60))
def test_every_family_comes_to_its_end_whatever_operators_do(seed: int, moves: int) -> None:
    play_family(seed, moves, root_only=False)


@pytest.mark.parametrize("root_only", [True, False])
def test_families_of_the_seeds_that_are_always_run(root_only: bool) -> None:
    for seed in range(150):
        play_family(seed, 50, root_only=root_only)
