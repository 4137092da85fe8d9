"""Lists: a bare array with `Link` and `X-Next-Cursor`, or a page `{data, has_more, next_cursor}`.

A cursor is opaque and belongs to one list with one set of filters; any other is refused with 400.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any
from urllib.parse import urlencode

import msgspec
from litestar.response.base import ASGIResponse

from pilotage.http.answers import JSON, WholeAnswer
from pilotage.http.call import AnyRequest, call_of
from pilotage.http.problems import HttpError
from pilotage.http.queries import Query

PAGE_TYPE = "application/vnd.pilotage.page+json"
Position = tuple[int, str]
_DECODER: msgspec.msgpack.Decoder[Position] = msgspec.msgpack.Decoder(Position)
_SEAL_BYTES = 8
_MAX_CURSOR = 512
_MAX_NUMBER = 1 << 53
_NO_FILTER = frozenset({"cursor", "limit"})
_REFUSED = re.compile(rb"q\s*=\s*0(?:\.0*)?")


@lru_cache(maxsize=256)
def _kept_of(pairs: tuple[tuple[str, str], ...]) -> str:
    """What of a query the next page has too. Cursors need no escaping; clients repeat the rest."""
    kept = [pair for pair in pairs if pair[0] != "cursor"]
    return f"{urlencode(kept)}&" if kept else ""


class Page(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    data: Sequence[Any]
    has_more: bool
    next_cursor: str | None = None


def asks_for_page(request: AnyRequest) -> bool:
    """Whether `Accept` names the page form; `q=0` is a refusal (RFC 9110)."""
    accept = call_of(request.scope).headers.get(b"accept", b"").lower()
    if PAGE_TYPE.encode() not in accept:
        return False
    for item in accept.split(b","):
        name, *parameters = (part.strip() for part in item.split(b";"))
        if name == PAGE_TYPE.encode():
            return not any(_REFUSED.fullmatch(p) for p in parameters)
    return False


class Listing:
    """One request for a list: where to go on, and how to answer.

    `project_id`: the project that the list is of; with the path and the filters it is what a
    cursor belongs to. `always_page`: lists of our own have no array form.
    """

    def __init__(
        self, request: AnyRequest, query: Query, project_id: str, *, always_page: bool = False
    ) -> None:
        self._request = request
        self._query = query
        self._of = project_id
        self._typed = asks_for_page(request)
        self.as_page = always_page or query.one("cursor") is not None or self._typed
        filters = sorted(p for p in query.pairs if p[0] not in _NO_FILTER)
        self._context = repr((request.scope["path"], project_id, filters)).encode()

    @property
    def after(self) -> Position | None:
        """The last row of the page before; None for the first page.

        A cursor is of one project: it is not looked at while none is named.
        """
        cursor = self._query.one("cursor")
        return self._open(cursor) if cursor and self._of else None

    def answer(
        self, rows: Sequence[Any], next_after: Position | None, **headers: str
    ) -> ASGIResponse:
        cursor = None if next_after is None else self._seal(next_after)
        if cursor is not None:
            headers["X-Next-Cursor"] = cursor
            headers["Link"] = f'<{self._next_url(cursor)}>; rel="next"'
        body: Any = rows
        media_type = JSON
        if self.as_page:
            body = Page(data=rows, has_more=cursor is not None, next_cursor=cursor)
            media_type = PAGE_TYPE if self._typed else JSON
        return WholeAnswer(msgspec.json.encode(body), 200, headers, media_type)

    def _next_url(self, cursor: str) -> str:
        scope = self._request.scope
        host = call_of(scope).header(b"host") or self._request.base_url.netloc
        root = f"{scope['scheme']}://{host}{scope['path']}"
        return f"{root}?{_kept_of(tuple(self._query.pairs))}cursor={cursor}"

    def _seal(self, position: Position) -> str:
        data = msgspec.msgpack.encode(position)
        return base64.urlsafe_b64encode(self._digest(data) + data).decode().rstrip("=")

    def _open(self, cursor: str) -> Position:
        raw = b""
        if len(cursor) <= _MAX_CURSOR:
            with suppress(ValueError, binascii.Error):
                raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        data = raw[_SEAL_BYTES:]
        position: Position | None = None
        if raw[:_SEAL_BYTES] == self._digest(data):
            # The seal is no secret: what is under it may still be anything.
            with suppress(msgspec.MsgspecError, UnicodeDecodeError):
                position = _DECODER.decode(data)
        if position is None or not 0 <= position[0] < _MAX_NUMBER:
            raise HttpError(
                400,
                "the cursor is not one of this list with these filters; "
                "start again without a cursor",
            )
        return position

    def _digest(self, data: bytes) -> bytes:
        return hashlib.blake2b(self._context + data, digest_size=_SEAL_BYTES).digest()
