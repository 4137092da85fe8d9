"""What a step is given: scope for templates and conditions, inputs of attempts, event keys.

Everything is JSON text in the state; values are decoded only when a template asks for them, once
per transition, and an input is put together from the texts as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from pilotage.runtime.definition import MAX_NESTING_DEPTH
from pilotage.runtime.draft import Draft
from pilotage.runtime.errors import TemplateError
from pilotage.runtime.jsonvalues import MAX_OUTPUT_DEPTH, is_deeper, json_equal
from pilotage.runtime.status import StepStatus, StepType
from pilotage.runtime.transforms import compile_transform

MAX_INPUT_BYTES = 8 * 1024 * 1024
MAX_OUTPUT_BYTES = 1024 * 1024
MAX_OUTPUTS_BYTES = 64 * 1024 * 1024
MAX_EVENT_KEY_CHARS = 512

_decode = msgspec.json.Decoder().decode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


class RunScope:
    """The run as templates see it; implements `pilotage.runtime.templates.Scope`."""

    __slots__ = ("_draft",)

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    def payload(self) -> Any:
        text = self._draft.head.payload
        return None if text is None else self._decoded("payload", text)

    def step_output(self, ref: str) -> Any:
        i = self._draft.graph.index[ref]
        text = self._draft.step(i).output
        if text is None:
            raise KeyError(ref)
        return self._decoded((i, id(text)), text)

    def step_status(self, ref: str) -> str:
        return self._draft.step(self._draft.graph.index[ref]).status.value

    def run_id(self) -> str:
        return self._draft.head.id

    def tags(self) -> Mapping[str, str]:
        return self._draft.head.tags

    def _decoded(self, key: Any, text: bytes) -> Any:
        cache = self._draft.cache
        if key not in cache:
            cache[key] = _decode(text)
        return cache[key]


def build_input(d: Draft, i: int) -> bytes:
    """The input of step i as JSON text (runs.md §8): payload, the step's own over it, and
    `parent_outputs`.

    Raises `TemplateError` when a path does not resolve or the input exceeds `MAX_INPUT_BYTES`.
    """
    values: dict[str, Any] = dict(_payload_fields(d))
    template = d.graph.payloads[i]
    if template is not None:
        values.update(template.render(RunScope(d)))
    outputs: dict[str, msgspec.Raw] = {}
    for j in d.graph.deps[i]:
        output = d.step(j).output
        if output is not None:
            outputs[d.graph.steps[j].step_ref] = msgspec.Raw(output)
    values["parent_outputs"] = outputs
    text = _encode(values)
    if len(text) > MAX_INPUT_BYTES:
        raise TemplateError(f"the input is {len(text)} bytes; at most {MAX_INPUT_BYTES} are sent")
    return text


def _payload_fields(d: Draft) -> dict[str, msgspec.Raw]:
    """The trigger payload's fields as JSON texts; empty unless the payload is an object."""
    text = d.head.payload
    if text is None:
        return {}
    fields: dict[str, msgspec.Raw] | None = d.cache.get("fields")
    if fields is None:
        fields = _decode_object(text) if text.lstrip()[:1] == b"{" else {}
        d.cache["fields"] = fields
    return fields


def event_key(d: Draft, i: int) -> str:
    """The rendered `event_key` of a wait_for_event step."""
    template = d.graph.event_keys[i]
    return _key(template.render(RunScope(d)) if template is not None else None, "event_key")


def emit_key(d: Draft, i: int) -> str | None:
    """The rendered `event_emit_key` of a step, None without one."""
    template = d.graph.emit_keys[i]
    return None if template is None else _key(template.render(RunScope(d)), "event_emit_key")


def _key(value: Any, name: str) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value:
        raise TemplateError(f"{name} must give text, not {_encode(value).decode()[:80]}")
    if len(value) > MAX_EVENT_KEY_CHARS:
        raise TemplateError(
            f"{name} gives {len(value)} characters; at most {MAX_EVENT_KEY_CHARS} are allowed"
        )
    return value


def transformed(d: Draft, i: int, output: bytes | None) -> bytes | None:
    """The output after the step's `output_transform`. Jobs' outputs come transformed already, by
    who did the attempt; events, decisions and children's outputs are transformed here.

    Raises `TransformError`.
    """
    spec = d.graph.steps[i]
    if spec.output_transform is None or output is None or spec.step_type is StepType.JOB:
        return output
    return normal(compile_transform(spec.output_transform).apply_json(output))


def oversized(d: Draft, i: int, output: bytes | None) -> str | None:
    """What is wrong with the size of an output of step i, None if nothing (runs.md §8 and §10)."""
    if output is None:
        return None
    if len(output) > MAX_OUTPUT_BYTES:
        return f"output is {len(output)} bytes; at most {MAX_OUTPUT_BYTES} are kept"
    if d.output_bytes + len(output) > MAX_OUTPUTS_BYTES:
        return (
            f"outputs of the run's steps together would be {d.output_bytes + len(output)} bytes;"
            f" at most {MAX_OUTPUTS_BYTES} are kept"
        )
    deepest = MAX_OUTPUT_DEPTH
    if d.graph.steps[i].step_type is StepType.SUB_WORKFLOW:
        deepest += MAX_NESTING_DEPTH  # each generation puts its outputs into an object
    if is_deeper(output, deepest):
        return f"output has arrays and objects nested more than {deepest} deep; it cannot be kept"
    return None


def outputs_map(d: Draft) -> bytes:
    """JSON map of step_ref to output of every completed step that has one."""
    outputs: dict[str, msgspec.Raw] = {}
    for i, spec in enumerate(d.graph.steps):
        step = d.step(i)
        if step.status is StepStatus.COMPLETED and step.output is not None:
            outputs[spec.step_ref] = msgspec.Raw(step.output)
    return _encode(outputs)


def normal(output: bytes | None) -> bytes | None:
    """A JSON `null` output is the same as none (runs.md §10)."""
    return None if output is None or output.strip() == b"null" else output


def same_json(a: bytes | None, b: bytes | None) -> bool:
    """Whether two JSON texts are the same value; object keys in any order."""
    if a is None or b is None:
        return a is b
    return a == b or json_equal(_decode(a), _decode(b))
