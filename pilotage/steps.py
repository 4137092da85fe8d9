"""Steps of a workflow in Python: five functions, each one kind of step.

Every function gives a `Step`; `Pilotage.workflow` puts them together and checks them by the same
rules as definitions over the API and in files. Durations are seconds (`30`, `0.5`), text (`"4h"`,
`"1m30s"`, `"250ms"`) or a `timedelta`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, Unpack

import msgspec

from pilotage.runtime.errors import DefinitionError

if TYPE_CHECKING:
    from pilotage.app import Workflow

Duration: TypeAlias = float | str | timedelta
JobRef: TypeAlias = Callable[..., Any] | str
"""A function registered with `@app.job`, or the id, slug or name of a job."""

_UNIT_SECS = {"ms": 0.001, "s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_PART = r"(\d{1,12}(?:\.\d{1,6})?)(ms|[smhdw])"
_DURATION = re.compile(rf"(?:{_PART})+")
_DURATION_PART = re.compile(_PART)


class CommonOptions(TypedDict, total=False):
    """What every kind of step takes.

    after           refs of the steps that must be done before: one, or several
    condition       the step runs only if it holds, else it is skipped
    on_failure      "fail_workflow" (default), "skip_dependents" or "continue"
    event_emit_key  sent as an event, with the step's output, when the step completes
    """

    after: str | Sequence[str]
    condition: Mapping[str, Any]
    on_failure: str
    event_emit_key: str


class WorkOptions(CommonOptions, total=False):
    """What steps that do work take: jobs and sub-workflows. What is not given is the job's."""

    payload: Mapping[str, Any]
    output_transform: str
    concurrency_key: str
    max_attempts: int
    retry_backoff: str
    retry_initial_delay: Duration
    retry_max_delay: Duration
    timeout: Duration


_OPTION_FIELDS = {
    "after": "depends_on",
    "max_attempts": "retry_max_attempts",
    "retry_initial_delay": "retry_initial_delay_secs",
    "retry_max_delay": "retry_max_delay_secs",
    "timeout": "timeout_secs_override",
}
_DURATIONS = frozenset({"retry_initial_delay", "retry_max_delay", "timeout"})


class Step(msgspec.Struct, frozen=True):
    """One step. `fields` are the API's, except the job and the sub-workflow, which are resolved
    when the step becomes part of a workflow.
    """

    fields: dict[str, Any]
    job: JobRef | None = None
    workflow: Workflow | str | None = None

    @property
    def ref(self) -> str:
        return str(self.fields["step_ref"])


def seconds(value: Duration) -> float:
    """A duration in seconds; `DefinitionError` if it is none."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, str):
        if not _DURATION.fullmatch(value):
            raise DefinitionError(
                [f'"{value}" is not a duration; write seconds, or text such as "90s" or "1h30m"']
            )
        return sum(float(n) * _UNIT_SECS[unit] for n, unit in _DURATION_PART.findall(value))
    return float(value)


def _fields(ref: str, step_type: str, options: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {"step_ref": ref, "step_type": step_type}
    for name, value in options.items():
        if value is None:
            continue
        field = _OPTION_FIELDS.get(name, name)
        if name == "after":
            fields[field] = [value] if isinstance(value, str) else list(value)
        elif name in _DURATIONS:
            fields[field] = seconds(value)
        else:
            fields[field] = value
    return fields


def step(ref: str, *, job: JobRef, **options: Unpack[WorkOptions]) -> Step:
    """A step that does a job: `step("charge", job=charge, after="validate", timeout="30s")`."""
    return Step(fields=_fields(ref, "job", options), job=job)


def approval(
    ref: str,
    *,
    approvers: Sequence[str] = (),
    timeout: Duration | None = None,
    **options: Unpack[CommonOptions],
) -> Step:
    """A step that waits until somebody approves or rejects it.

    Without `approvers` anyone with the scope may decide; without `timeout` it waits for good.
    """
    fields = _fields(ref, "approval", options)
    if approvers:
        fields["approval_approvers"] = list(approvers)
    if timeout is not None:
        fields["approval_timeout_secs"] = seconds(timeout)
    return Step(fields=fields)


def sleep(ref: str, duration: Duration, **options: Unpack[CommonOptions]) -> Step:
    """A step that lets time pass; nothing is kept busy meanwhile."""
    fields = _fields(ref, "sleep", options)
    fields["sleep_duration_secs"] = seconds(duration)
    return Step(fields=fields)


def wait_for_event(
    ref: str,
    event_key: str,
    *,
    timeout: Duration | None = None,
    **options: Unpack[CommonOptions],
) -> Step:
    """A step that waits for an event; its output is the event's payload. An hour by default."""
    fields = _fields(ref, "wait_for_event", options)
    fields["event_key"] = event_key
    if timeout is not None:
        fields["event_timeout_secs"] = seconds(timeout)
    return Step(fields=fields)


def sub_workflow(
    ref: str,
    workflow: Workflow | str,
    *,
    max_nesting_depth: int | None = None,
    **options: Unpack[WorkOptions],
) -> Step:
    """A step that is a run of another workflow; its output maps that run's steps to outputs."""
    fields = _fields(ref, "sub_workflow", options)
    if max_nesting_depth is not None:
        fields["max_nesting_depth"] = max_nesting_depth
    return Step(fields=fields, workflow=workflow)
