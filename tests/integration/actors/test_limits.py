"""All limits at once under random schedules with failures and crashes: never one too many at any
instant, and never a slot that is left unused while somebody waits for it.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest

from pilotage.actors.executors.job_context import JobContext
from pilotage.runtime.state import RunState
from pilotage.runtime.status import RunStatus, StepStatus, WaitingFor
from tests.integration.actors.rig import PROJECT, Rig
from tests.support.waiting import wait_until

RUNS, RUNS_AT_ONCE, STEPS_AT_ONCE, NARROW = 7, 3, 2, 2


class Shop:
    """Does attempts, each until it is let go; some then fail. Looks at every limit all the time."""

    def __init__(self, world: Rig, dice: random.Random) -> None:
        self.world = world
        self.dice = dice
        self.live: dict[tuple[str, str], asyncio.Event] = {}
        self.problems: list[str] = []
        self.runs: list[str] = []
        self.first: list[str] = []
        world.registry.register(
            self.wide, name="wide", inline=True, max_attempts=50, retry_initial_delay=0
        )
        world.registry.register(
            self.narrow,
            name="narrow",
            inline=True,
            max_attempts=50,
            retry_initial_delay=0,
            max_concurrency=NARROW,
        )

    async def wide(self, _given: Any, ctx: JobContext) -> None:
        await self._work(ctx)

    async def narrow(self, _given: Any, ctx: JobContext) -> None:
        await self._work(ctx)

    async def _work(self, ctx: JobContext) -> None:
        me, let = (ctx.run_id, ctx.step_ref), asyncio.Event()
        if me in self.live:
            self.problems.append(f"{me} is done twice at a time")
        self.live[me] = let
        if ctx.run_id not in self.first:
            self.first.append(ctx.run_id)
        self._look()
        try:
            await let.wait()
        finally:
            self.live.pop(me, None)
        if self.dice.random() < 0.3:
            raise ValueError("as it happens")

    def _look(self) -> None:
        """At this instant."""
        by_run = Counter(run for run, _ in self.live)
        keyed = Counter(run for run, ref in self.live if ref.startswith("key"))
        narrow = sum(ref.startswith("narrow") for _, ref in self.live)
        if len(by_run) > RUNS_AT_ONCE:
            self.problems.append(f"{len(by_run)} runs at work")
        if max(by_run.values()) > STEPS_AT_ONCE:
            self.problems.append(f"steps at work by run: {by_run}")
        if max(keyed.values(), default=0) > 1:
            self.problems.append(f"steps at work under a key: {keyed}")
        if narrow > NARROW:
            self.problems.append(f"{narrow} attempts of the narrow job")

    async def let_some(self) -> None:
        """Some of those at work end."""
        number = min(len(self.live), self.dice.randrange(1, 4))
        let = [self.live[me] for me in self.dice.sample(sorted(self.live), number)]
        for event in let:
            event.set()
        await wait_until(
            lambda: not any(event in self.live.values() for event in let), "they ended"
        )

    def idle(self) -> str | None:
        """What is left unused; None if nothing is."""
        supervisor, admission = self.world.runtime.supervisor, self.world.runtime.admission
        states = [s for run in self.runs if (s := supervisor.published(run)) is not None]
        running = [state for state in states if state.status is RunStatus.RUNNING]
        queued = [state for state in states if state.status is RunStatus.PENDING]
        if queued and len(running) < RUNS_AT_ONCE:
            return f"{len(queued)} runs wait, {len(running)} are running"
        pool = admission._jobs.get((PROJECT, "narrow"))
        narrow = {me for me in self.live if me[1].startswith("narrow")}
        if pool is not None:
            holders = {(run, ref_of(states, run, i)) for run, i in pool.holders}
            if holders != narrow:
                return f"slots are held by {holders}, at work are {narrow}"
            if pool.queue and len(holders) < NARROW:
                return f"{len(pool.queue)} wait for the job, {len(holders)} are at work"
        return next((found for state in running if (found := self._idle_in(state))), None)

    def _idle_in(self, state: RunState) -> str | None:
        """A step that could be at work: the run has room, and what else it needs is free."""
        at_work = {ref for run, ref in self.live if run == state.id}
        if len(at_work) >= STEPS_AT_ONCE:
            return None
        narrow = sum(ref.startswith("narrow") for _, ref in self.live)
        free = {"narrow": narrow < NARROW, "key": not any(r.startswith("key") for r in at_work)}
        for spec, step in zip(state.graph.steps, state.steps(), strict=True):
            kind = spec.step_ref.rstrip("0123456789")
            if step.status is StepStatus.PENDING and free.get(kind, True):
                return f"{state.id}: {spec.step_ref} waits, only {at_work} are at work"
            if step.wait is WaitingFor.RETRY:
                return f"{state.id}: {spec.step_ref} is about to be tried again"
        return None

    async def settled(self, seed: int) -> None:
        await wait_until(lambda: self.idle() is None, f"{seed=}: nothing is left unused")
        assert not self.problems, (seed, self.problems)


def ref_of(states: list[RunState], run_id: str, i: int) -> str:
    return next((s.graph.steps[i].step_ref for s in states if s.id == run_id), f"{i} of nobody")


@pytest.mark.parametrize("seed", range(3))
async def test_limits_are_used_to_the_full_and_never_exceeded_through_crashes(
    world: Rig, seed: int
) -> None:
    dice = random.Random(seed)
    shop = Shop(world, dice)
    steps: list[dict[str, Any]] = [
        {"step_ref": f"narrow{n}", "job_id": "narrow", "on_failure": "continue"} for n in range(3)
    ]
    steps += [{"step_ref": f"key{n}", "job_id": "wide", "concurrency_key": "k"} for n in range(2)]
    dice.shuffle(steps)
    steps.append({"step_ref": "end", "job_id": "wide", "depends_on": ["key0", "narrow1"]})
    flow = await world.workflow(
        "w", steps, max_concurrent_runs=RUNS_AT_ONCE, max_parallel_steps=STEPS_AT_ONCE
    )
    runs = shop.runs = [await world.trigger(flow) for _ in range(RUNS)]
    crashes = set(dice.sample(range(1, 15), 3))
    n = 0
    for n in range(1000):
        await shop.settled(seed)
        if n in crashes:
            await world.crash_and_start()
            await shop.settled(seed)
        if all([(await world.state(run)).status.is_terminal for run in runs]):
            break
        await shop.let_some()
    assert n > max(crashes), seed
    assert {await world.status(run) for run in runs} == {"completed"}, seed
    assert shop.first == runs, f"{seed=}: they did not start in the order they came"
    assert not shop.problems, (seed, shop.problems)
