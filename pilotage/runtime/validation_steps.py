"""The steps of a workflow: untrusted objects to `StepSpec`s, or all their problems.

Bounds. `step_ref` `[A-Za-z0-9_-]{1,128}` · `job_id`, `sub_workflow_id` 1–255 characters ·
`depends_on` distinct refs, 1,000,000 in all steps together · `payload` an object of at most 1 MiB,
100 deep, 1,000 templates · `condition` see `conditions` · `output_transform` see `transforms` ·
`retry_max_attempts` 1–100 · retry delays 0 s–30 d · `timeout_secs_override` 1 ms–24 h ·
`concurrency_key` 1–128 · `approval_approvers` at most 100 of 1–255 · `approval_timeout_secs`
1 ms–10 years · `event_key`, `event_emit_key` 1–512 (as templates 1–2,000) · `event_timeout_secs`
and `sleep_duration_secs` 1 ms–30 d · `max_nesting_depth` 1–10 · steps 1–10,000.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from pilotage.runtime.conditions import inspect_condition
from pilotage.runtime.definition import MAX_NESTING_DEPTH, StepSpec
from pilotage.runtime.jsonvalues import at_key, is_array, is_object, show, type_name
from pilotage.runtime.status import Backoff, OnFailure, StepType
from pilotage.runtime.template_syntax import REF_PATTERN
from pilotage.runtime.templates import Places, inspect_template
from pilotage.runtime.transforms import MAX_EXPRESSION_CHARS, check_transform
from pilotage.runtime.validation_cycles import find_cycles, show_cycle
from pilotage.runtime.validation_fields import (
    BAD,
    WITHOUT_NUL,
    FieldTable,
    Problems,
    Reader,
    choice,
    integer,
    is_given,
    items_of,
    read_fields,
    reader,
    seconds,
    text,
    text_list,
)

MAX_STEPS: Final = 10_000
MAX_DEPENDENCIES: Final = 1_000_000
MAX_PAYLOAD_BYTES: Final = 1024 * 1024
MAX_EVENT_KEY_CHARS: Final = 512
MAX_NAME_CHARS: Final = 255
MAX_ATTEMPTS: Final = 100
MAX_ATTEMPT_SECS: Final = 86_400
MAX_PARKED_SECS: Final = 30 * 86_400
"""Sleeps, waits for an event and retry delays."""
MAX_LONG_SECS: Final = 10 * 365 * 86_400
"""Approvals, deadlines and delayed starts: no limit that a person would meet."""
MIN_SECS: Final = 0.001
"""The resolution of the clock; a shorter timeout would be none."""

_MAX_EVENT_KEY_TEMPLATE_CHARS = 2_000


class Resolver(Protocol):
    """Finds what a definition refers to, in the project of the definition."""

    def job(self, id_or_slug: str) -> str | None:
        """The reference to store (an id, or the name of a Python job); None if unknown."""
        ...

    def workflow(self, id_or_slug: str) -> str | None:
        """The workflow's id; None if unknown."""
        ...


# --- fields of their own kind ---------------------------------------------------------------------


@reader(type="object")
def _payload(value: Any, path: str, problems: Problems) -> Any:
    if not is_object(value):
        problems.add(path, f"must be an object, not {type_name(value)}")
        return BAD
    return value


@reader(type="object")
def _condition(value: Any, path: str, problems: Problems) -> Any:
    if not is_object(value):
        problems.add(path, f"a condition must be an object, not {type_name(value)}")
        return BAD
    return value


@reader(type="string", minLength=1, maxLength=MAX_EXPRESSION_CHARS, pattern=WITHOUT_NUL)
def _transform(value: Any, path: str, problems: Problems) -> Any:
    if not isinstance(value, str):
        problems.add(path, f"must be a string, not {type_name(value)}")
        return BAD
    found = check_transform(value, path)
    problems.extend(found)
    return BAD if found else value


_read_raw_event_key = text(most=_MAX_EVENT_KEY_TEMPLATE_CHARS)


@reader(**_read_raw_event_key.schema)
def _event_key(value: Any, path: str, problems: Problems) -> Any:
    checked = _read_raw_event_key(value, path, problems)
    if checked is not BAD and "{{" not in checked and len(checked) > MAX_EVENT_KEY_CHARS:
        problems.add(path, f"must be at most {MAX_EVENT_KEY_CHARS} characters long")
        return BAD
    return checked


_ref = text(most=128, pattern=REF_PATTERN)
_reference = text(most=MAX_NAME_CHARS)
_retry_delay = seconds(least=0, most=MAX_PARKED_SECS)
_parked = seconds(least=MIN_SECS, most=MAX_PARKED_SECS)

_READERS: dict[str, Reader] = {
    "step_ref": _ref,
    "step_type": choice(StepType),
    "depends_on": text_list(_ref, most=MAX_STEPS),
    "job_id": _reference,
    "condition": _condition,
    "payload": _payload,
    "output_transform": _transform,
    "on_failure": choice(OnFailure),
    "retry_max_attempts": integer(least=1, most=MAX_ATTEMPTS),
    "retry_backoff": choice(Backoff),
    "retry_initial_delay_secs": _retry_delay,
    "retry_max_delay_secs": _retry_delay,
    "timeout_secs_override": seconds(least=MIN_SECS, most=MAX_ATTEMPT_SECS),
    "concurrency_key": text(most=128),
    "approval_approvers": text_list(text(most=MAX_NAME_CHARS), most=100),
    "approval_timeout_secs": seconds(least=MIN_SECS, most=MAX_LONG_SECS),
    "event_key": _event_key,
    "event_timeout_secs": _parked,
    "event_emit_key": _event_key,
    "sleep_duration_secs": _parked,
    "sub_workflow_id": _reference,
    "max_nesting_depth": integer(least=1, most=MAX_NESTING_DEPTH),
}

STEP_FIELDS: Final = FieldTable(
    readers=_READERS,
    aliases={
        "type": "step_type",
        "approvers": "approval_approvers",
        "max_attempts": "retry_max_attempts",
        "retry_strategy": "retry_backoff",
    },
    server_set=frozenset({"id", "workflow_id", "created_at", "updated_at"}),
    later={"webhook": "webhooks are not supported yet"},
)

_JOB = frozenset({StepType.JOB})
_WITH_ATTEMPTS = frozenset({StepType.JOB, StepType.SUB_WORKFLOW})
_APPROVAL = frozenset({StepType.APPROVAL})
_EVENT = frozenset({StepType.WAIT_FOR_EVENT})

ONLY_FOR: Final[dict[str, frozenset[StepType]]] = {
    "job_id": _JOB,
    "retry_max_attempts": _WITH_ATTEMPTS,
    "retry_backoff": _WITH_ATTEMPTS,
    "retry_initial_delay_secs": _WITH_ATTEMPTS,
    "retry_max_delay_secs": _WITH_ATTEMPTS,
    "timeout_secs_override": _JOB,
    "approval_approvers": _APPROVAL,
    "approval_timeout_secs": _APPROVAL,
    "event_key": _EVENT,
    "event_timeout_secs": _EVENT,
    "sleep_duration_secs": frozenset({StepType.SLEEP}),
    "sub_workflow_id": frozenset({StepType.SUB_WORKFLOW}),
    "max_nesting_depth": frozenset({StepType.SUB_WORKFLOW}),
}
"""Fields that belong to some step types; all others belong to every type."""

REQUIRED_FOR: Final[dict[StepType, str]] = {
    StepType.JOB: "job_id",
    StepType.WAIT_FOR_EVENT: "event_key",
    StepType.SLEEP: "sleep_duration_secs",
    StepType.SUB_WORKFLOW: "sub_workflow_id",
}

_TEMPLATE_FIELDS = ("payload", "event_key", "event_emit_key")


# --- all steps ------------------------------------------------------------------------------------


_Found = tuple[str, dict[str, Any], Mapping[Any, Any]]
"""A step's path, its fields as far as they are well formed, and what was given."""


class StepReader:
    """Reads the steps of one definition. References are looked up once each."""

    def __init__(self, resolve: Resolver, own_slug: str | None, problems: Problems) -> None:
        self._resolve = resolve
        self._own_slug = own_slug
        self._problems = problems
        self._jobs: dict[str, str | None] = {}
        self._workflows: dict[str, str | None] = {}

    def read(self, raw: Any, path: str, problems: Problems) -> Any:
        """The steps as a tuple of `StepSpec`; a `Reader`."""
        if not is_array(raw):
            problems.add(path, f"must be an array of steps, not {type_name(raw)}")
            return BAD
        if not 1 <= len(raw) <= MAX_STEPS:
            problems.add(path, f"must have 1 to {MAX_STEPS} steps, not {len(raw)}")
            return BAD
        before = len(problems)
        found = [
            (here, read_fields(fields, here, STEP_FIELDS, problems), fields)
            for here, fields in items_of(raw, path, problems)
        ]
        refs = self._refs(found)
        for here, fields, given in found:
            self._check_type(here, fields, given)
            self._check_references(here, fields)
            self._check_data(here, fields, refs)
        self._check_dependencies(found, refs)
        if len(problems) > before:
            return BAD
        return tuple(StepSpec(**fields) for _, fields, _ in found)

    def _refs(self, found: Sequence[_Found]) -> dict[str, str]:
        """step_ref -> path of the step that has it; reports missing and repeated ones."""
        refs: dict[str, str] = {}
        for here, fields, given in found:
            ref = fields.get("step_ref")
            if ref is None:
                if given.get("step_ref") is None:
                    self._problems.add(f"{here}.step_ref", "is required")
            elif ref in refs:
                self._problems.add(f"{here}.step_ref", f"{show(ref)} is also that of {refs[ref]}")
            else:
                refs[ref] = here
        return refs

    def _check_type(self, here: str, fields: dict[str, Any], given: Any) -> None:
        if "step_type" not in fields and is_given(given, "step_type", STEP_FIELDS):
            return  # reported; which fields belong to it cannot be told
        step_type: StepType = fields.get("step_type", StepType.JOB)
        for key, value in given.items():
            name = STEP_FIELDS.aliases.get(key, key)
            types = ONLY_FOR.get(name)
            if types is not None and value is not None and step_type not in types:
                wanted = " or ".join(sorted(types))
                self._problems.add(
                    at_key(here, key), f"belongs to steps of type {wanted}, this one is {step_type}"
                )
        required = REQUIRED_FOR.get(step_type)
        if required is not None and given.get(required) is None:
            self._problems.add(f"{here}.{required}", f"is required for a step of type {step_type}")

    def _check_references(self, here: str, fields: dict[str, Any]) -> None:
        job = fields.get("job_id")
        if job is not None:
            if job not in self._jobs:
                self._jobs[job] = self._resolve.job(job)
            if self._jobs[job] is None:
                self._problems.add(f"{here}.job_id", f"unknown job {show(job)}")
            fields["job_id"] = self._jobs[job]
        workflow = fields.get("sub_workflow_id")
        if workflow is not None:
            if workflow not in self._workflows:
                self._workflows[workflow] = self._workflow(workflow)
            if self._workflows[workflow] is None:
                self._problems.add(f"{here}.sub_workflow_id", f"unknown workflow {show(workflow)}")
            fields["sub_workflow_id"] = self._workflows[workflow]

    def _workflow(self, id_or_slug: str) -> str | None:
        """A workflow that is not stored yet may still start itself, by its slug."""
        found = self._resolve.workflow(id_or_slug)
        if found is None and id_or_slug == self._own_slug:
            return id_or_slug
        return found

    def _check_data(self, here: str, fields: dict[str, Any], refs: Collection[str]) -> None:
        for name in _TEMPLATE_FIELDS:
            value = fields.get(name)
            if value is None:
                continue
            path = f"{here}.{name}"
            template, found = inspect_template(value, path)
            self._problems.extend(found)
            self._check_refs_known(template.places, refs)
            if name == "payload" and not found:
                self._check_size(value, path)
        condition = fields.get("condition")
        if condition is not None:
            compiled, found = inspect_condition(condition, f"{here}.condition")
            self._problems.extend(found)
            self._check_refs_known(compiled.places, refs)

    def _check_refs_known(self, places: Places, refs: Collection[str]) -> None:
        for ref, path in places:
            if ref not in refs:
                self._problems.add(path, f"unknown step {show(ref)}")

    def _check_size(self, payload: Any, path: str) -> None:
        size = len(msgspec.json.encode(payload))
        if size > MAX_PAYLOAD_BYTES:
            self._problems.add(
                path, f"must be at most {MAX_PAYLOAD_BYTES} bytes of JSON, not {size}"
            )

    def _check_dependencies(self, found: Sequence[_Found], refs: dict[str, str]) -> None:
        index = {
            fields["step_ref"]: i
            for i, (here, fields, _) in enumerate(found)
            if refs.get(fields.get("step_ref", "")) == here
        }
        edges: list[list[int]] = []
        for here, fields, given in found:
            own = fields.get("step_ref")
            known: list[int] = []
            for k, ref in _with_positions(fields.get("depends_on", ()), given.get("depends_on")):
                if ref == own:
                    self._problems.add(f"{here}.depends_on[{k}]", "a step cannot depend on itself")
                elif ref in index:
                    known.append(index[ref])
                else:
                    self._problems.add(f"{here}.depends_on[{k}]", f"unknown step {show(ref)}")
            edges.append(known)
        if sum(map(len, edges)) > MAX_DEPENDENCIES:
            self._problems.add("steps", f"have more than {MAX_DEPENDENCIES} dependencies in all")
            return
        names = [fields.get("step_ref", "?") for _, fields, _ in found]
        for cycle in find_cycles(edges):
            path = f"{found[cycle[0]][0]}.depends_on"
            self._problems.add(path, f"cycle: {show_cycle([names[i] for i in cycle])}")


def _with_positions(checked: Sequence[str], given: Any) -> Iterable[tuple[int, str]]:
    """The checked refs with their positions in the array that was given, which may hold others."""
    if not checked or len(checked) == len(given):
        return enumerate(checked)
    items: list[Any] = list(given)
    positions = {ref: k for k, ref in reversed([*enumerate(items)]) if isinstance(ref, str)}
    return [(positions[ref], ref) for ref in checked]
