from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import example, given, strategies as st

from pilotage.runtime.errors import TemplateError
from pilotage.runtime.jsonvalues import is_array, is_object, json_equal, json_problems, type_name
from pilotage.runtime.templates import (
    UnresolvedPathError,
    check_template,
    compile_template,
)
from tests.support.definitions import outcome
from tests.support.scope import FakeScope
from tests.support.strategies import GARBAGE, JSON, TEMPLATE_TEXT


def path_to(keys: list[str | int]) -> str:
    return "".join(f"[{json.dumps(key)}]" for key in keys)


@st.composite
def value_with_path(draw: st.DrawFn) -> tuple[Any, list[str | int], Any]:
    """A JSON value, the keys of one of its parts, and the part."""
    value = draw(JSON)
    part: Any = value
    keys: list[str | int] = []
    while draw(st.booleans()):
        if is_object(part) and part:
            name = draw(st.sampled_from(sorted(part)))
            part = part[name]
            keys.append(name)
        elif is_array(part) and part:
            index = draw(st.integers(0, len(part) - 1))
            part = part[index]
            keys.append(index)
        else:
            break
    return value, keys, part


@given(value_with_path())
def test_every_part_of_a_payload_comes_back_as_it_is(
    sample: tuple[Any, list[str | int], Any],
) -> None:
    payload, keys, part = sample
    if payload is None:  # the same as no payload
        return
    # NUL may stand in data but not in a definition, hence not in a quoted key.
    if any(isinstance(key, str) and "\0" in key for key in keys):
        return
    found = compile_template(f"{{{{ payload{path_to(keys)} }}}}").render(FakeScope(payload))
    assert found is part


@given(value_with_path())
def test_every_part_of_an_output_comes_back_as_it_is(
    sample: tuple[Any, list[str | int], Any],
) -> None:
    output, keys, part = sample
    if any(isinstance(key, str) and "\0" in key for key in keys):
        return
    template = compile_template({"x": [f"{{{{steps.a-1.output{path_to(keys)}}}}}"]})
    found = template.render(FakeScope(outputs={"a-1": output}))["x"][0]
    assert found is part
    assert template.refs == {"a-1"}


@given(JSON.filter(lambda value: not isinstance(value, str)))
def test_in_text_a_value_is_its_compact_json(value: Any) -> None:
    text = compile_template("<{{ v }}>").render(FakeScope({"v": value}))
    assert json_equal(json.loads(text[1:-1]), value)
    assert text == f"<{msgspec.json.encode(value).decode()}>"


@given(st.text(st.characters(exclude_characters="\0", categories=None, codec="utf-8")))
def test_any_text_can_be_written_as_a_quoted_string(text: str) -> None:
    template = compile_template(f"{{{{ {json.dumps(text)} }}}}")
    assert template.render(FakeScope()) == text


@given(JSON)
def test_any_json_can_be_a_default(value: Any) -> None:
    literal = json.dumps(value)
    if "\\u0000" in literal:
        return
    found = compile_template(f"{{{{ no.such | default: {literal} }}}}").render(FakeScope({}))
    assert json_equal(found, value)
    assert type_name(found) == type_name(value)


@given(JSON)
def test_a_value_without_braces_is_constant_and_the_very_same(value: Any) -> None:
    if "{{" in repr(value) or "\\x00" in repr(value):
        return
    template = compile_template(value)
    assert template.is_constant
    assert template.render(FakeScope()) is value


@given(TEMPLATE_TEXT, JSON)
@example("{{" * 1_000, None)
@example("{{ a" + "[0]" * 5_000 + " }}", {"a": 1})
def test_hostile_text_ends_in_a_value_or_a_template_error(text: str, payload: Any) -> None:
    problems = check_template(text, "p")
    template = outcome(lambda: compile_template(text), TemplateError)
    if isinstance(template, TemplateError):
        assert problems
        assert not isinstance(template, UnresolvedPathError)
        return
    assert not problems
    scope = FakeScope(payload, outputs={"a": payload}, statuses={"a": "x"})
    found = outcome(lambda: template.render(scope), UnresolvedPathError)
    if isinstance(found, UnresolvedPathError):
        assert "does not resolve" in str(found)
    else:
        assert not list(json_problems(found, "p", allow_nul=True))


@given(GARBAGE)
def test_garbage_is_refused_with_places_or_is_json(value: Any) -> None:
    problems = check_template(value, "p")
    for problem in problems:
        assert problem.startswith("p")
        assert ": " in problem
    if not problems:
        assert not list(json_problems(value, "p"))
        compile_template(value)
