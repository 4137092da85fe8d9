from __future__ import annotations

from typing import Any

import pytest

from pilotage.runtime.errors import TemplateError
from pilotage.runtime.jsonvalues import MAX_DEPTH
from pilotage.runtime.templates import (
    MAX_EXPRESSIONS,
    MAX_PROBLEMS,
    MAX_RENDERED_CHARS,
    UnresolvedPathError,
    check_template,
    compile_template,
)
from tests.support.scope import FakeScope

PAYLOAD: dict[str, Any] = {
    "customer": {"id": 7, "first name": "Ann", "mail.addr": "a@b"},
    "items": [{"sku": "x"}, {"sku": "y"}],
    "nothing": None,
    "text": "hello",
    "flag": True,
    "ratio": 0.5,
    "run": {"id": "from payload"},
    "$ref": 1,
    "@type": 2,
    "größe": 3,
}
SCOPE = FakeScope(
    PAYLOAD,
    outputs={"load-data": {"rows": [[1, 2], [3]]}, "0": "zero"},
    statuses={"load-data": "completed", "later": "waiting"},
    tags={"team": "ops", "a b": "c"},
    run_id="0199-run",
)


def render(value: Any, scope: FakeScope = SCOPE) -> Any:
    return compile_template(value).render(scope)


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("{{ payload }}", PAYLOAD),
        ("{{payload.customer.id}}", 7),
        ("{{ customer.id }}", 7),
        ("{{\n\tcustomer.id\r\n}}", 7),
        ('{{ payload["customer"]["first name"] }}', "Ann"),
        ("{{ customer['mail.addr'] }}", "a@b"),
        ("{{ items[1].sku }}", "y"),
        ("{{ items[0] }}", {"sku": "x"}),
        ("{{ nothing }}", None),
        ("{{ flag }}", True),
        ("{{ ratio }}", 0.5),
        ("{{ $ref }}", 1),
        ("{{ @type }}", 2),
        ("{{ größe }}", 3),
        ("{{ payload.run.id }}", "from payload"),
        ("{{ steps.load-data.output }}", {"rows": [[1, 2], [3]]}),
        ("{{ steps.load-data.output.rows[0][1] }}", 2),
        ('{{ steps["load-data"].status }}', "completed"),
        ("{{ steps.later.status }}", "waiting"),
        ("{{ steps.0.output }}", "zero"),
        ("{{ run.id }}", "0199-run"),
        ("{{ run.tags }}", {"team": "ops", "a b": "c"}),
        ("{{ run.tags.team }}", "ops"),
        ('{{ run.tags["a b"] }}', "c"),
        ('{{ "{{" }}', "{{"),
        ("{{ '}}' }}", "}}"),
        ('{{ "a\\n\\u00e9" }}', "a\né"),
    ],
)
def test_a_string_that_is_one_template_becomes_the_value(template: str, value: Any) -> None:
    found = render(template)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ text }}, {{ customer.id }}!", "hello, 7!"),
        (" {{ text }}", " hello"),
        ("{{ flag }}{{ nothing }}", "truenull"),
        ("r={{ ratio }}", "r=0.5"),
        ("{{ items }}.", '[{"sku":"x"},{"sku":"y"}].'),
        ("a {{ größe }} ü", "a 3 ü"),
        ('{"id":{{ customer.id }}}', '{"id":7}'),
        ("}} {{ text }} }}", "}} hello }}"),
        ("{{ '{{' }} x }}", "{{ x }}"),
    ],
)
def test_inside_text_values_are_text(template: str, text: str) -> None:
    assert render(template) == text


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        ("1", 1),
        ("-2.5e1", -25.0),
        ("true", True),
        ("null", None),
        ('"x"', "x"),
        ("'it is }} here'", "it is }} here"),
        ('{"a": {"b": []}}', {"a": {"b": []}}),
        ("[]", []),
    ],
)
def test_a_default_stands_in_for_what_is_not_there(literal: str, value: Any) -> None:
    found = render(f"{{{{ payload.no.such | default: {literal} }}}}")
    assert found == value
    assert type(found) is type(value)


def test_a_default_is_not_used_for_what_is_there_even_null() -> None:
    assert render("{{ nothing|default:1 }}") is None
    assert render("{{ text | default: 1 }}") == "hello"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ payload.no }}", 'payload.no does not resolve: there is no key "no"'),
        ("{{ no.such }}", 'no.such does not resolve: there is no key "no"'),
        ("{{ text.x }}", 'text.x does not resolve: key "x" of a string'),
        ("{{ nothing.x }}", 'nothing.x does not resolve: key "x" of null'),
        ("{{ items.sku }}", 'items.sku does not resolve: key "sku" of an array'),
        ("{{ items[2] }}", "items[2] does not resolve: index [2] of an array of 2"),
        ("{{ customer[0] }}", "customer[0] does not resolve: index [0] of an object"),
        ("{{ text[0] }}", "text[0] does not resolve: index [0] of a string"),
        ("{{ steps.x.output.y }}", 'steps.x.output.y does not resolve: step "x" has no output'),
        ("{{ steps.x.status }}", 'steps.x.status does not resolve: the run has no step "x"'),
        ("{{ run.tags.x }}", 'run.tags.x does not resolve: there is no key "x"'),
    ],
)
def test_a_path_that_leads_nowhere_is_named(template: str, message: str) -> None:
    with pytest.raises(UnresolvedPathError) as caught:
        render(template)
    assert str(caught.value) == message


def test_without_a_payload_no_path_of_it_resolves() -> None:
    with pytest.raises(UnresolvedPathError, match="the run has no payload"):
        render("{{ payload }}", FakeScope(None))


@pytest.mark.parametrize("template", ["{{ no }}", "in text: {{ no }}"])
def test_the_message_says_where_in_the_value_the_template_stands(template: str) -> None:
    with pytest.raises(UnresolvedPathError) as caught:
        render({"a b": [1, {"c": template}]})
    assert str(caught.value).startswith('["a b"][1].c: no does not resolve')


def test_templates_are_found_anywhere_but_in_keys() -> None:
    value = {"{{ text }}": 1, "a": [{"b": "{{ text }}"}, 2], "c": {"d": "plain"}}
    assert render(value) == {"{{ text }}": 1, "a": [{"b": "hello"}, 2], "c": {"d": "plain"}}


@pytest.mark.parametrize("value", [None, 1, "x", "}}", [1, {"a": [None]}], {"a": {"b": "c"}}, (1,)])
def test_a_constant_is_answered_without_copying(value: Any) -> None:
    template = compile_template(value)
    assert template.is_constant
    assert template.refs == frozenset()
    assert template.render(SCOPE) is value


def test_constant_parts_of_a_template_are_shared() -> None:
    part = {"big": [1, 2, 3]}
    found = render({"part": part, "x": "{{ text }}"})
    assert found["part"] is part


def test_the_steps_that_are_used_are_known() -> None:
    template = compile_template(
        [
            "{{ steps.a.output }} {{ steps.b-1.status }}",
            {"x": '{{ steps["c"].output | default: 1 }}'},
        ]
    )
    assert template.refs == {"a", "b-1", "c"}
    assert not template.is_constant


def test_only_what_is_needed_is_asked_for_and_only_once() -> None:
    scope = FakeScope({"a": 1, "b": 2}, outputs={"s": [1, 2]})
    assert render(["{{ a }}", "{{ b }}", "{{ steps.s.output[0] }}{{ steps.s.output[1] }}"], scope)
    assert scope.calls == {"payload": 1, "output s": 1}
    scope.calls.clear()
    render({"a": [1, 2]}, scope)
    assert not scope.calls


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{", "expected a path"),
        ("a {{ b", 'expected "}}"'),
        ("{{ }}", "expected a path"),
        ("{{ a b }}", 'expected "}}"'),
        ("{{ a. }}", 'expected a key after "."'),
        ("{{ a..b }}", 'expected a key after "."'),
        ("{{ .a }}", "expected a path"),
        ("{{ a[] }}", "expected an index"),
        ("{{ a[-1] }}", "expected an index"),
        ("{{ a[1.5] }}", 'expected "]"'),
        ("{{ a[9999999999] }}", "expected an index"),
        ("{{ a[0 }}", 'expected "]"'),
        ("{{ a[b] }}", "expected an index"),
        ("{{ a | upper }}", 'only "default: literal" may follow "|"'),
        ("{{ a | }}", 'expected "default: literal" after "|"'),
        ("{{ a | default }}", 'expected ":" after "default"'),
        ("{{ a | default: }}", "expected a JSON literal"),
        ("{{ a | default: b }}", "expected a JSON literal"),
        ("{{ a | default: NaN }}", "expected a JSON literal"),
        ("{{ a | default: 1e999 }}", "must be a finite number"),
        ("{{ a | default: 99999999999999999999999 }}", "at most 64 bits"),
        ('{{ a | default: "\\u0000" }}', "must not contain NUL"),
        ("{{ a | default: " + "[" * 100_000 + " }}", "expected a JSON literal"),
        ("{{ a | default: " + "[" * 200 + "]" * 200 + " }}", "nested more than 100 deep"),
        ("{{ a | default: 1 | default: 2 }}", 'expected "}}"'),
        ("{{ 'a }}", "expected a JSON literal"),
        ('{{ "a }}', "expected a JSON literal"),
        ("{{{ a }}}", "expected a path"),
        ("{{ steps }}", 'expected "steps.REF.output" or "steps.REF.status"'),
        ("{{ steps[0].output }}", 'expected "steps.REF.output" or "steps.REF.status"'),
        ("{{ steps.ä.output }}", 'expected "steps.REF.output" or "steps.REF.status"'),
        ("{{ steps.a }}", 'a step has "steps.a.output" and "steps.a.status"'),
        ("{{ steps.a.result }}", 'a step has "steps.a.output" and "steps.a.status"'),
        ("{{ steps.a.status.x }}", 'a step has "steps.a.output" and "steps.a.status"'),
        ("{{ run }}", 'a run has "run.id" and "run.tags"'),
        ("{{ run.id.x }}", 'a run has "run.id" and "run.tags"'),
        ("{{ run.name }}", 'a run has "run.id" and "run.tags"'),
        ("{{ a }}\0", "must not contain NUL"),
        ("{{ a }}\ud800", "must be valid Unicode"),
    ],
)
def test_bad_syntax_is_refused_when_compiled(template: str, why: str) -> None:
    with pytest.raises(TemplateError) as caught:
        compile_template({"x": template})
    assert str(caught.value).startswith("x: ")
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("value", "problems"),
    [
        ("x", []),
        (float("nan"), ["p: must be a finite number"]),
        ({1: "a"}, ["p[1]: object keys must be strings, not a number"]),
        (
            [b"", {"a": "\0"}],
            [
                "p[0]: must be a JSON value, not a value of type bytes",
                "p[1].a: must not contain NUL characters",
            ],
        ),
    ],
)
def test_what_is_no_json_is_a_problem(value: Any, problems: list[str]) -> None:
    assert check_template(value, "p") == problems


def test_all_problems_of_a_value_are_listed_with_their_places() -> None:
    found = check_template({"a": "{{", "b": ["{{ x }}", "{{ y"], "c d": {"e": "{{ . }}"}}, "p")
    assert [line.split(": ")[0] for line in found] == ["p.a", "p.b[1]", 'p["c d"].e']


def test_the_list_of_problems_is_bounded() -> None:
    assert len(check_template(["{{"] * 5_000, "p")) == MAX_PROBLEMS


@pytest.mark.parametrize("leaf", [1, "{{ text }}"])
@pytest.mark.parametrize("container", ["array", "object"])
def test_the_depth_is_bounded(leaf: Any, container: str) -> None:
    def deep(depth: int) -> Any:
        value = leaf
        for _ in range(depth):
            value = [value] if container == "array" else {"k": value}
        return value

    assert render(deep(MAX_DEPTH)) is not None
    assert f"nested more than {MAX_DEPTH} deep" in check_template(deep(MAX_DEPTH + 1), "p")[0]
    assert len(check_template(deep(50_000), "p")) == 1


def test_the_number_of_templates_is_bounded() -> None:
    fits = ["{{ text }}"] * MAX_EXPRESSIONS
    assert render(fits) == ["hello"] * MAX_EXPRESSIONS
    found = check_template([*fits, "{{ a }}{{ b }}"], "p")
    assert found == [f"p[{MAX_EXPRESSIONS}]: more than {MAX_EXPRESSIONS} templates in one value"]


@pytest.mark.parametrize("template", ["{{ big }}", "x{{ big }}"])
def test_the_rendered_value_is_bounded(template: str) -> None:
    scope = FakeScope({"big": "x" * 1_000_000})
    assert len(render([template] * 8, scope)) == 8
    with pytest.raises(TemplateError, match=f"p.*larger than {MAX_RENDERED_CHARS} bytes"):
        render({"p": [template] * 9}, scope)


def test_a_value_that_json_cannot_carry_is_an_error_not_a_crash() -> None:
    with pytest.raises(TemplateError, match="cannot be written as JSON"):
        render("x{{ v }}", FakeScope({"v": object()}))
