"""How the operator's commands speak to a server: the REST API over `http.client`.

Guarantees: every POST but the one that makes an API key carries an `Idempotency-Key`, so that a
repeat after a lost answer does nothing twice; 429 and 503 are tried again within a bound, at the
pace that `Retry-After` asks for; every other refusal is a `RefusedError` with the server's words.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from pilotage.cli.errors import NOT_AUTHORIZED, USAGE, CommandError, RefusedError, ServerAwayError
from pilotage.runtime.jsonvalues import is_array, is_object

TIMEOUT_SECS = 35.0
"""A little more than the server's own bound of 30 s for a request."""
MAX_TRIES = 5
MAX_WAIT_SECS = 30.0
"""All waiting for a busy server together; then its refusal is shown."""
MAX_BODY_BYTES = 128 << 20
PAGE = "application/vnd.pilotage.page+json"
_PAGE_SIZE = 100
_BUSY = frozenset({429, 503})

Json = Any
"""A decoded JSON value."""
Query = Mapping[str, str | int | list[str] | None]


class ClientSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the server is and who asks. `project`: needed with an admin key only."""

    url: str
    api_key: str | None = None
    project: str | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer below 400; `data` is the decoded body, None without one."""

    status: int
    headers: Mapping[str, str]
    data: Json = None


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """A page of a list; without `next_cursor` it is the last."""

    items: list[dict[str, Json]]
    next_cursor: str | None = None


def _page(data: Json) -> Page:
    if is_array(data):
        return Page(items=list(data))
    return Page(items=data["data"], next_cursor=data.get("next_cursor"))


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


def _decode(body: bytes, content_type: str) -> Json:
    if not body:
        return None
    if "json" not in content_type:
        return body.decode(errors="replace")
    try:
        return json.loads(body)
    except ValueError:
        return body.decode(errors="replace")


def _object(data: Json) -> dict[str, Json]:
    return data if is_object(data) else {}


def _refusal(status: int, reason: str, data: Json) -> RefusedError:
    """The error document of the API, or the best that can be said of another body."""
    body = _object(data)
    error = _object(body.get("error"))
    message = error.get("message") or body.get("message")
    details: Json = error.get("details")
    listed = [str(item) for item in details] if is_array(details) else []
    return RefusedError(
        status,
        str(error.get("code", "")),
        str(message or f"the server answered {status} {reason}"),
        listed,
    )


def retry_after(headers: Mapping[str, str], tried: int) -> float:
    """Seconds to wait before the next try: what the server asks for, else growing steps."""
    try:
        return max(float(headers.get("retry-after", "")), 0.05)
    except ValueError:
        return min(0.25 * float(2**tried), 5.0)


class Stream:
    """An answer that goes on. Read and closed by one thread; any may interrupt it."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        # The connection gives its socket away once the answer says that it will close.
        self._socket: socket.socket | None = connection.sock
        self._connection = connection
        self.response = connection.getresponse()

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.response)

    def interrupt(self) -> None:
        """End the reading in another thread; that one closes."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.response.close()
        self._connection.close()


class Client:
    """One server, one connection, one thread."""

    def __init__(
        self,
        settings: ClientSettings,
        *,
        sleep: Callable[[float], None] = time.sleep,
        timeout_secs: float = TIMEOUT_SECS,
    ) -> None:
        parts = urlsplit(settings.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise CommandError(
                f"PILOTAGE_URL is {settings.url!r}; it must look like http://127.0.0.1:8080", USAGE
            )
        self.settings = settings
        self._parts = parts
        self._prefix = parts.path.rstrip("/")
        self._sleep = sleep
        self._timeout_secs = timeout_secs
        self._connection: http.client.HTTPConnection | None = None

    # --- requests ---------------------------------------------------------------------------

    def get(self, path: str, query: Query | None = None, **headers: str) -> Answer:
        return self.request("GET", path, query=query, headers=headers)

    def post(
        self,
        path: str,
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
            query=query,
            body=body,
            headers={"Idempotency-Key": key, **(headers or {})},
        )

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Json = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool = True,
    ) -> Answer:
        """One request with its repeats. `repeatable` False: tried once, whatever happens."""
        target = self._prefix + path
        if query and (pairs := _pairs(query)):
            target += "?" + urlencode(pairs)
        content = None if body is None else json.dumps(body).encode()
        sent = self._headers(headers or {}, has_body=content is not None)
        waited = 0.0
        tried = 0
        while True:
            tried += 1
            response = self._exchange(method, target, content, sent, repeatable=repeatable)
            status, reason, answer_headers, data = response
            if status < 400:
                return Answer(status=status, headers=answer_headers, data=data)
            pause = retry_after(answer_headers, tried)
            busy = repeatable and status in _BUSY and tried < MAX_TRIES
            if not busy or waited + pause > MAX_WAIT_SECS:
                raise _refusal(status, reason, data)
            waited += pause
            self._sleep(pause)

    def pages(self, path: str, query: Query, limit: int) -> Iterator[dict[str, Json]]:
        """Up to `limit` items of a list, page by page."""
        cursor: str | None = ""
        left = limit
        while left > 0 and cursor is not None:
            asked: Query = {**query, "limit": min(left, _PAGE_SIZE), "cursor": cursor}
            data = self.get(path, asked, Accept=f"{PAGE}, application/json").data
            page = _page(data)
            yield from page.items[:left]
            left -= len(page.items)
            cursor = page.next_cursor

    # --- streams ----------------------------------------------------------------------------

    def open_stream(self, path: str, last_event_id: str | None = None) -> Stream:
        """The answer of a Server-Sent-Events path, on a connection of its own."""
        headers = {"Accept": "text/event-stream"}
        if last_event_id is not None:
            headers["Last-Event-ID"] = last_event_id
        connection = self._connect()
        try:
            connection.request("GET", self._prefix + path, headers=self._headers(headers))
            stream = Stream(connection)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise ServerAwayError(self.settings.url, _why(error)) from error
        response = stream.response
        if response.status >= 400:
            data = _decode(response.read(MAX_BODY_BYTES), response.getheader("content-type", ""))
            stream.close()
            raise _refusal(response.status, response.reason, data)
        return stream

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # --- inside -----------------------------------------------------------------------------

    def _headers(self, extra: Mapping[str, str], *, has_body: bool = False) -> dict[str, str]:
        headers = {"Accept": "application/json", "User-Agent": "pilotage-cli", **extra}
        if has_body:
            headers["Content-Type"] = "application/json"
        if self.settings.api_key:
            headers["Authorization"] = f"Bearer {self.settings.api_key}"
        if self.settings.project:
            headers["X-Project-Id"] = self.settings.project
        return headers

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        if self._parts.scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=self._timeout_secs)
        return http.client.HTTPConnection(host, port, timeout=self._timeout_secs)

    def _exchange(
        self,
        method: str,
        target: str,
        content: bytes | None,
        headers: Mapping[str, str],
        *,
        repeatable: bool,
    ) -> tuple[int, str, Mapping[str, str], Json]:
        """Send and read once; once more on a fresh connection if a kept one had been closed."""
        kept = self._connection is not None
        try:
            return self._send(method, target, content, headers)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if not (kept and repeatable) or isinstance(error, TimeoutError):
                raise ServerAwayError(self.settings.url, _why(error)) from error
        try:
            return self._send(method, target, content, headers)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise ServerAwayError(self.settings.url, _why(error)) from error

    def _send(
        self, method: str, target: str, content: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, str, Mapping[str, str], Json]:
        if self._connection is None:
            self._connection = self._connect()
        self._connection.request(method, target, body=content, headers=dict(headers))
        response = self._connection.getresponse()
        body = response.read(MAX_BODY_BYTES)
        if response.will_close:
            self.close()
        answer_headers = {name.lower(): value for name, value in response.getheaders()}
        data = _decode(body, answer_headers.get("content-type", ""))
        return response.status, response.reason, answer_headers, data


def _why(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, TimeoutError):
        return "timed out"
    return str(error) or type(error).__name__


def require_key(settings: ClientSettings) -> None:
    """Say what to do before the server says 401."""
    if not settings.api_key:
        raise CommandError(
            "no API key: set PILOTAGE_API_KEY (`pilotage dev` and `make demo` keep theirs in "
            "the data directory, where it is found on the same machine)",
            NOT_AUTHORIZED,
        )
