"""One request as the handlers see it: who asks, under which id, and what the app is made of."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

import msgspec
from litestar import Request

from pilotage.actors.catalog_lookup import looks_like_id
from pilotage.actors.errors import ForbiddenError, InvalidError
from pilotage.actors.principal import Principal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pilotage.http.api import Api

AnyRequest = Request[Any, Any, Any]

_ACTOR = re.compile(r"[!-~](?:[ -~]{0,126}[!-~])?\Z")
_PROJECT = re.compile(r"[A-Za-z0-9_.-]{1,128}\Z")
_KEY = "pilotage.call"


class Call:
    """What the door found out about a request before it reached a handler."""

    __slots__ = ("headers", "principal", "request_id", "status")

    def __init__(self, request_id: str, headers: Mapping[bytes, bytes]) -> None:
        self.request_id = request_id
        self.headers = headers
        self.principal: Principal | None = None
        self.status = 0

    def header(self, name: bytes) -> str | None:
        """A request header by its lower-case name."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")


def put_call(scope: Any, call: Call) -> None:
    scope[_KEY] = call


def call_of(scope: Any) -> Call:
    return cast("Call", scope[_KEY])


def api_of(request: AnyRequest) -> Api:
    """The gateway, the settings and what else the app is made of."""
    return cast("Api", request.app.state["api"])


def principal_of(request: AnyRequest) -> Principal:
    """Who asks. Only for routes behind the door."""
    principal = call_of(request.scope).principal
    assert principal is not None, "a route that needs a principal is not behind the door"
    return principal


def acting(request: AnyRequest) -> Principal:
    """Who acts: with an admin key the actor that `X-Actor-Id` names, else the key's principal."""
    call = call_of(request.scope)
    principal = principal_of(request)
    actor = call.header(b"x-actor-id")
    if actor is None or not principal.is_admin:
        return principal
    if not _ACTOR.match(actor) or actor == "system":
        raise InvalidError(
            "the request is not valid",
            ['X-Actor-Id: must have 1 to 128 printable ASCII characters and not be "system"'],
        )
    return msgspec.structs.replace(principal, name=actor)


# --- projects --------------------------------------------------------------------------------


def named_project(request: AnyRequest, given: str | None, where: str = "project_id") -> str | None:
    """The project the request names: `given`, else the header, else the key's own.

    None: an admin key that names none. `ForbiddenError`: not the key's project.
    """
    principal = principal_of(request)
    if given is None:
        given, where = call_of(request.scope).header(b"x-project-id"), "X-Project-Id"
    if given is None:
        return None if principal.is_admin else principal.project_id
    if not principal.sees(given):
        raise ForbiddenError(f'the key does not belong to project "{given[:128]}"')
    if not is_project_id(given):
        raise InvalidError(
            "the request is not valid", [f"{where}: must match [A-Za-z0-9_.-]{{1,128}}"]
        )
    return given


def project_of_one(request: AnyRequest, id_or_slug: str, given: str | None = None) -> str | None:
    """The project that one thing is looked up in. An admin key needs none for an id."""
    project = named_project(request, given)
    by_id = given is None and looks_like_id(id_or_slug)
    return None if by_id and principal_of(request).is_admin else project


def required_project(request: AnyRequest, given: str | None) -> str:
    """As `named_project`; an admin key must name one."""
    project = named_project(request, given)
    if project is None:
        raise InvalidError(
            "an admin key has no project of its own",
            ["project_id: required with an admin key (or the header X-Project-Id)"],
        )
    return project


def is_project_id(text: str) -> bool:
    return _PROJECT.match(text) is not None
