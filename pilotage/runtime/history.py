"""The history of a run: one item per event, as the API shows them (`GET …/events`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from pilotage.runtime.events import (
    Event,
    RunCreated,
    RunEnded,
    RunPinned,
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
    StepTimeoutMoved,
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
    now = rfc3339(events[0].at_ms) if events else ""  # nearly always that of all of them
    items = [
        _entry(graph, before_seq + k, e, now if e.at_ms == events[0].at_ms else rfc3339(e.at_ms))
        for k, e in enumerate(events[:room], 1)
    ]
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


def _entry(graph: StepGraph, seq: int, event: Event, at: str) -> HistoryEntry:
    kind = type(event)
    name = _names.get(kind)
    if name is None:
        name = _names[kind] = _snake(kind.__name__)
    details = _DETAILS.get(kind)
    reason, data = details(event) if details is not None else (None, None)
    return HistoryEntry(
        seq=seq,
        at=at,
        type=name,
        step_ref=graph.steps[event.step].step_ref if isinstance(event, StepEvent) else None,
        attempt=getattr(event, "attempt", None) or None,
        actor=event.actor,
        reason=reason,
        data=data,
    )


Details = tuple[str | None, dict[str, Any] | None]
"""An item's `reason` and `data`."""


def _parked(e: StepParked) -> Details:
    data: dict[str, Any] = {"waiting_for": e.wait.value}
    if e.due_ms is not None:
        data["due_at"] = rfc3339(e.due_ms)
    if e.event_key is not None:
        data["event_key"] = e.event_key
    return None, data


def _started(e: StepStarted) -> Details:
    return None, {"child_workflow_run_id": e.child_run_id} if e.child_run_id else None


def _completed(e: StepCompleted) -> Details:
    return e.reason, {"resolution": e.resolution.value} if e.resolution else None


_DETAILS: dict[type[Event], Callable[[Any], Details]] = {
    RunCreated: lambda e: (
        None,
        {"workflow_version": e.head.version, "triggered_by": e.head.triggered_by},
    ),
    RunPinned: lambda e: (None, {"pinned": e.pinned}),
    RunEnded: lambda e: (e.error, {"status": e.status.value}),
    RunReopened: lambda e: (None, {"status": e.status.value}),
    StepHeld: lambda e: (None, {"condition_evaluated": e.checked}),
    SlotRequested: lambda e: (None, {"job": e.job}),
    StepStarted: _started,
    StepTimeoutMoved: lambda e: ("the clock was set", {"due_at": rfc3339(e.due_ms)}),
    StepParked: _parked,
    StepRetryScheduled: lambda e: (
        e.error,
        {"due_at": rfc3339(e.due_ms), "error_class": e.error_class},
    ),
    StepCompleted: _completed,
    StepFailed: lambda e: (e.error, {"error_class": e.error_class}),
    StepSkipped: lambda e: (e.reason, {"skipped_by": e.by.value}),
}
"""Events that say more than their name; the others have neither reason nor data."""
