"""Query parameters: read with all problems at once, so that one answer tells everything."""

from __future__ import annotations

from datetime import UTC, datetime
from difflib import get_close_matches
from enum import StrEnum
from typing import TypeVar
from urllib.parse import parse_qsl

from pilotage.actors.errors import InvalidError
from pilotage.http.call import AnyRequest, problems_of

MAX_LIMIT = 100
DEFAULT_LIMIT = 50
MAX_PARAMETERS = 200
MAX_ID = 255
MAX_TAGS = 20
MAX_TAG = 64 + 1 + 256
MAX_WHOLE = 10**15 - 1
_ON_CHANGES = {
    "POST": ("dry_run", "project_id"),
    "PATCH": ("dry_run", "project_id"),
    "DELETE": ("dry_run", "project_id", "reason"),
}
"""What requests that change something may have in their query."""
E = TypeVar("E", bound=StrEnum)


class Query:
    """The query of one request. A parameter of one value may not be given two.

    Unknown parameters are ignored, as unknown fields are. Changes refuse those that look like one
    they know: who mistypes `dry_run` must not get the real thing. What is wrong with it is a
    problem of the request: `refuse_wrong` tells it.
    """

    def __init__(self, request: AnyRequest) -> None:
        self.problems = problems_of(request)
        raw: bytes = request.scope["query_string"]
        self._pairs: list[tuple[str, str]] = []
        if raw:
            try:
                self._pairs = parse_qsl(
                    raw.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_PARAMETERS
                )
            except ValueError:  # what it says cannot be told: nothing else is worth looking at
                problem = f"query: at most {MAX_PARAMETERS} parameters"
                raise InvalidError("the request is not valid", [problem]) from None
        self._last = dict(self._pairs)
        if raw and request.method in _ON_CHANGES:
            self._refuse_mistyped(_ON_CHANGES[request.method])

    def _refuse_mistyped(self, known: tuple[str, ...]) -> None:
        for name in dict.fromkeys(name for name, _ in self._pairs):
            if name not in known and (near := get_close_matches(name[:64].lower(), known, n=1)):
                self.problems.append(
                    f'query: unknown parameter "{name[:64]}" (did you mean "{near[0]}"?)'
                )

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return self._pairs

    def one(self, name: str) -> str | None:
        value = self._last.get(name)
        if len(self._pairs) > len(self._last) and any(
            k == name and v != value for k, v in self._pairs
        ):
            problem = f"{name}: is given more than once; give it one value"
            if problem not in self.problems:
                self.problems.append(problem)
        return value

    def text(self, name: str, max_chars: int) -> str | None:
        value = self.one(name)
        if value is not None and (len(value) > max_chars or "\0" in value):
            self.problems.append(
                f"{name}: must have at most {max_chars} characters, none of them NUL"
            )
            return None
        return value

    def limit(self) -> int:
        """1 to 100, default 50; above 100 is 100."""
        value = self.one("limit")
        if value is None:
            return DEFAULT_LIMIT
        if not value.isascii() or not value.isdigit() or int(value[:20]) < 1:
            self.problems.append(f"limit: must be a whole number from 1 to {MAX_LIMIT}")
            return DEFAULT_LIMIT
        return min(int(value[:20]), MAX_LIMIT)

    def whole(self, name: str, default: int) -> int:
        value = self.one(name)
        if value is None:
            return default
        if not value.isascii() or not value.isdigit() or len(value) > len(str(MAX_WHOLE)):
            self.problems.append(f"{name}: must be a whole number, 0 or more")
            return default
        return int(value)

    def word(self, name: str, words: type[E]) -> E | None:
        value = self.one(name)
        if value is None:
            return None
        try:
            return words(value)
        except ValueError:
            self.problems.append(
                f'{name}: unknown value "{value[:64]}"; known are {", ".join(words)}'
            )
            return None

    def flag(self, name: str) -> bool:
        value = self.one(name)
        if value is None or value in {"false", "0"}:
            return False
        if value not in {"true", "1", ""}:
            self.problems.append(f"{name}: must be true or false")
        return True

    def no_dry_run(self) -> None:
        """Whoever asks for a dry run must never get the real one."""
        if self.flag("dry_run"):
            self.problems.append("dry_run: is not offered here; nothing was done")

    def when_ms(self, name: str) -> int | None:
        """An RFC 3339 time as Unix milliseconds."""
        value = self.one(name)
        if value is None:
            return None
        try:
            # RFC 3339 allows small letters; a plus sign that was not encoded arrives as a space.
            when = datetime.fromisoformat(value.upper().replace(" ", "+"))
            ms = int(when.astimezone(UTC).timestamp() * 1000) if when.tzinfo else None
        except (ValueError, OverflowError):
            ms = None
        if ms is None:
            self.problems.append(f"{name}: must be an RFC 3339 time such as 2026-01-31T09:30:00Z")
        return ms

    def tags(self) -> tuple[str, ...]:
        """`tag=key:value`, repeatable; all must hold."""
        found = tuple(dict.fromkeys(v for k, v in self._pairs if k == "tag"))
        self.problems += [
            f'tag: must look like key:value, not "{t[:64]}"'
            for t in found
            if ":" not in t or len(t) > MAX_TAG
        ]
        if len(found) > MAX_TAGS:
            self.problems.append(f"tag: at most {MAX_TAGS} of them")
        return found
