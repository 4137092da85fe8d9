"""Templates: JSON values whose strings may hold `{{ path }}`, compiled once, rendered often.

    template   = "{{" (path | string) ["|" "default" ":" literal] "}}"
    path       = "payload" keys | "run.id" | "run.tags" keys
               | "steps." ref ".output" keys | "steps." ref ".status" | name keys
    keys       = { "." name | "[" digits "]" | "[" string "]" }
    name       = letters, digits, "_", "-", "$", "@"        literal = any JSON value
    string     = a JSON string, or text between single quotes, taken as it is

Rules:

- A bare path (`{{ customer.id }}`) is looked up in the payload. `payload`, `steps` and `run` are
  always roots: a payload's own key of that name is `payload.run`. Any other key: `["a key"]`.
- A string that is exactly one template becomes the value itself, with its JSON type. Inside text,
  strings stand as they are and everything else as compact JSON (`null`, `true`, `[1,2]`).
- JSON null that is there is a value and resolves. What is not there does not: a missing key, an
  index out of range, a key of something that is no object, a payload or output that is absent.
  Then the default stands in; without one rendering fails with `UnresolvedPathError`.
- The quoted string is how to write braces: `{{ "{{" }}`. Keys of objects are never templates.
- Rendering calls only the scope methods that the template needs, each at most once per reference,
  evaluates no code and makes at most `MAX_RENDERED_CHARS` from looked-up values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from pilotage.runtime.errors import TemplateError
from pilotage.runtime.jsonvalues import (
    MAX_DEPTH,
    at_key,
    is_array,
    is_object,
    key_problem,
    scalar_problem,
    show,
    type_name,
)
from pilotage.runtime.template_syntax import Expression, Root, TemplateSyntaxError, parse

MAX_EXPRESSIONS = 1_000
"""Templates in one value; bounds the work of one rendering."""

MAX_RENDERED_CHARS = 8 * 1024 * 1024
"""The largest input of an attempt; without it a small template could make gigabytes."""

MAX_PROBLEMS = 100
"""Of one value that are listed; a value of megabytes could have a million."""

_UNMETERED_EXPRESSIONS = 8
"""So many values of at most 1 MiB each cannot pass `MAX_RENDERED_CHARS`: nothing to measure."""


Places = tuple[tuple[str, str], ...]
"""(step_ref, path of the string that refers to it)."""


class Scope(Protocol):
    """What a template can see: one step's view of its run."""

    def payload(self) -> Any:
        """The decoded trigger payload; None if there is none."""
        ...

    def step_output(self, ref: str) -> Any:
        """The decoded output; KeyError if the step is unknown, not completed or without one."""
        ...

    def step_status(self, ref: str) -> str:
        """The status; KeyError if the step is unknown."""
        ...

    def run_id(self) -> str: ...

    def tags(self) -> Mapping[str, str]: ...


class UnresolvedPathError(TemplateError):
    """The path is well formed but leads to nothing in this run."""


# --- rendering ----------------------------------------------------------------------------------


class _Rendering:
    """One rendering: fetches each root at most once and keeps the result within bounds."""

    __slots__ = ("_outputs", "_payload", "_room", "_scope", "metered")

    def __init__(self, scope: Scope, *, metered: bool) -> None:
        self._scope = scope
        self._payload: Any = msgspec.UNSET
        self._outputs: dict[str, Any] = {}
        self._room = MAX_RENDERED_CHARS
        self.metered = metered

    def charge(self, chars: int) -> None:
        self._room -= chars
        if self._room < 0:
            raise TemplateError(f"the rendered value is larger than {MAX_RENDERED_CHARS} bytes")

    def root(self, expression: Expression) -> Any:
        """The value that the keys are looked up in; KeyError if there is none."""
        scope = self._scope
        match expression.root:
            case Root.PAYLOAD:
                if self._payload is msgspec.UNSET:
                    self._payload = scope.payload()
                if self._payload is None:
                    raise KeyError("the run has no payload")
                return self._payload
            case Root.OUTPUT:
                return self._output(expression.ref)
            case Root.STATUS:
                try:
                    return scope.step_status(expression.ref)
                except KeyError:
                    raise KeyError(f'the run has no step "{expression.ref}"') from None
            case Root.RUN_ID:
                return scope.run_id()
            case Root.TAGS:
                return dict(scope.tags())
            case _:  # LITERAL
                return expression.literal

    def _output(self, ref: str) -> Any:
        if ref not in self._outputs:
            try:
                self._outputs[ref] = self._scope.step_output(ref)
            except KeyError:
                raise KeyError(f'step "{ref}" has no output') from None
        return self._outputs[ref]

    def value(self, expression: Expression) -> Any:
        try:
            return _walk(self.root(expression), expression)
        except KeyError as reason:
            if expression.default is not msgspec.UNSET:
                return expression.default
            raise UnresolvedPathError(
                f"{expression.text} does not resolve: {reason.args[0]}"
            ) from None


def _walk(value: Any, expression: Expression) -> Any:
    """Follows the keys; KeyError says where the path ends too early."""
    for key in expression.keys:
        if isinstance(key, str):
            if not is_object(value):
                raise KeyError(f"key {show(key)} of {type_name(value)}")
            if key not in value:
                raise KeyError(f"there is no key {show(key)}")
            value = value[key]
        elif not is_array(value):
            raise KeyError(f"index [{key}] of {type_name(value)}")
        elif key >= len(value):
            raise KeyError(f"index [{key}] of an array of {len(value)}")
        else:
            value = value[key]
    return value


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return msgspec.json.encode(value).decode()
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise TemplateError(f"cannot be written as JSON: {error}") from None


class _Node(Protocol):
    def render(self, rendering: _Rendering) -> Any: ...


class _Constant(msgspec.Struct, frozen=True):
    value: Any

    def render(self, rendering: _Rendering) -> Any:  # noqa: ARG002 - as all nodes
        return self.value


class _Exact(msgspec.Struct, frozen=True):
    """A string that is one template: the value keeps its type."""

    path: str
    expression: Expression

    def render(self, rendering: _Rendering) -> Any:
        try:
            value = rendering.value(self.expression)
            if rendering.metered:
                rendering.charge(len(_as_text(value)))
        except TemplateError as error:
            raise _placed(error, self.path) from None
        return value


class _Text(msgspec.Struct, frozen=True):
    path: str
    parts: tuple[str | Expression, ...]

    def render(self, rendering: _Rendering) -> str:
        done: list[str] = []
        try:
            for part in self.parts:
                if isinstance(part, str):
                    done.append(part)
                else:
                    text = _as_text(rendering.value(part))
                    rendering.charge(len(text))
                    done.append(text)
        except TemplateError as error:
            raise _placed(error, self.path) from None
        return "".join(done)


class _Array(msgspec.Struct, frozen=True):
    items: tuple[_Node, ...]

    def render(self, rendering: _Rendering) -> list[Any]:
        return [item.render(rendering) for item in self.items]


class _Object(msgspec.Struct, frozen=True):
    members: tuple[tuple[str, _Node], ...]

    def render(self, rendering: _Rendering) -> dict[str, Any]:
        return {key: node.render(rendering) for key, node in self.members}


def _placed(error: TemplateError, path: str) -> TemplateError:
    """The same kind of error with the place in the template's value in front."""
    return type(error)(f"{path}: {error}" if path else str(error))


# --- compiling ----------------------------------------------------------------------------------


class Template:
    """A compiled value. Immutable, shared by all runs of a workflow version.

    `places`: each step that it refers to, and the path where.
    """

    __slots__ = ("_metered", "_node", "is_constant", "places")

    def __init__(self, node: _Node, places: Places, expressions: int) -> None:
        self._node = node
        self._metered = expressions > _UNMETERED_EXPRESSIONS
        self.places: Places = places
        self.is_constant: bool = isinstance(node, _Constant)

    @property
    def refs(self) -> frozenset[str]:
        """The steps that it refers to."""
        return frozenset(ref for ref, _ in self.places)

    def render(self, scope: Scope) -> Any:
        """The value in this scope. A constant template answers its original, uncopied.

        Raises:
            UnresolvedPathError: a path without default leads to nothing.
            TemplateError: the result would be too large.
        """
        return self._node.render(_Rendering(scope, metered=self._metered))


class _Compiler:
    """Collects problems instead of stopping at the first. Recursion ends at `MAX_DEPTH`."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.places: dict[tuple[str, str], None] = {}
        self.expressions = 0

    def compile(self, value: Any, path: str, depth: int = 1) -> _Node:
        if isinstance(value, str) and "{{" in value:
            return self.string(value, path)
        if is_object(value):
            return self.object(value, path, depth)
        if is_array(value):
            return self.array(value, path, depth)
        problem = scalar_problem(value)
        if problem is not None:
            self.report(path, problem)
        return _Constant(value)

    def report(self, path: str, problem: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(f"{path}: {problem}" if path else problem)

    def too_deep(self, path: str, depth: int) -> bool:
        if depth <= MAX_DEPTH:
            return False
        self.report(path, f"must not be nested more than {MAX_DEPTH} deep")
        return True

    def string(self, value: str, path: str) -> _Node:
        problem = scalar_problem(value)
        if problem is not None:
            self.report(path, problem)
            return _Constant(value)
        try:
            parts = parse(value)
        except TemplateSyntaxError as error:
            self.report(path, str(error))
            return _Constant(value)
        for part in parts:
            if isinstance(part, Expression):
                self.count(part, path)
        only = parts[0]
        if len(parts) == 1 and isinstance(only, Expression):
            return _Exact(path, only)
        return _Text(path, tuple(parts))

    def count(self, expression: Expression, path: str) -> None:
        if expression.ref:
            self.places[expression.ref, path] = None
        self.expressions += 1
        if self.expressions == MAX_EXPRESSIONS + 1:
            self.report(path, f"more than {MAX_EXPRESSIONS} templates in one value")

    def array(self, value: list[Any] | tuple[Any, ...], path: str, depth: int) -> _Node:
        if self.too_deep(path, depth):
            return _Constant(value)
        items = tuple(self.compile(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(value))
        if all(isinstance(item, _Constant) for item in items):
            return _Constant(value)
        return _Array(items)

    def object(self, value: dict[str, Any], path: str, depth: int) -> _Node:
        if self.too_deep(path, depth):
            return _Constant(value)
        members: list[tuple[str, _Node]] = []
        for key, member in value.items():
            here = at_key(path, key)
            problem = key_problem(key)
            if problem is not None:
                self.report(here, problem)
            members.append((key, self.compile(member, here, depth + 1)))
        if all(isinstance(node, _Constant) for _, node in members):
            return _Constant(value)
        return _Object(tuple(members))


def inspect_template(value: Any, path: str) -> tuple[Template, list[str]]:
    """The compiled value and its problems; it may be rendered only if there are none."""
    compiler = _Compiler()
    node = compiler.compile(value, path)
    return Template(node, tuple(compiler.places), compiler.expressions), compiler.problems


def check_template(value: Any, path: str) -> list[str]:
    """All problems of the value, each as `path: what is wrong`."""
    return inspect_template(value, path)[1]


def compile_template(value: Any) -> Template:
    """Compiles any JSON value; raises TemplateError that lists every problem in it."""
    template, problems = inspect_template(value, "")
    if problems:
        raise TemplateError("; ".join(problems))
    return template
