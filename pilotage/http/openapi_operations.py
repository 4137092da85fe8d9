"""What the reference says about each operation; paths, methods and scopes come from the routes."""

from __future__ import annotations

from typing import Any

import msgspec

from pilotage.runtime.status import RunStatus


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """A query parameter."""

    name: str
    about: str
    schema: dict[str, Any] = msgspec.field(default_factory=lambda: {"type": "string"})
    required: bool = False
    repeatable: bool = False


class Doc(msgspec.Struct, frozen=True, kw_only=True):
    """One operation.

    body        schema of the request; `body_required` False: it may be left out
    status      of success; `answer` is its schema, `Name[]` for a list, None for no body
    prefer      schema of the answer under `Prefer: return=representation`
    preview     `?dry_run=true` answers a `Preview` (or `answer`, where that shows it)
    errors      statuses beyond those that follow from the route
    """

    tag: str
    summary: str
    about: str = ""
    query: tuple[Parameter, ...] = ()
    body: str | None = None
    body_required: bool = False
    status: int = 200
    answer: str | None = None
    prefer: str | None = None
    preview: str | None = None
    errors: tuple[int, ...] = ()


TAGS = {
    "Runs": "Executions of workflows.",
    "Steps": "Steps of a run.",
    "Bulk": "One command for many runs.",
    "Workflows": "Versioned definitions: directed acyclic graphs of steps.",
    "Jobs": "Who does the work of a step.",
    "Job runs": "The record of every attempt.",
    "Events": "Messages that steps wait for.",
    "API keys": "Who may do what.",
    "Quarantine": "Runs that failed inside too often; they take no commands.",
    "Callbacks": "What a job reports that answered 202, under its run token.",
    "Operations": "Health and metrics.",
}

_LIMIT = Parameter(
    name="limit",
    about="Items a page. Above 100 is 100.",
    schema={"type": "integer", "minimum": 1, "default": 50},
)
_CURSOR = Parameter(
    name="cursor", about="From the page before. Present, even empty: the answer is a page."
)
_PAGED = (_LIMIT, _CURSOR)
_PROJECT = Parameter(
    name="project_id",
    about="Left out: the key's own project, answered as a page. An admin key must name one.",
    schema={"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,128}$"},
)
_DRY = Parameter(
    name="dry_run", about="Say what would happen, change nothing.", schema={"type": "boolean"}
)
_FILTERS = (
    Parameter(
        name="status",
        about="Only runs in this status.",
        schema={"type": "string", "enum": [str(s) for s in RunStatus]},
    ),
    Parameter(name="tag", about="`key:value`; repeatable, all must hold.", repeatable=True),
    Parameter(
        name="created_after",
        about="Created later than this.",
        schema={"type": "string", "format": "date-time"},
    ),
    Parameter(
        name="created_before",
        about="Created earlier than this.",
        schema={"type": "string", "format": "date-time"},
    ),
)
_WORKFLOW = Parameter(name="workflow_id", about="Only runs of this workflow (its id).")
_REPEATABLE = "Repeating it when it already holds is a success without effect."

_RUNS = {
    "list-workflow-runs": Doc(
        tag="Runs",
        summary="List workflow runs",
        about="Newest first. Filters combine; a page may be short and still have a next one.",
        query=(_PROJECT, _WORKFLOW, *_FILTERS, *_PAGED),
        answer="WorkflowRun[]",
    ),
    "get-workflow-run": Doc(tag="Runs", summary="Get a workflow run", answer="WorkflowRun"),
    "cancel-workflow-run": Doc(
        tag="Runs",
        summary="Cancel a workflow run",
        about=f"Attempts in progress are told to stop, child runs are canceled. {_REPEATABLE}",
        query=(Parameter(name="reason", about="Stands in the run's `error` and history."),),
        status=204,
        prefer="WorkflowRun",
        errors=(409,),
    ),
    "pause-workflow-run": Doc(
        tag="Runs",
        summary="Pause a workflow run",
        about=f"Nothing new starts; results are recorded. {_REPEATABLE}",
        status=204,
        prefer="WorkflowRun",
        errors=(409,),
    ),
    "resume-workflow-run": Doc(
        tag="Runs",
        summary="Resume a workflow run",
        about=_REPEATABLE,
        status=204,
        prefer="WorkflowRun",
        errors=(409,),
    ),
    "retry-workflow-run": Doc(
        tag="Runs",
        summary="Retry from first failed step",
        about="A new run that takes over what was completed. For failed, timed out and canceled.",
        query=(_DRY,),
        status=201,
        answer="WorkflowRun",
        preview="Preview",
        errors=(409,),
    ),
    "pin-workflow-run": Doc(
        tag="Runs",
        summary="Pin a workflow run",
        about="It is kept beyond the retention.",
        status=204,
        prefer="WorkflowRun",
    ),
    "unpin-workflow-run": Doc(
        tag="Runs", summary="Unpin a workflow run", status=204, prefer="WorkflowRun"
    ),
    "get-workflow-run-graph": Doc(
        tag="Runs", summary="Graph of a workflow run", answer="WorkflowRunGraph"
    ),
    "get-workflow-run-timeline": Doc(
        tag="Runs", summary="Timeline of a workflow run", answer="Timeline"
    ),
    "explain-workflow-run": Doc(
        tag="Runs",
        summary="Explain a workflow run",
        about="One line a step that has not ended: what it waits for and what would unblock it.",
        answer="ExplainedRun",
    ),
    "list-workflow-run-events": Doc(
        tag="Runs",
        summary="History of a workflow run",
        about="Every transition with time, actor and reason, oldest first.",
        query=(
            Parameter(
                name="after",
                about="Only items after this sequence number.",
                schema={"type": "integer", "minimum": 0, "default": 0},
            ),
            *_PAGED,
        ),
        answer="HistoryItem[]",
    ),
}

_STEPS = {
    "list-workflow-run-steps": Doc(
        tag="Steps",
        summary="List step runs",
        about="All of them, in definition order; with `cursor` page by page.",
        query=_PAGED,
        answer="StepRun[]",
    ),
    "approve-workflow-step": Doc(
        tag="Steps",
        summary="Approve an approval step",
        about="403 for who is not among the approvers.",
        body="CommentInput",
        status=204,
        prefer="StepRunAnswer",
        errors=(409,),
    ),
    "reject-workflow-step": Doc(
        tag="Steps",
        summary="Reject an approval step",
        about="The step fails, and what its `on_failure` says happens.",
        body="ReasonInput",
        status=204,
        prefer="StepRunAnswer",
        errors=(409,),
    ),
    "skip-workflow-step": Doc(
        tag="Steps",
        summary="Skip a step",
        about="It counts as done for its dependents; a failed step's run is reopened.",
        query=(_DRY,),
        body="ReasonInput",
        status=204,
        prefer="StepRunAnswer",
        preview="Preview",
        errors=(409,),
    ),
    "force-complete-workflow-step": Doc(
        tag="Steps",
        summary="Force-complete a step",
        about="As skip, with `result` as the step's output. `result` may be any JSON value.",
        query=(_DRY,),
        body="ResultInput",
        status=204,
        prefer="StepRunAnswer",
        preview="Preview",
        errors=(409,),
    ),
    "retry-workflow-step": Doc(
        tag="Steps",
        summary="Retry a single workflow step",
        about="In place: the run is reopened, the step gets a new attempt.",
        query=(_DRY,),
        answer="StepRunAnswer",
        preview="Preview",
        errors=(409,),
    ),
    "replay-workflow-subtree": Doc(
        tag="Steps",
        summary="Replay a step and all that depend on it",
        about="In place: outputs and errors are cleared, nothing upstream is touched.",
        query=(_DRY,),
        answer="ResetSteps",
        preview="Preview",
        errors=(409,),
    ),
    "bulk-cancel-workflow-runs": Doc(
        tag="Bulk",
        summary="Bulk cancel workflow runs",
        about="One result a run, in request order; one that fails does not stop the others.",
        query=(_DRY,),
        body="BulkInput",
        body_required=True,
        answer="BulkCanceled",
        preview="BulkCanceled",
    ),
    "bulk-replay-workflow-runs": Doc(
        tag="Bulk",
        summary="Bulk replay workflow runs",
        about="A new run for each: failed ones as retry, completed ones from the beginning.",
        query=(_DRY,),
        body="BulkInput",
        body_required=True,
        answer="BulkReplayed",
        preview="BulkReplayed",
    ),
}

_WORKFLOWS = {
    "create-workflow": Doc(
        tag="Workflows",
        summary="Create a workflow",
        about="All problems of the definition are told at once.",
        body="WorkflowInput",
        body_required=True,
        status=201,
        answer="Workflow",
        errors=(409,),
    ),
    "list-workflows": Doc(
        tag="Workflows",
        summary="List workflows",
        about="Newest first, without their steps.",
        query=(_PROJECT, *_PAGED),
        answer="Workflow[]",
    ),
    "get-workflow": Doc(tag="Workflows", summary="Get a workflow", answer="Workflow"),
    "update-workflow": Doc(
        tag="Workflows",
        summary="Change a workflow",
        about="Only given fields change. A change of what runs makes a new version.",
        body="WorkflowPatch",
        answer="Workflow",
        errors=(409,),
    ),
    "delete-workflow": Doc(
        tag="Workflows",
        summary="Delete a workflow",
        about="409 while runs are active.",
        status=204,
        errors=(409,),
    ),
    "list-runs-of-workflow": Doc(
        tag="Workflows",
        summary="List runs of a workflow",
        query=(_PROJECT, *_FILTERS, *_PAGED),
        answer="WorkflowRun[]",
    ),
    "list-workflow-versions": Doc(
        tag="Workflows",
        summary="List versions of a workflow",
        query=_PAGED,
        answer="WorkflowVersion[]",
    ),
    "get-workflow-graph": Doc(
        tag="Workflows", summary="Graph of a workflow", answer="WorkflowGraph"
    ),
    "trigger-workflow": Doc(
        tag="Workflows",
        summary="Trigger a workflow",
        about=(
            "Starts a run; at `max_concurrent_runs` it is queued. 409 if it is disabled. A W3C"
            " `traceparent` header is continued: HTTP jobs of the run and of its child runs get"
            " its trace id."
        ),
        body="TriggerInput",
        status=201,
        answer="WorkflowRun",
        errors=(409,),
    ),
    "dry-run-workflow": Doc(
        tag="Workflows",
        summary="Check a trigger",
        about="Validates the body and shows in which order steps could start. Starts nothing.",
        body="TriggerInput",
        answer="WorkflowDryRun",
    ),
}

_JOBS = {
    "create-job": Doc(
        tag="Jobs",
        summary="Create a job",
        body="JobInput",
        body_required=True,
        status=201,
        answer="Job",
        errors=(409,),
    ),
    "list-jobs": Doc(tag="Jobs", summary="List jobs", query=(_PROJECT, *_PAGED), answer="Job[]"),
    "get-job": Doc(tag="Jobs", summary="Get a job", answer="Job"),
    "update-job": Doc(
        tag="Jobs",
        summary="Change a job",
        body="JobPatch",
        answer="Job",
        errors=(409,),
    ),
    "delete-job": Doc(
        tag="Jobs",
        summary="Delete a job",
        about="409 while an enabled workflow uses it.",
        status=204,
        errors=(409,),
    ),
    "list-job-runs": Doc(
        tag="Job runs",
        summary="List job runs of a workflow run",
        query=(
            Parameter(name="workflow_run_id", about="The run whose attempts.", required=True),
            _PROJECT,
            *_PAGED,
        ),
        answer="JobRun[]",
        errors=(404,),
    ),
    "get-job-run": Doc(tag="Job runs", summary="Get a job run", answer="JobRun"),
    "send-event": Doc(
        tag="Events",
        summary="Send an event",
        about="Every step parked on the key completes with the payload as output.",
        body="EventInput",
        answer="EventSent",
    ),
    "create-api-key": Doc(
        tag="API keys",
        summary="Create an API key",
        about="`key` is shown this once. A repeat with the same Idempotency-Key is 409.",
        body="ApiKeyInput",
        body_required=True,
        status=201,
        answer="ApiKey",
        errors=(409,),
    ),
    "list-api-keys": Doc(
        tag="API keys",
        summary="List API keys",
        about="An admin key sees all, or those of one project.",
        query=(
            Parameter(
                name="project_id",
                about="Only keys of this project; `*`: only admin keys.",
                schema={"type": "string", "pattern": "^([A-Za-z0-9_.-]{1,128}|[*])$"},
            ),
            *_PAGED,
        ),
        answer="ApiKey[]",
    ),
    "revoke-api-key": Doc(tag="API keys", summary="Revoke an API key", status=204),
}

_QUARANTINE = {
    "list-quarantined-runs": Doc(
        tag="Quarantine",
        summary="List quarantined runs",
        query=_PAGED,
        answer="QuarantinedRun[]",
    ),
    "release-quarantined-run": Doc(
        tag="Quarantine", summary="Load a quarantined run again", status=204
    ),
    "discard-quarantined-run": Doc(
        tag="Quarantine",
        summary="End a quarantined run",
        about="It is canceled; 409 if it cannot be read.",
        status=204,
    ),
}

_LATE = (409, 410)
_CALLBACKS = {
    "complete-job-run": Doc(
        tag="Callbacks", summary="Complete", body="ResultInput", status=204, errors=_LATE
    ),
    "fail-job-run": Doc(
        tag="Callbacks",
        summary="Fail",
        body="FailInput",
        body_required=True,
        status=204,
        errors=_LATE,
    ),
    "heartbeat-job-run": Doc(tag="Callbacks", summary="Heartbeat", status=204, errors=_LATE),
    "report-job-run-progress": Doc(
        tag="Callbacks",
        summary="Report progress",
        body="ProgressInput",
        body_required=True,
        status=204,
        errors=_LATE,
    ),
    "log-job-run": Doc(
        tag="Callbacks",
        summary="Log",
        body="LogInput",
        body_required=True,
        status=204,
        errors=_LATE,
    ),
}

_OPERATIONS = {
    "get-health": Doc(
        tag="Operations", summary="Health", about="The process answers.", answer="Health"
    ),
    "get-readiness": Doc(
        tag="Operations",
        summary="Readiness",
        about="503 while the store is away, runs are recovered, or the server stops.",
        answer="Health",
        errors=(503,),
    ),
    "get-metrics": Doc(
        tag="Operations",
        summary="Metrics",
        about="Prometheus text. Needs a key unless `PILOTAGE_METRICS_PUBLIC` is set.",
        answer="text",
    ),
}

DOCS: dict[str, Doc] = {
    **_RUNS,
    **_STEPS,
    **_WORKFLOWS,
    **_JOBS,
    **_QUARANTINE,
    **_CALLBACKS,
    **_OPERATIONS,
}
