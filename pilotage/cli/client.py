"""How the operator's commands speak to a server: the REST API over `http.client`.

Guarantees: every POST but the one that makes an API key carries an `Idempotency-Key`, so that a
repeat after a lost answer does nothing twice; 429 and 503 are tried again within a bound, at the
pace that `Retry-After` asks for; every other refusal is a `RefusedError` with the server's words.
A request with all its repeats ends within `REQUEST_SECS`, whatever the other side does, and what
it answers is what a Pilotage server would answer, or an error (`pilotage.cli.answers`).
"""

from __future__ import annotations

import http.client
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from math import isfinite
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from pilotage.cli.answers import Json, Reply, Shape, document, page_of, refusal
from pilotage.cli.errors import (
    NOT_AUTHORIZED,
    USAGE,
    CommandError,
    ForeignAnswerError,
    ServerAwayError,
)
from pilotage.cli.exchange import Ask, Line, Stream, TooSlowError, exchange, open_stream
from pilotage.cli.text import shorten

READ_SECS = 35.0
"""The longest silence; a little more than the server's own bound of 30 s for a request."""
REQUEST_SECS = 60.0
"""A whole request: looking up the name, connecting, sending, reading, and all repeats."""
MAX_TRIES = 5
MAX_WAIT_SECS = 30.0
"""All waiting for a busy server together; then its refusal is shown."""
MAX_EMPTY_PAGES = 100
"""In a row; a list that goes on without an item is none of Pilotage's."""
PAGE = "application/vnd.pilotage.page+json"
_PAGE_SIZE = 100
_BUSY = frozenset({429, 503})
_SHOWN_CHARS = 200

Query = Mapping[str, str | int | list[str] | None]


class ClientSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the server is and who asks. `project`: needed with an admin key only.

    `named`: somebody named the address; else it is where a server of this machine would be.
    """

    url: str
    api_key: str | None = None
    project: str | None = None
    named: bool = True


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer below 400 that fits its shape; `data` is the decoded body, None without one."""

    headers: Mapping[str, str]
    data: Json = None


def segment(text: str) -> str:
    """One path segment: an id or slug given by the user can never reach another path."""
    if text in {"", ".", ".."}:
        raise CommandError(f"{text!r} is neither an id nor a slug", USAGE)
    return quote(text, safe="")


def _pairs(query: Query) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for name, value in query.items():
        if isinstance(value, list):
            pairs += [(name, item) for item in value]
        elif value is not None:
            pairs.append((name, str(value)))
    return pairs


def retry_after(headers: Mapping[str, str], tried: int) -> float:
    """Seconds to wait before the next try: what the server asks for, else growing steps."""
    try:
        asked = float(headers.get("retry-after", ""))
    except ValueError:
        asked = float("nan")
    return max(asked, 0.05) if isfinite(asked) else min(0.25 * float(2**tried), 5.0)


class Client:
    """One server, one connection, one thread that asks."""

    def __init__(
        self, settings: ClientSettings, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.settings = settings
        try:
            parts = urlsplit(settings.url)
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError:
            raise _no_address(settings.url) from None
        if parts.scheme not in {"http", "https"} or not self._host:
            raise _no_address(settings.url)
        self._is_secure = parts.scheme == "https"
        self._prefix = quote(parts.path.rstrip("/"), safe="/%")
        self._sleep = sleep
        self._line: Line | None = None

    # --- requests ---------------------------------------------------------------------------

    def get(self, path: str, shape: Shape, query: Query | None = None, **headers: str) -> Answer:
        return self.request("GET", path, shape, query=query, headers=headers)

    def post(
        self,
        path: str,
        shape: Shape,
        body: Json = None,
        *,
        query: Query | None = None,
        idempotency_key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """POST that may be repeated; the same `idempotency_key` gives the first answer again."""
        key = idempotency_key or uuid.uuid4().hex
        return self.request(
            "POST",
            path,
            shape,
            query=query,
            body=body,
            headers={"Idempotency-Key": key, **(headers or {})},
        )

    def request(
        self,
        method: str,
        path: str,
        shape: Shape,
        *,
        query: Query | None = None,
        body: Json = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool = True,
    ) -> Answer:
        """One request with its repeats; the answer fits `shape`. `repeatable` False: tried once,
        whatever happens.
        """
        target = self._prefix + path
        if query and (pairs := _pairs(query)):
            target += "?" + urlencode(pairs)
        content = None if body is None else json.dumps(body).encode()
        sent = self._headers(headers or {}, has_body=content is not None)
        ask = Ask(method, target, sent, content)
        until = time.monotonic() + REQUEST_SECS
        waited = 0.0
        tried = 0
        while True:
            tried += 1
            reply = self._exchange(ask, until, repeatable=repeatable)
            pause = retry_after(reply.headers, tried)
            busy = repeatable and reply.status in _BUSY and tried < MAX_TRIES
            waited += pause
            if not busy or waited > MAX_WAIT_SECS or time.monotonic() + pause >= until:
                data = document(self.settings.url, reply, shape)
                return Answer(headers=reply.headers, data=data)
            self._sleep(pause)

    def pages(self, path: str, shape: Shape, query: Query, limit: int) -> Iterator[dict[str, Json]]:
        """Up to `limit` items of a list, page by page."""
        cursor: str | None = ""
        left = limit
        empty = 0
        while left > 0 and cursor is not None:
            asked: Query = {**query, "limit": min(left, _PAGE_SIZE), "cursor": cursor}
            page = self.get(path, page_of(shape), asked, Accept=f"{PAGE}, application/json").data
            items: list[dict[str, Json]] = page["data"]
            yield from items[:left]
            left -= len(items)
            cursor = page.get("next_cursor")
            empty = 0 if items else empty + 1
            if empty > MAX_EMPTY_PAGES:
                raise self.foreign("a list of empty pages without end")

    def foreign(self, why: str) -> ForeignAnswerError:
        """The error that says: this is no Pilotage server."""
        return ForeignAnswerError(self.settings.url, why)

    # --- streams ----------------------------------------------------------------------------

    def open_stream(self, path: str, last_event_id: str | None = None) -> Stream:
        """The answer of a Server-Sent-Events path, on a connection of its own."""
        headers = {"Accept": "text/event-stream"}
        if last_event_id is not None:
            headers["Last-Event-ID"] = last_event_id
        line = self._connect()
        ask = Ask("GET", self._prefix + path, self._headers(headers))
        try:
            opened = open_stream(line, ask, REQUEST_SECS)
        except (OSError, UnicodeError, http.client.HTTPException) as error:
            line.close()
            raise self._broken(error) from error
        if isinstance(opened, Stream):
            return opened
        line.close()
        raise refusal(self.settings.url, opened)

    def close(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None

    # --- inside -----------------------------------------------------------------------------

    def _headers(self, extra: Mapping[str, str], *, has_body: bool = False) -> dict[str, str]:
        headers = {"Accept": "application/json", "User-Agent": "pilotage-cli", **extra}
        if has_body:
            headers["Content-Type"] = "application/json"
        if self.settings.api_key:
            headers["Authorization"] = f"Bearer {self.settings.api_key}"
        if self.settings.project:
            headers["X-Project-Id"] = self.settings.project
        for name, value in headers.items():
            if not value.isprintable() or any(ord(char) > 255 for char in value):
                raise CommandError(
                    f"what is given for the header {name} has characters that no header can have",
                    USAGE,
                )
        return headers

    def _connect(self) -> Line:
        of = http.client.HTTPSConnection if self._is_secure else http.client.HTTPConnection
        return Line(of(self._host, self._port, timeout=READ_SECS))

    def _exchange(self, ask: Ask, until: float, *, repeatable: bool) -> Reply:
        """Send and read once; once more on a fresh connection if a kept one had been closed."""
        kept = self._line is not None and self._line.is_open
        try:
            return self._send(ask, until)
        except (OSError, UnicodeError, http.client.HTTPException) as error:
            self.close()
            if not (kept and repeatable) or isinstance(error, TimeoutError):
                raise self._broken(error) from error
        try:
            return self._send(ask, until)
        except (OSError, UnicodeError, http.client.HTTPException) as error:
            self.close()
            raise self._broken(error) from error

    def _send(self, ask: Ask, until: float) -> Reply:
        if self._line is None:
            self._line = self._connect()
        try:
            return exchange(self._line, ask, until - time.monotonic())
        except KeyboardInterrupt:
            self._line = None  # cut, and perhaps still in use by the thread that reads
            raise

    def _broken(self, error: Exception) -> CommandError:
        """Nothing that speaks HTTP, or nothing at all."""
        silent = (http.client.RemoteDisconnected, http.client.IncompleteRead)
        if isinstance(error, http.client.HTTPException) and not isinstance(error, silent):
            return self.foreign(f"not HTTP as it should be: {_why(error)}")
        return ServerAwayError(self.settings.url, _why(error))


def _no_address(url: str) -> CommandError:
    return CommandError(f"PILOTAGE_URL is {url!r}; it must look like http://127.0.0.1:8080", USAGE)


def _why(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, TooSlowError):
        return str(error)
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, http.client.IncompleteRead):
        return "the answer broke off"
    if isinstance(error, UnicodeError):
        return "this is no name of a host"
    return shorten(str(error) or type(error).__name__, _SHOWN_CHARS)


def require_key(settings: ClientSettings) -> None:
    """Say what to do before the server says 401."""
    if not settings.api_key:
        raise CommandError(
            "no API key: set PILOTAGE_API_KEY (`pilotage dev` and `make demo` keep theirs in "
            "the data directory, where it is found on the same machine)",
            NOT_AUTHORIZED,
        )
