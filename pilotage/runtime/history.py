"""The history of a run: one item per event, as the API shows them (`GET …/events`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from pilotage.runtime.events import (
    Event,
    RunCreated,
    RunEnded,
    RunReopened,
    SlotRequested,
    StepCompleted,
    StepEvent,
    StepFailed,
    StepHeld,
    StepParked,
    StepRetryScheduled,
    StepSkipped,
    StepStarted,
)
from pilotage.runtime.graph import StepGraph
from pilotage.runtime.machine import HISTORY_LIMIT
from pilotage.runtime.views import rfc3339


class HistoryEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`type` is the event's name in snake case, e.g. `step_started`."""

    seq: int
    at: str
    type: str
    step_ref: str | None = None
    attempt: int | None = None
    actor: str
    reason: str | None = None
    data: dict[str, Any] | None = None


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


_names: dict[type[Event], str] = {}


def entries(before_seq: int, graph: StepGraph, events: Sequence[Event]) -> list[HistoryEntry]:
    """The items of a transition; `before_seq` is the run's `history_seq` before it.

    A run keeps `HISTORY_LIMIT` items, then one `truncated`, then no more.
    """
    room = max(0, HISTORY_LIMIT - before_seq)
    items = [_entry(graph, before_seq + 1 + k, e) for k, e in enumerate(events[:room])]
    if len(events) > room and before_seq <= HISTORY_LIMIT:
        items.append(
            HistoryEntry(
                seq=HISTORY_LIMIT + 1,
                at=rfc3339(events[0].at_ms),
                type="truncated",
                actor="system",
                reason=f"a run keeps {HISTORY_LIMIT} items of history; later ones are not kept",
            )
        )
    return items


def _entry(graph: StepGraph, seq: int, event: Event) -> HistoryEntry:
    kind = type(event)
    name = _names.get(kind)
    if name is None:
        name = _names[kind] = _snake(kind.__name__)
    reason, data = _details(event)
    return HistoryEntry(
        seq=seq,
        at=rfc3339(event.at_ms),
        type=name,
        step_ref=graph.steps[event.step].step_ref if isinstance(event, StepEvent) else None,
        attempt=getattr(event, "attempt", None),
        actor=event.actor,
        reason=reason,
        data=data,
    )


def _details(event: Event) -> tuple[str | None, dict[str, Any] | None]:
    match event:
        case RunCreated(head=head):
            return None, {"workflow_version": head.version, "triggered_by": head.triggered_by}
        case RunEnded(status=status, error=error):
            return error, {"status": status.value}
        case RunReopened(status=status):
            return None, {"status": status.value}
        case StepHeld(checked=checked):
            return None, {"condition_evaluated": checked}
        case SlotRequested(job=job):
            return None, {"job": job}
        case StepStarted(child_run_id=child):
            return None, {"child_workflow_run_id": child} if child else None
        case StepParked(wait=wait, due_ms=due, event_key=key):
            data: dict[str, Any] = {"waiting_for": wait.value}
            if due is not None:
                data["due_at"] = rfc3339(due)
            if key is not None:
                data["event_key"] = key
            return None, data
        case StepRetryScheduled(error=error, due_ms=due, error_class=kind):
            return error, {"due_at": rfc3339(due), "error_class": kind}
        case StepCompleted(resolution=resolution, reason=reason):
            return reason, {"resolution": resolution.value} if resolution else None
        case StepFailed(error=error, error_class=kind):
            return error, {"error_class": kind}
        case StepSkipped(by=by, reason=reason):
            return reason, {"skipped_by": by.value}
        case _:
            return None, None
