"""The syntax of `{{ … }}`: text to expressions. What they mean is in `pilotage.runtime.templates`.

A hand-written parser of one pass: the time is linear in the text, and the first thing that is
wrong ends it with a message that shows the place.
"""

from __future__ import annotations

import json
import re
from enum import Enum, auto
from typing import Any, Final, NoReturn

import msgspec

from pilotage.runtime.jsonvalues import json_problems, show

REF_PATTERN: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
"""What a `step_ref` looks like."""

_NAME = re.compile(r"[\w$@-]+")
_DIGITS = re.compile(r"[0-9]{1,9}(?![\w-])")
_SINGLE_QUOTED = re.compile(r"'([^']*)'")
_SPACE = re.compile(r"[ \t\r\n]*")

Key = str | int


class Root(Enum):
    PAYLOAD = auto()
    OUTPUT = auto()
    STATUS = auto()
    RUN_ID = auto()
    TAGS = auto()
    LITERAL = auto()


class Expression(msgspec.Struct, frozen=True, kw_only=True):
    """One parsed `{{ … }}`; `text` is its path for messages."""

    root: Root
    text: str
    ref: str = ""
    keys: tuple[Key, ...] = ()
    literal: Any = None
    default: Any = msgspec.UNSET


class TemplateSyntaxError(Exception):
    """Bad template text; the message is complete but for the place in the document."""


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_decode_literal = json.JSONDecoder(parse_constant=_refuse_constant).raw_decode


class _Parser:
    """Reads one expression of `text`, starting behind its opening braces."""

    def __init__(self, text: str, pos: int) -> None:
        self.text = text
        self.pos = pos
        self.opened = pos - 2

    def fail(self, why: str) -> NoReturn:
        raise TemplateSyntaxError(
            f"bad template at character {self.opened}: {why}, "
            f"near {show(self.text[self.opened : self.opened + 60])}"
        )

    def skip_space(self) -> None:
        found = _SPACE.match(self.text, self.pos)
        assert found is not None  # matches the empty string
        self.pos = found.end()

    def accept(self, token: str) -> bool:
        if self.text.startswith(token, self.pos):
            self.pos += len(token)
            return True
        return False

    def name(self, what: str) -> str:
        found = _NAME.match(self.text, self.pos)
        if found is None:
            self.fail(f"expected {what}")
        self.pos = found.end()
        return found.group()

    def literal(self) -> Any:
        quoted = _SINGLE_QUOTED.match(self.text, self.pos)
        if quoted is not None:
            self.pos = quoted.end()
            return quoted.group(1)
        try:
            value, self.pos = _decode_literal(self.text, self.pos)
        except (ValueError, RecursionError):
            self.fail("expected a JSON literal (text in quotes)")
        for problem in json_problems(value, "the literal"):
            self.fail(problem)
        return value

    def quoted(self) -> str | None:
        """A string literal if one is next."""
        if self.text[self.pos : self.pos + 1] not in ("'", '"'):
            return None
        value = self.literal()
        assert isinstance(value, str)  # a literal that starts with a quote
        return value

    def keys(self) -> tuple[Key, ...]:
        found: list[Key] = []
        while True:
            if self.accept("."):
                found.append(self.name('a key after "."'))
            elif self.accept("["):
                found.append(self.subscript())
            else:
                return tuple(found)

    def subscript(self) -> Key:
        key: Key | None = self.quoted()
        if key is None:
            digits = _DIGITS.match(self.text, self.pos)
            if digits is None:
                self.fail('expected an index (0, 1, …) or a quoted key after "["')
            self.pos = digits.end()
            key = int(digits.group())
        if not self.accept("]"):
            self.fail('expected "]"')
        return key

    def expression(self) -> Expression:
        self.skip_space()
        start = self.pos
        quoted = self.quoted()
        if quoted is not None:
            text = self.text[start : self.pos]
            found = Expression(root=Root.LITERAL, text=text, literal=quoted)
        else:
            first = self.name('a path such as "payload.order.id"')
            found = self.path(first, self.keys(), start)
        self.skip_space()
        if self.accept("|"):
            found = msgspec.structs.replace(found, default=self.default())
            self.skip_space()
        if not self.accept("}}"):
            self.fail('expected "}}"')
        return found

    def default(self) -> Any:
        self.skip_space()
        if self.name('"default: literal" after "|"') != "default":
            self.fail('only "default: literal" may follow "|"')
        self.skip_space()
        if not self.accept(":"):
            self.fail('expected ":" after "default"')
        self.skip_space()
        return self.literal()

    def path(self, first: str, keys: tuple[Key, ...], start: int) -> Expression:
        text = self.text[start : self.pos]
        if first == "payload":
            return Expression(root=Root.PAYLOAD, text=text, keys=keys)
        if first == "run":
            if keys == ("id",):
                return Expression(root=Root.RUN_ID, text=text)
            if keys and keys[0] == "tags":
                return Expression(root=Root.TAGS, text=text, keys=keys[1:])
            self.fail('a run has "run.id" and "run.tags" (the payload\'s own "run": payload.run)')
        if first == "steps":
            return self.step_path(keys, text)
        return Expression(root=Root.PAYLOAD, text=text, keys=(first, *keys))

    def step_path(self, keys: tuple[Key, ...], text: str) -> Expression:
        ref = keys[0] if keys else ""
        if not isinstance(ref, str) or not REF_PATTERN.fullmatch(ref):
            self.fail('expected "steps.REF.output" or "steps.REF.status"')
        if keys[1:2] == ("output",):
            return Expression(root=Root.OUTPUT, text=text, ref=ref, keys=keys[2:])
        if keys[1:] != ("status",):
            self.fail(f'a step has "steps.{ref}.output" and "steps.{ref}.status"')
        return Expression(root=Root.STATUS, text=text, ref=ref)


def parse(text: str) -> list[str | Expression]:
    """The plain parts of the text and its expressions, in order; raises TemplateSyntaxError."""
    parts: list[str | Expression] = []
    pos = 0
    while (start := text.find("{{", pos)) >= 0:
        if start > pos:
            parts.append(text[pos:start])
        parser = _Parser(text, start + 2)
        parts.append(parser.expression())
        pos = parser.pos
    if pos < len(text):
        parts.append(text[pos:])
    return parts
