"""What the reference says about an operation, as values; and the parameters that many share."""

from __future__ import annotations

from typing import Any

import msgspec

from pilotage.http.openapi_requests import PROJECT, text_of
from pilotage.http.queries import (
    DEFAULT_LIMIT,
    MAX_ID,
    MAX_TAG,
    MAX_TAGS,
)
from pilotage.runtime.status import RunStatus


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """A query parameter; a repeatable one may be given `at_most` times."""

    name: str
    about: str
    schema: dict[str, Any] = msgspec.field(default_factory=lambda: {"type": "string"})
    required: bool = False
    repeatable: bool = False
    at_most: int = 1


class Doc(msgspec.Struct, frozen=True, kw_only=True):
    """One operation.

    body        schema of the request; `body_required` False: it may be left out
    status      of success; `answer` is its schema, `Name[]` for a list, None for no body
    prefer      schema of the answer under `Prefer: return=representation`
    preview     `?dry_run=true` answers a `Preview` (or `answer`, where that shows it)
    errors      statuses beyond those that follow from the route
    """

    tag: str
    summary: str
    about: str = ""
    query: tuple[Parameter, ...] = ()
    body: str | None = None
    body_required: bool = False
    status: int = 200
    answer: str | None = None
    prefer: str | None = None
    preview: str | None = None
    errors: tuple[int, ...] = ()


TAGS = {
    "Runs": "Executions of workflows.",
    "Steps": "Steps of a run.",
    "Bulk": "One command for many runs.",
    "Workflows": "Versioned definitions: directed acyclic graphs of steps.",
    "Jobs": "Who does the work of a step.",
    "Job runs": "The record of every attempt.",
    "Events": "Messages that steps wait for.",
    "API keys": "Who may do what.",
    "Quarantine": "Runs that failed inside too often; they take no commands.",
    "Callbacks": "What a job reports that answered 202, under its run token.",
    "Operations": "Health and metrics.",
}

LIMIT = Parameter(
    name="limit",
    about="Items a page. Above 100 is 100.",
    schema={"type": "integer", "minimum": 1, "default": DEFAULT_LIMIT},
)
CURSOR = Parameter(
    name="cursor", about="From the page before. Present, even empty: the answer is a page."
)
PAGED = (LIMIT, CURSOR)
OF_PROJECT = Parameter(
    name="project_id",
    about="Left out: the key's own project, answered as a page. An admin key must name one.",
    schema=PROJECT,
)
DRY = Parameter(
    name="dry_run", about="Say what would happen, change nothing.", schema={"type": "boolean"}
)
FILTERS = (
    Parameter(
        name="status",
        about="Only runs in this status.",
        schema={"type": "string", "enum": [str(s) for s in RunStatus]},
    ),
    Parameter(
        name="tag",
        about="`key:value`; repeatable, all must hold.",
        schema={"type": "string", "maxLength": MAX_TAG, "pattern": ":"},
        repeatable=True,
        at_most=MAX_TAGS,
    ),
    Parameter(
        name="created_after",
        about="Created later than this.",
        schema={"type": "string", "format": "date-time"},
    ),
    Parameter(
        name="created_before",
        about="Created earlier than this.",
        schema={"type": "string", "format": "date-time"},
    ),
)
WORKFLOW = Parameter(
    name="workflow_id",
    about="Only runs of this workflow (its id).",
    schema=text_of(MAX_ID, 1),
)
