from __future__ import annotations

from typing import Any

import pytest

from pilotage.runtime.jsonvalues import (
    MAX_DEPTH,
    at_key,
    json_equal,
    json_problems,
    show,
    type_name,
)


def nested(depth: int, inner: Any = 1) -> Any:
    for _ in range(depth):
        inner = [inner]
    return inner


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        (5, 5.0, True),
        (5, "5", False),
        (True, 1, False),
        (0, False, False),
        (True, True, True),
        (None, None, True),
        (None, False, False),
        (None, 0, False),
        ("a", "a", True),
        ([], {}, False),
        ({}, [], False),
        ([1, [2.0]], [1.0, [2]], True),
        ([1, 2], [2, 1], False),
        ([1], [1, 2], False),
        ({"a": 1, "b": [True]}, {"b": [True], "a": 1.0}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": 1}, {"b": 1}, False),
        ({"a": None}, {}, False),
        ([1], "1", False),
        (1, [1], False),
    ],
)
def test_equality_is_that_of_json(left: Any, right: Any, equal: bool) -> None:
    assert json_equal(left, right) is equal
    assert json_equal(right, left) is equal


def test_equality_of_deep_values_needs_no_stack() -> None:
    assert json_equal(nested(20_000), nested(20_000))
    assert not json_equal(nested(20_000), nested(20_000, 2))


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (None, "null"),
        (False, "a boolean"),
        (1, "a number"),
        (1.5, "a number"),
        ("", "a string"),
        ([], "an array"),
        ((), "an array"),
        ({}, "an object"),
        (b"", "a value of type bytes"),
    ],
)
def test_types_have_their_json_names(value: object, name: str) -> None:
    assert type_name(value) == name


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a", '"a"'),
        ("ä", '"ä"'),
        ("\ud800", '"\\ud800"'),
        ("x" * 81, '"' + "x" * 80 + '…"'),
        (None, "null"),
        (True, "true"),
        (1, "1"),
        (1.5, "1.5"),
        (float("inf"), "Infinity"),
        (2**64, "a number beyond 64 bits"),
        ([1], "an array"),
    ],
)
def test_values_are_shown_short(value: object, shown: str) -> None:
    assert show(value) == shown


@pytest.mark.parametrize(
    ("path", "key", "place"),
    [
        ("a", "b", "a.b"),
        ("", "b", "b"),
        ("a", "b-c", "a.b-c"),
        ("a", "b c", 'a["b c"]'),
        ("a", "", 'a[""]'),
        ("a", 5, "a[5]"),
    ],
)
def test_members_have_paths(path: str, key: object, place: str) -> None:
    assert at_key(path, key) == place


PLAIN: list[Any] = [
    None,
    {"a": [1, 2.5, "x", True, None, {"": {}}]},
    2**64 - 1,
    -(2**63),
    "ä€𝄞",
    nested(MAX_DEPTH),
    nested(MAX_DEPTH - 1, []),
]


@pytest.mark.parametrize("value", PLAIN)
def test_plain_json_has_no_problems(value: Any) -> None:
    assert list(json_problems(value, "p")) == []


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (float("nan"), "p: must be a finite number"),
        ([float("-inf")], "p[0]: must be a finite number"),
        (2**64, "p: must be an integer of at most 64 bits"),
        ({"a": -(2**63) - 1}, "p.a: must be an integer of at most 64 bits"),
        ("a\0", "p: must not contain NUL characters"),
        ("\udfff", "p: must be valid Unicode, without lone surrogates"),
        ({"\ud800": 1}, 'p["\\ud800"]: must be valid Unicode, without lone surrogates'),
        ({1: 2}, "p[1]: object keys must be strings, not a number"),
        ({"a": b""}, "p.a: must be a JSON value, not a value of type bytes"),
        (
            nested(MAX_DEPTH + 1),
            f"p{'[0]' * MAX_DEPTH}: must not be nested more than {MAX_DEPTH} deep",
        ),
        (
            nested(MAX_DEPTH, {}),
            f"p{'[0]' * MAX_DEPTH}: must not be nested more than {MAX_DEPTH} deep",
        ),
    ],
)
def test_what_is_not_json_is_named_with_its_place(value: Any, problem: str) -> None:
    assert list(json_problems(value, "p")) == [problem]


def test_data_may_contain_nul_but_still_no_surrogates() -> None:
    assert list(json_problems({"a\0": "b\0"}, "p", allow_nul=True)) == []
    assert len(list(json_problems("\0\ud800", "p", allow_nul=True))) == 1


def test_all_problems_of_a_value_are_named() -> None:
    found = list(json_problems([{"a": float("nan")}, "\0", {3: 1}], "p"))
    assert sorted(line.split(":")[0] for line in found) == ["p[0].a", "p[1]", "p[2][3]"]
