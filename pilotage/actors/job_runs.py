"""Job runs: the record of each attempt of a `job` step, and how it is shown.

A record is written with the transition that changes it, so that attempts and states agree.
"""

from __future__ import annotations

import msgspec

from pilotage.runtime.graph import StepGraph
from pilotage.runtime.ids import job_run_id, step_run_id
from pilotage.runtime.state import RunHead
from pilotage.runtime.status import JobRunStatus
from pilotage.runtime.views import rfc3339

SHOWN_INPUT_BYTES = 64 * 1024
"""Inputs above this are shown as size and preview (runs.md §10)."""
PREVIEW_BYTES = 1024
MAX_LOG_LINES = 200
MAX_LOG_CHARS = 2_000


class Progress(msgspec.Struct, frozen=True, array_like=True):
    percent: float
    message: str | None = None


class LogLine(msgspec.Struct, frozen=True, array_like=True):
    at_ms: int
    level: str
    message: str
    data: bytes | None = None


class Announced(msgspec.Struct, frozen=True, array_like=True):
    """The job sends heartbeats: it has failed after so many seconds without one."""

    secs: float


class JobRunRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One attempt as stored. `payload` and `result` are JSON text; `heartbeat_secs`: it has
    announced heartbeats.
    """

    job: str
    status: JobRunStatus
    payload: bytes | None = None
    result: bytes | None = None
    error: str | None = None
    error_class: str | None = None
    progress: Progress | None = None
    logs: tuple[LogLine, ...] = ()
    dropped_logs: int = 0
    started_at_ms: int | None = None
    finished_at_ms: int | None = None
    next_retry_at_ms: int | None = None
    created_at_ms: int = 0
    heartbeat_secs: float | None = None


class LogView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    at: str
    level: str
    message: str
    data: msgspec.Raw | None = None


class ProgressView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A whole `percent` is an integer."""

    percent: int | float
    message: str | None = None


class JobRunView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An attempt as the API shows it (definitions.md, Job runs)."""

    id: str
    job_id: str
    project_id: str
    workflow_run_id: str
    workflow_step_run_id: str
    step_ref: str
    status: JobRunStatus
    attempt: int
    payload: msgspec.Raw | None = None
    result: msgspec.Raw | None = None
    error: str | None = None
    error_class: str | None = None
    progress: ProgressView | None = None
    logs: list[LogView] | None = None
    started_at: str | None = None
    finished_at: str | None = None
    next_retry_at: str | None = None
    created_at: str


def shown_input(text: bytes) -> bytes:
    """The input as it is kept for show: itself, or its size and beginning when it is large."""
    if len(text) <= SHOWN_INPUT_BYTES:
        return text
    preview = text[:PREVIEW_BYTES].decode("utf-8", "replace")
    return msgspec.json.encode({"truncated": True, "size_bytes": len(text), "preview": preview})


def add_log(record: JobRunRecord, line: LogLine) -> JobRunRecord:
    """The record with one more line; beyond `MAX_LOG_LINES` lines are counted, not kept."""
    if len(record.logs) >= MAX_LOG_LINES:
        return msgspec.structs.replace(record, dropped_logs=record.dropped_logs + 1)
    message = line.message[:MAX_LOG_CHARS]
    kept = LogLine(line.at_ms, line.level, message, line.data)
    return msgspec.structs.replace(record, logs=(*record.logs, kept))


def job_run_view(
    head: RunHead,
    graph: StepGraph,
    step: int,
    attempt: int,
    record: JobRunRecord,
    *,
    queued: bool = False,
) -> JobRunView:
    """`queued`: it was dispatched and waits for its turn, a breaker or a limit of its host."""
    logs = [
        LogView(
            at=rfc3339(line.at_ms),
            level=line.level,
            message=line.message,
            data=None if line.data is None else msgspec.Raw(line.data),
        )
        for line in record.logs
    ]
    if record.dropped_logs:
        note = f"{record.dropped_logs} more lines were not kept (at most {MAX_LOG_LINES})"
        logs.append(LogView(at=rfc3339(record.logs[-1].at_ms), level="warning", message=note))
    progress = record.progress
    return JobRunView(
        id=job_run_id(head.id, step, attempt),
        job_id=record.job,
        project_id=head.project_id,
        workflow_run_id=head.id,
        workflow_step_run_id=step_run_id(head.id, step),
        step_ref=graph.steps[step].step_ref,
        status=JobRunStatus.QUEUED if queued else record.status,
        attempt=attempt,
        payload=_raw(record.payload),
        result=_raw(record.result),
        error=record.error,
        error_class=record.error_class,
        progress=None if progress is None else _progress_view(progress),
        logs=logs or None,
        started_at=None if queued else _when(record.started_at_ms),
        finished_at=_when(record.finished_at_ms),
        next_retry_at=_when(record.next_retry_at_ms),
        created_at=rfc3339(record.created_at_ms),
    )


def _progress_view(progress: Progress) -> ProgressView:
    percent = progress.percent
    shown = int(percent) if percent == int(percent) else percent
    return ProgressView(percent=shown, message=progress.message)


def _raw(text: bytes | None) -> msgspec.Raw | None:
    return None if text is None else msgspec.Raw(text)


def _when(ms: int | None) -> str | None:
    return None if ms is None else rfc3339(ms)
