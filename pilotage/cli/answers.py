"""What a Pilotage server answers, as far as the commands rely on it, and the check of it.

Every answer goes through `document`, with the shape that its command needs. So a command never
looks at something that another program said: a page of a proxy, JSON of another service. Such an
answer is a `ForeignAnswerError`, and never a success. Fields that no command reads are not
looked at: the server may be newer than its client. The document itself is handed on as it came.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Generic, TypeAlias, TypeVar

import msgspec

from pilotage.cli.errors import (
    CommandError,
    ForeignAnswerError,
    RefusedError,
    ServerAwayError,
)
from pilotage.cli.text import shorten

Json = Any
"""A decoded JSON value."""
Shape: TypeAlias = type[Any]
"""A type that a decoded answer must fit."""

_GATEWAY = frozenset({502, 503, 504})
_SHOWN_CHARS = 120

When = Annotated[datetime, msgspec.Meta(tz=True)]
Item = TypeVar("Item")


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """An answer as it came. Names of headers are in lower case."""

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes


class Nothing(msgspec.Struct, frozen=True):
    """204: done, and nothing to say."""


class Page(msgspec.Struct, Generic[Item], frozen=True, kw_only=True):
    """A page of a list; without `next_cursor` it is the last."""

    data: list[Item]
    has_more: bool
    next_cursor: str | None = None


def page_of(item: Shape) -> Shape:
    """The shape of a page of such items."""
    generic: Any = Page
    page: Shape = generic[item]
    return page


# --- runs --------------------------------------------------------------------------------------


class Run(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    workflow_id: str
    project_id: str
    status: str
    triggered_by: str
    workflow_version: int
    created_at: When
    created_by: str | None = None
    error: str | None = None
    started_at: When | None = None
    finished_at: When | None = None
    tags: dict[str, str] | None = None


class Step(msgspec.Struct, frozen=True, kw_only=True):
    step_ref: str
    status: str
    attempt: int
    error: str | None = None
    started_at: When | None = None
    finished_at: When | None = None
    waiting_for: str | None = None
    due_at: When | None = None


class OneStep(msgspec.Struct, frozen=True, kw_only=True):
    step_run: Step


class Reset(msgspec.Struct, frozen=True, kw_only=True):
    reset_steps: int


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    run_status: str
    reset: list[str]
    started: list[str]
    skipped: list[str]
    canceled: list[str]
    completed: list[str]
    held: list[str]


class Happened(msgspec.Struct, frozen=True, kw_only=True):
    """An item of a run's history."""

    seq: int
    at: When
    type: str
    step_ref: str | None = None
    attempt: int | None = None
    actor: str | None = None
    reason: str | None = None
    data: dict[str, Any] | None = None


class Open(msgspec.Struct, frozen=True, kw_only=True):
    """Why a step has not ended."""

    step_ref: str
    status: str
    reason: str
    since: When


class Explained(msgspec.Struct, frozen=True, kw_only=True):
    status: str
    steps: list[Open]


class BulkItem(msgspec.Struct, frozen=True, kw_only=True):
    workflow_run_id: str
    status: str


class Bulk(msgspec.Struct, frozen=True, kw_only=True):
    results: list[BulkItem]


class EventSent(msgspec.Struct, frozen=True, kw_only=True):
    delivered: int
    buffered: bool
    expires_at: str | None = None


# --- definitions and keys ----------------------------------------------------------------------


class WorkflowStep(msgspec.Struct, frozen=True, kw_only=True):
    step_ref: str
    step_type: str = "job"
    depends_on: list[str] | None = None
    approval_approvers: list[str] | None = None


class Workflow(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    project_id: str
    name: str
    slug: str
    version: int
    enabled: bool
    updated_at: When
    timeout_secs: float | None = None
    steps: list[WorkflowStep] | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    project_id: str
    slug: str
    execution_mode: str


class Key(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    project_id: str
    name: str
    scopes: list[str]
    created_at: When
    expires_at: When | None = None


class NewKey(Key, frozen=True, kw_only=True):
    key: str


# --- the server --------------------------------------------------------------------------------


class Health(msgspec.Struct, frozen=True, kw_only=True):
    status: str
    version: str


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    status: str
    reason: str | None = None


class Quarantined(msgspec.Struct, frozen=True, kw_only=True):
    workflow_run_id: str
    reason: str


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    code: str
    message: str
    details: list[str] = []


class ErrorDocument(msgspec.Struct, frozen=True, kw_only=True):
    error: ErrorBody


# --- the check ---------------------------------------------------------------------------------


def document(url: str, reply: Reply, shape: Shape) -> Json:
    """The decoded body, which fits `shape` (None of `Nothing`); raises what else was said."""
    if not 200 <= reply.status < 300:
        raise refusal(url, reply)
    if shape is Nothing:
        if reply.status != 204:
            raise ForeignAnswerError(url, f"{_said(reply)} where 204 is expected")
        return None
    try:
        return _fitting(reply, shape)
    except _UnfitError as error:
        raise ForeignAnswerError(url, f"{_said(reply)} {error}") from None


def refusal(url: str, reply: Reply) -> CommandError:
    """What an answer that is no success means: our server's word, or somebody else's."""
    if reply.status >= 400:
        try:
            error = msgspec.convert(_fitting(reply, ErrorDocument), ErrorDocument).error
        except _UnfitError:
            if reply.status in _GATEWAY:
                return ServerAwayError(url, f"{_said(reply)} from something in between")
        else:
            return RefusedError(reply.status, error.code, error.message, error.details)
    where = reply.headers.get("location")
    more = f"to {_short(where)}" if where else f"with {_media(reply)}"
    return ForeignAnswerError(url, f"{_said(reply)} {more}")


class _UnfitError(Exception):
    """The words say in what it does not fit."""


def _fitting(reply: Reply, shape: Shape) -> Json:
    media = _media(reply)
    if "json" not in media.partition(";")[0].lower():
        raise _UnfitError(f"with {media} instead of JSON")
    try:
        data = json.loads(reply.body)
        msgspec.convert(data, shape)
    except msgspec.ValidationError as error:
        raise _UnfitError(f"with other JSON: {_short(str(error))}") from None
    except RecursionError:
        raise _UnfitError("with JSON that is too deep") from None
    except ValueError:
        raise _UnfitError("with a body that is not JSON") from None
    return data


def _said(reply: Reply) -> str:
    return f"{reply.status} {_short(reply.reason)}".rstrip()


def _media(reply: Reply) -> str:
    return _short(reply.headers.get("content-type", "")) or "no content type"


def _short(text: str) -> str:
    return shorten(text, _SHOWN_CHARS)
