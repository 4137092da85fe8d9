"""The parameters of operations that follow from path and method: names in paths, and headers."""

from __future__ import annotations

import re
from typing import Any

from pilotage.http.call import ACTOR_PATTERN, MAX_KEY as MAX_IDEMPOTENCY_KEY, RESERVED_ACTOR
from pilotage.http.events import MAX_KEY as MAX_EVENT_KEY
from pilotage.http.openapi_requests import PROJECT, text_of

Json = dict[str, Any]
_NAMES = re.compile(r"\{(\w+)\}")
_ABOUT = {
    "workflowID": "Id or slug.",
    "jobID": "Id or slug.",
    "eventKey": "May contain slashes.",
}


def _header(name: str, schema: Json, about: str) -> Json:
    return {"name": name, "in": "header", "required": False, "schema": schema, "description": about}


PARAMETERS: dict[str, Json] = {
    "IdempotencyKey": _header(
        "Idempotency-Key",
        {"type": "string", "maxLength": MAX_IDEMPOTENCY_KEY},
        "The same key and request give the first answer again. Also X-Idempotency-Key.",
    ),
    "Prefer": _header(
        "Prefer",
        {"type": "string"},
        "`return=representation`: 200 and what was changed instead of 204.",
    ),
    "ProjectId": _header(
        "X-Project-Id",
        PROJECT,
        "With an admin key: the project, where nothing else names it.",
    ),
    "ActorId": _header(
        "X-Actor-Id",
        {"type": "string", "pattern": f"^{ACTOR_PATTERN}$", "not": {"const": RESERVED_ACTOR}},
        "With an admin key: who acts, for approvals and the history.",
    ),
}
"""By their names among the components."""

_IN_A_PROJECT = re.compile(
    r"/v1/(?:workflow-runs|runs|api-keys|events/.*|workflows(?:/.*)?|jobs(?:/.*)?)\Z"
)
"""Where the project of a request has to be known."""


def path_parameters(path: str) -> list[Json]:
    return [_in_path(name) for name in _NAMES.findall(path)]


def _in_path(name: str) -> Json:
    schema: Json = {"type": "string", "minLength": 1}  # a path without it is another path
    if name == "eventKey":
        schema = text_of(MAX_EVENT_KEY, 1)
    parameter = {"name": name, "in": "path", "required": True, "schema": schema}
    return parameter | {"description": _ABOUT[name]} if name in _ABOUT else parameter


def header_parameters(path: str, method: str, *, prefer: bool) -> list[Json]:
    """References to the headers that a guarded operation reads."""
    names = (
        ("IdempotencyKey", method == "POST"),
        ("Prefer", prefer),
        ("ProjectId", _IN_A_PROJECT.match(path) is not None),
        ("ActorId", method != "GET"),
    )
    return [{"$ref": f"#/components/parameters/{name}"} for name, read in names if read]
