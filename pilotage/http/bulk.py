"""The same command on up to a hundred runs: one bad run does not spoil the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from litestar import Controller, post
from litestar.response.base import ASGIResponse

from pilotage.actors.idempotency import Idempotency
from pilotage.http.answers import ok
from pilotage.http.bodies import Fields, read_json
from pilotage.http.call import AnyRequest, acting, api_of, problems_of, refuse_wrong
from pilotage.http.ports import BulkItem
from pilotage.http.queries import Query
from pilotage.http.repeats import Answer, idempotency_of, once
from pilotage.http.runs import WRITE

MAX_RUNS = 100


class BulkResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    workflow_run_id: str
    status: str
    new_workflow_run_id: str | None = None
    error: str | None = None


class BulkCanceled(msgspec.Struct, frozen=True, kw_only=True):
    canceled: int
    failed: int
    results: list[BulkResult]


class BulkReplayed(msgspec.Struct, frozen=True, kw_only=True):
    replayed: int
    failed: int
    results: list[BulkResult]


def _results(items: Sequence[BulkItem]) -> list[BulkResult]:
    return [
        BulkResult(
            workflow_run_id=item.workflow_run_id,
            status=item.status,
            new_workflow_run_id=item.new_workflow_run_id,
            error=item.error,
        )
        for item in items
    ]


def canceled(items: Sequence[BulkItem]) -> BulkCanceled:
    results = _results(items)
    failed = sum(r.status == "failed" for r in results)
    return BulkCanceled(canceled=len(results) - failed, failed=failed, results=results)


def replayed(items: Sequence[BulkItem]) -> BulkReplayed:
    results = _results(items)
    failed = sum(r.status == "failed" for r in results)
    return BulkReplayed(replayed=len(results) - failed, failed=failed, results=results)


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A bulk request as it came."""

    body: Any
    run_ids: list[str]
    dry_run: bool


def _run_id_problem(run_id: str) -> str | None:
    return None if run_id else "must not be empty"


async def asked(request: AnyRequest) -> Asked:
    body = await read_json(request)
    dry_run = Query(request).flag("dry_run")
    fields = Fields(body, problems_of(request))
    found = fields.texts("workflow_run_ids", 1, MAX_RUNS, _run_id_problem)
    await refuse_wrong(request)
    return Asked(body=body, run_ids=list(dict.fromkeys(found)), dry_run=dry_run)


class BulkController(Controller):
    path = "/workflow-runs"

    @post("/bulk-cancel", operation_id="bulk-cancel-workflow-runs", opt=WRITE)
    async def cancel(self, request: AnyRequest) -> ASGIResponse:
        gateway, by = api_of(request).gateway, acting(request)
        what = await asked(request)
        if what.dry_run:
            return ok(canceled(await gateway.bulk_cancel(what.run_ids, by, dry_run=True)))

        async def act(idempotency: Idempotency | None) -> Answer:
            """Each run's end is remembered with it; the answer as a whole afterwards."""
            items = await gateway.bulk_cancel(what.run_ids, by, idempotency=idempotency)
            return Answer(status=200, body=msgspec.json.encode(canceled(items)))

        return await once(request, by.project_id, what.body, act)

    @post("/bulk-replay", operation_id="bulk-replay-workflow-runs", opt=WRITE)
    async def replay(self, request: AnyRequest) -> ASGIResponse:
        gateway, by = api_of(request).gateway, acting(request)
        what = await asked(request)
        if what.dry_run:
            return ok(replayed(await gateway.bulk_replay(what.run_ids, by, dry_run=True)))

        async def act(idempotency: Idempotency | None) -> Answer:
            """Each run's replay is remembered with it; the answer as a whole afterwards."""
            items = await gateway.bulk_replay(what.run_ids, by, idempotency=idempotency)
            return Answer(status=200, body=msgspec.json.encode(replayed(items)))

        async def again(_: str) -> Answer:
            return await act(idempotency_of(request, by.project_id, what.body))

        return await once(request, by.project_id, what.body, act, again)
