"""Quarantine: runs whose actor failed too often, or that cannot be read."""

from __future__ import annotations

from functools import partial

import msgspec
from litestar import Controller, get, post
from litestar.response.base import ASGIResponse

from pilotage.actors.errors import ConflictError, NotFoundError
from pilotage.actors.idempotency import Idempotency
from pilotage.http.bodies import read_json
from pilotage.http.call import AnyRequest, acting, api_of, principal_of
from pilotage.http.pages import Listing
from pilotage.http.queries import Query, refuse_dry_run
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
        query.check()
        principal = principal_of(request)
        listing = Listing(request, query, principal.project_id, always_page=True)
        after = listing.after
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
            except ConflictError:  # it cannot be read: for those who see everything
                if not principal.is_admin:
                    continue
            reason = gateway.quarantined.get(run_id, "")
            rows.append(QuarantinedRun(workflow_run_id=run_id, reason=reason, run=view))
            if len(rows) > limit:
                break
        more = len(rows) > limit
        return listing.answer(rows[:limit], (0, rows[limit - 1].workflow_run_id) if more else None)

    @post("/{workflowRunID:str}/release", operation_id="release-quarantined-run", opt=WRITE)
    async def release(self, request: AnyRequest, run_id: RunId) -> ASGIResponse:
        release = partial(api_of(request).gateway.release_quarantined, run_id, acting(request))
        body = await read_json(request)
        refuse_dry_run(request)

        async def act(_: Idempotency | None) -> Answer:
            await release()
            return Answer(status=204)

        return await once(request, principal_of(request).project_id, body, act)

    @post("/{workflowRunID:str}/discard", operation_id="discard-quarantined-run", opt=WRITE)
    async def discard(self, request: AnyRequest, run_id: RunId) -> ASGIResponse:
        discard = partial(api_of(request).gateway.discard_quarantined, run_id, acting(request))
        body = await read_json(request)
        refuse_dry_run(request)

        async def act(_: Idempotency | None) -> Answer:
            await discard()
            return Answer(status=204)

        return await once(request, principal_of(request).project_id, body, act)
