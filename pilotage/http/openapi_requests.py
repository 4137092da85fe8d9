"""The schemas of request bodies: made of what checks them, so that the bounds are those checked.

A field that is not required may be null, which is the same as left out. What JSON Schema cannot
say (that a step depends on another that exists, that a job is known) is told in words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from pilotage.actors.api_keys import MAX_DAYS, MAX_NAME, RESERVED_NAMES
from pilotage.actors.principal import SCOPES
from pilotage.http.bodies import MAX_TEXT
from pilotage.http.bulk import MAX_RUNS
from pilotage.http.callbacks import LEVELS, MAX_ERROR, MAX_MESSAGE, OTHER_LEVELS
from pilotage.http.events import MAX_BUFFER_SECS
from pilotage.http.keys import MIN_DAYS
from pilotage.runtime.definition import JobSpec, StepSpec, WorkflowSpec
from pilotage.runtime.validation import OVERRIDE_FIELDS, TRIGGER_FIELDS, WORKFLOW_FIELDS
from pilotage.runtime.validation_fields import WITHOUT_NUL, FieldTable
from pilotage.runtime.validation_identity import IDENTITY_READERS, PROJECT_PATTERN
from pilotage.runtime.validation_jobs import JOB_FIELDS
from pilotage.runtime.validation_steps import ONLY_FOR, REQUIRED_FOR, STEP_FIELDS

Schema = dict[str, Any]

ANY_JSON: Schema = {"description": "Any JSON value."}
PROJECT: Schema = dict(IDENTITY_READERS["project_id"].schema)
NULL: Schema = {"type": "null"}
_BESIDE = ("description", "default")

_ABOUT: Mapping[str, str] = {
    "name": "The slug, if it is left out.",
    "slug": "Unique in the project; made of the name if it is left out.",
    "project_id": "Needed with an admin key only.",
    "tags": "At most 20.",
    "timeout_secs": "Seconds; a fraction is allowed. Of a workflow, 0 is no limit.",
    "max_concurrent_runs": "Runs beyond it are queued. 0 is no limit.",
    "max_parallel_steps": "Of one run. 0 is no limit.",
    "max_concurrency": "Attempts at the same time, over all runs. 0 is no limit.",
    "cron": "Five fields: minute, hour, day of month, month, day of week.",
    "cron_timezone": "An IANA name, such as `Europe/Berlin`.",
    "skip_if_running": "A fire time starts nothing while a run is active.",
    "endpoint_url": "http or https. Needed for an http job, refused for a python job.",
    "execution_mode": "`queue` comes later.",
    "signing_secret": "Write-only.",
    "depends_on": "Refs of other steps; no cycles.",
    "job_id": "A job's id or slug, or the name of a registered Python function.",
    "sub_workflow_id": "A workflow's id or slug.",
    "condition": "Without it the step runs; false: it is skipped.",
    "payload": "At most 1 MiB of JSON. Texts may hold templates.",
    "output_transform": "A JMESPath expression over the step's output.",
    "event_key": "At most 512 characters once its templates are filled in.",
    "event_emit_key": "The step's output is sent as this event when it completes.",
    "approval_approvers": "Empty: anyone with the scope.",
    "step_overrides": "Steps of the workflow, each once.",
    "delay_secs": "The run is `pending` until then.",
}


def or_null(schema: Mapping[str, Any]) -> Schema:
    """The schema, or null. Words are said in two branches: generators make one type of them."""
    if "enum" in schema:
        words = {k: v for k, v in schema.items() if k not in _BESIDE}
        return {k: v for k, v in schema.items() if k in _BESIDE} | {"anyOf": [words, NULL]}
    if "type" in schema:
        return {**schema, "type": [schema["type"], "null"]}
    if "$ref" in schema:
        return {"anyOf": [dict(schema), NULL]}
    return dict(schema)


def request_schemas() -> dict[str, Schema]:
    """All of them by name."""
    workflow = _fields(WORKFLOW_FIELDS)
    workflow["steps"]["items"] = _ref("StepInput")
    job = _fields(JOB_FIELDS)
    new_job = _object(_with_defaults(job, JobSpec), additionalProperties=False)
    return {
        "WorkflowInput": _object(
            _with_defaults(workflow, WorkflowSpec), ["steps"], **_NAMED, additionalProperties=False
        ),
        "WorkflowPatch": _object(workflow, additionalProperties=False),
        "StepInput": _object(
            _with_defaults(_step_fields(), StepSpec), ["step_ref"], additionalProperties=False
        ),
        "JobInput": new_job | _NAMED | _ENDPOINT,
        "JobPatch": _object(job, additionalProperties=False),
        **_actions(),
        **_callbacks(),
    }


_NAMELESS = {"not": {"type": "string", "pattern": "[A-Za-z0-9]"}}
_NAMED: Schema = {"not": {"properties": {"name": _NAMELESS, "slug": NULL}}}
"""A slug, or a name that one can be made of."""
_ENDPOINT: Schema = {
    "if": {"properties": {"execution_mode": {"const": "python"}}, "required": ["execution_mode"]},
    "then": {"properties": {"endpoint_url": NULL}},
    "else": {
        "properties": {"endpoint_url": {"type": "string", "pattern": "^https?://[^/?#]"}},
        "required": ["endpoint_url"],
    },
}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _fields(table: FieldTable) -> dict[str, Schema]:
    """What a table of readers takes, aliases included."""
    fields = {name: _told(name, read.schema) for name, read in table.readers.items()}
    for alias, name in table.aliases.items():
        fields[alias] = {**table.readers[name].schema, "description": f"The same as `{name}`."}
    return fields


def _told(name: str, schema: Mapping[str, Any]) -> Schema:
    about = _ABOUT.get(name) or ("" if schema else ANY_JSON["description"])
    return {**schema, "description": about} if about else dict(schema)


def _step_fields() -> dict[str, Schema]:
    fields = _fields(STEP_FIELDS)
    for name, types in ONLY_FOR.items():
        about = f"For steps of type {_listed(types)}."
        needed = [str(kind) for kind, field in REQUIRED_FOR.items() if field == name]
        if needed:
            about = f"For steps of type {_listed(types)}, which need it."
        fields[name]["description"] = f"{fields[name].get('description', '')} {about}".strip()
    return fields


def _listed(words: Iterable[str]) -> str:
    return " or ".join(f"`{word}`" for word in sorted(words))


def _with_defaults(fields: Mapping[str, Schema], spec: type[msgspec.Struct]) -> dict[str, Schema]:
    """What holds for a field that is left out. A change has no defaults: the field stays."""
    defaults = {f.name: f.default for f in msgspec.structs.fields(spec)} | {"enabled": True}
    return {
        name: {**schema, "default": default}
        if isinstance(default := defaults.get(name), (str, bool, int, float))
        else schema
        for name, schema in fields.items()
    }


def _object(properties: Mapping[str, Schema], required: Iterable[str] = (), **more: Any) -> Schema:
    known = list(required)
    allowed = {n: p if n in known else or_null(p) for n, p in properties.items()}
    schema: Schema = {"type": "object", "properties": allowed, **more}
    return {**schema, "required": known} if known else schema


def text_of(most: int, least: int = 0, description: str = "") -> Schema:
    schema: Schema = {"type": "string", "maxLength": most, "pattern": WITHOUT_NUL}
    if least:
        schema["minLength"] = least
    return schema | {"description": description} if description else schema


def _actions() -> dict[str, Schema]:
    trigger = _fields(TRIGGER_FIELDS)
    trigger["step_overrides"]["items"] = _object(_fields(OVERRIDE_FIELDS), OVERRIDE_FIELDS.readers)
    some_id: Schema = {"type": "string", "minLength": 1}
    ids: Schema = {"type": "array", "items": some_id, "minItems": 1, "maxItems": MAX_RUNS}
    buffer: Schema = {"type": "number", "minimum": 0, "maximum": MAX_BUFFER_SECS, "default": 0}
    return {
        "TriggerInput": _object(trigger),
        "ReasonInput": _object({"reason": text_of(MAX_TEXT)}),
        "CommentInput": _object({"comment": text_of(MAX_TEXT)}),
        "ResultInput": _object({"result": ANY_JSON}),
        "BulkInput": _object({"workflow_run_ids": ids}, ["workflow_run_ids"]),
        "EventInput": _object(
            {
                "payload": ANY_JSON,
                "buffer_secs": {
                    **buffer,
                    "description": "How long it is kept if no step waits for it.",
                },
                "project_id": _told("project_id", PROJECT),
            }
        ),
        "ApiKeyInput": _api_key(),
    }


def _api_key() -> Schema:
    scope: Schema = {"type": "string", "enum": list(SCOPES)}
    return _object(
        {
            "name": {
                **text_of(MAX_NAME, 1, "Who acts: approvers are named by it."),
                "pattern": r"^[^\x00]*[^\s\x00\x1c-\x1f][^\x00]*$",
                "not": {"enum": sorted(RESERVED_NAMES)},
            },
            "project_id": {
                "type": "string",
                "pattern": rf"^({PROJECT_PATTERN.pattern}|\*)$",
                "description": "Needed with an admin key only; `*` makes an admin key.",
            },
            "scopes": {
                "type": "array",
                "items": scope,
                "minItems": 1,
                "maxItems": len(SCOPES),
                "description": "None that the key which makes it has not.",
            },
            "expires_in_days": {"type": "number", "minimum": MIN_DAYS, "maximum": MAX_DAYS},
        },
        ["name", "scopes"],
        additionalProperties=False,
    )


def _callbacks() -> dict[str, Schema]:
    percent: Schema = {"type": "number", "minimum": 0, "maximum": 100}
    level: Schema = {"type": "string", "enum": [*LEVELS, *OTHER_LEVELS]}
    return {
        "FailInput": _object(
            {
                "error": text_of(MAX_ERROR, 1),
                "final": {
                    "type": "boolean",
                    "default": False,
                    "description": "No further attempt.",
                },
            },
            ["error"],
        ),
        "ProgressInput": _object(
            {"percent": percent, "message": text_of(MAX_MESSAGE)}, ["percent"]
        ),
        "LogInput": _object(
            {
                "level": level,
                "message": text_of(MAX_MESSAGE, 1),
                "data": {"description": f"Any JSON value of at most {MAX_ERROR} bytes."},
            },
            ["level", "message"],
        ),
    }
