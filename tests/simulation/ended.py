"""What holds when everything is over: the store, the histories, what clients were told, memory."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pilotage.persistence import codec
from pilotage.runtime.history import HistoryEntry
from pilotage.runtime.status import StepStatus
from tests.simulation.calm import active_runs, history_of, nothing_stands_still
from tests.simulation.heard import were_heard
from tests.simulation.ledger import Shadow, ViolationError

MEMORY_LOOKS, MEMORY_LOOK_SECS = 15, 1.03
"""Until a request that nobody waits for has been given up. The server looks for idle runs twice a
second, which is a task for an instant: in step with that, every look here would find one.
"""

if TYPE_CHECKING:
    from tests.simulation.clients import Clients
    from tests.simulation.world import World


async def all_is_over(world: World, clients: Clients) -> None:
    if left := active_runs(world):
        raise ViolationError(
            "never ended: "
            + ", ".join(f"{run.head.id} {run.vitals.status} {open_steps(run)}" for run in left)
        )
    await nothing_stands_still(world)
    histories = {run_id: history_of(world, run_id) for run_id in world.ledger.runs}
    for run_id, history in histories.items():
        _store_agrees(world, run_id)
        _history_agrees(world.ledger.runs[run_id], history)
    were_heard(world, clients, histories)
    for _ in range(MEMORY_LOOKS):
        if not left_in_memory(world):
            return
        await asyncio.sleep(MEMORY_LOOK_SECS)
    raise ViolationError(f"left in memory: {left_in_memory(world)}")


def open_steps(run: Shadow) -> str:
    return " ".join(
        f"s{i}:{step.status}/{step.wait}@{step.attempt}"
        for i, step in enumerate(run.steps)
        if not step.status.is_terminal
    )


def _store_agrees(world: World, run_id: str) -> None:
    """The store's own copy and indexes are those of the ledger; nothing is left to be sent."""
    stored, run = world.store.runs[run_id], world.ledger.runs[run_id]
    if stored.seq != run.vitals.seq or codec.decode_vitals(stored.vitals) != run.vitals:
        raise ViolationError(f"run {run_id}: the store has another state than was written")
    if stored.index.status is not run.vitals.status or run.vitals.pinned != (
        stored.index.keep_until_ms is None
    ):
        raise ViolationError(f"run {run_id}: its index is {stored.index}")
    if stored.outbox or stored.steps or stored.blob is None:
        raise ViolationError(f"run {run_id} is over; outbox {list(stored.outbox)}")
    head, _, chunks = codec.decode_finished(stored.blob)
    if head != run.head or [s for chunk in chunks for s in chunk] != run.steps:
        raise ViolationError(f"run {run_id}: its compact form is another")


_STATUS_AFTER = {
    "step_started": StepStatus.RUNNING,
    "step_accepted": StepStatus.RUNNING,
    "step_parked": StepStatus.WAITING,
    "step_retry_scheduled": StepStatus.WAITING,
    "step_held": StepStatus.PENDING,
    "step_completed": StepStatus.COMPLETED,
    "step_failed": StepStatus.FAILED,
    "step_skipped": StepStatus.SKIPPED,
    "step_canceled": StepStatus.CANCELED,
}


def _history_agrees(run: Shadow, history: list[HistoryEntry]) -> None:
    """Numbered without gaps, and ending where the run ended; a result is never run over."""
    run_id = run.head.id
    if [entry.seq for entry in history] != list(range(1, run.vitals.history_seq + 1)):
        raise ViolationError(f"run {run_id}: history {[e.seq for e in history]} has gaps")
    ends = [entry for entry in history if entry.type == "run_ended"]
    if not ends or (ends[-1].data or {}).get("status") != run.vitals.status.value:
        raise ViolationError(f"run {run_id} is {run.vitals.status}; its history does not say so")
    for i, step in enumerate(run.steps):
        ref = run.graph.steps[i].step_ref
        mine = [entry for entry in history if entry.step_ref == ref]
        problem = _step_history(mine, fresh=run.head.retry_of_run_id is None)
        if mine and _STATUS_AFTER.get(mine[-1].type, step.status) is not step.status:
            problem = f"is {step.status}, its history ends with {mine[-1].type}"
        if problem is not None:
            raise ViolationError(f"run {run_id}: step {ref} {problem}")


def _step_history(mine: list[HistoryEntry], *, fresh: bool) -> str | None:
    """What is wrong with the order of one step's items. A retry run may begin at any attempt."""
    attempt: int | None = 0 if fresh else None
    before = ""
    for entry in mine:
        if entry.type in {"step_started", "step_parked"} and entry.attempt is not None:
            if before in {"step_completed", "step_skipped"}:
                return f"starts again after {before}"
            if attempt is not None and entry.attempt != attempt + 1:
                return f"goes from attempt {attempt} to {entry.attempt}"
            attempt = entry.attempt
        before = entry.type
    return None


def left_in_memory(world: World) -> list[str]:
    """Nothing is to be done, so nothing is kept that would have to be done."""
    server = world.servers.current
    assert server is not None
    runtime = server.runtime
    admission, hub = runtime.admission, runtime.hub
    attempts = runtime.executors._entries.keys() | runtime.executors._waiting.keys()
    left = {
        "runs": len(runtime.supervisor),
        "passivated runs": len(runtime.supervisor.idle.away),
        "timers": len(runtime.timers),
        "attempts": len(attempts),
        "parked": len(hub._parked),
        "events on their way": len(hub._taking),
        "slots of workflows": sum(len(pool.holders) for pool in admission._runs.values()),
        "queued runs": sum(len(pool.queue) for pool in admission._runs.values()),
        "slots of jobs": sum(len(pool.holders) for pool in admission._jobs.values()),
        "queued steps": sum(len(pool.queue) for pool in admission._jobs.values()),
        "dirty runs": int(runtime.writer.busy),
        "paused actors": len(runtime.dispatcher.obliged),
        "tasks of the supervisor": len(runtime.supervisor._tasks),
        "tasks of the runtime": len(runtime._tasks),
    }
    return [f"{count} {what}" for what, count in left.items() if count] + [
        f"{what}" for what in [*sorted(attempts), *runtime.supervisor._entries]
    ]
