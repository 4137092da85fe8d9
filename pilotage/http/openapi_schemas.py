"""The schemas of the OpenAPI document: answers from the types that are encoded, requests by hand.

Unset fields are omitted and never null, so that `null` appears in no schema of an answer.
"""

from __future__ import annotations

from typing import Any

import msgspec

from pilotage.actors.job_runs import JobRunView
from pilotage.http.bulk import BulkCanceled, BulkReplayed
from pilotage.http.events import EventSent
from pilotage.http.problems import CODES, ErrorDocument
from pilotage.http.quarantine import QuarantinedRun
from pilotage.http.resources import ApiKeyView, JobView, WorkflowVersionView, WorkflowView
from pilotage.http.steps import ResetBody, StepRunBody
from pilotage.http.workflows import DryRun
from pilotage.runtime.definition import JobSpec, StepSpec, WorkflowSpec
from pilotage.runtime.history import HistoryEntry
from pilotage.runtime.insight import Explained, RunGraph, Timeline, WorkflowGraph
from pilotage.runtime.jsonvalues import is_array, is_object
from pilotage.runtime.preview import Preview
from pilotage.runtime.views import RunView, StepView

Schema = dict[str, Any]

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

ANY_JSON: Schema = {"description": "Any JSON value."}
TAGS: Schema = {
    "type": "object",
    "additionalProperties": {"type": "string", "maxLength": 256},
    "maxProperties": 20,
    "propertyNames": {"minLength": 1, "maxLength": 64},
}
_SLUG: Schema = {
    "type": "string",
    "pattern": r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,254}$",
    "description": "Unique in the project; made of the name if it is left out.",
}
_IDENTITY: Schema = {
    "name": {"type": "string", "minLength": 1, "maxLength": 255},
    "slug": _SLUG,
    "project_id": {
        "type": "string",
        "pattern": "^[A-Za-z0-9_.-]{1,128}$",
        "description": "Needed with an admin key only.",
    },
    "tags": TAGS,
    "enabled": {"type": "boolean", "default": True},
}
_TIMES = frozenset(
    {"created_at", "updated_at", "started_at", "finished_at", "expires_at", "due_at", "at"}
    | {"since", "until", "next_retry_at"}
)


def _object(properties: Schema, required: list[str] | None = None, **more: Any) -> Schema:
    """Of a request: a field that is not required may be null, which is the same as left out."""
    known = required or []
    allowed = {n: p if n in known else _or_null(p) for n, p in properties.items()}
    schema: Schema = {"type": "object", "properties": allowed, **more}
    if required:
        schema["required"] = required
    return schema


def _or_null(schema: Schema) -> Schema:
    if "type" in schema:
        nullable = {**schema, "type": [schema["type"], "null"]}
        return nullable | {"enum": [*schema["enum"], None]} if "enum" in schema else nullable
    if "$ref" in schema:
        return {"anyOf": [schema, {"type": "null"}]}
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    return schema


def _text(max_length: int, description: str = "") -> Schema:
    schema: Schema = {"type": "string", "maxLength": max_length}
    return schema | {"description": description} if description else schema


def components() -> dict[str, Schema]:
    """All schemas by name."""
    names = {kind: name for name, kind in ANSWERS.items()}
    kinds = [*ANSWERS.values(), StepSpec, WorkflowSpec, JobSpec]
    _, found = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    renamed = {kind.__name__: name for kind, name in names.items()} | {"StepSpec": "Step"}
    schemas: dict[str, Schema] = {
        renamed.get(name, name): _clean(schema, renamed) for name, schema in found.items()
    }
    assert len(schemas) == len(found), "two types have one name in the document"
    workflow_spec, job_spec = schemas.pop("WorkflowSpec"), schemas.pop("JobSpec")
    schemas["Error"]["description"] = "What every refusal looks like."
    schemas["ErrorBody"]["properties"]["code"]["enum"] = sorted(set(CODES.values()))
    schemas["Step"]["properties"]["step_ref"]["pattern"] = "^[A-Za-z0-9_-]{1,128}$"
    schemas["Workflow"]["properties"]["steps"]["items"] = _ref("Step")
    return schemas | _requests(workflow_spec, job_spec)


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _requests(workflow_spec: Schema, job_spec: Schema) -> dict[str, Schema]:
    workflow = {**_IDENTITY, "description": _text(2_000), **workflow_spec["properties"]}
    job = {**_IDENTITY, **job_spec["properties"]}
    return {
        "WorkflowInput": _object(workflow, ["steps"], additionalProperties=False),
        "WorkflowPatch": _object(workflow, additionalProperties=False),
        "JobInput": _object(job, additionalProperties=False),
        "JobPatch": _object(job, additionalProperties=False),
        **_actions(),
        **_callbacks(),
    }


def _actions() -> dict[str, Schema]:
    override = _object(
        {"step_ref": {"type": "string"}, "enabled": {"type": "boolean"}}, ["step_ref", "enabled"]
    )
    some_id: Schema = {"type": "string", "minLength": 1}
    ids: Schema = {"type": "array", "items": some_id, "minItems": 1, "maxItems": 100}
    return {
        "TriggerInput": _object(
            {
                "payload": ANY_JSON,
                "tags": TAGS,
                "triggered_by": _text(255),
                "step_overrides": {"type": "array", "items": override},
                "delay_secs": {"type": "number", "minimum": 0},
            }
        ),
        "ReasonInput": _object({"reason": _text(2_000)}),
        "CommentInput": _object({"comment": _text(2_000)}),
        "ResultInput": _object({"result": ANY_JSON}),
        "BulkInput": _object({"workflow_run_ids": ids}, ["workflow_run_ids"]),
        "EventInput": _object(
            {
                "payload": ANY_JSON,
                "buffer_secs": {"type": "number", "minimum": 0, "maximum": 86_400},
                "project_id": _IDENTITY["project_id"],
            }
        ),
        "ApiKeyInput": _object(
            {
                "name": {"type": "string", "minLength": 1, "maxLength": 128},
                "project_id": _text(128, "`*` makes an admin key."),
                "scopes": {"type": "array", "items": {"type": "string"}, "minItems": 1},
                "expires_in_days": {"type": "number", "exclusiveMinimum": 0, "maximum": 3650},
            },
            ["name", "scopes"],
            additionalProperties=False,
        ),
    }


def _callbacks() -> dict[str, Schema]:
    return {
        "FailInput": _object(
            {"error": _text(16_384), "final": {"type": "boolean", "default": False}}, ["error"]
        ),
        "ProgressInput": _object(
            {
                "percent": {"type": "number", "minimum": 0, "maximum": 100},
                "message": _text(2_000),
            },
            ["percent"],
        ),
        "LogInput": _object(
            {
                "level": {"type": "string", "enum": ["debug", "info", "warning", "error"]},
                "message": _text(2_000),
                "data": ANY_JSON,
            },
            ["level", "message"],
        ),
        "Health": {
            "type": "object",
            "properties": {
                "status": {"type": "string"},
                "version": {"type": "string"},
                "ready": {"type": "boolean"},
            },
            "required": ["status"],
        },
    }


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
