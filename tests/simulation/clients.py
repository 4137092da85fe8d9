"""Clients: they send every command there is at any time, and remember what they were told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import TYPE_CHECKING

from pilotage.actors.errors import ApplicationError, UnavailableError
from pilotage.actors.gateway import Gateway
from pilotage.actors.idempotency import Idempotency, recall
from pilotage.actors.principal import ADMIN
from pilotage.persistence.port import StoreUnavailableError
from pilotage.runtime.errors import DefinitionError
from pilotage.runtime.state import RunState
from pilotage.runtime.status import RunStatus, WaitingFor
from pilotage.runtime.validation import ParsedTrigger
from tests.simulation.calm import active_runs
from tests.simulation.ledger import Shadow, ViolationError
from tests.simulation.plan import Plan
from tests.simulation.verbs import DRY, KEYED, OF_NO_RUN, PROJECT, VERBS, Sent, Work, call

if TYPE_CHECKING:
    from tests.simulation.world import World

FINISH_SECS = 900.0
DECIDE_SECS = 5.0
"""How long a run may still come by a schedule that was ended while one was about to be made."""
REPLAYED = "replayed"
"""Told instead of an answer that was given before."""


class Clients:
    """One for all that is sent; each request has an actor's name of its own."""

    def __init__(self, world: World, rnd: Random) -> None:
        self._world = world
        self._rnd = rnd
        self._tasks: list[asyncio.Task[None]] = []
        self._seen: dict[str, int] = {}
        self.sent: list[Sent] = []
        self.schedule_ended_ms: int | None = None

    # --- the storm -------------------------------------------------------------------------------

    def begin(self, plan: Plan) -> None:
        """Start everything that will be sent, at its time."""
        rnd = self._rnd
        for _ in range(plan.runs):
            self._at(rnd.random() * plan.storm_secs * 0.7, self._trigger)
        for _ in range(plan.commands):
            self._at(rnd.random() * plan.storm_secs, self._command)
        for _ in range(plan.events):
            self._at(rnd.random() * plan.storm_secs, lambda: self._command("send_event"))

    def _at(self, secs: float, what: Callable[[], Awaitable[None]]) -> None:
        async def later() -> None:
            await asyncio.sleep(secs)
            try:
                await what()
            except ViolationError as error:
                self._world.fail(error)

        self._tasks.append(self._world.loop.create_task(later()))

    async def done(self) -> None:
        """Everybody has an answer or has given up."""
        for task in self._tasks:
            await task

    def _new(self, verb: str) -> Sent:
        number = len(self.sent)
        now_ms = self._world.servers.clock.now_ms()
        self.sent.append(Sent(f"c{number}", verb, at_ms=now_ms))
        return self.sent[-1]

    async def _trigger(self) -> None:
        rnd, sent = self._rnd, self._new("trigger")
        sent.key = f"key-{sent.actor}"
        slug = f"w{rnd.randrange(self._world.plan.workflows)}"
        trigger = ParsedTrigger(
            payload={"n": rnd.randrange(3)},
            tags={"by": sent.actor},
            delay_secs=rnd.choice((0.0, 0.0, 0.0, 0.7)),
            disabled=frozenset({"s0"} if rnd.random() < 0.1 else ()),
        )

        async def work(gateway: Gateway, idempotency: Idempotency) -> str:
            workflow = await gateway.catalog.workflow(PROJECT, slug)
            view = await gateway.trigger(
                workflow, trigger, actor=sent.actor, idempotency=idempotency
            )
            return view.id

        if await self._send(sent, work, tries=rnd.choice((1, 8))):
            sent.run_id = sent.told
            ledger = self._world.ledger
            if sent.run_id not in ledger.runs | ledger.removed:
                raise ViolationError(f"run {sent.run_id} is acknowledged and not stored")

    async def _command(self, verb: str | None = None) -> None:
        rnd, runs = self._rnd, self._world.ledger.runs
        sent = self._new(verb or rnd.choice(tuple(VERBS)))
        if sent.verb not in OF_NO_RUN:
            if not runs:
                sent.verb = "nothing"
                return
            sent.run_id = rnd.choice(list(runs))
            sent.step = rnd.randrange(runs[sent.run_id].graph.size)
        if sent.verb in DRY and rnd.random() < 0.1:
            sent.dry = True
        elif sent.verb in KEYED and rnd.random() < 0.3:
            sent.key = f"key-{sent.actor}"
        work = VERBS[sent.verb](self._world, sent, rnd)
        if await self._send(sent, work, tries=8 if sent.key else rnd.choice((1, 1, 4))):
            self._is_true(sent)

    async def _send(self, sent: Sent, work: Work, tries: int) -> bool:
        """Send until the answer is known or patience ends; True: acknowledged."""
        world, about = self._world, (sent.actor, sent.verb, sent.run_id)
        for _ in range(tries):
            sent.floor = self._seen.get(sent.run_id, 0)
            waiting = self._waiting_for(sent.event)
            try:
                sent.told = await world.request(lambda gateway: _once(gateway, sent, work))
            except (UnavailableError, StoreUnavailableError) as error:
                sent.unsure = True
                world.note("unavailable", *about, str(error)[:40])
            except ConnectionError:
                sent.unsure = True
                world.note("lost", *about)
            except (ApplicationError, DefinitionError) as error:
                sent.acknowledged = False
                world.note("refused", *about, type(error).__name__)
                return False
            else:
                sent.acknowledged = True
                world.note("ok", *about)
                if missed := waiting & self._waiting_for(sent.event):
                    raise ViolationError(f"{sent.actor}: event {sent.event} missed {missed}")
                return True
            await asyncio.sleep(0.2 + self._rnd.random())
        return False

    def _waiting_for(self, event: str) -> set[tuple[str, int, int]]:
        """Run, step and attempt of all that wait for the event, as the owner of the store knows:
        by what it has found there, or was acknowledged to it since.
        """
        if not event:
            return set()
        ledger, servers = self._world.ledger, self._world.servers
        set_apart = ledger.set_apart | servers.quarantined
        found: set[tuple[str, int, int]] = set()
        for run_id, run in ledger.runs.items():
            state = run.state if run.fence < self._world.store.fence else servers.published(run_id)
            if state is not None and run_id not in set_apart:
                found |= {
                    (run_id, i, step.attempt)
                    for i, step in enumerate(state.steps())
                    if step.wait is WaitingFor.EVENT and step.event_key == event
                }
        return found

    def _is_true(self, sent: Sent) -> None:
        """What is acknowledged or shown is stored, and is not older than what was known before."""
        told, ledger = sent.told, self._world.ledger
        if isinstance(told, RunState) and told.id in ledger.runs:
            seq, stored = told.vitals.seq, ledger.runs[told.id].vitals.seq
            if stored < seq:
                raise ViolationError(f"{sent.verb} of {told.id} is acknowledged and not stored")
            if seq < sent.floor and (sent.verb != "get" or self._world.servers.one_owner):
                raise ViolationError(f"{sent.verb} of {told.id} shows what was true before")
            self._seen[told.id] = max(seq, self._seen.get(told.id, 0))
        if sent.verb == "replay_subtree" and not (sent.dry or self._world.plan.jumps or sent.key):
            run = ledger.runs.get(sent.run_id)
            step = None if run is None else run.steps[sent.step]
            if step and step.status.is_terminal and (step.finished_at_ms or 0) < sent.at_ms:
                raise ViolationError(f"{sent.run_id}: a replayed step is {step.status} as before")

    # --- afterwards ----------------------------------------------------------------------------

    async def widen(self) -> None:
        """Some give more slots to those who wait for one."""
        for verb in ("raise_workflow_limit", "raise_job_limit"):
            if self._rnd.random() < 0.3:
                sent = Sent("helper", verb)
                await self._help(VERBS[verb](self._world, sent, self._rnd))

    async def finish(self) -> None:
        """People come back: what was paused is resumed, what waits for them gets their answer."""
        world, until = self._world, self._world.loop.now + FINISH_SECS
        if world.plan.cron:
            await self._end_schedule()
            await asyncio.sleep(DECIDE_SECS)
        patience = 0
        while (runs := active_runs(world)) and world.loop.now < until:
            for run in runs:
                await self._help_on(run)
            patience += 1
            await asyncio.sleep(1.0 if patience < 10 else 5.0)

    async def _end_schedule(self) -> None:
        async def work(gateway: Gateway) -> None:
            workflow = await gateway.catalog.workflow(PROJECT, self._world.scheduled)
            parsed = await gateway.catalog.parse_patch(workflow, {"enabled": False})
            await gateway.catalog.update_workflow(workflow, parsed, updated_by="helper")

        self.schedule_ended_ms = self._world.servers.clock.now_ms()
        await self._help(work)

    async def mend(self) -> None:
        """Quarantined runs are released or discarded."""
        server = self._world.servers.current
        assert server is not None
        for run_id in list(server.runtime.supervisor.quarantined):
            verb = self._rnd.choice(("release_quarantined", "discard_quarantined"))
            self._world.note(verb, run_id)
            await self._help(call(verb, run_id, ADMIN))

    async def _help_on(self, run: Shadow) -> None:
        world, rnd = self._world, self._rnd
        if run.vitals.status is RunStatus.PAUSED:
            sent = Sent("helper", "resume", run.head.id)
            await self._help(VERBS["resume"](world, sent, rnd))
        for i, step in enumerate(run.steps):
            if step.wait is WaitingFor.APPROVAL and step.due_ms is None:
                sent = Sent("helper", "approve", run.head.id, i)
                await self._help(VERBS["approve"](world, sent, rnd))

    async def _help(self, work: Work) -> None:
        try:
            await self._world.request(work)
        except ApplicationError as error:  # what it is about may have gone
            if isinstance(error, UnavailableError):
                raise ViolationError(f"in calm: {error}") from None


async def _once(gateway: Gateway, sent: Sent, work: Work) -> object:
    """As the HTTP layer does it: once for each key."""
    if sent.dry:
        return await work(gateway, dry_run=True)
    if not sent.key:
        return await work(gateway)
    idempotency = Idempotency(key=sent.key, request_hash="", project_id=PROJECT)
    known = await gateway.first_answer(idempotency)
    if known is not None:
        reference = recall(known).reference
        return reference if sent.verb == "trigger" else REPLAYED
    return await work(gateway, idempotency=idempotency)
