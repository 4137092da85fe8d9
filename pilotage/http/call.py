"""One request as the handlers see it: who asks, under which id, and what the app is made of."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

import msgspec
from litestar import Request

from pilotage.actors.errors import ForbiddenError, InvalidError
from pilotage.actors.principal import Principal
from pilotage.runtime.errors import DefinitionError
from pilotage.runtime.validation_identity import PROJECT_PATTERN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from pilotage.http.api import Api

AnyRequest = Request[Any, Any, Any]

MAX_KEY = 256
"""Characters of an Idempotency-Key."""
MAX_ACTOR = 128
ACTOR_PATTERN = f"[!-~]([ -~]{{0,{MAX_ACTOR - 2}}}[!-~])?"
RESERVED_ACTOR = "system"
_ACTOR = re.compile(rf"{ACTOR_PATTERN}\Z")
_KEY = "pilotage.call"


class Call:
    """What the door found out about a request before it reached a handler.

    `problems`: what is wrong with its headers, query and body, gathered from wherever they are
    read; `refuse_wrong` tells them all at once. `unkept`: values of its body that cannot be stored;
    told unless another problem has the same path.
    """

    __slots__ = ("headers", "principal", "problems", "request_id", "status", "unkept")

    def __init__(self, request_id: str, headers: Mapping[bytes, bytes]) -> None:
        self.request_id = request_id
        self.headers = headers
        self.principal: Principal | None = None
        self.problems: list[str] = []
        self.unkept: list[str] = []
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


def problems_of(request: AnyRequest) -> list[str]:
    """What is wrong with the request, as far as it has been read."""
    return call_of(request.scope).problems


async def refuse_wrong(
    request: AnyRequest,
    exists: Callable[[], Awaitable[object]] | None = None,
    parse: Callable[[], Awaitable[object]] | None = None,
) -> None:
    """422 with all problems of the request, if it has any.

    `exists` looks for what the request is about and raises 404, or 403 for who may not decide
    about it: that comes first in the order of checks. `parse` reads the definition in the body and
    raises `DefinitionError`: what it finds is told too. What is right pays nothing for either.
    """
    call = call_of(request.scope)
    if not call.problems and not call.unkept:
        return
    if exists is not None:
        await exists()
    problems = list(dict.fromkeys(call.problems))
    if parse is not None:
        try:
            await parse()
        except DefinitionError as wrong:
            _add_other(problems, wrong.problems)
    _add_other(problems, call.unkept)
    raise InvalidError("the request is not valid", problems)


def _add_other(problems: list[str], more: Sequence[str]) -> None:
    """Add what is wrong at other paths."""
    told = {problem.partition(": ")[0] for problem in problems}
    problems += [problem for problem in more if problem.partition(": ")[0] not in told]


def note_headers(call: Call, method: str) -> None:
    """What is wrong with the headers that say for whom, about what and how often."""
    project = call.header(b"x-project-id")
    if project is not None and not is_project_id(project):
        call.problems.append(f"X-Project-Id: must match {PROJECT_PATTERN.pattern}")
    if method == "GET" or call.principal is None:
        return
    actor = call.header(b"x-actor-id") if call.principal.is_admin else None
    if actor is not None and (not _ACTOR.match(actor) or actor == RESERVED_ACTOR):
        bounds = f'1 to {MAX_ACTOR} printable ASCII characters, and not be "{RESERVED_ACTOR}"'
        call.problems.append(f"X-Actor-Id: must have {bounds}")
    if method == "POST" and len(client_key(call) or "") > MAX_KEY:
        call.problems.append(f"Idempotency-Key: must have at most {MAX_KEY} characters")


def client_key(call: Call) -> str | None:
    """The Idempotency-Key of the request; an empty one is none."""
    return call.header(b"idempotency-key") or call.header(b"x-idempotency-key") or None


def acting(request: AnyRequest) -> Principal:
    """Who acts: with an admin key the actor that `X-Actor-Id` names, else the key's principal."""
    principal = principal_of(request)
    actor = call_of(request.scope).header(b"x-actor-id")
    if actor is None or not principal.is_admin:
        return principal
    return msgspec.structs.replace(principal, name=actor)


NO_PROJECT = "project_id: required with an admin key (or the header X-Project-Id)"

# --- projects --------------------------------------------------------------------------------


def named_project(request: AnyRequest, given: str | None) -> str | None:
    """The project the request names: `given`, else the header, else the key's own.

    None: an admin key that names none, or something that is no project, which is a problem of the
    request. `ForbiddenError`: not the key's project.
    """
    principal = principal_of(request)
    named = call_of(request.scope).header(b"x-project-id") if given is None else given
    if named is None:
        return None if principal.is_admin else principal.project_id
    if not principal.sees(named):
        raise ForbiddenError(f'the key does not belong to project "{named[:128]}"')
    if is_project_id(named):
        return named
    if given is not None:  # of the header it is noted already
        problems_of(request).append(f"project_id: must match {PROJECT_PATTERN.pattern}")
    return None


def required_project(request: AnyRequest, given: str | None) -> str:
    """As `named_project`; an admin key must name one. Empty if none can be told, which is a problem
    of the request.
    """
    project = named_project(request, given)
    if project is None:
        note_no_project(request, NO_PROJECT)
    return project or ""


def note_no_project(request: AnyRequest, problem: str) -> None:
    """No project is named, unless what is named is wrong, which has been told."""
    problems = problems_of(request)
    if not any(p.startswith(("project_id:", "X-Project-Id:")) for p in problems):
        problems.append(problem)


def is_project_id(text: str) -> bool:
    return PROJECT_PATTERN.fullmatch(text) is not None
