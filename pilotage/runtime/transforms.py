"""`output_transform`: a JMESPath expression over a step's output.

Pure, and bounded although the language is not: `[@,@][] | [@,@][] | …` doubles its value with
every few characters. Compiling refuses expressions that are too long or too deep, and functions
that do not exist or get the wrong number of arguments; applying counts the work done and stops at
`MAX_WORK`. Large outputs are best transformed off the event loop: the bound is some seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import jmespath
import msgspec
from jmespath.exceptions import JMESPathError
from jmespath.functions import Functions
from jmespath.visitor import TreeInterpreter

from pilotage.runtime.errors import PilotageError
from pilotage.runtime.jsonvalues import is_array, is_object, text_problem, type_name

MAX_EXPRESSION_CHARS: Final = 4_000
MAX_EXPRESSION_DEPTH: Final = 100
MAX_OUTPUT_BYTES: Final = 1024 * 1024
"""The largest output of a step."""

MAX_WORK: Final = 10_000_000
"""About 0.1 µs each: a value or character read is 2, an element sliced or flattened 4, a node of
the expression visited 10. So that an output of 1 MiB can be filtered and reshaped once or twice."""

_VISIT_WORK = 10
_COPY_WORK = 4
_READ_WORK = 2


class TransformError(PilotageError):
    """The expression is no JMESPath, or it cannot be applied to this output."""


class _Interpreter(TreeInterpreter):
    """Counts what it does. Everything that may grow is charged before it is made."""

    def __init__(self) -> None:
        super().__init__()
        self._left = MAX_WORK

    def charge(self, work: int) -> None:
        self._left -= work
        if self._left < 0:
            raise TransformError("output_transform takes too much work for an output of this size")

    def weigh(self, *values: Any) -> None:
        """Charges the size that the values have when they are written out."""
        self.charge(_READ_WORK * weight(values, self._left // _READ_WORK))

    def visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        self.charge(_VISIT_WORK)
        return super().visit(node, *args, **kwargs)

    def visit_flatten(self, node: Any, value: Any) -> Any:
        base = self.visit(node["children"][0], value)
        if not is_array(base):
            return None
        self.charge(_COPY_WORK * len(base))
        self.charge(_COPY_WORK * sum(len(item) for item in base if is_array(item)))
        merged: list[Any] = []
        for item in base:
            if is_array(item):
                merged.extend(item)
            else:
                merged.append(item)
        return merged

    def visit_slice(self, node: Any, value: Any) -> Any:
        if is_array(value):
            self.charge(_COPY_WORK * len(value))
        return super().visit_slice(node, value)

    def visit_comparator(self, node: Any, value: Any) -> Any:
        operands = [self.visit(child, value) for child in node["children"]]
        self.weigh(*operands)
        return super().visit_comparator(_with_literals(node, operands), value)

    def visit_function_expression(self, node: Any, value: Any) -> Any:
        arguments = [self.visit(child, value) for child in node["children"]]
        self.weigh(*arguments)
        if node["value"] == "join" and is_array(arguments[1]):
            self.charge(weight(arguments[:1], self._left) * len(arguments[1]))
        return super().visit_function_expression(_with_literals(node, arguments), value)


def _with_literals(node: Any, values: list[Any]) -> Any:
    """The node with its children replaced by their values, so that they are visited once."""
    children: list[Any] = [{"type": "literal", "value": value, "children": []} for value in values]
    return {"type": node["type"], "value": node["value"], "children": children}


def weight(values: Iterable[Any], limit: int) -> int:
    """Values and characters in all; stops counting soon after `limit`.

    Never more than the size of the JSON text. Shared parts count as often as they are written.
    """
    total = 0
    stack = list(values)
    while stack and total <= limit:
        item = stack.pop()
        total += 1
        if isinstance(item, str):
            total += len(item)
        elif is_object(item):
            total += sum(len(str(key)) for key in item)
            stack.extend(item.values())
        elif is_array(item):
            if len(item) > limit:
                return total + len(item)
            stack.extend(item)
    return total


class Transform:
    """A compiled expression. Immutable, may be shared by threads."""

    __slots__ = ("_tree", "expression")

    def __init__(self, expression: str, tree: Any) -> None:
        self.expression = expression
        self._tree = tree

    def apply(self, value: Any) -> Any:
        """The result for a decoded output; raises TransformError."""
        try:
            return _Interpreter().visit(self._tree, value)
        except RecursionError:
            raise TransformError("output_transform: the output is nested too deep") from None
        except (JMESPathError, ValueError, TypeError, ArithmeticError) as error:
            raise TransformError(f"output_transform: {error}") from None

    def apply_json(self, output: bytes) -> bytes:
        """The same from JSON text to JSON text of at most `MAX_OUTPUT_BYTES`."""
        try:
            value = msgspec.json.decode(output)
        except (msgspec.DecodeError, RecursionError) as error:
            raise TransformError(f"output_transform: the output is not JSON: {error}") from None
        result = self.apply(value)
        if weight((result,), MAX_OUTPUT_BYTES) > MAX_OUTPUT_BYTES:
            raise TransformError(f"output_transform: more than {MAX_OUTPUT_BYTES} bytes")
        try:
            encoded = msgspec.json.encode(result)
        except (TypeError, ValueError, RecursionError):
            raise TransformError(
                f"output_transform: the result is not JSON but {type_name(result)}"
            ) from None
        if len(encoded) > MAX_OUTPUT_BYTES:
            raise TransformError(f"output_transform: more than {MAX_OUTPUT_BYTES} bytes")
        return encoded


def compile_transform(expression: str) -> Transform:
    """Raises TransformError that says what is wrong with the expression."""
    if len(expression) > MAX_EXPRESSION_CHARS:
        raise TransformError(f"must be at most {MAX_EXPRESSION_CHARS} characters long")
    problem = text_problem(expression)
    if problem is not None:
        raise TransformError(problem)
    try:
        tree: Any = jmespath.compile(expression).parsed
    except RecursionError:
        raise TransformError(f"must not be nested more than {MAX_EXPRESSION_DEPTH} deep") from None
    except (JMESPathError, ValueError) as error:
        raise TransformError(f"bad JMESPath: {' '.join(str(error).split())}") from None
    _check_tree(tree)
    return Transform(expression, tree)


def check_transform(expression: str, path: str) -> list[str]:
    """The problem of the expression, if any, as `path: what is wrong`."""
    try:
        compile_transform(expression)
    except TransformError as error:
        return [f"{path}: {error}"]
    return []


def _check_tree(tree: Any) -> None:
    stack: list[tuple[Any, int]] = [(tree, 1)]
    while stack:
        node, depth = stack.pop()
        if not is_object(node):
            continue  # the numbers of a slice
        if depth > MAX_EXPRESSION_DEPTH:
            raise TransformError(f"must not be nested more than {MAX_EXPRESSION_DEPTH} deep")
        if node["type"] == "function_expression":
            _check_call(node["value"], len(node["children"]))
        stack.extend((child, depth + 1) for child in node["children"])


def _check_call(name: str, given: int) -> None:
    known: dict[str, Any] = Functions.FUNCTION_TABLE
    if name not in known:
        raise TransformError(f'bad JMESPath: unknown function "{name}()"')
    wanted = known[name]["signature"]
    if wanted and wanted[-1].get("variadic"):
        if given < len(wanted):
            raise TransformError(f'bad JMESPath: "{name}()" takes at least {len(wanted)} arguments')
    elif given != len(wanted):
        raise TransformError(f'bad JMESPath: "{name}()" takes {len(wanted)} arguments, not {given}')
