"""JSON values as Python objects: equality, names of types, and where in a document one is.

Paths look like `steps[3].payload["a key"]`. Nothing here recurses, so that no document, however
deep, can exhaust the stack.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import accumulate
from math import isfinite
from typing import Any, TypeGuard

MAX_DEPTH = 100
"""Arrays and objects within one another; far beyond any payload a person writes."""

MAX_OUTPUT_DEPTH = 500
"""The same of what jobs answer. Codecs recurse, up to about 900 levels on a shallow stack."""

MIN_INTEGER = -(2**63)
MAX_INTEGER = 2**64 - 1
"""What the JSON codec can carry; a larger integer would be lost in storage."""

_SHOWN_CHARS = 80
JSON_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NO_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))
_UP_OR_DOWN = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_PLAIN_KEY = re.compile(r"[\w$@-]+\Z")


def is_object(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether JSON calls the value an object. Its keys may still be wrong: `key_problem`."""
    return isinstance(value, dict)


def is_array(value: object) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    return isinstance(value, (list, tuple))


def type_name(value: object) -> str:
    """What JSON calls the value; for something that is not JSON, its Python type."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, (list, tuple)):
        return "an array"
    if isinstance(value, dict):
        return "an object"
    return f"a value of type {type(value).__name__}"


def show(value: object) -> str:
    """The value for a message: scalars as JSON, cut at 80 characters; others by type."""
    if value is None or isinstance(value, (bool, float)):
        return json.dumps(value)
    if isinstance(value, int):
        return str(value) if MIN_INTEGER <= value <= MAX_INTEGER else "a number beyond 64 bits"
    if isinstance(value, str):
        if len(value) > _SHOWN_CHARS:
            value = value[:_SHOWN_CHARS] + "…"
        return json.dumps(value, ensure_ascii=not is_encodable(value))
    return type_name(value)


def at_key(path: str, key: object) -> str:
    """The path of a member of the object at `path`."""
    if isinstance(key, str) and len(key) <= _SHOWN_CHARS and _PLAIN_KEY.match(key):
        return f"{path}.{key}" if path else key
    return f"{path}[{show(key)}]"


def is_encodable(text: str) -> bool:
    """False for text with lone surrogates, which no encoding can carry."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def text_problem(text: str) -> str | None:
    """Why the text may not stand in a definition."""
    if "\0" in text:
        return "must not contain NUL characters"
    if not is_encodable(text):
        return "must be valid Unicode, without lone surrogates"
    return None


def number_problem(value: float) -> str | None:
    """Why the number cannot be carried as JSON."""
    if isinstance(value, float):
        return None if isfinite(value) else "must be a finite number"
    if MIN_INTEGER <= value <= MAX_INTEGER:
        return None
    return "must be an integer of at most 64 bits"


def scalar_problem(value: object, *, allow_nul: bool = False) -> str | None:
    """Why a value that is neither array nor object is not a JSON value that we take."""
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str):
        if allow_nul:
            return None if is_encodable(value) else text_problem(value.replace("\0", ""))
        return text_problem(value)
    if isinstance(value, (int, float)):
        return number_problem(value)
    return f"must be a JSON value, not {type_name(value)}"


def json_problems(value: Any, path: str, *, allow_nul: bool = False) -> Iterator[str]:
    """Everything about the value that is not plain JSON, each as `path: what is wrong`."""
    if _is_plain(value, allow_nul=allow_nul):
        return
    stack: list[tuple[Any, str, int]] = [(value, path, 1)]
    while stack:
        item, here, depth = stack.pop()
        if depth > MAX_DEPTH and (is_object(item) or is_array(item)):
            yield f"{here}: must not be nested more than {MAX_DEPTH} deep"
        elif is_object(item):
            for key, member in item.items():
                problem = key_problem(key, allow_nul=allow_nul)
                if problem is not None:
                    yield f"{at_key(here, key)}: {problem}"
                stack.append((member, at_key(here, key), depth + 1))
        elif is_array(item):
            stack.extend((member, f"{here}[{i}]", depth + 1) for i, member in enumerate(item))
        else:
            problem = scalar_problem(item, allow_nul=allow_nul)
            if problem is not None:
                yield f"{here}: {problem}"


def _is_plain(value: Any, *, allow_nul: bool) -> bool:
    """Whether there is nothing to report: the same rules, ten times as fast, without paths."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH + 1):
        if not level:
            return True
        below: list[Any] = []
        for item in level:
            if is_object(item):
                if any(key_problem(key, allow_nul=allow_nul) for key in item):
                    return False
                below.extend(item.values())
            elif is_array(item):
                below.extend(item)
            elif scalar_problem(item, allow_nul=allow_nul) is not None:
                return False
        level = below
    return False


def key_problem(key: object, *, allow_nul: bool = False) -> str | None:
    """Why the key may not be one of an object."""
    if not isinstance(key, str):
        return f"object keys must be strings, not {type_name(key)}"
    return scalar_problem(key, allow_nul=allow_nul)


def is_deeper(text: bytes, depth: int) -> bool:
    """Whether the JSON text has more than `depth` arrays and objects within one another.

    Nearly always told by how many there are at all, in a microsecond a kilobyte.
    """
    if text.count(b"[") + text.count(b"{") <= depth:
        return False
    brackets = JSON_STRING.sub(b"", text).translate(None, _NO_BRACKETS)
    return max(accumulate(map(_UP_OR_DOWN.__getitem__, brackets)), default=0) > depth


def repeated_key(text: bytes, value: Any) -> str | None:
    """A key that stands twice in one object of the JSON text; `value` is the text decoded.

    Decoding keeps the last of equal keys; the others would be lost in silence. Every member has
    one colon outside of strings, so that counting both sides finds the objects that lost members,
    at the speed of a regular expression.
    """
    if b":" not in text or JSON_STRING.sub(b"", text).count(b":") == _members(value):
        return None
    twice: list[str] = []

    def collect(pairs: list[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                twice.append(key)
            seen.add(key)

    json.loads(text, object_pairs_hook=collect)
    return next(iter(twice), None)


def _is_container(value: object) -> bool:
    return isinstance(value, (dict, list))


def _members(value: Any) -> int:
    """How many members all objects in `value` have together."""
    members = 0
    stack: list[Any] = [value]
    while stack:
        item = stack.pop()
        if is_object(item):
            members += len(item)
            stack.extend(filter(_is_container, item.values()))
        elif is_array(item):
            stack.extend(filter(_is_container, item))
    return members


def json_equal(left: Any, right: Any) -> bool:
    """Equality of JSON values: 5 is 5.0, `true` is not 1, the order of keys does not matter."""
    stack: list[tuple[Any, Any]] = [(left, right)]
    while stack:
        a, b = stack.pop()
        if is_object(a):
            if not is_object(b) or a.keys() != b.keys():
                return False
            stack.extend((value, b[key]) for key, value in a.items())
        elif is_array(a):
            if not is_array(b) or len(a) != len(b):
                return False
            stack.extend(zip(a, b, strict=True))
        elif isinstance(a, bool) or isinstance(b, bool):
            if a is not b:
                return False
        elif a != b:
            return False
    return True
