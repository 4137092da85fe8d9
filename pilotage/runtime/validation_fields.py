"""Reading untrusted objects field by field, with all problems collected.

A reader takes a decoded JSON value and answers the checked value, or `BAD` after it has reported
why. `read_fields` reads one object by a table of readers: unknown fields, aliases and nulls are
its business. Types are strict: a boolean is no number, text is no number, a fraction no integer.

Each reader says in JSON Schema what it takes, as far as that can be said: the bounds of a field
stand in one place, and who reads about them reads what is checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from enum import StrEnum
from math import isfinite
from typing import Any, Final, NoReturn

import msgspec

from pilotage.runtime.errors import DefinitionError
from pilotage.runtime.jsonvalues import (
    at_key,
    is_array,
    is_object,
    json_equal,
    show,
    text_problem,
    type_name,
)

MAX_PROBLEMS: Final = 1_000
"""Where listing all problems ends; nobody reads more, and memory stays bounded."""

BAD: Final = msgspec.UNSET
"""What a reader answers for a value it has reported."""


class Problems:
    """What is wrong so far, each as `path: what is wrong`."""

    def __init__(self) -> None:
        self._found: list[str] = []

    def __len__(self) -> int:
        return len(self._found)

    def add(self, path: str, problem: str) -> None:
        """Raises DefinitionError once there are too many to go on."""
        self._found.append(f"{path}: {problem}" if path else problem)
        if len(self._found) >= MAX_PROBLEMS:
            self._found.append(f"stopped after {MAX_PROBLEMS} problems; there may be more")
            self.refuse()

    def extend(self, problems: list[str]) -> None:
        """Takes over problems that have their path already."""
        for problem in problems:
            self.add("", problem)

    def refuse(self) -> NoReturn:
        raise DefinitionError(self._found)

    def raise_if_any(self) -> None:
        if self._found:
            self.refuse()


Schema = Mapping[str, Any]
_Read = Callable[[Any, str, Problems], Any]

WITHOUT_NUL: Final = r"^[^\x00]*$"
"""The pattern of a text that any reader here takes."""


class Reader:
    """Checks one value; `schema` tells what it takes."""

    __slots__ = ("_read", "schema")

    def __init__(self, read: _Read, schema: Schema) -> None:
        self._read = read
        self.schema = schema

    def __call__(self, value: Any, path: str, problems: Problems) -> Any:
        return self._read(value, path, problems)


def reader(**schema: Any) -> Callable[[_Read], Reader]:
    """A decorator: the function as a reader of what `schema` says."""
    return lambda read: Reader(read, schema)


class FieldTable(msgspec.Struct, frozen=True, kw_only=True):
    """What an object may have.

    aliases      input name -> field
    server_set   fields of the API's answers that nobody may give
    later        part of a field's name -> why it is refused for now
    ignore_unknown   for bodies of actions
    """

    readers: Mapping[str, Reader]
    aliases: Mapping[str, str] = {}
    server_set: frozenset[str] = frozenset()
    later: Mapping[str, str] = {}
    ignore_unknown: bool = False


def read_fields(
    raw: Mapping[Any, Any], path: str, table: FieldTable, problems: Problems
) -> dict[str, Any]:
    """The fields that are given, well formed and not null, by their canonical names."""
    found: dict[str, Any] = {}
    given: dict[str, tuple[str, Any]] = {}
    for key, value in raw.items():
        name = table.aliases.get(key, key)
        read = table.readers.get(name)
        if read is None:
            _report_unknown(key, path, table, problems)
        elif value is None:
            continue
        elif name in given:
            other, other_value = given[name]
            if not json_equal(value, other_value):
                problems.add(at_key(path, key), f'differs from "{other}", which means the same')
        else:
            given[name] = (key, value)
            checked = read(value, at_key(path, key), problems)
            if checked is not BAD:
                found[name] = checked
    return found


def is_given(raw: Mapping[Any, Any], name: str, table: FieldTable) -> bool:
    """Whether the field, under any of its names, is there and not null."""
    if raw.get(name) is not None:
        return True
    return any(raw.get(alias) is not None for alias, to in table.aliases.items() if to == name)


def _report_unknown(key: object, path: str, table: FieldTable, problems: Problems) -> None:
    if table.ignore_unknown:
        return
    here = at_key(path, key)
    if not isinstance(key, str):
        problems.add(here, f"field names must be strings, not {type_name(key)}")
        return
    if key in table.server_set:
        problems.add(here, "is set by the server and cannot be given")
        return
    for part, why in table.later.items():
        if part in key.lower():
            problems.add(here, why)
            return
    near = get_close_matches(key[:64], [*table.readers, *table.aliases], n=1)
    problems.add(here, f"unknown field{f' (did you mean {show(near[0])}?)' if near else ''}")


# --- readers --------------------------------------------------------------------------------------


def text(*, most: int, least: int = 1, pattern: re.Pattern[str] | None = None) -> Reader:
    """A string of `least` to `most` characters, whole matching `pattern` if there is one."""

    def read(value: Any, path: str, problems: Problems) -> Any:
        if not isinstance(value, str):
            problems.add(path, f"must be a string, not {type_name(value)}")
        elif len(value) < least:
            problems.add(path, "must not be empty")
        elif len(value) > most:
            problems.add(path, f"must be at most {most} characters long, not {len(value)}")
        elif (problem := text_problem(value)) is not None:
            problems.add(path, problem)
        elif pattern is not None and not pattern.fullmatch(value):
            problems.add(path, f"{show(value)} does not match {pattern.pattern}")
        else:
            return str(value)
        return BAD

    allowed = WITHOUT_NUL if pattern is None else f"^{pattern.pattern}$"
    schema = {"type": "string", "minLength": least, "maxLength": most, "pattern": allowed}
    return Reader(read, schema)


def seconds(*, least: float, most: float) -> Reader:
    """A duration, fractional or not."""

    def read(value: Any, path: str, problems: Problems) -> Any:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            problems.add(path, f"must be a number of seconds, not {type_name(value)}")
        elif isinstance(value, float) and not isfinite(value):
            problems.add(path, "must be a finite number of seconds")
        elif not least <= value <= most:
            problems.add(path, f"must be from {least:g} to {most:,.0f} seconds, not {show(value)}")
        else:
            return float(value)
        return BAD

    return Reader(read, {"type": "number", "minimum": least, "maximum": most})


def integer(*, least: int, most: int) -> Reader:
    def read(value: Any, path: str, problems: Problems) -> Any:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            problems.add(path, f"must be an integer, not {type_name(value)}")
        elif isinstance(value, float) and not value.is_integer():
            problems.add(path, f"must be an integer, not {show(value)}")
        elif not least <= value <= most:
            problems.add(path, f"must be from {least} to {most}, not {show(value)}")
        else:
            return int(value)
        return BAD

    return Reader(read, {"type": "integer", "minimum": least, "maximum": most})


@reader(type="boolean")
def flag(value: Any, path: str, problems: Problems) -> Any:
    if isinstance(value, bool):
        return value
    problems.add(path, f"must be true or false, not {type_name(value)}")
    return BAD


def choice(options: type[StrEnum]) -> Reader:
    """One of the enum's words."""
    known = {str(option): option for option in options}

    def read(value: Any, path: str, problems: Problems) -> Any:
        if isinstance(value, str) and value in known:
            return known[value]
        problems.add(path, f"must be one of {', '.join(known)}, not {show(value)}")
        return BAD

    return Reader(read, {"type": "string", "enum": list(known)})


def text_list(item: Reader, *, most: int) -> Reader:
    """An array of distinct strings, as a tuple."""

    def read(value: Any, path: str, problems: Problems) -> Any:
        if not is_array(value):
            problems.add(path, f"must be an array, not {type_name(value)}")
            return BAD
        if len(value) > most:
            problems.add(path, f"must have at most {most} items, not {len(value)}")
            return BAD
        found: dict[str, None] = {}
        for i, member in enumerate(value):
            checked = item(member, f"{path}[{i}]", problems)
            if checked is not BAD and checked in found:
                problems.add(f"{path}[{i}]", f"{show(checked)} is listed twice")
            elif checked is not BAD:
                found[checked] = None
        return tuple(found)

    bounds = {"maxItems": most, "uniqueItems": True}
    return Reader(read, {"type": "array", "items": item.schema, **bounds})


MAX_TAGS: Final = 20
_read_tag_key = text(most=64)
_read_tag_value = text(most=256, least=0)


@reader(
    type="object",
    maxProperties=MAX_TAGS,
    propertyNames=_read_tag_key.schema,
    additionalProperties=_read_tag_value.schema,
)
def tags(value: Any, path: str, problems: Problems) -> Any:
    """At most 20 tags, keys of 1–64 and values of at most 256 characters."""
    if not is_object(value):
        problems.add(path, f"must be an object of strings, not {type_name(value)}")
        return BAD
    if len(value) > MAX_TAGS:
        problems.add(path, f"must have at most {MAX_TAGS} tags, not {len(value)}")
        return BAD
    found: dict[str, str] = {}
    for key, member in value.items():
        here = at_key(path, key)
        if _read_tag_key(key, here, problems) is not BAD:
            checked = _read_tag_value(member, here, problems)
            if checked is not BAD:
                found[key] = checked
    return found


def as_object(raw: Any, path: str, problems: Problems) -> Mapping[Any, Any] | None:
    if isinstance(raw, Mapping):
        return raw  # pyright: ignore[reportUnknownVariableType]
    problems.add(path, f"must be an object, not {type_name(raw)}")
    return None


def items_of(raw: Any, path: str, problems: Problems) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """The objects of an array with their paths; other elements are reported."""
    for i, item in enumerate(raw):
        here = f"{path}[{i}]"
        fields = as_object(item, here, problems)
        if fields is not None:
            yield here, fields
