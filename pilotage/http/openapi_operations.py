"""What the reference says about each operation; paths, methods and scopes come from the routes."""

from __future__ import annotations

from pilotage.http.openapi_model import (
    DRY,
    FILTERS,
    OF_PROJECT,
    PAGED,
    WORKFLOW,
    Doc,
    Parameter,
)
from pilotage.http.openapi_requests import text_of
from pilotage.http.queries import MAX_WHOLE
from pilotage.http.runs import MAX_REASON
from pilotage.runtime.validation_identity import PROJECT_PATTERN

_REPEATABLE = "Repeating it when it already holds is a success without effect."

_RUNS = {
    "list-workflow-runs": Doc(
        tag="Runs",
        summary="List workflow runs",
        about="Newest first. Filters combine; a page may be short and still have a next one.",
        query=(OF_PROJECT, WORKFLOW, *FILTERS, *PAGED),
        answer="WorkflowRun[]",
    ),
    "get-workflow-run": Doc(tag="Runs", summary="Get a workflow run", answer="WorkflowRun"),
    "cancel-workflow-run": Doc(
        tag="Runs",
        summary="Cancel a workflow run",
        about=f"Attempts in progress are told to stop, child runs are canceled. {_REPEATABLE}",
        query=(
            Parameter(
                name="reason",
                about="Stands in the run's `error` and history.",
                schema=text_of(MAX_REASON),
            ),
        ),
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
        query=(DRY,),
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
                schema={"type": "integer", "minimum": 0, "maximum": MAX_WHOLE, "default": 0},
            ),
            *PAGED,
        ),
        answer="HistoryItem[]",
    ),
}

_STEPS = {
    "list-workflow-run-steps": Doc(
        tag="Steps",
        summary="List step runs",
        about="All of them, in definition order; with `cursor` page by page.",
        query=PAGED,
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
        query=(DRY,),
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
        query=(DRY,),
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
        query=(DRY,),
        answer="StepRunAnswer",
        preview="Preview",
        errors=(409,),
    ),
    "replay-workflow-subtree": Doc(
        tag="Steps",
        summary="Replay a step and all that depend on it",
        about="In place: outputs and errors are cleared, nothing upstream is touched.",
        query=(DRY,),
        answer="ResetSteps",
        preview="Preview",
        errors=(409,),
    ),
    "bulk-cancel-workflow-runs": Doc(
        tag="Bulk",
        summary="Bulk cancel workflow runs",
        about="One result a run, in request order; one that fails does not stop the others.",
        query=(DRY,),
        body="BulkInput",
        body_required=True,
        answer="BulkCanceled",
        preview="BulkCanceled",
    ),
    "bulk-replay-workflow-runs": Doc(
        tag="Bulk",
        summary="Bulk replay workflow runs",
        about="A new run for each: failed ones as retry, completed ones from the beginning.",
        query=(DRY,),
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
        query=(OF_PROJECT, *PAGED),
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
        query=(OF_PROJECT, *FILTERS, *PAGED),
        answer="WorkflowRun[]",
    ),
    "list-workflow-versions": Doc(
        tag="Workflows",
        summary="List versions of a workflow",
        query=PAGED,
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
        about="Validates the body and shows in which order steps would start. Starts nothing.",
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
    "list-jobs": Doc(tag="Jobs", summary="List jobs", query=(OF_PROJECT, *PAGED), answer="Job[]"),
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
            Parameter(
                name="workflow_run_id",
                about="The run whose attempts.",
                schema={"type": "string", "minLength": 1},
                required=True,
            ),
            OF_PROJECT,
            *PAGED,
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
                schema={"type": "string", "pattern": rf"^({PROJECT_PATTERN.pattern}|\*)$"},
            ),
            *PAGED,
        ),
        answer="ApiKey[]",
    ),
    "revoke-api-key": Doc(tag="API keys", summary="Revoke an API key", status=204),
}

_QUARANTINE = {
    "list-quarantined-runs": Doc(
        tag="Quarantine",
        summary="List quarantined runs",
        query=PAGED,
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
        about="503 while the store is away, runs are recovered, or the server stops. The status is "
        "`degraded`, with a `reason`, while no new run is taken on for want of room in the store "
        "and everything else goes on.",
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
