"""How a run is shown: the API's resources, made from states. Pure.

Field names, order and presence are the seed's: unset fields are omitted, counters are always
there, `max_parallel_steps` is omitted when 0. Times are RFC 3339 in UTC with `Z`, milliseconds.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache

import msgspec

from pilotage.runtime.graph import bits
from pilotage.runtime.ids import job_run_id, step_run_id
from pilotage.runtime.state import RunHead, RunState, RunVitals, StepState
from pilotage.runtime.status import (
    RunStatus,
    SkippedBy,
    StepStatus,
    StepType,
    WaitingFor,
)


def rfc3339(ms: int) -> str:
    """Unix milliseconds as RFC 3339 text, e.g. `2026-01-31T09:30:00.250Z`."""
    seconds, millis = divmod(ms, 1000)
    return f"{_to_the_second(seconds)}.{millis:03d}Z"


@lru_cache(maxsize=256)
def _to_the_second(seconds: int) -> str:
    """Most times that are shown together share their second."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"


def _when(ms: int | None) -> str | None:
    return None if ms is None else rfc3339(ms)


class RunView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A workflow run as the API shows it."""

    id: str
    workflow_id: str
    project_id: str
    status: RunStatus
    triggered_by: str
    workflow_version: int
    max_parallel_steps: int = 0
    payload: msgspec.Raw | None = None
    error: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    expires_at: str | None = None
    retry_of_run_id: str | None = None
    parent_workflow_run_id: str | None = None
    parent_step_run_id: str | None = None
    tags: dict[str, str] | None = None
    workflow_version_id: str
    created_by: str | None = None
    created_at: str
    pinned: bool = False
    quarantined: bool = False


class StepView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A step run as the API shows it; `waiting_for`, `skipped_by` and `due_at` are ours."""

    id: str
    workflow_run_id: str
    workflow_step_id: str
    step_ref: str
    job_run_id: str | None = None
    attempt: int
    status: StepStatus
    deps_completed: int
    deps_required: int
    output: msgspec.Raw | None = None
    error: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    created_at: str
    waiting_for: WaitingFor | None = None
    skipped_by: SkippedBy | None = None
    due_at: str | None = None
    child_workflow_run_id: str | None = None


def run_view(head: RunHead, vitals: RunVitals, *, quarantined: bool = False) -> RunView:
    parent_step = None
    if head.parent_run_id is not None and head.parent_step is not None:
        parent_step = step_run_id(head.parent_run_id, head.parent_step)
    return RunView(
        id=head.id,
        workflow_id=head.workflow_id,
        project_id=head.project_id,
        status=vitals.status,
        triggered_by=head.triggered_by,
        workflow_version=head.version,
        max_parallel_steps=head.max_parallel_steps,
        payload=None if head.payload is None else msgspec.Raw(head.payload),
        error=vitals.error,
        started_at=_when(vitals.started_at_ms),
        finished_at=_when(vitals.finished_at_ms),
        expires_at=_when(vitals.expires_at_ms),
        retry_of_run_id=head.retry_of_run_id,
        parent_workflow_run_id=head.parent_run_id,
        parent_step_run_id=parent_step,
        tags=head.tags or None,
        workflow_version_id=head.version_id,
        created_by=head.created_by,
        created_at=rfc3339(head.created_at_ms),
        pinned=vitals.pinned,
        quarantined=quarantined,
    )


def waiting_for(state: RunState, i: int, step: StepState) -> WaitingFor | None:
    """Why step i does not move; None for running and terminal steps (runs.md §3)."""
    if step.status is StepStatus.WAITING:
        return step.wait or WaitingFor.DEPENDENCIES
    if step.status is not StepStatus.PENDING:
        return None
    if state.status is RunStatus.PENDING:
        return WaitingFor.RUN_QUEUE
    if state.status is RunStatus.PAUSED:
        return WaitingFor.PAUSED
    if step.wait is WaitingFor.JOB_LIMIT:
        return WaitingFor.JOB_LIMIT
    limit = state.head.max_parallel_steps
    if limit and state.masks.running.bit_count() >= limit:
        return WaitingFor.PARALLEL_LIMIT
    key = state.graph.steps[i].concurrency_key
    if key and state.graph.key_mask[key] & state.masks.running:
        return WaitingFor.CONCURRENCY_KEY
    return WaitingFor.JOB_LIMIT


def _carried(state: RunState, step: StepState) -> bool:
    """Whether a retry took the step over: its attempts belong to the run before."""
    started = step.started_at_ms
    return (
        state.head.retry_of_run_id is not None
        and started is not None
        and started < state.head.created_at_ms
    )


def step_view(state: RunState, i: int) -> StepView:
    step, spec = state.step(i), state.graph.steps[i]
    run_id = state.head.id
    has_job_run = spec.step_type is StepType.JOB and step.attempt > 0 and not _carried(state, step)
    waits = waiting_for(state, i, step)
    return StepView(
        id=step_run_id(run_id, i),
        workflow_run_id=run_id,
        workflow_step_id=f"{state.head.version_id}.{spec.step_ref}",
        step_ref=spec.step_ref,
        job_run_id=job_run_id(run_id, i, step.attempt) if has_job_run else None,
        attempt=step.attempt,
        status=step.status,
        deps_completed=(state.graph.deps_mask[i] & state.masks.satisfied).bit_count(),
        deps_required=state.graph.deps_mask[i].bit_count(),
        output=None if step.output is None else msgspec.Raw(step.output),
        error=step.error,
        started_at=_when(step.started_at_ms),
        finished_at=_when(step.finished_at_ms),
        created_at=rfc3339(state.head.created_at_ms),
        waiting_for=waits,
        skipped_by=step.skipped_by,
        due_at=_when(step.due_ms) if waits is not None else None,
        child_workflow_run_id=step.child_run_id,
    )


def step_views(state: RunState) -> list[StepView]:
    """All step runs in definition order."""
    return [step_view(state, i) for i in range(state.graph.size)]


def refs(state: RunState, mask: int) -> list[str]:
    """The step_refs of a mask, in definition order."""
    return [state.graph.steps[i].step_ref for i in bits(mask)]
