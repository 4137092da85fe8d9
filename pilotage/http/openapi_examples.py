"""Examples for the reference: one order pipeline, told by all of them."""

from __future__ import annotations

from typing import Any

_RUN_ID = "019a3f5c-8f80-7c3a-8b1d-000012340000"
_WORKFLOW_ID = "019a3f5b-2a10-7d41-9f6e-5b1c2d3e4f50"
_JOB_ID = "019a3f5a-11c0-7e02-a1b2-c3d4e5f60718"
_VERSION_ID = "ver_019a3f5b2a107d419f6e5b1c2d3e4f51"
_REQUEST_ID = "019a3f5c-9000-7000-8000-000000000001"
_T0, _T1 = "2026-01-31T09:30:00.000Z", "2026-01-31T09:30:01.250Z"

_RUN = {
    "id": _RUN_ID,
    "workflow_id": _WORKFLOW_ID,
    "project_id": "acme",
    "status": "running",
    "triggered_by": "manual",
    "workflow_version": 1,
    "payload": {"order_id": 42},
    "started_at": _T0,
    "tags": {"team": "orders"},
    "workflow_version_id": _VERSION_ID,
    "created_by": "ci",
    "created_at": _T0,
}
_STEP = {
    "id": "019a3f5c-8f80-7c3a-8001-000012340000",
    "workflow_run_id": _RUN_ID,
    "workflow_step_id": f"{_VERSION_ID}.charge",
    "step_ref": "charge",
    "job_run_id": "019a3f5c-8f80-7c3a-8001-000412340000",
    "attempt": 1,
    "status": "completed",
    "deps_completed": 1,
    "deps_required": 1,
    "output": {"receipt": "r-7"},
    "started_at": _T0,
    "finished_at": _T1,
    "created_at": _T0,
}
_STEPS = [
    {"step_ref": "validate", "job_id": "validate"},
    {"step_ref": "charge", "job_id": "charge", "depends_on": ["validate"]},
    {
        "step_ref": "review",
        "step_type": "approval",
        "depends_on": ["charge"],
        "approval_approvers": ["ops"],
    },
]
_WORKFLOW = {
    "id": _WORKFLOW_ID,
    "project_id": "acme",
    "name": "Order pipeline",
    "slug": "order-pipeline",
    "enabled": True,
    "version": 1,
    "version_id": _VERSION_ID,
    "timeout_secs": 0,
    "max_concurrent_runs": 0,
    "max_parallel_steps": 0,
    "cron_timezone": "UTC",
    "skip_if_running": False,
    "created_by": "ci",
    "created_at": _T0,
    "updated_at": _T0,
    "step_count": 3,
    "steps": _STEPS,
}
_JOB = {
    "id": _JOB_ID,
    "project_id": "acme",
    "name": "charge",
    "slug": "charge",
    "endpoint_url": "https://jobs.example.com/charge",
    "execution_mode": "http",
    "max_attempts": 3,
    "timeout_secs": 300,
    "retry_backoff": "exponential",
    "retry_initial_delay_secs": 1,
    "retry_max_delay_secs": 3600,
    "enabled": True,
    "created_at": _T0,
    "updated_at": _T0,
}
_BULK = {"workflow_run_id": _RUN_ID, "status": "canceled"}

EXAMPLES: dict[str, Any] = {
    "WorkflowRun": _RUN,
    "StepRun": _STEP,
    "StepRunAnswer": {"step_run": _STEP},
    "ResetSteps": {"reset_steps": 2},
    "BulkInput": {"workflow_run_ids": [_RUN_ID]},
    "BulkCanceled": {"canceled": 1, "failed": 0, "results": [_BULK]},
    "BulkReplayed": {
        "replayed": 1,
        "failed": 0,
        "results": [
            {
                "workflow_run_id": _RUN_ID,
                "status": "replayed",
                "new_workflow_run_id": "019a3f60-0000-7aaa-8b1d-000056780000",
            }
        ],
    },
    "Preview": {
        "run_status": "running",
        "reset": ["charge", "review"],
        "started": ["charge"],
        "skipped": [],
        "canceled": [],
        "completed": [],
        "held": [],
    },
    "WorkflowRunGraph": {
        "workflow_run_id": _RUN_ID,
        "status": "running",
        "nodes": [
            {
                "step_ref": "validate",
                "type": "job",
                "status": "running",
                "depends_on": [],
                "attempt": 1,
                "started_at": _T0,
                "duration_ms": 1250,
            }
        ],
        "edges": [{"from": "validate", "to": "charge"}],
        "roots": ["validate"],
        "runnable": [],
        "critical_path": ["validate"],
    },
    "Timeline": {
        "workflow_run_id": _RUN_ID,
        "status": "completed",
        "started_at": _T0,
        "finished_at": _T1,
        "total_ms": 1250,
        "steps": [
            {
                "step_ref": "charge",
                "step_run_id": _STEP["id"],
                "status": "completed",
                "started_at": _T0,
                "finished_at": _T1,
                "duration_ms": 1250,
                "wait_ms": 0,
                "on_critical_path": True,
            }
        ],
    },
    "ExplainedRun": {
        "workflow_run_id": _RUN_ID,
        "status": "running",
        "steps": [
            {
                "step_ref": "review",
                "status": "waiting",
                "waiting_for": "approval",
                "reason": 'waits for "ops" to approve or reject it',
                "since": _T1,
            }
        ],
    },
    "HistoryItem": {
        "seq": 3,
        "at": _T0,
        "type": "step_started",
        "step_ref": "validate",
        "attempt": 1,
        "actor": "system",
    },
    "WorkflowInput": {"name": "Order pipeline", "slug": "order-pipeline", "steps": _STEPS},
    "WorkflowPatch": {"max_parallel_steps": 4},
    "Workflow": _WORKFLOW,
    "WorkflowVersion": {
        "version_id": _VERSION_ID,
        "workflow_id": _WORKFLOW_ID,
        "project_id": "acme",
        "version": 1,
        "step_count": 3,
        "created_by": "ci",
        "created_at": _T0,
    },
    "WorkflowGraph": {
        "workflow_id": _WORKFLOW_ID,
        "version": 1,
        "nodes": [{"step_ref": "validate", "type": "job", "depends_on": []}],
        "edges": [{"from": "validate", "to": "charge"}],
        "roots": ["validate"],
        "critical_path": ["validate", "charge", "review"],
    },
    "WorkflowDryRun": {
        "workflow_id": _WORKFLOW_ID,
        "version": 1,
        "order": ["validate", "charge", "review"],
        "waves": [["validate"], ["charge"], ["review"]],
        "disabled": [],
    },
    "TriggerInput": {"payload": {"order_id": 42}, "tags": {"team": "orders"}},
    "JobInput": {"slug": "charge", "endpoint_url": "https://jobs.example.com/charge"},
    "JobPatch": {"max_attempts": 5},
    "Job": _JOB,
    "JobRun": {
        "id": _STEP["job_run_id"],
        "job_id": _JOB_ID,
        "project_id": "acme",
        "workflow_run_id": _RUN_ID,
        "workflow_step_run_id": _STEP["id"],
        "step_ref": "charge",
        "status": "completed",
        "attempt": 1,
        "payload": {"order_id": 42, "parent_outputs": {}},
        "result": {"receipt": "r-7"},
        "started_at": _T0,
        "finished_at": _T1,
        "created_at": _T0,
    },
    "EventInput": {"payload": {"paid": True}, "buffer_secs": 3600},
    "EventSent": {"event_key": "order-42-paid", "delivered": 1, "buffered": False},
    "ApiKeyInput": {
        "name": "ci",
        "project_id": "acme",
        "scopes": ["workflows:read", "workflows:trigger"],
        "expires_in_days": 90,
    },
    "ApiKey": {
        "id": "019a3f59-0a00-7c00-9d11-aabbccddeeff",
        "project_id": "acme",
        "name": "ci",
        "scopes": ["workflows:read", "workflows:trigger"],
        "created_by": "admin",
        "created_at": _T0,
        "expires_at": "2026-05-01T09:30:00.000Z",
    },
    "QuarantinedRun": {
        "workflow_run_id": _RUN_ID,
        "reason": "its actor failed 5 times within 60 s",
        "run": {**_RUN, "quarantined": True},
    },
    "ReasonInput": {"reason": "not needed any more"},
    "CommentInput": {"comment": "looks right"},
    "ResultInput": {"result": {"receipt": "r-7"}},
    "FailInput": {"error": "card declined", "final": True},
    "ProgressInput": {"percent": 40, "message": "4 of 10"},
    "LogInput": {"level": "info", "message": "charging", "data": {"amount": 12}},
    "Health": {"status": "ok", "version": "0.1.0", "ready": True},
}


def error_example(code: str, message: str, details: list[str] | None = None) -> dict[str, Any]:
    error: dict[str, Any] = {"code": code, "message": message}
    if details:
        error["details"] = details
    return {
        "error": error,
        "message": message,
        "request_id": "019a3f5c-9000-7000-8000-000000000001",
    }


SHOWN_ONCE: dict[str, Any] = {"ApiKey": {"key": f"plt_{'x' * 43}"}}
"""What is shown beside that when it has just been made."""

ERRORS: dict[int, dict[str, Any]] = {
    400: error_example("bad_request", "the body is not valid JSON: trailing characters (byte 7)"),
    401: error_example(
        "authentication_required", "a key is needed; send Authorization: Bearer <key>"
    ),
    403: error_example("forbidden", 'the key lacks the scope "workflows:write"'),
    404: error_example("not_found", "unknown workflow run"),
    405: error_example("method_not_allowed", "this path has no PUT; it has GET"),
    406: error_example("not_acceptable", "this answers application/json only"),
    409: error_example("conflict", "run is completed; only a running run can be paused"),
    410: error_example("gone", 'step "charge" is skipped and takes no more reports'),
    413: error_example("payload_too_large", "the body is larger than 1114112 bytes"),
    415: error_example("unsupported_media_type", "the body must be JSON in UTF-8"),
    422: error_example(
        "validation_failed",
        'the definition is not valid: steps[3].depends_on[0]: unknown step "x"',
        ['steps[3].depends_on[0]: unknown step "x"'],
    ),
    429: error_example("rate_limited", "this key may ask 600 times a minute; slow down"),
    500: error_example("internal_error", "something went wrong on the server"),
    503: error_example("service_unavailable", "the store is away; try again"),
}
