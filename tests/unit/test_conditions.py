from __future__ import annotations

from typing import Any

import pytest

from pilotage.runtime.conditions import (
    MAX_CONDITIONS,
    MAX_NESTING,
    MAX_PATTERNS,
    check_condition,
    compile_condition,
)
from pilotage.runtime.errors import ConditionError
from pilotage.runtime.templates import MAX_PROBLEMS
from tests.support.scope import FakeScope

SCOPE = FakeScope(
    {
        "n": 5,
        "s": "abc",
        "list": [1, "x", {"k": [True]}],
        "obj": {"key": 1},
        "null": None,
        "big": "a" * 100_000,
        "bad": "(",
    },
    outputs={"load": {"rows": 3}},
    statuses={"load": "completed", "odd-1": "failed"},
)
TRUE: dict[Any, Any] = {"type": "eq", "left": 1, "right": 1}
FALSE = {"type": "eq", "left": 1, "right": 2}
ERROR = {"type": "gt", "left": 1, "right": "x"}


def holds(condition: Any) -> bool:
    return compile_condition(condition).evaluate(SCOPE)


def compare(kind: str, left: Any, right: Any) -> bool:
    return holds({"type": kind, "left": left, "right": right})


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        ("{{ n }}", 5, True),
        ("{{ n }}", 5.0, True),
        ("{{ n }}", "5", False),
        ("n={{ n }}", "n=5", True),
        (True, 1, False),
        (False, 0, False),
        (None, None, True),
        ("{{ null }}", None, True),
        ({"value": {"key": 1.0}}, "{{ obj }}", True),
        ({"value": {"key": True}}, "{{ obj }}", False),
        ({"value": "{{ n }}"}, 5, True),
        ([1, "{{ s }}"], [1, "abc"], True),
        ({"step_ref": "load"}, "completed", True),
        ({"step_ref": "odd-1"}, {"step_ref": "load"}, False),
        ("{{ steps.load.status }}", {"step_ref": "load"}, True),
        ("{{ steps.load.output.rows }}", 3, True),
    ],
)
def test_eq_is_json_equality_and_ne_its_opposite(left: Any, right: Any, equal: bool) -> None:
    assert compare("eq", left, right) is equal
    assert compare("ne", left, right) is not equal


@pytest.mark.parametrize(
    ("left", "right", "kinds"),
    [
        (1, 2, {"lt", "lte"}),
        (2, 2.0, {"lte", "gte"}),
        (2.5, 2, {"gt", "gte"}),
        ("a", "b", {"lt", "lte"}),
        ("a", "a", {"lte", "gte"}),
        ("b", "B", {"gt", "gte"}),
        ("10", "9", {"lt", "lte"}),
    ],
)
def test_numbers_and_strings_are_ordered(left: Any, right: Any, kinds: set[str]) -> None:
    assert {kind for kind in ("lt", "lte", "gt", "gte") if compare(kind, left, right)} == kinds


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        (1, "1", "cannot order a number and a string: both must be numbers or both strings"),
        ("1", 1, "cannot order a string and a number: both must be numbers or both strings"),
        (True, 1, "cannot order a boolean and a number: both must be numbers or both strings"),
        (None, 1, "cannot order null and a number: both must be numbers or both strings"),
        ([1], [2], "cannot order an array and an array: both must be numbers or both strings"),
    ],
)
@pytest.mark.parametrize("kind", ["gt", "gte", "lt", "lte"])
def test_nothing_else_is_ordered(kind: str, left: Any, right: Any, message: str) -> None:
    with pytest.raises(ConditionError) as caught:
        compare(kind, left, right)
    assert str(caught.value) == f"condition: {message}"


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (1, [1, 2], True),
        (1.0, [1, 2], True),
        (True, [1], False),
        ("1", [1], False),
        ("{{ s }}", ["x", "{{ s }}"], True),
        ({"value": {"k": [True]}}, "{{ list }}", True),
        ("b", "abc", True),
        ("", "abc", True),
        ("d", "abc", False),
        (1, [], False),
    ],
)
def test_in_looks_into_arrays_and_strings(left: Any, right: Any, expected: bool) -> None:
    assert compare("in", left, right) is expected


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ("{{ list }}", 1, True),
        ("{{ list }}", True, False),
        ("{{ list }}", {"value": {"k": [True]}}, True),
        ("{{ s }}", "bc", True),
        ("{{ s }}", "cb", False),
        ("{{ obj }}", "key", True),
        ("{{ obj }}", "no", False),
    ],
)
def test_contains_looks_into_arrays_strings_and_keys(left: Any, right: Any, expected: bool) -> None:
    assert compare("contains", left, right) is expected


@pytest.mark.parametrize(
    ("kind", "left", "right", "message"),
    [
        ("in", 1, "abc", "cannot look for a number in a string"),
        ("in", 1, 5, '"in" needs an array or a string on the right, not a number'),
        ("in", "a", {"value": {}}, '"in" needs an array or a string on the right, not an object'),
        ("contains", "abc", 1, "cannot look for a number in a string"),
        ("contains", "{{ obj }}", 1, "the key of an object must be a string, not a number"),
        (
            "contains",
            5,
            5,
            '"contains" needs a string, an array or an object on the left, not a number',
        ),
        ("regex", 5, "a", "a pattern can be matched with a string, not a number"),
        ("regex", "a", "{{ n }}", "the pattern must be a string, not a number"),
        ("regex", "a", "{{ bad }}", "bad pattern: missing ): ("),
        ("regex", "{{ big }}", "b", "the text is longer than 65536 characters"),
    ],
)
def test_what_cannot_be_compared_is_an_error(
    kind: str, left: Any, right: Any, message: str
) -> None:
    with pytest.raises(ConditionError) as caught:
        compare(kind, left, right)
    assert str(caught.value) == f"condition: {message}"


@pytest.mark.parametrize(
    ("subject", "pattern", "expected"),
    [
        ("{{ s }}", "^a.c$", True),
        ("{{ s }}", "B", False),
        ("{{ s }}", "(?i)B", True),
        ("{{ s }}", "^{{ s }}$", True),
        ("{{ s }}", {"value": "b"}, True),
        ("", "^$", True),
    ],
)
def test_regex_finds_its_pattern(subject: str, pattern: Any, expected: bool) -> None:
    assert compare("regex", subject, pattern) is expected


@pytest.mark.parametrize(
    ("operand", "expected"),
    [
        ("{{ n }}", True),
        ("{{ null }}", False),
        ("{{ no.such }}", False),
        ("{{ no.such | default: 1 }}", True),
        ("{{ steps.load.output }}", True),
        ("{{ steps.odd-1.output }}", False),
        ({"step_ref": "load"}, True),
        ({"value": None}, False),
        (None, False),
        (0, True),
    ],
)
def test_exists_tells_whether_there_is_something(operand: Any, expected: bool) -> None:
    assert holds({"type": "exists", "operand": operand}) is expected


def test_step_status() -> None:
    assert holds({"type": "step_status", "step_ref": "load", "status": "completed"})
    assert not holds({"type": "step_status", "step_ref": "load", "status": "failed"})
    either = {"type": "step_status_in", "step_ref": "odd-1", "statuses": ["failed", "skipped"]}
    assert holds(either)
    assert not holds({**either, "statuses": ["running"]})


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({"type": "not", "condition": FALSE}, True),
        ({"type": "not", "condition": TRUE}, False),
        ({"type": "all_of", "conditions": [TRUE, TRUE]}, True),
        ({"type": "all_of", "conditions": [TRUE, FALSE]}, False),
        ({"type": "any_of", "conditions": [FALSE, TRUE]}, True),
        ({"type": "any_of", "conditions": [FALSE, FALSE]}, False),
        ({"type": "all_of", "conditions": [FALSE, ERROR]}, False),
        ({"type": "any_of", "conditions": [TRUE, ERROR]}, True),
    ],
)
def test_conditions_are_combined_and_stop_at_the_answer(condition: Any, expected: bool) -> None:
    assert holds(condition) is expected


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (
            {"type": "eq", "left": "{{ no }}", "right": 1},
            'condition.left: no does not resolve: there is no key "no"',
        ),
        (
            {"type": "eq", "left": 1, "right": {"value": ["{{ no }}"]}},
            'condition.right.value[0]: no does not resolve: there is no key "no"',
        ),
        (
            {"type": "eq", "left": {"step_ref": "x"}, "right": 1},
            'condition.left: the run has no step "x"',
        ),
        (
            {"type": "exists", "operand": {"step_ref": "x"}},
            'condition.operand: the run has no step "x"',
        ),
        (
            {"type": "step_status", "step_ref": "x", "status": "failed"},
            'condition: the run has no step "x"',
        ),
        (
            {"type": "not", "condition": {"type": "any_of", "conditions": [FALSE, ERROR]}},
            (
                "condition.condition.conditions[1]: cannot order a number and a string: "
                "both must be numbers or both strings"
            ),
        ),
    ],
)
def test_an_evaluation_error_says_where_and_why(condition: Any, message: str) -> None:
    with pytest.raises(ConditionError) as caught:
        holds(condition)
    assert str(caught.value) == message


def test_an_operand_too_large_is_an_error_even_for_exists() -> None:
    condition = {"type": "exists", "operand": ["{{ big }}"] * 100}
    with pytest.raises(ConditionError, match="larger than"):
        holds(condition)


def test_the_steps_that_are_used_are_known() -> None:
    condition = {
        "type": "all_of",
        "conditions": [
            {"type": "step_status", "step_ref": "a", "status": "failed"},
            {"type": "not", "condition": {"type": "exists", "operand": {"step_ref": "b"}}},
            {"type": "eq", "left": "{{ steps.c.output }}", "right": ["{{ steps.d.status }}"]},
        ],
    }
    assert compile_condition(condition).refs == {"a", "b", "c", "d"}
    assert compile_condition(TRUE).refs == frozenset()


KNOWN = (
    "eq, ne, gt, gte, lt, lte, in, contains, regex, exists, step_status, step_status_in, not, "
    "all_of, any_of"
)
STATUSES = "canceled, completed, failed, pending, running, skipped, waiting"
OBJECT_OPERAND = (
    'an object here must be {"step_ref": …} or {"value": …}; write another object as {"value": {…}}'
)


@pytest.mark.parametrize(
    ("condition", "problems"),
    [
        ("x", ["c: a condition must be an object, not a string"]),
        (None, ["c: a condition must be an object, not null"]),
        ({}, [f"c.type: is required; known: {KNOWN}"]),
        ({"type": "equals"}, [f'c.type: "equals" is unknown; known: {KNOWN}']),
        ({"type": ["eq"]}, [f"c.type: an array is unknown; known: {KNOWN}"]),
        (
            {"type": "eq", "lef": 1},
            [
                'c.lef: unknown field of a condition "eq" (did you mean "left"?)',
                'c.left: required by a condition "eq"',
                'c.right: required by a condition "eq"',
            ],
        ),
        (
            {**TRUE, "zzz": 1, 5: 1},
            [
                'c.zzz: unknown field of a condition "eq"',
                'c[5]: unknown field of a condition "eq"',
            ],
        ),
        (
            {"type": "eq", "left": {"a": 1}, "right": {}},
            [f"c.left: {OBJECT_OPERAND}", f"c.right: {OBJECT_OPERAND}"],
        ),
        (
            {"type": "exists", "operand": {"value": 1, "step_ref": "a"}},
            [f"c.operand: {OBJECT_OPERAND}"],
        ),
        (
            {"type": "exists", "operand": {"step_ref": "a b"}},
            ["c.operand.step_ref: must be a step_ref ([A-Za-z0-9_-]{1,128})"],
        ),
        (
            {"type": "step_status", "step_ref": 5, "status": "done"},
            [
                "c.step_ref: must be a step_ref ([A-Za-z0-9_-]{1,128})",
                f'c.status: "done" is not a step status: {STATUSES}',
            ],
        ),
        (
            {"type": "step_status"},
            [
                'c.step_ref: required by a condition "step_status"',
                'c.status: required by a condition "step_status"',
            ],
        ),
        (
            {"type": "step_status_in", "step_ref": "a", "statuses": ["failed", 5]},
            [f"c.statuses[1]: 5 is not a step status: {STATUSES}"],
        ),
        (
            {"type": "step_status_in", "step_ref": "a", "statuses": []},
            ["c.statuses: must not be empty"],
        ),
        (
            {"type": "step_status_in", "step_ref": "a", "statuses": "failed"},
            ["c.statuses: must be an array, not a string"],
        ),
        (
            {"type": "step_status_in", "step_ref": "a"},
            ['c.statuses: required by a condition "step_status_in"'],
        ),
        ({"type": "not"}, ['c.condition: required by a condition "not"']),
        ({"type": "all_of"}, ['c.conditions: required by a condition "all_of"']),
        ({"type": "any_of", "conditions": []}, ["c.conditions: must not be empty"]),
        (
            {"type": "any_of", "conditions": [TRUE, {"type": "not", "condition": 1}]},
            ["c.conditions[1].condition: a condition must be an object, not a number"],
        ),
        ({"type": "regex", "left": "a", "right": "("}, ["c.right: bad pattern: missing ): ("]),
        (
            {"type": "regex", "left": "a", "right": 5},
            ["c.right: the pattern must be a string, not a number"],
        ),
        (
            {"type": "regex", "left": "a", "right": {"value": "("}},
            ["c.right.value: bad pattern: missing ): ("],
        ),
        ({"type": "regex", "left": "a", "right": {"step_ref": "a"}}, []),
        (
            {"type": "eq", "left": float("nan"), "right": {"value": {1: 1}}},
            [
                "c.left: must be a finite number",
                "c.right.value[1]: object keys must be strings, not a number",
            ],
        ),
    ],
)
def test_all_problems_of_a_condition_are_listed(condition: Any, problems: list[str]) -> None:
    assert check_condition(condition, "c") == problems


def test_a_bad_template_in_an_operand_is_a_problem() -> None:
    found = check_condition({"type": "eq", "left": "{{", "right": ["{{ a"]}, "c")
    assert [line.split(": ")[0] for line in found] == ["c.left", "c.right[0]"]


def test_compiling_raises_with_all_problems() -> None:
    with pytest.raises(ConditionError) as caught:
        compile_condition({"type": "eq", "x": 1})
    assert str(caught.value).count("condition.") == 3


def test_the_nesting_is_bounded() -> None:
    def deep(depth: int) -> Any:
        condition: Any = TRUE
        for _ in range(depth - 1):
            condition = {"type": "not", "condition": condition}
        return condition

    assert holds(deep(MAX_NESTING)) is (MAX_NESTING % 2 == 1)
    found = check_condition(deep(10_000), "c")
    assert len(found) == 1
    assert f"nested more than {MAX_NESTING} deep" in found[0]


def test_the_number_of_conditions_is_bounded() -> None:
    fits = {"type": "all_of", "conditions": [TRUE] * (MAX_CONDITIONS - 1)}
    assert check_condition(fits, "c") == []
    found = check_condition({"type": "all_of", "conditions": [TRUE] * 5_000}, "c")
    assert found == [
        f"c.conditions[{MAX_CONDITIONS - 1}]: more than {MAX_CONDITIONS} conditions in one tree"
    ]


def test_the_number_of_patterns_is_bounded() -> None:
    pattern = {"type": "regex", "left": "a", "right": "a"}
    assert holds({"type": "all_of", "conditions": [pattern] * MAX_PATTERNS})
    found = check_condition({"type": "all_of", "conditions": [pattern] * (MAX_PATTERNS + 5)}, "c")
    assert found == [f"c.conditions[{MAX_PATTERNS}]: more than {MAX_PATTERNS} patterns in one tree"]


def test_the_list_of_problems_is_bounded() -> None:
    found = check_condition({"type": "eq", **{f"field{i}": 1 for i in range(100_000)}}, "c")
    assert len(found) == MAX_PROBLEMS
