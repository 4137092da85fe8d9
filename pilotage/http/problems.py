"""The one place where errors become statuses, and the one shape they are answered in.

    {"error": {"code", "message", "details"?}, "message", "request_id"}

A message says what was found, what is allowed, and what to do next. What is not in the table is a
bug: it is logged with its cause under the request id and answered with a fixed text.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress

import msgspec
from litestar import Litestar
from litestar.exceptions import HTTPException, NotFoundException, ValidationException
from litestar.utils import normalize_path

from pilotage.actors.errors import (
    ApplicationError,
    ConflictError,
    ForbiddenError,
    GoneError,
    InvalidError,
    NotFoundError,
    UnauthenticatedError,
    UnavailableError,
)
from pilotage.actors.kernel.errors import MailboxFullError
from pilotage.persistence.port import FencedError, StoreUnavailableError
from pilotage.runtime.errors import DefinitionError

log = logging.getLogger("pilotage.http")

CODES: Mapping[int, str] = {
    400: "bad_request",
    401: "authentication_required",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    409: "conflict",
    410: "gone",
    413: "payload_too_large",
    415: "unsupported_media_type",
    422: "validation_failed",
    429: "rate_limited",
    500: "internal_error",
    503: "service_unavailable",
}
INTERNAL = "something went wrong on the server; the log has the cause under this request id"
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="pilotage"'}
ROUTED_METHODS = ("GET", "POST", "PATCH", "DELETE")
MAX_DETAILS = 1_000
"""Problems listed in one answer; their number beyond is told."""
MAX_TOLD = 300
"""Characters of the first problem that are repeated in the message."""


class HttpError(ApplicationError):
    """A refusal that only HTTP knows: its status, and headers that go with it."""

    def __init__(
        self,
        status: int,
        message: str,
        details: Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, details)
        self.status = status
        self.headers: dict[str, str] = dict(headers or {})


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    code: str
    message: str
    details: list[str] = []


class ErrorDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What every refusal looks like."""

    error: ErrorBody
    message: str
    request_id: str


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """A refusal before it is encoded."""

    status: int
    message: str
    details: Sequence[str] = ()
    headers: Mapping[str, str] = {}

    def body(self, request_id: str) -> bytes:
        shown = list(self.details[:MAX_DETAILS])
        if len(self.details) > MAX_DETAILS:
            shown.append(f"and {len(self.details) - MAX_DETAILS} more")
        message = self.message
        if self.details:
            # Clients that read nothing but the message are told the first problem too.
            message = f"{message}: {self.details[0][:MAX_TOLD]}"
        if len(self.details) > 1:
            message = f"{message} (and {len(self.details) - 1} more)"
        code = CODES.get(self.status, "bad_request" if self.status < 500 else "internal_error")
        return msgspec.json.encode(
            ErrorDocument(
                error=ErrorBody(code=code, message=message, details=shown),
                message=message,
                request_id=request_id,
            )
        )


_APPLICATION: Sequence[tuple[type[ApplicationError], int]] = (
    (NotFoundError, 404),
    (ConflictError, 409),
    (ForbiddenError, 403),
    (InvalidError, 422),
    (GoneError, 410),
)


def refusal_of(exc: Exception) -> Refusal | None:
    """How an error is answered; None if it is a bug."""
    if isinstance(exc, ApplicationError):
        return _application(exc)
    if isinstance(exc, DefinitionError):
        return Refusal(status=422, message="the definition is not valid", details=exc.problems)
    if isinstance(exc, HTTPException):
        return _litestar(exc)
    if isinstance(exc, FencedError):
        return _unavailable("another server has taken over; ask that one", 5)
    if isinstance(exc, StoreUnavailableError):
        return _unavailable("the store is away; try again", 1)
    if isinstance(exc, MailboxFullError):
        return _unavailable("too many messages are waiting; try again", 1)
    if isinstance(exc, TimeoutError):
        return _unavailable("it took too long; whether it happened is unknown, read and repeat", 1)
    return None


def _application(exc: ApplicationError) -> Refusal | None:
    if isinstance(exc, HttpError):
        return Refusal(
            status=exc.status, message=exc.message, details=exc.details, headers=exc.headers
        )
    if isinstance(exc, UnauthenticatedError):
        return Refusal(status=401, message=exc.message, headers=CHALLENGE)
    if isinstance(exc, UnavailableError):
        return _unavailable(exc.message, exc.retry_after_secs)
    for kind, status in _APPLICATION:
        if isinstance(exc, kind):
            return Refusal(status=status, message=exc.message, details=exc.details)
    return None


def _unavailable(message: str, retry_after_secs: int) -> Refusal:
    return Refusal(status=503, message=message, headers={"Retry-After": str(retry_after_secs)})


def _litestar(exc: HTTPException) -> Refusal:
    """What the framework refuses by itself: mostly unknown paths and methods."""
    if isinstance(exc, NotFoundException):
        return Refusal(status=404, message="there is nothing at this path; see /reference")
    if isinstance(exc, ValidationException):
        return Refusal(status=422, message="the request is not valid", details=[exc.detail])
    if exc.status_code >= 500:
        return Refusal(status=500, message=INTERNAL)
    return Refusal(status=exc.status_code, message=exc.detail)


def methods_at(app: Litestar, path: str) -> list[str]:
    """The methods of a path, by asking the router for each; none if there is no such path."""
    found: list[str] = []
    for method in ROUTED_METHODS:
        with suppress(HTTPException):
            app.asgi_router.handle_routing(path=normalize_path(path), method=method)
            found += ["GET", "HEAD"] if method == "GET" else [method]
    return [*found, "OPTIONS"] if found else []
