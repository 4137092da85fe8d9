"""Everything a client can ask for, as requests to a gateway."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec

from pilotage.actors.gateway import Gateway
from pilotage.actors.principal import Principal
from pilotage.persistence.port import RunQuery
from pilotage.runtime.insight import explain
from pilotage.runtime.status import WaitingFor
from tests.simulation import definitions
from tests.simulation.workflows import APPROVER, EVENTS

if TYPE_CHECKING:
    from tests.simulation.world import World

PROJECT = "p"

Work = Callable[..., Awaitable[Any]]
"""Called with the gateway, and with `idempotency` or `dry_run` where they are meant."""


class Sent(msgspec.Struct):
    """A request and what became of it: acknowledged, refused, or unknown (None).

    unsure  at least one try ended without an answer
    key     its Idempotency-Key
    event   the key of the event that is sent
    floor   the sequence of the run that was known when it was sent
    """

    actor: str
    verb: str
    run_id: str = ""
    step: int = 0
    acknowledged: bool | None = None
    unsure: bool = False
    told: Any = None
    key: str = ""
    event: str = ""
    dry: bool = False
    at_ms: int = 0
    floor: int = 0


def who(name: str) -> Principal:
    return Principal(name=name, project_id=PROJECT, scopes=frozenset({"*"}))


def call(name: str, *args: Any, **more: Any) -> Work:
    """The request that a method of the gateway answers."""

    async def work(gateway: Gateway, **options: Any) -> Any:
        return await getattr(gateway, name)(*args, **more, **options)

    return work


Make = Callable[["World", Sent, Random], Work]


def _of_run(name: str, *rest: Any, **more: Any) -> Make:
    def make(_: World, sent: Sent, __: Random) -> Work:
        return call(name, sent.run_id, who(sent.actor), *rest, **more)

    return make


def _of_step(name: str, *rest: Any) -> Make:
    def make(world: World, sent: Sent, _: Random) -> Work:
        ref = world.ledger.runs[sent.run_id].graph.steps[sent.step].step_ref
        return call(name, sent.run_id, ref, who(sent.actor), *rest)

    return make


def _decision(name: str) -> Make:
    """Mostly sent where somebody waits for it, by somebody who may."""

    def make(world: World, sent: Sent, _: Random) -> Work:
        run = world.ledger.runs[sent.run_id]
        waiting = [i for i, step in enumerate(run.steps) if step.wait is WaitingFor.APPROVAL]
        if waiting and sent.step not in waiting:
            sent.step = waiting[0]
        spec = run.graph.steps[sent.step]
        caller = APPROVER if spec.approval_approvers else sent.actor
        return call(name, sent.run_id, spec.step_ref, who(sent.actor), None, caller)

    return make


def _event(_: World, sent: Sent, rnd: Random) -> Work:
    key = rnd.choice((*EVENTS, "paid-0", "paid-1"))
    buffer_secs = rnd.choice((0, 3, 60))
    payload = msgspec.json.encode({"event": sent.actor})
    sent.run_id, sent.event = "", key
    return call("send_event", PROJECT, key, payload, buffer_secs, actor=sent.actor)


def _bulk(name: str) -> Make:
    def make(world: World, sent: Sent, rnd: Random) -> Work:
        run_ids = list(world.ledger.runs)
        some = rnd.sample(run_ids, min(len(run_ids), 3))
        sent.run_id = ""
        return call(name, some, who(sent.actor))

    return make


def _get(_: World, sent: Sent, __: Random) -> Work:
    return call("get_run", sent.run_id, who(sent.actor))


def _list(_: World, sent: Sent, __: Random) -> Work:
    sent.run_id = ""
    return call("list_runs", RunQuery(project_id=PROJECT, limit=50))


def _read(_: World, sent: Sent, rnd: Random) -> Work:
    """Everything else that can be seen of a run."""
    caller, run_id = who(sent.actor), sent.run_id

    async def explanation(gateway: Gateway, **_: Any) -> object:
        state = await gateway.get_run(run_id, caller)
        return explain(state, gateway.notes(state))

    return rnd.choice(
        (
            explanation,
            call("steps", run_id, caller),
            call("history", run_id, caller, 0, 50),
        )
    )


VERBS: dict[str, Make] = {
    "cancel": _of_run("cancel", "enough"),
    "pause": _of_run("pause"),
    "resume": _of_run("resume"),
    "pin": _of_run("pin", pinned=True),
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
    "get": _get,
    "list": _list,
    "read": _read,
    "raise_workflow_limit": definitions.raise_workflow_limit,
    "change_workflow": definitions.change_workflow,
    "switch_workflow": definitions.switch_workflow,
    "delete_workflow": definitions.delete_workflow,
    "raise_job_limit": definitions.raise_job_limit,
}
DRY = frozenset({"skip", "force_complete", "retry_step", "replay_subtree", "retry_run",
                 "bulk_cancel"})  # fmt: skip
KEYED = frozenset({"cancel", "pause", "resume", "pin", "retry_run", "skip", "force_complete",
                   "retry_step", "replay_subtree", "approve", "reject"})  # fmt: skip
OF_NO_RUN = frozenset({"send_event", "list", "raise_workflow_limit", "change_workflow",
                       "switch_workflow", "delete_workflow", "raise_job_limit"})  # fmt: skip
