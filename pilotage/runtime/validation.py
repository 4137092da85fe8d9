"""Untrusted definitions and trigger bodies to checked values, or all their problems at once.

Every function here takes decoded JSON (dicts, lists, scalars), raises nothing but
`DefinitionError`, and lists everything that is wrong as `path: what is wrong`, up to 1,000
problems. A JSON null counts as an absent field. Work is linear in the size of the input; nothing
recurses deeper than 100.

Bounds of a workflow, beside those of its identity (`validation_identity`) and its steps
(`validation_steps`): `timeout_secs` 0 (none)–10 years · `max_concurrent_runs` and
`max_parallel_steps` 0 (no limit)–1,000,000 · `cron` 5 fields, 256 characters · `cron_timezone` an
IANA name. Bounds of a trigger: `payload` 1 MiB of JSON, 100 deep · `tags` as everywhere ·
`triggered_by` 1–255 · `step_overrides` one for each step · `delay_secs` 0–10 years.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, Final, Protocol

import msgspec

from pilotage.runtime.cron import (
    MAX_CRON_CHARS,
    MAX_TIMEZONE_CHARS,
    CronError,
    CronSchedule,
    load_timezone,
)
from pilotage.runtime.definition import WorkflowSpec
from pilotage.runtime.jsonvalues import is_array, json_problems, show, type_name
from pilotage.runtime.validation_fields import (
    BAD,
    FieldTable,
    Problems,
    Reader,
    as_object,
    flag,
    integer,
    items_of,
    read_fields,
    reader,
    seconds,
    tags,
    text,
)
from pilotage.runtime.validation_identity import (
    IDENTITY_READERS,
    MAX_NAME_CHARS,
    SERVER_SET,
    complete_identity,
    keep_project,
)
from pilotage.runtime.validation_jobs import JobLike, ParsedJob, parse_job, parse_job_patch
from pilotage.runtime.validation_steps import (
    MAX_LONG_SECS,
    MAX_PAYLOAD_BYTES,
    MAX_STEPS,
    Resolver,
    StepReader,
)

__all__ = [
    "JobLike",
    "ParsedJob",
    "ParsedTrigger",
    "ParsedWorkflow",
    "Resolver",
    "WorkflowLike",
    "parse_job",
    "parse_job_patch",
    "parse_trigger",
    "parse_workflow",
    "parse_workflow_patch",
]


class ParsedWorkflow(msgspec.Struct, frozen=True, kw_only=True):
    """A valid workflow as its author wants it; ids, version and times are the server's."""

    name: str
    slug: str
    spec: WorkflowSpec
    description: str | None = None
    tags: dict[str, str] = {}
    enabled: bool = True
    project_id: str | None = None


class WorkflowLike(Protocol):
    """A stored workflow that a patch is laid over."""

    @property
    def name(self) -> str: ...
    @property
    def slug(self) -> str: ...
    @property
    def description(self) -> str | None: ...
    @property
    def tags(self) -> Mapping[str, str]: ...
    @property
    def enabled(self) -> bool: ...
    @property
    def project_id(self) -> str | None: ...
    @property
    def spec(self) -> WorkflowSpec: ...


class ParsedTrigger(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is to be started with. A payload of null is none. `trace`: the trace that the
    request belongs to, as `tracing.parse_trace` gives it.
    """

    payload: Any = None
    tags: dict[str, str] = {}
    triggered_by: str = "manual"
    disabled: frozenset[str] = frozenset()
    delay_secs: float = 0.0
    trace: str | None = None

    @property
    def has_payload(self) -> bool:
        return self.payload is not None


# --- workflows ------------------------------------------------------------------------------------


@reader(type="string", maxLength=MAX_CRON_CHARS, pattern=r"^\s*\S+(\s+\S+){4}\s*$")
def _cron(value: Any, path: str, problems: Problems) -> Any:
    if not isinstance(value, str):
        problems.add(path, f"must be a string, not {type_name(value)}")
        return BAD
    try:
        return CronSchedule(value).expression
    except CronError as error:
        problems.add(path, str(error))
        return BAD


@reader(type="string", maxLength=MAX_TIMEZONE_CHARS, pattern="^[A-Za-z0-9_+/-]+$")
def _timezone(value: Any, path: str, problems: Problems) -> Any:
    if not isinstance(value, str):
        problems.add(path, f"must be a string, not {type_name(value)}")
        return BAD
    try:
        load_timezone(value)
    except CronError as error:
        problems.add(path, str(error))
        return BAD
    return value


@reader(type="array", minItems=1, maxItems=MAX_STEPS)
def _steps(value: Any, path: str, problems: Problems) -> Any:  # noqa: ARG001 - a Reader
    """Steps are read last, when the workflow's own slug is known."""
    return value


_count = integer(least=0, most=1_000_000)

_SPEC_READERS: dict[str, Reader] = {
    "steps": _steps,
    "timeout_secs": seconds(least=0, most=MAX_LONG_SECS),
    "max_concurrent_runs": _count,
    "max_parallel_steps": _count,
    "cron": _cron,
    "cron_timezone": _timezone,
    "skip_if_running": flag,
}

WORKFLOW_FIELDS: Final = FieldTable(
    readers={**IDENTITY_READERS, **_SPEC_READERS},
    aliases={"timezone": "cron_timezone"},
    server_set=SERVER_SET,
    later={"webhook": "webhooks are not supported yet"},
)


def parse_workflow(raw: Mapping[str, Any], *, resolve: Resolver) -> ParsedWorkflow:
    """The workflow, with defaults filled in; raises DefinitionError with all problems."""
    problems = Problems()
    given = as_object(raw, "workflow", problems)
    if given is None:
        problems.refuse()
    fields = read_fields(given, "", WORKFLOW_FIELDS, problems)
    complete_identity(fields, given, problems)
    if given.get("steps") is None:
        problems.add("steps", "is required")
    else:
        read_steps = StepReader(resolve, fields.get("slug"), problems).read
        fields["steps"] = read_steps(given["steps"], "steps", problems)
    problems.raise_if_any()
    return _build(fields)


def _build(fields: dict[str, Any]) -> ParsedWorkflow:
    spec = WorkflowSpec(**{key: fields.pop(key) for key in _SPEC_READERS if key in fields})
    return ParsedWorkflow(spec=spec, **fields)


def parse_workflow_patch(
    raw: Mapping[str, Any], current: WorkflowLike, *, resolve: Resolver
) -> ParsedWorkflow:
    """The workflow with the given fields replaced; null resets a field to its default.

    Steps that the patch does not give stay as they are and are not looked up again, so that a
    workflow can be disabled although one of its jobs is gone.
    """
    problems = Problems()
    given = as_object(raw, "workflow", problems)
    if given is None:
        problems.refuse()
    given = keep_project(given, current.project_id)
    canonical = {WORKFLOW_FIELDS.aliases.get(key, key) for key in given}
    stored: dict[str, Any] = {
        "name": current.name,
        "slug": current.slug,
        "description": current.description,
        "tags": dict(current.tags),
        "enabled": current.enabled,
        "project_id": current.project_id,
        **msgspec.structs.asdict(current.spec),
    }
    merged = {key: value for key, value in stored.items() if key not in canonical} | dict(given)
    if "steps" in canonical:
        return parse_workflow(merged, resolve=resolve)
    fields = read_fields(merged, "", WORKFLOW_FIELDS, problems)
    complete_identity(fields, merged, problems)
    problems.raise_if_any()
    return _build(fields)


# --- triggers -------------------------------------------------------------------------------------


@reader()
def _payload(value: Any, path: str, problems: Problems) -> Any:
    before = len(problems)
    for problem in json_problems(value, path, allow_nul=True):
        problems.add("", problem)
    if len(problems) > before:
        return BAD
    size = len(msgspec.json.encode(value))
    if size > MAX_PAYLOAD_BYTES:
        problems.add(path, f"must be at most {MAX_PAYLOAD_BYTES} bytes of JSON, not {size}")
        return BAD
    return value


@reader(type="array", maxItems=MAX_STEPS)
def _overrides(value: Any, path: str, problems: Problems) -> Any:  # noqa: ARG001 - a Reader
    """Read last, beside the steps of the workflow."""
    return value


TRIGGER_FIELDS: Final = FieldTable(
    readers={
        "payload": _payload,
        "tags": tags,
        "triggered_by": text(most=MAX_NAME_CHARS),
        "step_overrides": _overrides,
        "delay_secs": seconds(least=0, most=MAX_LONG_SECS),
    },
    ignore_unknown=True,
)

OVERRIDE_FIELDS: Final = FieldTable(
    readers={"step_ref": text(most=MAX_NAME_CHARS), "enabled": flag}, ignore_unknown=True
)


def parse_trigger(raw: Mapping[str, Any] | None, steps: Container[str]) -> ParsedTrigger:
    """What a run is started with; None is the same as an empty body.

    Args:
        raw: the decoded body. Unknown fields are ignored, as on all actions.
        steps: the refs of the workflow's steps (`StepGraph.index` will do).

    Raises:
        DefinitionError: with all problems.
    """
    problems = Problems()
    given = as_object({} if raw is None else raw, "body", problems)
    if given is None:
        problems.refuse()
    fields = read_fields(given, "", TRIGGER_FIELDS, problems)
    overrides = fields.pop("step_overrides", ())
    disabled = _read_overrides(overrides, steps, problems)
    problems.raise_if_any()
    return ParsedTrigger(disabled=disabled, **fields)


def _read_overrides(raw: Any, steps: Container[str], problems: Problems) -> frozenset[str]:
    path = "step_overrides"
    if not is_array(raw):
        problems.add(path, f"must be an array, not {type_name(raw)}")
        return frozenset()
    if len(raw) > MAX_STEPS:
        problems.add(path, f"must have at most {MAX_STEPS} items, not {len(raw)}")
        return frozenset()
    enabled: dict[str, bool] = {}
    for here, given in items_of(raw, path, problems):
        fields = read_fields(given, here, OVERRIDE_FIELDS, problems)
        for name in OVERRIDE_FIELDS.readers:
            if given.get(name) is None:
                problems.add(f"{here}.{name}", "is required")
        ref = fields.get("step_ref")
        if ref is None:
            continue
        if ref not in steps:
            problems.add(f"{here}.step_ref", f"unknown step {show(ref)}")
        elif ref in enabled:
            problems.add(f"{here}.step_ref", f"{show(ref)} is listed twice")
        enabled[ref] = fields.get("enabled", True)
    return frozenset(ref for ref, on in enabled.items() if not on)
