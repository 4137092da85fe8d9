"""Request bodies: read with a bound, decoded strictly, and taken apart with all problems at once.

What is refused: another content type (415), more bytes than allowed (413), bytes that are not
UTF-8, text that is not JSON, lone surrogates, an object with the same key twice (400). Values that
could not be stored as they came, numbers beyond 64 bits and deep nesting, are problems of the
request beside all others (422). Nothing here raises anything else, whatever is sent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import msgspec

from pilotage.http.call import AnyRequest, call_of, problems_of
from pilotage.http.problems import HttpError
from pilotage.runtime.jsonvalues import (
    MAX_DEPTH,
    is_array,
    is_object,
    json_problems,
    repeated_key,
    type_name,
)

LIMIT = (1 << 20) + (64 << 10)
"""A payload of 1 MiB and what surrounds it."""
DEFINITION_LIMIT = 8 << 20
MAX_TEXT = 2_000
"""Characters of a comment or reason."""

_SUSPICIOUS = re.compile(rb"\\u[dD][89a-fA-F]|[0-9]{17}|[eE]\+?[0-9]{2}")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_JSON_TYPE = re.compile(rb"application/(?:[\w.!#$&^-]+\+)?json\s*(?:;|\Z)", re.IGNORECASE)
_CHARSET = re.compile(rb";\s*charset\s*=\s*\"?([^\s;\"]+)", re.IGNORECASE)


async def read_body(request: AnyRequest, limit: int = LIMIT) -> bytes:
    """The whole body. 413 beyond `limit`, without reading the rest."""
    announced = call_of(request.scope).headers.get(b"content-length", b"0")
    if announced.isdigit() and int(announced[:20]) > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    while True:
        event = await request.receive()
        if event["type"] != "http.request":
            raise HttpError(400, "the client closed the connection before the body was complete")
        chunk = event["body"]
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
        if not event.get("more_body", False):
            return b"".join(chunks) if len(chunks) > 1 else chunk


def _too_large(limit: int) -> HttpError:
    return HttpError(413, f"the body is larger than {limit} bytes")


async def read_json(request: AnyRequest, limit: int = LIMIT) -> Any:
    """The decoded body; None when it is empty, blank or `null`.

    What in it cannot be kept is noted: nothing may be done with it before `refuse_wrong`.
    """
    body = await read_body(request, limit)
    if not body.strip(b" \t\r\n"):
        return None
    call = call_of(request.scope)
    _check_content_type(call.headers)
    value, unkept = decode_json(body)
    call.unkept += unkept
    return value


async def read_action(request: AnyRequest) -> Any:
    """The body of an action that looks at none of its fields: an object, if there is one."""
    body = await read_json(request)
    Fields(body, problems_of(request))
    return body


def _check_content_type(headers: Any) -> None:
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise HttpError(415, "the body must not be compressed")
    content_type: bytes = headers.get(b"content-type", b"")
    if not content_type:
        return
    charset = _CHARSET.search(content_type)
    if not _JSON_TYPE.match(content_type) or (
        charset is not None and charset[1].lower() not in {b"utf-8", b"utf8", b"us-ascii"}
    ):
        raise HttpError(415, "the body must be JSON in UTF-8; send Content-Type: application/json")


def decode_json(body: bytes) -> tuple[Any, list[str]]:
    """The value of a JSON text, strictly; and what in it cannot be kept, each with its path."""
    try:
        value: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as exc:
        raise HttpError(400, f"the body is not valid JSON: {_reason(exc, body)}") from exc
    except RecursionError as exc:
        raise HttpError(400, "the body is not valid JSON: it is nested too deep") from exc
    if _is_container(value):
        _check_duplicates(body, value)
    deep = body.count(b"[") + body.count(b"{") > MAX_DEPTH
    if deep or _SUSPICIOUS.search(body) is not None:
        return value, _named(list(json_problems(value, "", allow_nul=True)))
    return value, []


def _reason(exc: Exception, body: bytes) -> str:
    if isinstance(exc, UnicodeDecodeError):
        return "it is not UTF-8"
    if _has_lone_surrogate(body):
        return "a text has a lone surrogate (\\ud800 to \\udfff); send both halves or neither"
    return str(exc).removeprefix("JSON is malformed: ")


def _has_lone_surrogate(body: bytes) -> bool:
    """Whether a half of a surrogate pair is what was wrong: a laxer decoder takes it."""
    if _SURROGATE.search(body) is None:
        return False
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


def _named(problems: list[str]) -> list[str]:
    """Problems at the top level have an empty path."""
    return [f"body{p}" if p.startswith((":", "[")) else p for p in problems]


def _check_duplicates(body: bytes, value: Any) -> None:
    key = repeated_key(body, value)
    if key is not None:
        shown = json.dumps(key[:80])
        raise HttpError(400, f"the body has the key {shown} twice in one object; write it once")


def _is_container(value: object) -> bool:
    return isinstance(value, (dict, list))


def encode_json(value: Any) -> bytes | None:
    """A decoded value as JSON text; None for null, which is the same as none.

    None too for what cannot be kept, which is a problem of the request already.
    """
    try:
        return None if value is None else msgspec.json.encode(value)
    except (OverflowError, RecursionError):
        return None


def _plain(number: float) -> str:
    """A bound as people write it: no exponent, no more than six digits of a fraction."""
    return f"{number:.6f}".rstrip("0").rstrip(".")


class Fields:
    """An object of named values, read one after the other.

    What is wrong is added to `problems`, those of the request. Unknown fields are ignored unless
    `close` is called.
    """

    def __init__(self, body: Any, problems: list[str]) -> None:
        self.problems = problems
        self._seen: set[str] = set()
        self._values: dict[str, Any] = {}
        if is_object(body):
            self._values = dict(body)
        elif body is not None:
            self.problems.append(f"body: must be an object, not {type_name(body)}")

    def take(self, name: str) -> Any:
        self._seen.add(name)
        return self._values.get(name)

    def has(self, name: str) -> bool:
        return name in self._values

    def text(self, name: str, *, max_chars: int = MAX_TEXT, required: bool = False) -> str | None:
        value = self.take(name)
        if value is None:
            if required:
                self.problems.append(f"{name}: required")
            return None
        if not isinstance(value, str):
            self.problems.append(f"{name}: must be a string, not {type_name(value)}")
            return None
        if len(value) > max_chars or (required and not value):
            self.problems.append(f"{name}: must have 1 to {max_chars} characters")
            return None
        if "\0" in value:
            self.problems.append(f"{name}: must not contain NUL characters")
            return None
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.problems.append(f"{name}: must be a number, not {type_name(value)}")
            return None
        if not low <= value <= high:
            self.problems.append(f"{name}: must be from {_plain(low)} to {_plain(high)}")
            return None
        return value

    def flag(self, name: str) -> bool:
        value = self.take(name)
        if value is not None and not isinstance(value, bool):
            self.problems.append(f"{name}: must be true or false, not {type_name(value)}")
            return False
        return bool(value)

    def texts(
        self, name: str, low: int, high: int, problem: Callable[[str], str | None]
    ) -> list[str]:
        """A list of `low` to `high` strings, each without a `problem`; else empty."""
        value = self.take(name)
        if not is_array(value):
            found = "required" if value is None else f"must be an array, not {type_name(value)}"
            self.problems.append(f"{name}: {found}")
            return []
        if not low <= len(value) <= high:
            self.problems.append(f"{name}: must have {low} to {high} items, not {len(value)}")
            return []
        right = True
        texts: list[str] = []
        for i, item in enumerate(value):
            if isinstance(item, str):
                wrong = problem(item)
                texts.append(item)
            else:
                wrong = f"must be a string, not {type_name(item)}"
            if wrong is not None:
                self.problems.append(f"{name}[{i}]: {wrong}")
                right = False
        return texts if right else []

    def close(self) -> None:
        """Refuse fields that nobody asked for."""
        self.problems += [
            f"{name}: unknown field" for name in self._values if name not in self._seen
        ]
