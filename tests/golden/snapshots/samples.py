"""The values in the golden files, how they are stored and how they are shown as JSON."""

from __future__ import annotations

from typing import Any

import msgspec

from pilotage.actors.api_keys import ApiKey
from pilotage.actors.catalog_deleted import Deleted
from pilotage.actors.catalog_model import Job, Workflow, WorkflowVersion
from pilotage.actors.cron_triggers import Decided
from pilotage.actors.event_hub import KeptEvent
from pilotage.actors.idempotency import Remembered
from pilotage.actors.job_runs import JobRunRecord, LogLine, Progress
from pilotage.persistence import codec
from pilotage.persistence.codec import FinishedRun
from pilotage.runtime.definition import JobPolicy, JobSpec, StepSpec, WorkflowSpec
from pilotage.runtime.effects import EmitEvent, TellChild, TellParent
from pilotage.runtime.events import StepCompleted
from pilotage.runtime.history import HistoryEntry
from pilotage.runtime.state import Resolution, RunHead, RunVitals, StepState, chunked
from pilotage.runtime.status import (
    Backoff,
    ExecutionMode,
    JobRunStatus,
    OnFailure,
    RunStatus,
    SkippedBy,
    StepStatus,
    StepType,
    WaitingFor,
)

RUN_ID = "01a0c450-6c00-7abc-8000-0000abcd0000"
CHILD_ID = "01a0c450-6c00-7abc-8000-0000beef0000"
AT = 1_790_000_000_000

HEAD_FULL = RunHead(
    id=RUN_ID,
    project_id="project-1",
    workflow_id="workflow-1",
    workflow_slug="order-fulfilment",
    version=7,
    version_id="version-7",
    created_at_ms=AT,
    payload='{"größe": 12, "items": [1, null, "x"]}'.encode(),
    tags={"env": "prod", "team": "red"},
    triggered_by="sub_workflow",
    created_by="key deploy",
    retry_of_run_id=CHILD_ID,
    parent_run_id=CHILD_ID,
    parent_step=3,
    depth=2,
    ancestor_workflows=("w0", "w1"),
    slotless=True,
    max_parallel_steps=4,
    timeout_secs=90.5,
    delay_until_ms=AT + 5_000,
    policies={
        "charge": JobPolicy(
            max_attempts=5,
            retry_backoff=Backoff.LINEAR,
            retry_initial_delay_secs=0.5,
            retry_max_delay_secs=60.0,
            timeout_secs=10.0,
            limited=True,
        ),
        "plain": JobPolicy(),
    },
)
HEAD_PLAIN = RunHead(
    id=RUN_ID,
    project_id="p",
    workflow_id="w",
    workflow_slug="w",
    version=1,
    version_id="v",
    created_at_ms=AT,
)
VITALS_FULL = RunVitals(
    status=RunStatus.TIMED_OUT,
    seq=41,
    history_seq=99,
    started_at_ms=AT + 1,
    finished_at_ms=AT + 2,
    expires_at_ms=AT + 3,
    error="deadline exceeded",
    queued_at_ms=AT + 4,
    held=True,
    parent_attempt=2,
    pinned=True,
)
STEP_FULL = StepState(
    status=StepStatus.PENDING,
    wait=WaitingFor.JOB_LIMIT,
    attempt=12,
    budget_start=9,
    output=b'{"ok": true}',
    error="connection reset",
    started_at_ms=AT + 1,
    finished_at_ms=AT + 2,
    due_ms=AT + 3,
    skipped_by=SkippedBy.OVERRIDE,
    checked=True,
    accepted=True,
    child_run_id=CHILD_ID,
    event_key="order/7",
    ready_since_ms=AT + 4,
    resolution=Resolution.FORCED,
)
WORKFLOW = WorkflowSpec(
    steps=(
        StepSpec(step_ref="charge", job_id="charge", payload={"amount": "{{payload.amount}}"}),
        StepSpec(
            step_ref="wait",
            step_type=StepType.WAIT_FOR_EVENT,
            depends_on=("charge",),
            on_failure=OnFailure.CONTINUE,
            event_key="paid",
            event_timeout_secs=60.5,
        ),
    ),
    timeout_secs=3_600.0,
    max_concurrent_runs=10,
    cron="*/5 * * * *",
    skip_if_running=True,
)

SAMPLES: dict[str, Any] = {
    "head-full": HEAD_FULL,
    "head-plain": HEAD_PLAIN,
    "head-traced": msgspec.structs.replace(HEAD_PLAIN, trace="0af7651916cd43dd8448eb211c80319c-01"),
    "vitals-full": VITALS_FULL,
    "vitals-plain": RunVitals(),
    "step-full": STEP_FULL,
    "step-plain": StepState(),
    "finished-large": FinishedRun(
        HEAD_FULL, VITALS_FULL, chunked([STEP_FULL, *[StepState()] * 70, STEP_FULL])
    ),
    "finished-empty": FinishedRun(HEAD_PLAIN, RunVitals(), ()),
    "message-child": TellChild(child_run_id=CHILD_ID, what="reopen", parent_attempt=3, step=4),
    "message-parent": TellParent(
        parent_run_id=RUN_ID,
        step=3,
        attempt=2,
        status=RunStatus.FAILED,
        output=b"[1]",
        error="step x failed",
    ),
    "message-event": EmitEvent(event_key="order/7", payload=b'{"a": 1}'),
    "message-event-timed": EmitEvent(event_key="order/7", payload=b'{"a": 1}', at_ms=AT),
    "history-completed": StepCompleted(
        at_ms=AT, actor="key ops", step=2, output=b"12", resolution=Resolution.APPROVED, reason="ok"
    ),
    "history-entry": HistoryEntry(
        seq=7,
        at="2026-09-21T14:13:20.000Z",
        type="step_completed",
        step_ref="charge",
        attempt=2,
        actor="key ops",
        reason="ok",
        data={"output": {"n": 1}},
    ),
    "record-workflow": WORKFLOW,
    "record-job": JobSpec(
        endpoint_url="https://example.test/job",
        execution_mode=ExecutionMode.HTTP,
        max_concurrency=3,
        signing_secret="not a secret",
    ),
    "definition-workflow": Workflow(
        id=CHILD_ID,
        project_id="project-1",
        name="Order fulfilment",
        slug="order-fulfilment",
        description="größer",
        tags={"team": "red"},
        enabled=False,
        version=7,
        version_id="ver_7",
        spec=WORKFLOW,
        created_by="key deploy",
        created_at_ms=AT,
        updated_at_ms=AT + 1,
        revision=9,
    ),
    "definition-version": WorkflowVersion(
        id="ver_7",
        workflow_id=CHILD_ID,
        project_id="project-1",
        version=7,
        spec=WorkflowSpec(
            steps=(StepSpec(step_ref="a", job_id="j", payload={"big": 1 << 80, "f": 0.5}),)
        ),
        created_by="key deploy",
        created_at_ms=AT,
    ),
    "definition-job": Job(
        id=CHILD_ID,
        project_id="project-1",
        name="Charge",
        slug="charge",
        spec=JobSpec(endpoint_url="https://example.test/job", signing_secret="not a secret"),
        tags={"team": "red"},
        enabled=False,
        created_at_ms=AT,
        updated_at_ms=AT + 1,
        revision=2,
    ),
    "definition-cron": Decided(
        id=CHILD_ID, project_id="project-1", created_at_ms=AT, fire_ms=AT + 1, revision=3
    ),
    "record-attempt": JobRunRecord(
        job="charge",
        status=JobRunStatus.FAILED,
        payload=b'{"n": 1}',
        error="boom",
        error_class="transient",
        progress=Progress(percent=50.5, message="half"),
        logs=(LogLine(at_ms=AT, level="info", message="größer", data=b"[1]"),),
        dropped_logs=3,
        started_at_ms=AT + 1,
        finished_at_ms=AT + 2,
        next_retry_at_ms=AT + 3,
        created_at_ms=AT,
        heartbeat_secs=1.5,
    ),
    "record-key": ApiKey(
        id=CHILD_ID,
        project_id="project-1",
        name="deploy",
        scopes=("workflows:read", "jobs:read"),
        hash="ab" * 32,
        created_at_ms=AT,
        created_by="admin",
        expires_at_ms=AT + 2,
    ),
    "record-answer": Remembered(
        request_hash="cd" * 32, status=201, reference=RUN_ID, body=b'{"id": 1}'
    ),
    "record-event": KeptEvent("event-1", AT, b"[1]"),
    "record-deleted": Deleted(slug="order-fulfilment"),
}
TYPES: dict[str, type[msgspec.Struct]] = {
    "history-completed": StepCompleted,
    "history-entry": HistoryEntry,
    "record-workflow": WorkflowSpec,
    "record-job": JobSpec,
    "definition-workflow": Workflow,
    "definition-version": WorkflowVersion,
    "definition-job": Job,
    "definition-cron": Decided,
    "record-attempt": JobRunRecord,
    "record-key": ApiKey,
    "record-answer": Remembered,
    "record-event": KeptEvent,
    "record-deleted": Deleted,
}


def encode_finished(run: FinishedRun) -> bytes:
    return codec.encode_finished(*run)


ENCODERS: dict[str, Any] = {
    "head": codec.encode_head,
    "vitals": codec.encode_vitals,
    "step": codec.encode_step,
    "finished": encode_finished,
    "message": codec.encode_message,
    "history": codec.encode_history,
    "record": codec.encode_record,
    "definition": codec.encode_definition,
}
DECODERS: dict[str, Any] = {
    "head": codec.decode_head,
    "vitals": codec.decode_vitals,
    "step": codec.decode_step,
    "finished": codec.decode_finished,
    "message": codec.decode_message,
    "history": codec.decode_history,
    "record": codec.decode_record,
    "definition": codec.decode_definition,
}


def kind(name: str) -> str:
    return name.partition("-")[0]


def encoded(name: str, value: Any) -> bytes:
    data: bytes = ENCODERS[kind(name)](value)
    return data


def decoded(name: str, data: bytes) -> Any:
    """`name` of a sample: its first part says how it is stored."""
    more = (TYPES[name],) if name in TYPES else ()
    return DECODERS[kind(name)](data, *more)


def shown(value: Any) -> Any:
    """As plain data. Fields at their defaults are left out, so that one may be added later."""
    if isinstance(value, FinishedRun):
        parts: dict[str, Any] = value._asdict()
        return {name: shown(part) for name, part in parts.items()}
    if isinstance(value, msgspec.Struct):
        plain = {
            field.name: shown(part)
            for field in msgspec.structs.fields(value)
            if (part := getattr(value, field.name)) != default(field)
        }
        tag = value.__struct_config__.tag
        return plain if tag is None else {"type": tag, **plain}
    if isinstance(value, (list, tuple)):
        items: list[Any] = [*value]  # pyright: ignore[reportUnknownArgumentType]
        return [shown(item) for item in items]
    if isinstance(value, dict):
        entries: dict[str, Any] = {**value}  # pyright: ignore[reportUnknownArgumentType]
        return {name: shown(item) for name, item in entries.items()}
    return msgspec.to_builtins(value)


def default(field: msgspec.structs.FieldInfo) -> Any:
    made_new = field.default_factory is not msgspec.NODEFAULT
    return field.default_factory() if made_new else field.default
