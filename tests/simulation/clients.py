"""Clients: they send every command there is at any time, and remember what they were told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec

from pilotage.actors.errors import ApplicationError, UnavailableError
from pilotage.actors.gateway import Gateway
from pilotage.actors.idempotency import Idempotency, recall
from pilotage.actors.principal import Principal
from pilotage.persistence.port import StoreUnavailableError
from pilotage.runtime.history import HistoryEntry
from pilotage.runtime.state import RunState
from pilotage.runtime.status import RunStatus, StepStatus, WaitingFor
from pilotage.runtime.validation import ParsedTrigger
from tests.simulation.calm import active_runs
from tests.simulation.ledger import Shadow, ViolationError
from tests.simulation.plan import Plan
from tests.simulation.workflows import APPROVER, EVENTS

if TYPE_CHECKING:
    from tests.simulation.world import World

PROJECT = "p"
FINISH_SECS = 900.0
Work = Callable[[Gateway], Awaitable[Any]]


class Sent(msgspec.Struct):
    """A request and what became of it: acknowledged, refused, or unknown (None)."""

    actor: str
    verb: str
    run_id: str = ""
    step: int | None = None
    acknowledged: bool | None = None
    unsure: bool = False
    told: Any = None
    key: str = ""
    at_ms: int = 0


class Clients:
    """One for all that is sent; each request has an actor's name of its own."""

    def __init__(self, world: World, rnd: Random) -> None:
        self._world = world
        self._rnd = rnd
        self._tasks: list[asyncio.Task[None]] = []
        self.sent: list[Sent] = []
        self._finished = False

    # --- the storm -------------------------------------------------------------------------------

    async def busy(self, plan: Plan) -> None:
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

    async def _trigger(self) -> None:
        rnd, number = self._rnd, len(self.sent)
        sent = Sent(f"c{number}", "trigger", key=f"key-{number}")
        self.sent.append(sent)
        slug = f"w{rnd.randrange(self._world.plan.workflows)}"
        trigger = ParsedTrigger(
            payload={"n": rnd.randrange(3)},
            tags={"by": sent.actor},
            delay_secs=rnd.choice((0.0, 0.0, 0.0, 0.7)),
        )
        idempotency = Idempotency(key=sent.key, request_hash="", project_id=PROJECT)

        async def work(gateway: Gateway) -> str:
            """As the HTTP layer does it: once for each key."""
            known = await gateway._stored(lambda: gateway.store.idempotency(PROJECT, sent.key))
            if known is not None:
                return recall(known).reference or ""
            workflow = await gateway.catalog.workflow(PROJECT, slug)
            view = await gateway.trigger(
                workflow, trigger, actor=sent.actor, idempotency=idempotency
            )
            return view.id

        if await self._send(sent, work, tries=rnd.choice((1, 8))):
            sent.run_id = sent.told
            if sent.run_id not in self._world.ledger.runs:
                raise ViolationError(f"run {sent.run_id} is acknowledged and not stored")

    async def _command(self, verb: str | None = None) -> None:
        rnd = self._rnd
        run_ids = list(self._world.ledger.runs)
        verb = verb or rnd.choice(tuple(_VERBS))
        sent = Sent(f"c{len(self.sent)}", verb, at_ms=self._world.servers.clock.now_ms())
        self.sent.append(sent)
        if verb != "send_event":
            if not run_ids:
                sent.verb = "nothing"
                return
            sent.run_id = rnd.choice(run_ids)
            size = self._world.ledger.runs[sent.run_id].graph.size
            sent.step = self._step_for(verb, sent.run_id, rnd.randrange(size))
        work = _VERBS[verb](self, sent)
        if await self._send(sent, work, tries=rnd.choice((1, 1, 4))):
            self._is_stored(sent)

    def _step_for(self, verb: str, run_id: str, otherwise: int) -> int:
        """Approvals are mostly sent where one is waited for."""
        if verb in {"approve", "reject"}:
            for i, step in enumerate(self._world.ledger.runs[run_id].steps):
                if step.wait is WaitingFor.APPROVAL:
                    return i
        return otherwise

    async def _send(self, sent: Sent, work: Work, tries: int) -> bool:
        """Send until the answer is known or patience ends; True: acknowledged."""
        world = self._world
        for _ in range(tries):
            try:
                sent.told = await world.request(work)
            except (UnavailableError, StoreUnavailableError) as error:
                sent.unsure = True
                world.note("unavailable", sent.actor, sent.verb, str(error)[:40])
            except ConnectionError:
                sent.unsure = True
                world.note("lost", sent.actor, sent.verb)
            except ApplicationError as error:
                sent.acknowledged = False
                world.note("refused", sent.actor, sent.verb, sent.run_id, type(error).__name__)
                return False
            else:
                sent.acknowledged = True
                world.note("ok", sent.actor, sent.verb, sent.run_id)
                return True
            await asyncio.sleep(0.2 + self._rnd.random())
        return False

    def _is_stored(self, sent: Sent) -> None:
        """Acknowledged only when it is stored."""
        told, ledger = sent.told, self._world.ledger
        if isinstance(told, RunState):
            stored = ledger.runs.get(told.id)
            if stored is None or stored.vitals.seq < told.vitals.seq:
                raise ViolationError(f"{sent.verb} of {told.id} is acknowledged and not stored")
        if sent.verb == "replay_subtree":
            step = ledger.runs[sent.run_id].steps[sent.step or 0]
            if step.status.is_terminal and (step.finished_at_ms or 0) < sent.at_ms:
                raise ViolationError(f"{sent.run_id}: a replayed step is {step.status} as before")

    # --- afterwards ----------------------------------------------------------------------------

    async def finish(self) -> None:
        """People come back: what was paused is resumed, what waits for them gets their answer."""
        world, until = self._world, self._world.loop.now + FINISH_SECS
        patience = 0
        while (runs := active_runs(world)) and world.loop.now < until:
            for run in runs:
                await self._help_on(run)
            patience += 1
            await asyncio.sleep(1.0 if patience < 10 else 5.0)

    async def _help_on(self, run: Shadow) -> None:
        run_id = run.head.id
        if run.vitals.status is RunStatus.PAUSED:
            await self._help(_of_run("resume")(self, Sent("helper", "resume", run_id)))
        for i, step in enumerate(run.steps):
            if step.wait is WaitingFor.APPROVAL and step.due_ms is None:
                sent = Sent("helper", "approve", run_id, i)
                await self._help(_decision("approve")(self, sent))

    async def _help(self, work: Work) -> None:
        try:
            await self._world.request(work)
        except ApplicationError as error:
            if isinstance(error, UnavailableError):
                raise ViolationError(f"in calm: {error}") from None

    def were_heard(self, histories: dict[str, list[HistoryEntry]]) -> None:
        """What was acknowledged happened, what was refused did not."""
        by_actor: dict[str, set[str]] = {}
        for run_id, history in histories.items():
            for entry in history:
                by_actor.setdefault(entry.actor, set()).add(run_id)
        for sent in self.sent:
            found = by_actor.get(sent.actor, set())
            held = {sent.run_id} if self._holds(sent) else set[str]()
            if sent.verb == "trigger":
                self._was_triggered(sent, found)
            elif sent.acknowledged is False and not sent.unsure and found:
                raise ViolationError(f"{sent.actor}: {sent.verb} was refused and yet done: {found}")
            elif sent.acknowledged and sent.run_id and sent.run_id not in found | held:
                raise ViolationError(f"{sent.actor}: {sent.verb} of {sent.run_id} is lost")

    def _holds(self, sent: Sent) -> bool:
        """The command had no effect of its own because it held already, or what it made is another
        run. Of several transitions in one write a later one may have undone what held.
        """
        told = sent.told
        if isinstance(told, RunState) and (told.id, told.vitals.seq) in self._world.ledger.batched:
            return True
        return _holds(sent)

    def _was_triggered(self, sent: Sent, found: set[str]) -> None:
        if len(found) > 1:
            raise ViolationError(f"{sent.actor}: one key, {len(found)} runs: {found}")
        if sent.acknowledged and found != {sent.run_id}:
            raise ViolationError(f"{sent.actor}: run {sent.run_id} acknowledged, {found} made")


def _who(name: str) -> Principal:
    return Principal(name=name, project_id=PROJECT, scopes=frozenset({"*"}))


def _holds(sent: Sent) -> bool:
    told = sent.told
    if sent.verb in {"retry_run", "bulk_cancel", "bulk_replay", "replay_subtree"}:
        return True  # looked at when it was acknowledged, or stands under other runs
    if not isinstance(told, RunState):
        return False
    status = told.status
    if sent.verb == "cancel":
        return status is RunStatus.CANCELED
    if sent.verb == "pause":
        return status is RunStatus.PAUSED
    if sent.verb == "resume":
        return status is RunStatus.RUNNING
    step = told.step(sent.step or 0)
    if sent.verb == "skip":
        return step.status is StepStatus.SKIPPED
    if sent.verb in {"approve", "force_complete"}:
        return step.status is StepStatus.COMPLETED
    return sent.verb == "reject" and step.status is StepStatus.FAILED


# --- the verbs -----------------------------------------------------------------------------------


def _of_run(name: str, *rest: Any) -> Callable[[Clients, Sent], Work]:
    def make(_: Clients, sent: Sent) -> Work:
        return lambda g: getattr(g, name)(sent.run_id, _who(sent.actor), *rest)

    return make


def _of_step(name: str, *rest: Any) -> Callable[[Clients, Sent], Work]:
    def make(clients: Clients, sent: Sent) -> Work:
        run = clients._world.ledger.runs[sent.run_id]
        ref = run.graph.steps[sent.step or 0].step_ref
        return lambda g: getattr(g, name)(sent.run_id, ref, _who(sent.actor), *rest)

    return make


def _decision(name: str) -> Callable[[Clients, Sent], Work]:
    def make(clients: Clients, sent: Sent) -> Work:
        run = clients._world.ledger.runs[sent.run_id]
        spec = run.graph.steps[sent.step or 0]
        caller = APPROVER if spec.approval_approvers else sent.actor
        return lambda g: getattr(g, name)(
            sent.run_id, spec.step_ref, _who(sent.actor), None, caller
        )

    return make


def _event(clients: Clients, sent: Sent) -> Work:
    rnd = clients._rnd
    key = rnd.choice((*EVENTS, "paid-0", "paid-1"))
    buffer_secs = rnd.choice((0, 3, 60))
    payload = msgspec.json.encode({"event": sent.actor})
    return lambda g: g.send_event(PROJECT, key, payload, buffer_secs, actor=sent.actor)


def _bulk(name: str) -> Callable[[Clients, Sent], Work]:
    def make(clients: Clients, sent: Sent) -> Work:
        run_ids = list(clients._world.ledger.runs)
        some = clients._rnd.sample(run_ids, min(len(run_ids), 3))
        sent.run_id = ""
        return lambda g: getattr(g, name)(some, _who(sent.actor))

    return make


_VERBS: dict[str, Callable[[Clients, Sent], Work]] = {
    "cancel": _of_run("cancel", "enough"),
    "pause": _of_run("pause"),
    "resume": _of_run("resume"),
    "retry_run": _of_run("retry_run"),
    "skip": _of_step("skip", "no need"),
    "force_complete": _of_step("force_complete", b'{"v":1}'),
    "retry_step": _of_step("retry_step"),
    "replay_subtree": _of_step("replay_subtree"),
    "approve": _decision("approve"),
    "reject": _decision("reject"),
    "send_event": _event,
    "bulk_cancel": _bulk("bulk_cancel"),
    "bulk_replay": _bulk("bulk_replay"),
}
