from __future__ import annotations

import json
from typing import Any

import pytest

from pilotage.runtime.transforms import (
    MAX_EXPRESSION_CHARS,
    MAX_OUTPUT_BYTES,
    Transform,
    TransformError,
    check_transform,
    compile_transform,
    weight,
)


def apply(expression: str, value: Any) -> Any:
    return compile_transform(expression).apply(value)


DATA: dict[str, Any] = {
    "orders": [
        {"id": 1, "total": 5.5, "tags": ["a", "b"]},
        {"id": 2, "total": 10, "tags": ["b"]},
        {"id": 3, "total": 1, "tags": []},
    ],
    "name": "Ann",
    "map": {"x": {"v": 1}, "y": {"v": 2}},
}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("@", DATA),
        ("name", "Ann"),
        ("orders[0].id", 1),
        ("orders[-1].id", 3),
        ("orders[9]", None),
        ("name[0]", None),
        ("orders[*].id", [1, 2, 3]),
        ("orders[::2].id", [1, 3]),
        ("name[::2]", None),
        ("orders[].tags[]", ["a", "b", "b"]),
        ("[orders[0].id, name][]", [1, "Ann"]),
        ("name[]", None),
        ("orders[?total > `5`].id", [1, 2]),
        ("orders[?id == `2`] | [0].total", 10),
        ("orders[?id != `2`].id", [1, 3]),
        ("map.*.v", [1, 2]),
        ("{who: name, n: length(orders)}", {"who": "Ann", "n": 3}),
        ("orders[*].{id: id, first: tags[0]}", [{"id": 1, "first": "a"}, {"id": 2, "first": "b"},
                                                {"id": 3, "first": None}]),
        ("sort_by(orders, &total)[*].id", [3, 1, 2]),
        ("max_by(orders, &total).id", 2),
        ("map(&id, orders)", [1, 2, 3]),
        ("sum(orders[*].total)", 16.5),
        ("join(', ', orders[0].tags)", "a, b"),
        ("to_string(orders[0].tags)", '["a","b"]'),
        ("contains(name, 'nn') && name || 'no'", "Ann"),
        ("!name", False),
        ("nothing.at.all", None),
        ("not_null(nothing, name)", "Ann"),
    ],
)  # fmt: skip
def test_jmespath_works_as_it_should(expression: str, expected: Any) -> None:
    assert apply(expression, DATA) == expected


def test_json_text_goes_to_json_text() -> None:
    transform = compile_transform("a.{x: b}")
    assert transform.expression == "a.{x: b}"
    assert transform.apply_json(b'{"a": {"b": [1, 2.0, "\xc3\xa4"]}}') == (
        '{"x":[1,2.0,"ä"]}'.encode()
    )
    assert transform.apply_json(b"{}") == b"null"


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("", "bad JMESPath: "),
        ("a.", "bad JMESPath: "),
        ("a b", "bad JMESPath: "),
        ("[?", "bad JMESPath: "),
        ("`1", "bad JMESPath: "),
        ("nope(@)", 'bad JMESPath: unknown function "nope()"'),
        ("a[*].{b: nope(c)}", 'bad JMESPath: unknown function "nope()"'),
        ("length()", 'bad JMESPath: "length()" takes 1 arguments, not 0'),
        ("length(@, @)", 'bad JMESPath: "length()" takes 1 arguments, not 2'),
        ("merge()", 'bad JMESPath: "merge()" takes at least 1 arguments'),
        ("a" * (MAX_EXPRESSION_CHARS + 1), f"must be at most {MAX_EXPRESSION_CHARS} characters"),
        ("'\0'", "must not contain NUL"),
        ("'\ud800'", "must be valid Unicode"),
        ("!" * 200 + "a", "must not be nested more than 100 deep"),
        ("(" * 3_999, "must not be nested more than 100 deep"),
    ],
)
def test_a_bad_expression_is_refused(expression: str, why: str) -> None:
    (found,) = check_transform(expression, "p")
    assert found.startswith("p: ")
    assert why in found
    assert "\n" not in found


def test_a_good_expression_has_no_problems() -> None:
    assert check_transform("a.b[*].c | length(@)", "p") == []


NOT_APPLICABLE: list[tuple[str, Any, str | None]] = [
    ("length(@)", 5, "invalid type"),
    ("avg(@)", ["x"], "invalid type"),
    ("join(@, 'x')", "y", "invalid type"),
    ("sort_by(@, &a)", [{"a": 1}, {"a": "x"}], "invalid type"),
    ("[0] < [1]", [{}, 1], None),
    ("@ < 'x'", 5, "not supported"),
    ("[0:1:0]", [1], "slice step cannot be zero"),
]


@pytest.mark.parametrize(("expression", "value", "why"), NOT_APPLICABLE)
def test_what_cannot_be_applied_is_an_error(expression: str, value: Any, why: str | None) -> None:
    if why is None:
        assert apply(expression, value) is None
        return
    with pytest.raises(TransformError, match=f"output_transform: .*{why}"):
        apply(expression, value)


BOMBS = {
    "flatten": "|".join(["[@,@][]"] * 60),
    "share": "|".join(["[@,@]"] * 60) + "|to_string(@)",
    "strings": "|".join(["join('',[@,@])"] * 60),
    "separator": "join(to_string(@), map(&'x', @))",
    "compare": "|".join(["[@,@]"] * 40) + "|[@, @] | [0] == [1]",
    "slices": "map(&[::1], " + "[" + ",".join(["@"] * 900) + "])",
    "visits": "map(&map(&map(&@, @), @), [" + ",".join(["@"] * 20) + "])",
}


@pytest.mark.parametrize("name", BOMBS)
def test_an_expression_that_explodes_is_stopped(name: str) -> None:
    value: Any = list(range(5_000))
    if name == "strings":
        value = "ab"
    if name == "visits":
        value = [list(range(200))] * 200
    with pytest.raises(TransformError, match="too much work"):
        apply(BOMBS[name], value)


def test_ordinary_large_outputs_are_no_explosion() -> None:
    rows = [{"a": i, "b": {"c": str(i)}} for i in range(28_000)]
    encoded = json.dumps(rows, separators=(",", ":")).encode()
    assert 800_000 < len(encoded) <= MAX_OUTPUT_BYTES
    found = compile_transform("[?a > `100`].{x: a, y: b.c}").apply_json(encoded)
    assert len(json.loads(found)) == 27_899


@pytest.mark.parametrize(
    ("expression", "output", "why"),
    [
        ("@", b"{", "the output is not JSON"),
        ("@", b"[" * 100_000, "the output is not JSON"),
        ("&a", b"1", "the result is not JSON but a value of type _Expression"),
        ("[@, @]", b'"' + b"x" * 600_000 + b'"', f"more than {MAX_OUTPUT_BYTES} bytes"),
        ("[@, @]", ('"' + "ä" * 300_000 + '"').encode(), f"more than {MAX_OUTPUT_BYTES} bytes"),
        ("|".join(["[@,@]"] * 60), b"1", f"more than {MAX_OUTPUT_BYTES} bytes"),
        ("[[@,@,@],@][]", b"[" + b",".join([b"1"] * 500_000) + b"]", "more than"),
    ],
)
def test_a_result_that_cannot_be_stored_is_an_error(
    expression: str, output: bytes, why: str
) -> None:
    with pytest.raises(TransformError, match=why):
        compile_transform(expression).apply_json(output)


def test_a_result_too_deep_is_an_error_not_a_crash() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(TransformError, match="nested too deep"):
        apply("to_string(@)", deep)


@pytest.mark.parametrize(
    ("values", "total"),
    [
        ((), 0),
        ((1,), 1),
        (("abc",), 4),
        (([1, "a", None],), 5),
        (({"key": [True]},), 6),
    ],
)
def test_weight_counts_values_and_characters(values: tuple[Any, ...], total: int) -> None:
    assert weight(values, 1_000) == total


def test_weight_is_never_more_than_the_json_text_and_stops_early() -> None:
    shared: Any = ["x"]
    for _ in range(60):
        shared = [shared, shared]
    assert 100 < weight((shared,), 100) < 300
    assert weight(([0] * 1_000_000,), 10) > 10


def test_a_transform_can_be_used_again() -> None:
    transform: Transform = compile_transform("a")
    assert [transform.apply({"a": i}) for i in range(3)] == [0, 1, 2]
