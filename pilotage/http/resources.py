"""Definitions and keys as the API shows them. Runs and steps: `pilotage.runtime.views`.

Unset fields are omitted, whole durations are integers, secrets are never shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from pilotage.actors.api_keys import ApiKey
from pilotage.actors.catalog_model import Job, Workflow, WorkflowVersion
from pilotage.runtime.definition import StepSpec
from pilotage.runtime.status import Backoff, ExecutionMode
from pilotage.runtime.views import rfc3339

Number = int | float


class WorkflowView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """In lists `steps` is left out and `step_count` stands for it."""

    id: str
    project_id: str
    name: str
    slug: str
    description: str | None = None
    tags: Mapping[str, str] | None = None
    enabled: bool
    version: int
    version_id: str
    timeout_secs: Number
    max_concurrent_runs: int
    max_parallel_steps: int
    cron: str | None = None
    cron_timezone: str
    skip_if_running: bool
    created_by: str | None = None
    created_at: str
    updated_at: str
    step_count: int
    steps: Sequence[dict[str, Any]] | None = None


class WorkflowVersionView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    version_id: str
    workflow_id: str
    project_id: str
    version: int
    step_count: int
    created_by: str | None = None
    created_at: str


class JobView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`signing_secret` is write-only; `has_signing_secret` tells that there is one."""

    id: str
    project_id: str
    name: str
    slug: str
    endpoint_url: str | None = None
    execution_mode: ExecutionMode
    max_attempts: int
    timeout_secs: Number
    retry_backoff: Backoff
    retry_initial_delay_secs: Number
    retry_max_delay_secs: Number
    max_concurrency: int | None = None
    has_signing_secret: bool = False
    heartbeat_timeout_secs: Number | None = None
    tags: Mapping[str, str] | None = None
    enabled: bool
    created_at: str
    updated_at: str


class ApiKeyView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`key` is there once, in the answer to its creation."""

    id: str
    project_id: str
    name: str
    scopes: Sequence[str]
    key: str | None = None
    created_by: str | None = None
    created_at: str
    expires_at: str | None = None


def whole(value: float) -> Number:
    """30.0 is shown as 30."""
    return int(value) if value == int(value) else value


_DURATIONS = frozenset(
    f for f in StepSpec.__struct_fields__ if f.endswith(("_secs", "_secs_override"))
)


def step_document(spec: StepSpec) -> dict[str, Any]:
    """A step as it was defined, under the canonical names."""
    document: dict[str, Any] = {
        "step_ref": spec.step_ref,
        "step_type": spec.step_type,
        "depends_on": spec.depends_on,
        "on_failure": spec.on_failure,
    }
    for name in spec.__struct_fields__:
        value = getattr(spec, name)
        if name in document or value is None or value == ():
            continue
        document[name] = whole(value) if name in _DURATIONS else value
    return document


def workflow_view(workflow: Workflow, *, with_steps: bool = True) -> WorkflowView:
    spec = workflow.spec
    return WorkflowView(
        id=workflow.id,
        project_id=workflow.project_id,
        name=workflow.name,
        slug=workflow.slug,
        description=workflow.description,
        tags=workflow.tags or None,
        enabled=workflow.enabled,
        version=workflow.version,
        version_id=workflow.version_id,
        timeout_secs=whole(spec.timeout_secs),
        max_concurrent_runs=spec.max_concurrent_runs,
        max_parallel_steps=spec.max_parallel_steps,
        cron=spec.cron,
        cron_timezone=spec.cron_timezone,
        skip_if_running=spec.skip_if_running,
        created_by=workflow.created_by,
        created_at=rfc3339(workflow.created_at_ms),
        updated_at=rfc3339(workflow.updated_at_ms),
        step_count=len(spec.steps),
        steps=[step_document(s) for s in spec.steps] if with_steps else None,
    )


def version_view(version: WorkflowVersion) -> WorkflowVersionView:
    return WorkflowVersionView(
        version_id=version.id,
        workflow_id=version.workflow_id,
        project_id=version.project_id,
        version=version.version,
        step_count=len(version.spec.steps),
        created_by=version.created_by,
        created_at=rfc3339(version.created_at_ms),
    )


def job_view(job: Job) -> JobView:
    spec = job.spec
    heartbeat = spec.heartbeat_timeout_secs
    return JobView(
        id=job.id,
        project_id=job.project_id,
        name=job.name,
        slug=job.slug,
        endpoint_url=spec.endpoint_url,
        execution_mode=spec.execution_mode,
        max_attempts=spec.max_attempts,
        timeout_secs=whole(spec.timeout_secs),
        retry_backoff=spec.retry_backoff,
        retry_initial_delay_secs=whole(spec.retry_initial_delay_secs),
        retry_max_delay_secs=whole(spec.retry_max_delay_secs),
        max_concurrency=spec.max_concurrency,
        has_signing_secret=spec.signing_secret is not None,
        heartbeat_timeout_secs=None if heartbeat is None else whole(heartbeat),
        tags=job.tags or None,
        enabled=job.enabled,
        created_at=rfc3339(job.created_at_ms),
        updated_at=rfc3339(job.updated_at_ms),
    )


def api_key_view(key: ApiKey, secret: str | None = None) -> ApiKeyView:
    return ApiKeyView(
        id=key.id,
        project_id=key.project_id,
        name=key.name,
        scopes=key.scopes,
        key=secret,
        created_by=key.created_by,
        created_at=rfc3339(key.created_at_ms),
        expires_at=None if key.expires_at_ms is None else rfc3339(key.expires_at_ms),
    )
