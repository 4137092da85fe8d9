"""Answers: encoded here, handed to the server as they are."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar.response.base import ASGIResponse

JSON = "application/json"
_encode = msgspec.json.Encoder().encode


def ok(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> ASGIResponse:
    """`value` as JSON."""
    return ASGIResponse(body=_encode(value), status_code=status, headers=headers, media_type=JSON)


def encoded(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> ASGIResponse:
    """JSON that is encoded already."""
    return ASGIResponse(body=body, status_code=status, headers=headers, media_type=JSON)


def empty(headers: dict[str, str] | None = None) -> ASGIResponse:
    """204: done, and nothing to say."""
    return ASGIResponse(status_code=204, headers=headers)
