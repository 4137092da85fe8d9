"""Conditions: whether a step runs. JSON objects, compiled once and evaluated without code.

    {"type": "eq" | "ne" | "gt" | "gte" | "lt" | "lte" | "in" | "contains" | "regex",
     "left": operand, "right": operand}
    {"type": "exists", "operand": operand}
    {"type": "step_status", "step_ref": ref, "status": status}
    {"type": "step_status_in", "step_ref": ref, "statuses": [status, …]}
    {"type": "not", "condition": condition}
    {"type": "all_of" | "any_of", "conditions": [condition, …]}

An operand is a JSON value that is no object, `{"step_ref": ref}` (that step's status) or
`{"value": any JSON value}`; strings in it may be templates (see `pilotage.runtime.templates`).

- `eq`, `ne`: JSON equality; `5` is `5.0`, `5` is not `"5"`, `true` is not `1`.
- `gt` … `lte`: two numbers, or two strings by code points; anything else is an error.
- `in`: left is an element of the right array, or a part of the right string.
- `contains`: the left string has the right as a part, the left array has it as an element, the
  left object has it as a key.
- `regex`: the right pattern (RE2 syntax, linear time) is found somewhere in the left string.
- `exists`: the operand resolves and is not null. Everywhere else an operand that does not resolve
  is an error. `all_of` and `any_of` stop at the first answer: what comes later is not evaluated.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from typing import Any, Protocol

import msgspec

from pilotage.runtime.errors import ConditionError, TemplateError
from pilotage.runtime.jsonvalues import at_key, is_array, is_object, json_equal, show, type_name
from pilotage.runtime.patterns import Pattern, PatternError, compile_pattern, is_found
from pilotage.runtime.status import StepStatus
from pilotage.runtime.template_syntax import REF_PATTERN
from pilotage.runtime.templates import (
    MAX_PROBLEMS,
    Places,
    Scope,
    Template,
    UnresolvedPathError,
    inspect_template,
)

MAX_NESTING = 32
MAX_CONDITIONS = 200
"""Conditions in one tree, the inner ones included."""

MAX_PATTERNS = 20
"""Patterns in one tree; each may take some tens of milliseconds at worst."""

_STATUSES = frozenset(str(status) for status in StepStatus)


# --- comparing ----------------------------------------------------------------------------------


def _ordered(compare: Callable[[Any, Any], bool], left: Any, right: Any) -> bool:
    if isinstance(left, str) and isinstance(right, str):
        return compare(left, right)
    for value in (left, right):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConditionError(
                f"cannot order {type_name(left)} and {type_name(right)}: "
                "both must be numbers or both strings"
            )
    return compare(left, right)


def _is_in(left: Any, right: Any) -> bool:
    if is_array(right):
        return any(json_equal(left, item) for item in right)
    if isinstance(right, str):
        if isinstance(left, str):
            return left in right
        raise ConditionError(f"cannot look for {type_name(left)} in a string")
    raise ConditionError(f'"in" needs an array or a string on the right, not {type_name(right)}')


def _contains(left: Any, right: Any) -> bool:
    if is_object(left):
        if isinstance(right, str):
            return right in left
        raise ConditionError(f"the key of an object must be a string, not {type_name(right)}")
    if isinstance(left, str) or is_array(left):
        return _is_in(right, left)
    raise ConditionError(
        f'"contains" needs a string, an array or an object on the left, not {type_name(left)}'
    )


def _pattern_of(value: Any) -> Pattern:
    if not isinstance(value, str):
        raise ConditionError(f"the pattern must be a string, not {type_name(value)}")
    try:
        return compile_pattern(value)
    except PatternError as error:
        raise ConditionError(str(error)) from None


def _matches(left: Any, right: Any, pattern: Pattern | None = None) -> bool:
    if pattern is None:
        pattern = _pattern_of(right)
    if not isinstance(left, str):
        raise ConditionError(f"a pattern can be matched with a string, not {type_name(left)}")
    try:
        return is_found(pattern, left)
    except PatternError as error:
        raise ConditionError(str(error)) from None


def _differ(left: Any, right: Any) -> bool:
    return not json_equal(left, right)


_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": json_equal,
    "ne": _differ,
    "gt": partial(_ordered, operator.gt),
    "gte": partial(_ordered, operator.ge),
    "lt": partial(_ordered, operator.lt),
    "lte": partial(_ordered, operator.le),
    "in": _is_in,
    "contains": _contains,
    "regex": _matches,
}

_FIELDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_COMPARISONS, ("left", "right")),
    "exists": ("operand",),
    "step_status": ("step_ref", "status"),
    "step_status_in": ("step_ref", "statuses"),
    "not": ("condition",),
    "all_of": ("conditions",),
    "any_of": ("conditions",),
}


# --- evaluating ---------------------------------------------------------------------------------


def _status(ref: str, scope: Scope, path: str) -> str:
    try:
        return scope.step_status(ref)
    except KeyError:
        raise ConditionError(f'{path}: the run has no step "{ref}"') from None


class _Operand(msgspec.Struct, frozen=True):
    """Either the status of a step (`ref`) or a rendered value; `literal` if it is known now."""

    path: str
    template: Template
    ref: str = ""
    literal: Any = msgspec.UNSET

    @property
    def is_literal(self) -> bool:
        return self.literal is not msgspec.UNSET

    def value(self, scope: Scope) -> Any:
        if self.ref:
            return _status(self.ref, scope, self.path)
        try:
            return self.template.render(scope)
        except UnresolvedPathError:
            raise
        except TemplateError as error:
            raise ConditionError(str(error)) from None


class _Node(Protocol):
    def holds(self, scope: Scope) -> bool: ...


class _Comparison(msgspec.Struct, frozen=True):
    path: str
    compare: Callable[[Any, Any], bool]
    left: _Operand
    right: _Operand

    def holds(self, scope: Scope) -> bool:
        try:
            left = self.left.value(scope)
            right = self.right.value(scope)
        except UnresolvedPathError as error:
            raise ConditionError(str(error)) from None
        try:
            return self.compare(left, right)
        except ConditionError as error:
            raise ConditionError(f"{self.path}: {error}") from None


class _Exists(msgspec.Struct, frozen=True):
    operand: _Operand

    def holds(self, scope: Scope) -> bool:
        try:
            return self.operand.value(scope) is not None
        except UnresolvedPathError:
            return False


class _StatusIn(msgspec.Struct, frozen=True):
    path: str
    ref: str
    statuses: frozenset[str]

    def holds(self, scope: Scope) -> bool:
        return _status(self.ref, scope, self.path) in self.statuses


class _Not(msgspec.Struct, frozen=True):
    inner: _Node

    def holds(self, scope: Scope) -> bool:
        return not self.inner.holds(scope)


class _AllOf(msgspec.Struct, frozen=True):
    inner: tuple[_Node, ...]

    def holds(self, scope: Scope) -> bool:
        return all(node.holds(scope) for node in self.inner)


class _AnyOf(msgspec.Struct, frozen=True):
    inner: tuple[_Node, ...]

    def holds(self, scope: Scope) -> bool:
        return any(node.holds(scope) for node in self.inner)


_NOTHING: _Node = _AnyOf(())
"""Stands for a condition that has problems; it is never evaluated."""


class Condition:
    """A compiled condition. Immutable, shared by all runs of a workflow version.

    `places`: each step that it refers to, and the path where.
    """

    __slots__ = ("_node", "places")

    def __init__(self, node: _Node, places: Places) -> None:
        self._node = node
        self.places: Places = places

    @property
    def refs(self) -> frozenset[str]:
        """The steps that it refers to."""
        return frozenset(ref for ref, _ in self.places)

    def evaluate(self, scope: Scope) -> bool:
        """Whether it holds; raises ConditionError that says where and why it cannot tell."""
        return self._node.holds(scope)


# --- compiling ----------------------------------------------------------------------------------


class _Compiler:
    """Collects problems instead of stopping at the first. Recursion ends at `MAX_NESTING`."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.places: list[tuple[str, str]] = []
        self.conditions = 0
        self.patterns = 0

    def report(self, path: str, problem: str) -> None:
        if not self.full:
            self.problems.append(f"{path}: {problem}")

    @property
    def full(self) -> bool:
        return len(self.problems) >= MAX_PROBLEMS

    def condition(self, obj: Any, path: str, depth: int) -> _Node:
        self.conditions += 1
        if self.conditions > MAX_CONDITIONS:
            if self.conditions == MAX_CONDITIONS + 1:
                self.report(path, f"more than {MAX_CONDITIONS} conditions in one tree")
            return _NOTHING
        if depth > MAX_NESTING:
            self.report(path, f"conditions must not be nested more than {MAX_NESTING} deep")
            return _NOTHING
        if not is_object(obj):
            self.report(path, f"a condition must be an object, not {type_name(obj)}")
            return _NOTHING
        kind = self.kind(obj, path)
        if kind is None:
            return _NOTHING
        if kind in _COMPARISONS:
            return self.comparison(kind, obj, path)
        if kind == "exists":
            return _Exists(self.operand(obj, "operand", path))
        if kind == "not":
            return _Not(self.inner(obj, path, depth))
        if kind in ("all_of", "any_of"):
            nodes = self.inner_all(obj, path, depth)
            return _AllOf(nodes) if kind == "all_of" else _AnyOf(nodes)
        return self.step_status(kind, obj, path)

    def kind(self, obj: dict[str, Any], path: str) -> str | None:
        """The type, if it is known; reports every field that does not belong to it."""
        kind = obj.get("type")
        if not isinstance(kind, str) or kind not in _FIELDS:
            what = "is required" if "type" not in obj else f"{show(kind)} is unknown"
            self.report(at_key(path, "type"), f"{what}; known: {', '.join(_FIELDS)}")
            return None
        fields = _FIELDS[kind]
        for key in obj:
            if key != "type" and key not in fields and not self.full:
                near = get_close_matches(str(key)[:64], fields, n=1)
                hint = f' (did you mean "{near[0]}"?)' if near else ""
                self.report(at_key(path, key), f'unknown field of a condition "{kind}"{hint}')
        for name in fields:
            if name not in obj:
                self.report(at_key(path, name), f'required by a condition "{kind}"')
        return kind

    def comparison(self, kind: str, obj: dict[str, Any], path: str) -> _Node:
        left = self.operand(obj, "left", path)
        right = self.operand(obj, "right", path)
        compare = _COMPARISONS[kind]
        if kind == "regex":
            self.patterns += 1
            if self.patterns == MAX_PATTERNS + 1:
                self.report(path, f"more than {MAX_PATTERNS} patterns in one tree")
        if kind == "regex" and right.is_literal:
            compare = self.pattern(right.literal, right.path, compare)
        return _Comparison(path, compare, left, right)

    def pattern(
        self, pattern: Any, path: str, compare: Callable[[Any, Any], bool]
    ) -> Callable[[Any, Any], bool]:
        """The comparison with its pattern compiled once, instead of at every evaluation."""
        try:
            return partial(_matches, pattern=_pattern_of(pattern))
        except ConditionError as error:
            self.report(path, str(error))
            return compare

    def operand(self, obj: dict[str, Any], name: str, path: str) -> _Operand:
        here = at_key(path, name)
        if name not in obj:
            return _Operand(here, _NULL)
        value = obj[name]
        if is_object(value):
            if value.keys() == {"step_ref"}:
                return _Operand(here, _NULL, self.ref(value, here))
            if value.keys() != {"value"}:
                self.report(
                    here,
                    'an object here must be {"step_ref": …} or {"value": …}; '
                    'write another object as {"value": {…}}',
                )
                return _Operand(here, _NULL)
            value = value["value"]
            here = at_key(here, "value")
        template, problems = inspect_template(value, here)
        self.problems += problems
        self.places += template.places
        constant = template.is_constant and not problems
        return _Operand(here, template, literal=value if constant else msgspec.UNSET)

    def ref(self, obj: dict[str, Any], path: str) -> str:
        ref = obj.get("step_ref")
        if isinstance(ref, str) and REF_PATTERN.fullmatch(ref):
            self.places.append((ref, at_key(path, "step_ref")))
            return ref
        if "step_ref" in obj:
            self.report(at_key(path, "step_ref"), "must be a step_ref ([A-Za-z0-9_-]{1,128})")
        return ""

    def step_status(self, kind: str, obj: dict[str, Any], path: str) -> _Node:
        ref = self.ref(obj, path)
        if kind == "step_status":
            names = [(at_key(path, "status"), obj["status"])] if "status" in obj else []
        else:
            names = self.members(obj, "statuses", path)
        for here, name in names:
            if not isinstance(name, str) or name not in _STATUSES:
                self.report(
                    here, f"{show(name)} is not a step status: {', '.join(sorted(_STATUSES))}"
                )
        statuses = frozenset(name for _, name in names if isinstance(name, str))
        return _StatusIn(path, ref, statuses)

    def members(self, obj: dict[str, Any], name: str, path: str) -> list[tuple[str, Any]]:
        """The elements of an array that must not be empty, with their paths."""
        if name not in obj:
            return []
        here = at_key(path, name)
        found = obj[name]
        if not is_array(found):
            self.report(here, f"must be an array, not {type_name(found)}")
            return []
        if not found:
            self.report(here, "must not be empty")
        return [(f"{here}[{i}]", item) for i, item in enumerate(found)]

    def inner(self, obj: dict[str, Any], path: str, depth: int) -> _Node:
        if "condition" not in obj:
            return _NOTHING
        return self.condition(obj["condition"], at_key(path, "condition"), depth + 1)

    def inner_all(self, obj: dict[str, Any], path: str, depth: int) -> tuple[_Node, ...]:
        return tuple(
            self.condition(item, here, depth + 1)
            for here, item in self.members(obj, "conditions", path)
        )


_NULL, _ = inspect_template(None, "")


def inspect_condition(obj: Any, path: str) -> tuple[Condition, list[str]]:
    """The compiled condition and its problems; it may be evaluated only if there are none."""
    compiler = _Compiler()
    node = compiler.condition(obj, path, depth=1)
    return Condition(node, tuple(compiler.places)), compiler.problems


def check_condition(obj: Any, path: str) -> list[str]:
    """All problems of the condition, each as `path: what is wrong`."""
    return inspect_condition(obj, path)[1]


def compile_condition(obj: Any) -> Condition:
    """Raises ConditionError that lists every problem of the condition."""
    condition, problems = inspect_condition(obj, "condition")
    if problems:
        raise ConditionError("; ".join(problems))
    return condition
