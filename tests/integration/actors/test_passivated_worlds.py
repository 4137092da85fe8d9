"""Two runs of one workflow get the same commands; one leaves memory before each of them.

What is done to them is drawn from a seed. Nothing that a client can see may differ.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pilotage.actors import idle_runs
from pilotage.actors.catalog_model import Workflow
from pilotage.actors.errors import ApplicationError
from pilotage.actors.principal import ADMIN
from pilotage.runtime.history import HistoryEntry
from pilotage.runtime.state import RunState
from pilotage.runtime.status import RunStatus, StepType
from tests.integration.actors.rig import Rig, noop, rig
from tests.support.idle import passivate
from tests.support.waiting import wait_until

COMMANDS = 14
WAITS: tuple[dict[str, Any], ...] = (
    {"step_type": "approval", "approval_timeout_secs": 86_400},
    {"step_type": "approval"},
    {"step_type": "wait_for_event", "event_key": "{{ payload.k }}"},
    {"step_type": "sleep", "sleep_duration_secs": 86_400},
    {"step_type": "sub_workflow", "sub_workflow_id": "child"},
)
DO = ("approve", "approve", "event", "retry", "force", "force", "pause", "resume", "pin", "cancel")


def drawn_steps(rnd: random.Random) -> list[dict[str, Any]]:
    """Jobs and waits, each after some of those before it."""
    steps: list[dict[str, Any]] = []
    for n in range(rnd.randint(3, 7)):
        after = [f"s{i}" for i in range(n) if rnd.random() < 0.35]
        if rnd.random() < 0.35:
            steps.append(noop(f"s{n}", *after, payload={"value": n}))
        else:
            steps.append({"step_ref": f"s{n}", "depends_on": after, **rnd.choice(WAITS)})
    return steps


def quiet(state: RunState) -> bool:
    """Whether the run waits for somebody."""
    if state.status.is_terminal or state.status is RunStatus.PAUSED:
        return True
    jobs = [i for i, s in enumerate(state.graph.steps) if s.step_type is StepType.JOB]
    return not state.masks.fresh and not any(state.masks.running >> i & 1 for i in jobs)


async def shape(world: Rig, run: str) -> Any:
    """What clients see of it, but for names and times."""
    state = await world.state(run)
    items = await world.gateway.history(run, ADMIN, 0, 500)
    history = [msgspec.json.decode(item, type=HistoryEntry) for item in items]
    told = Counter((entry.type, entry.step_ref, entry.attempt) for entry in history)
    steps = [
        (s.status, s.wait, s.attempt, s.error, s.skipped_by, s.resolution, s.accepted,
         s.output if spec.step_type in (StepType.JOB, StepType.WAIT_FOR_EVENT) else None)
        for spec, s in zip(state.graph.steps, state.steps(), strict=True)
    ]  # fmt: skip
    vitals = (state.status, state.vitals.pinned, state.vitals.held, state.vitals.history_seq)
    children = [
        await shape(world, s.child_run_id)
        for s in state.steps()
        if s.child_run_id is not None and await exists(world, s.child_run_id)
    ]
    return quiet(state), vitals, steps, told, children


async def exists(world: Rig, run: str) -> bool:
    return (await world.store.load_runs([run]))[0] is not None


async def active_family(world: Rig, run: str) -> list[str]:
    """The run and its children, those that have not ended."""
    state = await world.state(run)
    family = [] if state.status.is_terminal else [run]
    for step in state.steps():
        if step.child_run_id is not None and await exists(world, step.child_run_id):
            family += await active_family(world, step.child_run_id)
    return family


async def do(world: Rig, what: str, run: str, key: str, ref: str) -> str:
    """What comes of it, as text without names."""
    gateway = world.gateway
    try:
        if what == "approve":
            await gateway.approve(run, ref, ADMIN, None, "x")
        elif what == "event":
            receipt = await gateway.send_event("p", key, b"1", 0, actor="x")
            return str(receipt.delivered)
        elif what == "retry":
            await gateway.retry_step(run, ref, ADMIN)
        elif what == "force":
            await gateway.force_complete(run, ref, ADMIN, b"7")
        elif what == "pin":
            await gateway.pin(run, ADMIN, pinned=True)
        elif what == "cancel":
            await gateway.cancel(run, ADMIN, None)
        else:
            await (gateway.pause if what == "pause" else gateway.resume)(run, ADMIN)
    except ApplicationError as error:
        return f"{type(error).__name__}: {error}".replace(run, "RUN")
    return "done"


async def until_alike(world: Rig, runs: list[str], story: list[str]) -> None:
    last: list[Any] = []

    async def alike() -> bool:
        last[:] = [await shape(world, run) for run in runs]
        return last[0] == last[1] and bool(last[0][0])

    try:
        await wait_until(alike, "both runs look the same")
    except AssertionError:
        raise AssertionError(f"after {story}: {last[0]} is not {last[1]}") from None


async def play(
    world: Rig, flow: Workflow, refs: list[str], rnd: random.Random, seen: Counter[str]
) -> None:
    keys = ["stays", "leaves"]
    runs = [await world.trigger(flow, k=key) for key in keys]
    story: list[str] = []
    await until_alike(world, runs, story)
    for _ in range(COMMANDS):
        away = await active_family(world, runs[1])
        stays = await active_family(world, runs[0])
        await passivate(world.runtime.supervisor, *away, staying=stays)
        assert all(world.runtime.supervisor.published(run) is not None for run in stays)
        seen["left"] += len(away)
        what, ref = rnd.choice(DO), rnd.choice(refs)
        if what == "cancel" and rnd.random() < 0.7:
            what = "approve"
        story.append(f"{what} {ref}")
        came = [await do(world, what, run, key, ref) for run, key in zip(runs, keys, strict=True)]
        assert came[0] == came[1], story
        seen[what if came[0] == "done" else "refused"] += 1
        await until_alike(world, runs, story)


@pytest.mark.parametrize("seed", range(4))
async def test_a_run_that_leaves_memory_before_each_command_is_as_one_that_stays(
    valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(idle_runs, "FOLD_AFTER_SECS", 3_600.0)  # only the test puts runs aside
    rnd, seen = random.Random(seed), Counter[str]()
    async with rig(valkey_url, tmp_path, passivate_after_secs=3_600) as world:
        await world.workflow("child", [{"step_ref": "ok", "step_type": "approval"}])
        for n in range(3):
            steps = drawn_steps(rnd)
            flow = await world.workflow(f"w{n}", steps)
            await play(world, flow, [step["step_ref"] for step in steps], rnd, seen)
    assert seen["left"] > COMMANDS // 2, "the one that leaves has left"
