"""The door: every request passes here, before anything is routed; and the way from it to a route.

The door gives the request its id, finds out who asks, refuses who may not, bounds the time that an
answer may take, turns what went wrong into an answer, writes one log line and counts. It works on
raw headers, because it is on the path of every request. `Routes` finds the route and refuses who
lacks its scope.

Deny by default: everything under `/v1` needs a valid key, and every route there names the scope it
needs (`opt={"scope": ...}`); an app with a route that names none does not start.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

from litestar import Litestar
from litestar.enums import ScopeType
from litestar.exceptions import MethodNotAllowedException
from litestar.handlers import BaseRouteHandler
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send
from litestar.utils import normalize_path

from pilotage.actors.catalog_records import new_id
from pilotage.actors.errors import ForbiddenError, UnauthenticatedError, UnavailableError
from pilotage.actors.principal import SCOPES
from pilotage.http.api import Api
from pilotage.http.call import Call, call_of, note_headers, put_call
from pilotage.http.deadlines import Deadlines
from pilotage.http.pages import PAGE_TYPE
from pilotage.http.problems import INTERNAL, HttpError, Refusal, methods_at, refusal_of

access_log = logging.getLogger("pilotage.access")
log = logging.getLogger("pilotage.http")

TIME_LIMIT_SECS = 30.0
"""From the first byte of the request to the first of the answer."""
AWAY_LIMIT_SECS = 1.0
"""The same once the store is known to be away."""
_STRICT = ("/v1/", "/sdk/v1/")
"""Where a path that ends with a slash is another path. The router would overlook the slash, and
who asks for the run with the empty id must not be given the list of all runs. An empty segment is
refused everywhere: what the router would make of it has not passed the door."""
PUBLIC = "public"
"""As a route's scope: needs no key."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}\Z")
_HOST = re.compile(rb"[0-9A-Za-z!$&'()*+,;=\-._~:\[\]@%]*\Z")
"""What RFC 3986 has in an authority."""
_BEARER = re.compile(rb"[Bb][Ee][Aa][Rr][Ee][Rr] +([!-~]{1,4096}) *\Z")


def bearer_token(headers: Any) -> str | None:
    """The bearer token of raw headers."""
    match = _BEARER.match(headers.get(b"authorization", b""))
    return None if match is None else match[1].decode("ascii")


class Door:
    """ASGI middleware around the whole app."""

    def __init__(self, app: ASGIApp, api: Api, *, time_limit_secs: float = TIME_LIMIT_SECS) -> None:
        self._app = app
        self._api = api
        # Whoever waits for a store that is away waits no longer: it may never answer.
        self._deadlines = Deadlines(
            time_limit_secs, AWAY_LIMIT_SECS, lambda: api.gateway.store_away is not None
        )
        self._requests = api.metrics.counter(
            "pilotage_http_requests_total", "Answers.", ("method", "route", "status")
        )
        self._seconds = api.metrics.histogram(
            "pilotage_http_request_seconds", "Time to the first byte of the answer.", ("route",)
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        scope = _below_mount(scope)
        call = _call(dict(scope["headers"]))
        put_call(scope, call)
        head = scope["method"] == "HEAD"
        # Litestar routes no HEAD: it is a GET of which only the beginning is sent.
        asked: HTTPScope = {**scope, "method": "GET"} if head else scope
        seconds = 0.0
        id_header = (b"x-request-id", call.request_id.encode())
        deadlines = self._deadlines
        waiting = deadlines.begin()

        async def answer(message: Message) -> None:
            nonlocal seconds
            if message["type"] == "http.response.start":
                deadlines.end(waiting)  # from now on the client sets the pace
                call.status = message["status"]
                seconds = time.perf_counter() - started
                message["headers"] = [*message.get("headers", ()), id_header]
                if head:
                    await send(message)
                    message = {"type": "http.response.body", "body": b"", "more_body": False}
            elif head:
                return
            await send(message)

        try:
            await self._admit(scope, call)
            _refuse_slash(scope["path"])
            if scope["method"] == "OPTIONS":
                await _tell_methods(scope, answer)
            else:
                await self._app(asked, receive, answer)
        except asyncio.CancelledError:
            if not waiting.timed_out():
                raise
            await self._refuse(TimeoutError(), call, answer)
        except Exception as exc:  # noqa: BLE001 - the last place that can answer
            deadlines.end(waiting)
            await self._refuse(exc, call, answer)
        finally:
            deadlines.end(waiting)
            route = asked.get("path_template") or "none"
            self._account(scope, route, call, seconds or time.perf_counter() - started)

    async def _admit(self, scope: HTTPScope, call: Call) -> None:
        """Find out who asks; raise if they may not."""
        path = scope["path"]
        needs_key = path.startswith("/v1/") or path == "/v1"
        if path == "/metrics" and not self._api.settings.metrics_public:
            needs_key = True
        if not needs_key:
            return
        token = bearer_token(call.headers)
        principal = None if token is None else await self._api.catalog.keys.authenticate(token)
        if principal is None:
            count_failure(self._api, scope)
            raise UnauthenticatedError(_what_is_wrong(call, token))
        call.principal = principal
        wait = self._api.rate.take(principal.key_id or principal.name)
        if wait:
            raise HttpError(
                429,
                f"this key may ask {self._api.settings.rate_limit} times a minute; slow down",
                headers={"Retry-After": str(wait)},
            )

    @staticmethod
    async def _refuse(exc: Exception, call: Call, send: Send) -> None:
        refusal = refusal_of(exc)
        if refusal is None or refusal.status == 500 or call.status:
            log.error("unhandled error", exc_info=exc, extra={"request_id": call.request_id})
            refusal = Refusal(status=500, message=INTERNAL)
        if call.status:
            return  # the answer has begun: all that is left is to end it
        body = refusal.body(call.request_id)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *((k.lower().encode(), v.encode("latin-1")) for k, v in refusal.headers.items()),
        ]
        await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    def _account(self, scope: HTTPScope, route: str, call: Call, seconds: float) -> None:
        self._requests.inc(_method(scope), route, str(call.status))
        self._seconds.observe(seconds, route)
        if access_log.isEnabledFor(logging.INFO):
            path = scope["raw_path"].decode("ascii", "replace")  # as sent: no control characters
            access_log.info(
                "%s %s %s",
                scope["method"],
                path,
                call.status,
                extra={
                    "method": scope["method"],
                    "path": path,
                    "status": call.status,
                    "duration_ms": round(seconds * 1000, 3),
                    "request_id": call.request_id,
                    "principal": None if call.principal is None else call.principal.name,
                },
            )


def _below_mount(scope: HTTPScope) -> HTTPScope:
    """As if the app were not mounted: what a path needs does not depend on where it is."""
    if not scope.get("root_path"):
        return scope
    path, root = scope["path"], scope["root_path"].rstrip("/")
    if path != root and not path.startswith(f"{root}/"):
        return scope  # the server has taken it off already
    return {**scope, "path": path[len(root) :] or "/", "root_path": ""}


def count_failure(api: Api, scope: HTTPScope) -> None:
    """Count a failed authentication; 429 for an address that fails too often."""
    api.auth_failures.inc()
    client = scope.get("client")
    wait = api.failures.failed(client[0] if client else "unknown")
    if wait:
        raise HttpError(
            429,
            "too many failed authentications from this address; a valid key still passes",
            headers={"Retry-After": str(wait)},
        )


def _what_is_wrong(call: Call, token: str | None) -> str:
    if token is not None:
        return "the key is unknown, expired or revoked; use another"
    if b"authorization" in call.headers:
        return "malformed credentials; send Authorization: Bearer <key>"
    return "a key is needed; send Authorization: Bearer <key>"


def _refuse_slash(path: str) -> None:
    if "//" in path:
        raise HttpError(404, "there is nothing at this path; leave out the empty segment (//)")
    if path.endswith("/") and path.startswith(_STRICT):
        raise HttpError(404, "there is nothing at this path; leave out the last slash")


async def _tell_methods(scope: HTTPScope, send: Send) -> None:
    allow = ", ".join(methods_at(scope["litestar_app"], scope["path"]))
    if not allow:
        raise HttpError(404, "there is nothing at this path; see /reference")
    headers = [(b"allow", allow.encode())]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


_METHODS = frozenset({"GET", "POST", "PATCH", "DELETE", "PUT", "HEAD", "OPTIONS"})


def _method(scope: HTTPScope) -> str:
    method = scope["method"]
    return method if method in _METHODS else "other"


def _call(headers: dict[bytes, bytes]) -> Call:
    return Call(_request_id(headers), headers)


def _request_id(headers: dict[bytes, bytes]) -> str:
    given = headers.get(b"x-request-id")
    if given is not None and _REQUEST_ID.match(given):
        return given.decode("ascii")
    return new_id(time.time_ns() // 1_000_000)


# --- what a route needs ------------------------------------------------------------------------


class Routes:
    """From the door to the route: 403 without the scope it names; 406 for who takes no JSON.

    Does what Litestar's own router does, but for its exception handlers: what is raised is answered
    by the door. Neither a guard, because Litestar copies the route's handler for each guard and
    request (10 µs), nor a middleware, because each comes with an exception handler of its own.
    """

    def __init__(self, app: Litestar, api: Api) -> None:
        self._find = app.asgi_router.handle_routing
        self._framework = app.asgi_handler
        self._app = app
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:  # there are no such routes, it says so
            await self._framework(scope, receive, send)
            return
        call = call_of(scope)
        host = call.headers.get(b"host")
        if host is not None and not _HOST.match(host):
            raise HttpError(400, "the Host header is not valid")
        path = scope["path"]
        try:
            found = self._find(path=normalize_path(path), method=scope["method"])
        except MethodNotAllowedException:
            raise self._no_method(scope["method"], path) from None
        run, handler, scope["path"], scope["path_params"], scope["path_template"] = found
        scope["route_handler"] = handler
        opt = handler.opt
        check_scope(call, opt)
        if opt["scope"] != PUBLIC:
            refuse_without_store(self._api, opt)
        note_headers(call, scope["method"])
        await run(scope, receive, send)

    def _no_method(self, method: str, path: str) -> HttpError:
        allow = ", ".join(methods_at(self._app, path))
        message = f"this path has no {method[:16]}; it has {allow}"
        return HttpError(405, message, headers={"Allow": allow})


def check_scope(call: Call, opt: Mapping[str, Any]) -> None:
    """Raise if the request may not have what a route with these options gives."""
    scope = opt.get("scope")
    if scope is None or scope == PUBLIC:
        return
    principal = call.principal
    if principal is None:
        raise UnauthenticatedError("a key is needed; send Authorization: Bearer <key>")
    if not principal.may(scope):
        raise ForbiddenError(
            f'the key lacks the scope "{scope}"; use one that has it, or ask who manages the keys'
        )
    accept = call.headers.get(b"accept")
    if accept is not None and not _takes(accept, opt.get("produces", _JSON)):
        raise HttpError(406, "this answers application/json only; change the Accept header")


def refuse_without_store(api: Api, opt: Mapping[str, Any]) -> None:
    """503 at once while the store is known to be away, unless the answer may be in memory."""
    why = api.gateway.store_away
    if why is not None and not opt.get("from_memory", False):
        raise UnavailableError(f"the store is away ({why}); nothing was done, try again")


_JSON = frozenset({b"application/json", PAGE_TYPE.encode(), b"application/*", b"*/*"})


def _takes(accept: bytes, offered: frozenset[bytes]) -> bool:
    """Whether one of the `offered` media types is acceptable (RFC 9110, 12.5.1)."""
    if accept == b"*/*":
        return True
    for part in accept.lower().split(b","):
        media_type, _, parameters = part.partition(b";")
        if media_type.strip() in offered and not _refused(parameters):
            return True
    return not accept.strip()


def _refused(parameters: bytes) -> bool:
    weight = parameters.replace(b" ", b"")
    return weight.startswith((b"q=0", b"q=0.")) and not weight.strip(b"q=0.")


def require_scopes(handlers: Iterable[BaseRouteHandler]) -> None:
    """Refuse to start with a route that does not say what it needs, or that answers errors itself:
    the door answers them, and nobody would ask it.
    """
    for handler in handlers:
        scope = handler.opt.get("scope")
        if scope != PUBLIC and scope not in SCOPES:
            raise AssertionError(f"{handler} names no known scope: {scope!r}")
        if handler.resolve_exception_handlers() or handler.resolve_middleware():
            raise AssertionError(f"{handler} has exception handlers or middleware of its own")
