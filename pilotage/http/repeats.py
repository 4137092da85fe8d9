"""Idempotency keys on POST: the same key and the same request give the first answer again.

The record is stored with the change itself where the gateway or the catalog takes it along, else
right after a change that may be repeated without harm, be it that its plan was stored before: a
repeat does what is left of that. That a request is in progress is known in memory only, so that a
crash leaves nothing behind. Dry runs change nothing and remember nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from litestar.response.base import ASGIResponse

from pilotage.actors.catalog_records import catalog_errors
from pilotage.actors.errors import ConflictError, InvalidError, NotFoundError, UnavailableError
from pilotage.actors.idempotency import Idempotency, Remembered, recall
from pilotage.http.answers import empty, encoded
from pilotage.http.api import Api
from pilotage.http.call import AnyRequest, api_of, call_of, client_key
from pilotage.runtime.errors import PilotageError

logger = logging.getLogger(__name__)

REPLAYED = {"Idempotency-Replayed": "true"}


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a POST is answered. `body` None: nothing but the status.

    reference   id of what was made or moved, to show it again when the body is too large to keep
    stored      the idempotency record is stored already, together with the change
    """

    status: int
    body: bytes | None = None
    headers: dict[str, str] = {}
    reference: str | None = None
    stored: bool = False

    def response(self) -> ASGIResponse:
        if self.body is None:
            return empty(self.headers) if self.status == 204 else encoded(b"", self.status)
        return encoded(self.body, self.status, self.headers)


Act = Callable[[Idempotency | None], Awaitable[Answer]]
Again = Callable[[str], Awaitable[Answer]]
"""Makes an answer again from its reference, as things are now."""


def request_hash(request: AnyRequest, body: Any) -> str:
    """SHA-256 of the query and the canonical body; an absent body is the same as `{}`."""
    digest = hashlib.sha256(request.scope["query_string"])
    digest.update(b"\0")
    digest.update(msgspec.json.encode({} if body is None else body, order="sorted"))
    return digest.hexdigest()


def idempotency_of(request: AnyRequest, project_id: str, body: Any) -> Idempotency | None:
    """What the request is remembered by; None without a key."""
    key = client_key(call_of(request.scope))
    if key is None:
        return None
    return Idempotency(
        key=f"{request.method} {request.scope['path']} {key}",
        request_hash=request_hash(request, body),
        project_id=project_id,
    )


async def once(
    request: AnyRequest,
    project_id: str,
    body: Any,
    act: Act,
    again: Again | None = None,
    *,
    location: str | None = None,
    headers: dict[str, str] | None = None,
) -> ASGIResponse:
    """Do `act`, or give its first answer again.

    `project_id`: the project the key belongs to. `again` is needed where an answer may be larger
    than what is kept. `location`: what stands before the reference in the header of that name.
    `headers` go with an answer that is shown again as it was, if it has a body.
    """
    idempotency = idempotency_of(request, project_id, body)
    if idempotency is None:
        return (await act(None)).response()
    api = api_of(request)
    where = (project_id, idempotency.key)
    if where in api.in_progress:
        raise ConflictError(
            "a request with this Idempotency-Key is in progress; wait for its answer"
        )
    api.in_progress.add(where)
    # A request that is given up (its time is over) still holds its key until it has ended.
    work = asyncio.ensure_future(_first_or_again(api, idempotency, act, again, location, headers))
    work.add_done_callback(lambda _: api.in_progress.discard(where))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        work.add_done_callback(_unheard)
        raise


def _unheard(work: asyncio.Future[ASGIResponse]) -> None:
    """The caller knows that it may not have happened; a refusal is nothing that anybody misses."""
    error = None if work.cancelled() else work.exception()
    if error is not None and not isinstance(error, PilotageError):
        logger.error("a request that was given up has failed", exc_info=error)


async def _first_or_again(
    api: Api,
    idempotency: Idempotency,
    act: Act,
    again: Again | None,
    location: str | None,
    headers: dict[str, str] | None,
) -> ASGIResponse:
    known = await _known(api, idempotency)
    if known is not None and known.begun is not None:
        idempotency = msgspec.structs.replace(idempotency, begun=known.begun)
    elif known is not None:
        if not api.gateway.ready:
            # It may be stored and not yet known to be: what is read meanwhile is from before.
            raise UnavailableError("the store is away; try again")
        return await _replay(api, known, again, location, headers or {})
    answer = await act(idempotency)
    if not answer.stored and answer.status < 300:
        await _remember(api, idempotency, answer)
    return answer.response()


async def _known(api: Api, idempotency: Idempotency) -> Remembered | None:
    with catalog_errors("idempotency record"):
        data = await api.gateway.first_answer(idempotency)
        if data is None:
            return None
        known = recall(data)
    if known.request_hash != idempotency.request_hash:
        raise InvalidError(
            "this Idempotency-Key was used for another request; use a new key",
            ["Idempotency-Key: known with another body or query"],
        )
    return known


async def _replay(
    api: Api,
    known: Remembered,
    again: Again | None,
    location: str | None,
    headers: dict[str, str],
) -> ASGIResponse:
    api.replayed.inc()
    if known.body is not None:
        if location is not None:
            headers = headers | {"Location": f"{location}{known.reference}"}
        answer = Answer(status=known.status, body=known.body, headers=headers)
    elif again is not None:
        try:
            answer = await again(known.reference or "")
        except NotFoundError as exc:
            raise ConflictError(
                "what was made with this Idempotency-Key is gone, and its answer was too large "
                "to keep; use a new key to make another"
            ) from exc
    else:
        answer = Answer(status=known.status)
    return msgspec.structs.replace(answer, headers=answer.headers | REPLAYED).response()


async def begin(api: Api, idempotency: Idempotency, plan: bytes) -> None:
    """Store what is going to be done; nothing is done if it cannot be stored."""
    with catalog_errors("idempotency record"):
        kept = await api.gateway.remember(idempotency.plan(plan))
    if not kept:
        raise UnavailableError("the project has too many idempotency keys to remember this one", 60)


async def _remember(api: Api, idempotency: Idempotency, answer: Answer) -> None:
    record = idempotency.record(
        status=answer.status,
        reference=answer.reference,
        body=answer.body,
    )
    with catalog_errors("idempotency record"):
        kept = await api.gateway.remember(record)
    if not kept:
        raise UnavailableError(
            "it was done, but the project has too many idempotency keys to remember this one; "
            "repeating may do it again",
            60,
        )
