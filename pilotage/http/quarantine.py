"""Quarantine: runs whose actor failed too often, or that cannot be read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import msgspec
from litestar import Controller, get, post
from litestar.response.base import ASGIResponse

from pilotage.actors.errors import ConflictError, NotFoundError
from pilotage.actors.idempotency import Idempotency
from pilotage.actors.principal import Principal
from pilotage.http.bodies import read_action
from pilotage.http.call import AnyRequest, acting, api_of, principal_of, refuse_wrong
from pilotage.http.pages import Listing
from pilotage.http.queries import Query
from pilotage.http.repeats import Answer, once
from pilotage.http.runs import READ, WRITE, RunId
from pilotage.runtime.views import RunView


class QuarantinedRun(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`run` is left out if it cannot be read."""

    workflow_run_id: str
    reason: str
    run: RunView | None = None


class QuarantineController(Controller):
    path = "/quarantine"

    @get("/", operation_id="list-quarantined-runs", opt=READ)
    async def list_(self, request: AnyRequest) -> ASGIResponse:
        """Newest first. A key of a project sees its own runs."""
        query = Query(request)
        limit = query.limit()
        principal = principal_of(request)
        listing = Listing(request, query, principal.project_id, always_page=True)
        after = listing.after
        await refuse_wrong(request)
        gateway = api_of(request).gateway
        rows: list[QuarantinedRun] = []
        for run_id in sorted(gateway.quarantined, reverse=True):
            if after is not None and run_id >= after[1]:
                continue
            view: RunView | None = None
            try:
                view = await gateway.get_run_view(run_id, principal)
            except NotFoundError:
                continue
            except ConflictError:  # it is the caller's, and cannot be read
                pass
            reason = gateway.quarantined.get(run_id, "")
            rows.append(QuarantinedRun(workflow_run_id=run_id, reason=reason, run=view))
            if len(rows) > limit:
                break
        more = len(rows) > limit
        return listing.answer(rows[:limit], (0, rows[limit - 1].workflow_run_id) if more else None)

    @post("/{workflowRunID:str}/release", operation_id="release-quarantined-run", opt=WRITE)
    async def release(self, request: AnyRequest, run_id: RunId) -> ASGIResponse:
        return await _do(request, run_id, api_of(request).gateway.release_quarantined)

    @post("/{workflowRunID:str}/discard", operation_id="discard-quarantined-run", opt=WRITE)
    async def discard(self, request: AnyRequest, run_id: RunId) -> ASGIResponse:
        return await _do(request, run_id, api_of(request).gateway.discard_quarantined)


async def _do(
    request: AnyRequest, run_id: str, do: Callable[[str, Principal], Awaitable[None]]
) -> ASGIResponse:
    body = await read_action(request)
    Query(request).no_dry_run()
    await refuse_wrong(request, partial(_look_for, request, run_id))

    async def act(_: Idempotency | None) -> Answer:
        await do(run_id, acting(request))
        return Answer(status=204)

    return await once(request, principal_of(request).project_id, body, act)


async def _look_for(request: AnyRequest, run_id: str) -> None:
    """404 if no such run is quarantined, or it is not the caller's."""
    gateway = api_of(request).gateway
    if run_id not in gateway.quarantined:
        raise NotFoundError(f'no run "{run_id}" is quarantined')
    with suppress(ConflictError):  # it is the caller's, and cannot be read
        await gateway.get_run_view(run_id, principal_of(request))
