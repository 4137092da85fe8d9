"""What became of everything clients sent, read from the histories when all is over."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from pilotage.runtime.history import HistoryEntry
from pilotage.runtime.ids import derived_run_id
from pilotage.runtime.state import RunState
from pilotage.runtime.status import RunStatus, StepStatus
from tests.simulation.clients import REPLAYED, Clients
from tests.simulation.ledger import ViolationError
from tests.simulation.verbs import Sent

if TYPE_CHECKING:
    from tests.simulation.world import World

Histories = dict[str, list[HistoryEntry]]
_ELSEWHERE = frozenset({"retry_run", "bulk_cancel", "bulk_replay", "replay_subtree", "get", "read",
                        "list"})  # fmt: skip
"""What these made stands under other runs, or was looked at when it was answered."""
MINUTE_MS = 60_000


def were_heard(world: World, clients: Clients, histories: Histories) -> None:
    """What was acknowledged happened, what was refused did not, what has a key happened once."""
    by_actor: dict[str, set[str]] = defaultdict(set)
    for run_id, history in histories.items():
        for entry in history:
            by_actor[entry.actor].add(run_id)
    for sent in clients.sent:
        found = by_actor[sent.actor]
        if sent.verb == "trigger":
            _was_triggered(world, sent, found)
        elif (sent.dry or (sent.acknowledged is False and not sent.unsure)) and found:
            raise ViolationError(f"{sent.actor}: {sent.verb} was not to be done, and is: {found}")
        elif sent.run_id in histories and sent.run_id not in found and not _holds(world, sent):
            raise ViolationError(f"{sent.actor}: {sent.verb} of {sent.run_id} is lost")
        if sent.key:
            _was_done_once(sent, [histories[run_id] for run_id in found])
    if world.plan.cron and not world.plan.jumps:
        _was_on_time(world, clients)


def _was_triggered(world: World, sent: Sent, found: set[str]) -> None:
    if len(found) > 1:
        raise ViolationError(f"{sent.actor}: one key, {len(found)} runs: {found}")
    removed = sent.run_id in world.ledger.removed
    if sent.acknowledged and found != {sent.run_id} and not removed:
        raise ViolationError(f"{sent.actor}: run {sent.run_id} acknowledged, {found} made")


def _was_done_once(sent: Sent, histories: list[list[HistoryEntry]]) -> None:
    """No command makes two runs, or does the same to the same step twice."""
    done = Counter(
        (entry.type, entry.step_ref)
        for history in histories
        for entry in history
        if entry.actor == sent.actor and entry.type in {"run_created", "run_reopened", "step_reset"}
    )
    if twice := [what for what, count in done.items() if count > 1]:
        raise ViolationError(f"{sent.actor}: {sent.verb} has a key and was done again: {twice}")


def _was_on_time(world: World, clients: Clients) -> None:
    """The last fire time has its run, if somebody was there for some seconds to make it."""
    ended = clients.schedule_ended_ms
    assert ended is not None
    workflow_id, made_ms = world.schedule
    fire_ms = (ended - 5_000) // MINUTE_MS * MINUTE_MS
    run_id = derived_run_id(fire_ms, "cron", workflow_id, fire_ms)
    known = world.ledger.runs | world.ledger.removed
    if fire_ms > made_ms and run_id not in known:
        raise ViolationError(f"no run for the fire time {fire_ms} of {workflow_id}")


def _holds(world: World, sent: Sent) -> bool:
    """The command had no effect of its own because it held already. Of several transitions in one
    write a later one may have undone what held.
    """
    told = sent.told
    if sent.dry or not sent.acknowledged:
        return True
    if sent.verb in _ELSEWHERE or told == REPLAYED:
        return True
    if not isinstance(told, RunState):
        return False
    if (told.id, told.vitals.seq) in world.ledger.batched:
        return True
    status, step = told.status, told.step(sent.step)
    return {
        "cancel": status is RunStatus.CANCELED,
        "pause": status is RunStatus.PAUSED,
        "resume": status is RunStatus.RUNNING,
        "pin": told.vitals.pinned,
        "skip": step.status is StepStatus.SKIPPED,
        "approve": step.status is StepStatus.COMPLETED,
        "force_complete": step.status is StepStatus.COMPLETED,
        "reject": step.status is StepStatus.FAILED,
    }.get(sent.verb, False)
