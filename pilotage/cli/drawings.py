"""How runs, steps and histories look on a terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pilotage.cli.output import Column, Item, Output, key
from pilotage.cli.text import ago, between, clean, duration, parse_time, shorten
from pilotage.runtime.jsonvalues import is_object

WAITS = {
    "dependencies": "waits for what it depends on",
    "approval": "waits for an approval",
    "event": "waits for an event",
    "timer": "sleeps",
    "retry": "tries again",
    "parallel_limit": "held back: max_parallel_steps",
    "concurrency_key": "held back: concurrency key",
    "paused": "held back: the run is paused",
    "job_limit": "held back: the job's limit",
    "run_queue": "queued behind other runs of the workflow",
}
_NOTE_WIDTH = 80


def run_columns(names: Mapping[str, str]) -> list[Column]:
    """Columns of a list of runs. `names`: workflow id to slug."""
    return [
        Column("RUN", key("id")),
        Column("WORKFLOW", lambda run: names.get(run["workflow_id"], run["workflow_id"])),
        Column("STATUS", key("status"), "status"),
        Column("BY", key("triggered_by")),
        Column("CREATED", lambda run: ago(run["created_at"])),
        Column("TOOK", lambda run: between(run.get("started_at"), run.get("finished_at"))),
        Column("ERROR", lambda run: clean(run.get("error") or ""), rest=True),
    ]


def step_note(step: Item, now: datetime | None = None) -> str:
    """What there is to say about a step: its error, what it waits for, or its output."""
    waits = step.get("waiting_for")
    if waits:
        note = WAITS.get(waits, str(waits))
        if due := step.get("due_at"):
            left = (parse_time(due) - (now or datetime.now(UTC))).total_seconds()
            note += f", {duration(max(left, 0))} left"
        error = step.get("error")
        return f"{note} ({shorten(clean(error), _NOTE_WIDTH)})" if error else note
    if step.get("error"):
        return shorten(clean(step["error"]), _NOTE_WIDTH)
    if step["status"] == "skipped":
        return f"by {step.get('skipped_by', 'operator')}"
    if "output" in step:
        return shorten(clean(json.dumps(step["output"], ensure_ascii=False)), _NOTE_WIDTH)
    return ""


_EVENT_WORDS = {
    "run_created": "created",
    "run_started": "started",
    "run_ended": "ended",
    "run_paused": "paused",
    "run_resumed": "resumed",
    "run_reopened": "reopened",
    "run_pinned": "pinned",
    "step_held": "held back",
    "step_started": "started",
    "step_accepted": "accepted, reports later",
    "step_timeout_moved": "keeps its time",
    "step_parked": "parked",
    "step_retry_scheduled": "failed, tries again",
    "step_completed": "completed",
    "step_failed": "failed",
    "step_skipped": "skipped",
    "step_canceled": "canceled",
    "step_reset": "reset",
}
QUIET_EVENTS = frozenset(
    {"step_held", "step_unready", "slot_requested", "slot_declined", "run_held_changed"}
)
"""Kept in the history, of no interest to somebody who watches a run go by."""


def event_words(item: Item) -> str:
    """A history item in words: what happened, which attempt, why."""
    kind = str(item.get("type", ""))
    words = [_EVENT_WORDS.get(kind, kind.replace("_", " "))]
    data: Any = item.get("data")
    told: Mapping[str, Any] = data if is_object(data) else {}
    if kind in {"run_ended", "run_reopened"} and told.get("status"):
        words = [str(told["status"])]
    if kind == "run_pinned" and told.get("pinned") is False:
        words = ["unpinned"]
    if kind == "step_parked":
        words = [WAITS.get(str(told.get("waiting_for")), "parked")]
    attempt = item.get("attempt")
    if isinstance(attempt, int) and attempt > 1:
        words.append(f"(attempt {attempt})")
    if kind == "step_skipped" and not item.get("reason"):
        words.append(f"by {told.get('skipped_by', 'operator')}")
    if item.get("reason"):
        words.append(f"- {item['reason']}")
    return shorten(clean(" ".join(words)), _NOTE_WIDTH)


STEP_COLUMNS = [
    Column("STEP", key("step_ref")),
    Column("STATUS", key("status"), "status"),
    Column("ATTEMPT", lambda step: step["attempt"] or "", right=True),
    Column("TOOK", lambda step: between(step.get("started_at"), step.get("finished_at"))),
    Column("", step_note, rest=True),
]

EVENT_COLUMNS = [
    Column("SEQ", key("seq"), "dim", right=True),
    Column("AT", lambda item: clean(item["at"])[11:23], "dim"),
    Column("STEP", key("step_ref")),
    Column("WHAT", event_words),
    Column("BY", lambda item: item["actor"] if item.get("actor") != "system" else "", "dim"),
]

EXPLAIN_COLUMNS = [
    Column("STEP", key("step_ref")),
    Column("STATUS", key("status"), "status"),
    Column("SINCE", lambda line: ago(line.get("since"))),
    Column("WHY", key("reason"), fold=True),
]


def show_run(out: Output, run: Item, steps: Sequence[Item], workflow: str) -> None:
    tags: Mapping[str, str] = run.get("tags") or {}
    pairs: list[tuple[str, object]] = [
        ("run", run["id"]),
        ("workflow", f"{workflow} (version {run['workflow_version']})"),
        ("project", run["project_id"]),
        ("status", run["status"]),
        ("error", run.get("error")),
        ("triggered by", " · ".join(filter(None, [run["triggered_by"], run.get("created_by")]))),
        ("created", f"{run['created_at']} ({ago(run['created_at'])})"),
        ("took", between(run.get("started_at"), run.get("finished_at"))),
        ("expires", run.get("expires_at")),
        ("retry of", run.get("retry_of_run_id")),
        ("parent run", run.get("parent_workflow_run_id")),
        ("tags", ", ".join(f"{k}={v}" for k, v in tags.items())),
        ("payload", run.get("payload")),
        ("pinned", "yes" if run.get("pinned") else None),
        ("quarantined", "yes" if run.get("quarantined") else None),
    ]
    out.fields(pairs)
    out.say()
    out.table(steps, STEP_COLUMNS)


PREVIEW_WORDS = (
    ("reset", "would be reset"),
    ("started", "would start"),
    ("skipped", "would be skipped"),
    ("canceled", "would be canceled"),
    ("completed", "would be completed"),
    ("held", "would be held back"),
)


def show_preview(out: Output, preview: Item) -> None:
    """What a command would do, one line a kind of change."""
    if out.as_json:
        out.json_line(preview)
        return
    said = False
    for name, words in PREVIEW_WORDS:
        refs = preview.get(name)
        if refs:
            said = True
            out.say(f"{words}: {', '.join(map(str, refs))}")
    if status := preview.get("run_status"):
        out.say(f"the run would be {status}")
    elif not said:
        out.json_line(preview)
