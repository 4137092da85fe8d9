"""The schemas of the OpenAPI document: of answers, made of the types that are encoded.

Unset fields are omitted and never null, so that `null` appears in no schema of an answer.
"""

from __future__ import annotations

from typing import Any

import msgspec

from pilotage.actors.job_runs import JobRunView
from pilotage.http.bulk import BulkCanceled, BulkReplayed
from pilotage.http.events import EventSent
from pilotage.http.openapi_requests import ANY_JSON, Schema, request_schemas
from pilotage.http.problems import CODES, ErrorDocument
from pilotage.http.quarantine import QuarantinedRun
from pilotage.http.resources import ApiKeyView, JobView, WorkflowVersionView, WorkflowView
from pilotage.http.steps import ResetBody, StepRunBody
from pilotage.http.workflows import DryRun
from pilotage.runtime.definition import StepSpec
from pilotage.runtime.history import HistoryEntry
from pilotage.runtime.insight import Explained, RunGraph, Timeline, WorkflowGraph
from pilotage.runtime.jsonvalues import is_array, is_object
from pilotage.runtime.preview import Preview
from pilotage.runtime.views import RunView, StepView

ANSWERS: dict[str, type] = {
    "WorkflowRun": RunView,
    "StepRun": StepView,
    "StepRunAnswer": StepRunBody,
    "ResetSteps": ResetBody,
    "BulkCanceled": BulkCanceled,
    "BulkReplayed": BulkReplayed,
    "Preview": Preview,
    "WorkflowRunGraph": RunGraph,
    "Timeline": Timeline,
    "ExplainedRun": Explained,
    "HistoryItem": HistoryEntry,
    "Workflow": WorkflowView,
    "WorkflowVersion": WorkflowVersionView,
    "WorkflowGraph": WorkflowGraph,
    "WorkflowDryRun": DryRun,
    "Job": JobView,
    "JobRun": JobRunView,
    "EventSent": EventSent,
    "ApiKey": ApiKeyView,
    "QuarantinedRun": QuarantinedRun,
    "Error": ErrorDocument,
}
"""Name in the document to the type that is encoded."""

HEALTH: Schema = {
    "type": "object",
    "properties": {
        "status": {"type": "string"},
        "version": {"type": "string"},
        "ready": {"type": "boolean"},
        "reason": {"type": "string", "description": "Why the status is `degraded`."},
    },
    "required": ["status"],
}
_TIMES = frozenset(
    {"created_at", "updated_at", "started_at", "finished_at", "expires_at", "due_at", "at"}
    | {"since", "until", "next_retry_at"}
)


def components() -> dict[str, Schema]:
    """All schemas by name."""
    names = {kind: name for name, kind in ANSWERS.items()}
    kinds = [*ANSWERS.values(), StepSpec]
    _, found = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    renamed = {kind.__name__: name for kind, name in names.items()} | {"StepSpec": "Step"}
    schemas: dict[str, Schema] = {
        renamed.get(name, name): _clean(schema, renamed) for name, schema in found.items()
    }
    assert len(schemas) == len(found), "two types have one name in the document"
    schemas["Error"]["description"] = "What every refusal looks like."
    schemas["ErrorBody"]["properties"]["code"]["enum"] = sorted(set(CODES.values()))
    schemas["Step"]["properties"]["step_ref"]["pattern"] = "^[A-Za-z0-9_-]{1,128}$"
    schemas["Workflow"]["properties"]["steps"]["items"] = {"$ref": "#/components/schemas/Step"}
    schemas["Health"] = HEALTH
    return schemas | request_schemas()


def _clean(schema: Any, renamed: dict[str, str]) -> Any:
    """Without null, Python's titles and defaults of answers; references under the new names."""
    if is_array(schema):
        return [_clean(item, renamed) for item in schema]
    if not is_object(schema):
        return schema
    if "anyOf" in schema:
        options = [o for o in schema["anyOf"] if o != {"type": "null"}]
        rest = {k: v for k, v in schema.items() if k not in {"anyOf", "default"}}
        if {str(o.get("type")) for o in options} == {"integer", "number"}:
            options = [{"type": "number"}]
        if len(options) == 1:
            return _clean({**options[0], **rest}, renamed)
        return {**rest, "anyOf": _clean(options, renamed)}
    cleaned: Schema = {}
    for key, value in schema.items():
        if key == "$ref":
            name = value.rpartition("/")[2]
            cleaned[key] = f"#/components/schemas/{renamed.get(name, name)}"
        elif key == "properties":
            cleaned[key] = {n: _property(n, _clean(v, renamed)) for n, v in value.items()}
        elif key not in {"title", "default"} or (key == "default" and value is not None):
            cleaned[key] = _clean(value, renamed) if key != "default" else value
    return cleaned


def _property(name: str, schema: Schema) -> Schema:
    if name in _TIMES and schema.get("type") == "string":
        return {**schema, "format": "date-time"}
    return schema or dict(ANY_JSON)
