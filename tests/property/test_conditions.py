from __future__ import annotations

from typing import Any

from hypothesis import given, strategies as st

from pilotage.runtime.conditions import check_condition, compile_condition
from pilotage.runtime.errors import ConditionError
from pilotage.runtime.jsonvalues import json_equal
from tests.support.definitions import outcome
from tests.support.scope import FakeScope
from tests.support.strategies import GARBAGE, JSON, TEMPLATE_TEXT

KINDS = [
    "eq", "ne", "gt", "gte", "lt", "lte", "in", "contains", "regex", "exists", "step_status",
    "step_status_in", "not", "all_of", "any_of", "nope",
]  # fmt: skip
OPERANDS: st.SearchStrategy[Any] = (
    JSON
    | TEMPLATE_TEXT
    | st.fixed_dictionaries({"value": JSON})
    | st.sampled_from([{"step_ref": "a"}, {"step_ref": "?"}, {}, "{{ v }}", "{{ steps.a.output }}"])
)


def fields(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(
        {"type": st.sampled_from(KINDS)},
        optional={
            "left": OPERANDS,
            "right": OPERANDS,
            "operand": OPERANDS,
            "step_ref": st.sampled_from(["a", "b", "", "?"]),
            "status": st.sampled_from(["completed", "nope"]),
            "statuses": st.lists(st.sampled_from(["completed", "failed", 5]), max_size=2),
            "condition": inner,
            "conditions": st.lists(inner, max_size=3),
        },
    )


CONDITIONS = st.recursive(GARBAGE, fields, max_leaves=6)


def only_needed(condition: Any) -> Any:
    """The condition without the fields that do not belong to its type, all the way down."""
    needed = {
        "exists": {"operand"}, "step_status": {"step_ref", "status"}, "not": {"condition"},
        "step_status_in": {"step_ref", "statuses"}, "all_of": {"conditions"},
        "any_of": {"conditions"},
    }  # fmt: skip
    if not isinstance(condition, dict):
        return condition
    known: dict[Any, Any] = condition  # pyright: ignore[reportUnknownVariableType]
    kind = known.get("type")
    keep = needed.get(kind, {"left", "right"}) if isinstance(kind, str) else set[str]()
    found = {key: value for key, value in known.items() if key == "type" or key in keep}
    if "condition" in found:
        found["condition"] = only_needed(found["condition"])
    if isinstance(found.get("conditions"), list):
        found["conditions"] = [only_needed(item) for item in found["conditions"]]
    return found


def scope_with(payload: Any, output: Any) -> FakeScope:
    return FakeScope({"v": payload}, outputs={"a": output}, statuses={"a": "completed"})


SCOPES = st.builds(scope_with, JSON, JSON)


@given(CONDITIONS | CONDITIONS.map(only_needed), SCOPES)
def test_anything_is_a_truth_value_or_a_condition_error(condition: Any, scope: FakeScope) -> None:
    problems = check_condition(condition, "c")
    for problem in problems:
        assert problem.startswith("c")
        assert ": " in problem
    compiled = outcome(lambda: compile_condition(condition), ConditionError)
    if isinstance(compiled, ConditionError):
        assert problems
        return
    assert not problems
    found = outcome(lambda: compiled.evaluate(scope), ConditionError)
    assert found in (True, False) or str(found).startswith("condition")


@given(JSON, JSON)
def test_equality_holds_for_all_json_values(left: Any, right: Any) -> None:
    def holds(kind: str, first: Any, second: Any) -> bool:
        condition = {"type": kind, "left": "{{ a }}", "right": "{{ b }}"}
        return compile_condition(condition).evaluate(FakeScope({"a": first, "b": second}))

    assert holds("eq", left, left)
    assert holds("eq", left, right) is holds("eq", right, left) is json_equal(left, right)
    assert holds("ne", left, right) is not holds("eq", left, right)
    assert holds("in", left, [right, left])


@given(st.integers() | st.floats(allow_nan=False), st.integers() | st.floats(allow_nan=False))
def test_the_order_of_numbers_is_total(left: float, right: float) -> None:
    scope = FakeScope({"a": left, "b": right})
    holding = {
        kind
        for kind in ("gt", "gte", "lt", "lte", "eq")
        if compile_condition({"type": kind, "left": "{{ a }}", "right": "{{ b }}"}).evaluate(scope)
    }
    assert holding in ({"gt", "gte"}, {"lt", "lte"}, {"eq", "gte", "lte"})
