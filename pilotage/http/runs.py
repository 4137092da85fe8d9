"""Runs: list, read, cancel, pause, resume, retry, pin, and why they are as they are."""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated, Any, Protocol

import msgspec
from litestar import Controller, delete, get, post
from litestar.params import PathParameter
from litestar.response.base import ASGIResponse

from pilotage.actors.idempotency import Idempotency
from pilotage.actors.principal import Principal
from pilotage.http.answers import ok
from pilotage.http.bodies import read_action
from pilotage.http.call import (
    AnyRequest,
    acting,
    api_of,
    call_of,
    principal_of,
    refuse_wrong,
    required_project,
)
from pilotage.http.pages import Listing
from pilotage.http.ports import Body
from pilotage.http.preferences import APPLIED, preferred
from pilotage.http.queries import MAX_ID, Query
from pilotage.http.repeats import Answer, once
from pilotage.persistence.port import RunQuery
from pilotage.runtime.insight import explain, run_graph, timeline
from pilotage.runtime.preview import Preview
from pilotage.runtime.state import RunState
from pilotage.runtime.status import RunStatus
from pilotage.runtime.views import RunView, run_view

RunId = Annotated[str, PathParameter(name="workflowRunID")]
READ: dict[str, Any] = {"scope": "workflows:read"}
READ_IN_MEMORY = READ | {"from_memory": True}
"""Of an active run it can be answered without the store."""
WRITE = {"scope": "workflows:write"}
TRIGGER = {"scope": "workflows:trigger"}
MAX_REASON = 2_000


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def wants_representation(request: AnyRequest) -> bool:
    """`Prefer: return=representation`."""
    if b"prefer" not in call_of(request.scope).headers:
        return False
    given = [value for name, value in request.scope["headers"] if name == b"prefer"]
    return preferred(b",".join(given), b"return") == b"representation"


def applied(request: AnyRequest) -> dict[str, str]:
    """What an answer with a body says beside it to a client that prefers to have one."""
    return APPLIED if wants_representation(request) else {}


def run_body(request: AnyRequest, state: RunState) -> bytes | None:
    """The run, for a client that prefers to see it."""
    if not wants_representation(request):
        return None
    return msgspec.json.encode(run_view(state.head, state.vitals))


def run_answer(request: AnyRequest, state: RunState) -> Answer:
    """204, or the run for a client that prefers to see it."""
    body = run_body(request, state)
    if body is None:
        return Answer(status=204, stored=True)
    return Answer(status=200, body=body, headers=APPLIED, stored=True)


def made_run(view: RunView, *, stored: bool) -> Answer:
    """201 and the new run."""
    return Answer(
        status=201,
        body=msgspec.json.encode(view),
        headers={"Location": f"/v1/workflow-runs/{view.id}"},
        reference=view.id,
        stored=stored,
    )


async def shown_run(request: AnyRequest, run_id: str) -> Answer:
    """The run of an answer that is given again."""
    view = await api_of(request).gateway.get_run_view(run_id, principal_of(request))
    return made_run(view, stored=True)


async def run_project(request: AnyRequest, run_id: str) -> str:
    """The project whose idempotency keys a command on a run is remembered with.

    An admin key belongs to no project: the run's is looked up, and is 404 if there is none.
    """
    principal = principal_of(request)
    if not principal.is_admin:
        return principal.project_id
    return (await api_of(request).gateway.get_run_view(run_id, principal)).project_id


class RunCommand(Protocol):
    """A command of the gateway that needs nothing but who gives it."""

    async def __call__(
        self, principal: Principal, /, *, idempotency: Idempotency | None, body: Body
    ) -> RunState: ...


async def run_command(request: AnyRequest, run_id: str, do: RunCommand) -> ASGIResponse:
    body = await read_action(request)
    principal = acting(request)
    Query(request).no_dry_run()
    await refuse_wrong(request, partial(api_of(request).gateway.get_run_view, run_id, principal))
    shown = partial(run_body, request)

    async def act(idempotency: Idempotency | None) -> Answer:
        return run_answer(request, await do(principal, idempotency=idempotency, body=shown))

    async def again(_: str) -> Answer:
        return run_answer(request, await api_of(request).gateway.get_run(run_id, principal))

    project_id = await run_project(request, run_id)
    return await once(request, project_id, body, act, again, headers=applied(request))


def note_format(request: AnyRequest) -> None:
    """Graphs come as JSON only."""
    query = Query(request)
    if query.one("format") not in {None, "json"}:
        query.problems.append("format: must be json; pictures of graphs come later")


async def answer_list(
    request: AnyRequest, project_id: str, query: Query, workflow_id: str | None
) -> ASGIResponse:
    """A page of a project's runs by the filters of the query."""
    if query.one("workflow_id") == "":
        query.problems.append("workflow_id: must be the id of a workflow, or left out")
    run_query = RunQuery(
        project_id=project_id,
        limit=query.limit(),
        status=query.word("status", RunStatus),
        workflow_id=workflow_id or query.text("workflow_id", MAX_ID) or None,
        tags=query.tags(),
        created_after_ms=query.when_ms("created_after"),
        created_before_ms=query.when_ms("created_before"),
    )
    as_page = query.one("project_id") is None
    listing = Listing(request, query, project_id, always_page=as_page)
    run_query = msgspec.structs.replace(run_query, after=listing.after)
    await refuse_wrong(request)
    runs, next_after = await api_of(request).gateway.shown_page(run_query)
    return listing.answer([run.json for run in runs], next_after)


class RunsController(Controller):
    path = "/workflow-runs"

    @get("/", operation_id="list-workflow-runs", opt=READ)
    async def list_(self, request: AnyRequest) -> ASGIResponse:
        query = Query(request)
        project_id = required_project(request, query.one("project_id"))
        return await answer_list(request, project_id, query, None)

    @get("/{workflowRunID:str}", operation_id="get-workflow-run", opt=READ_IN_MEMORY)
    async def read(self, request: AnyRequest, run_id: RunId) -> ASGIResponse:
        return ok(await api_of(request).gateway.get_run_view(run_id, principal_of(request)))

    @delete("/{workflowRunID:str}", operation_id="cancel-workflow-run", opt=WRITE, status_code=200)
    async def cancel(self, request: AnyRequest, run_id: RunId) -> ASGIResponse:
        query = Query(request)
        reason = query.text("reason", MAX_REASON)
        query.no_dry_run()
        gateway, principal = api_of(request).gateway, acting(request)
        await refuse_wrong(request, partial(gateway.get_run_view, run_id, principal))
        state = await gateway.cancel(run_id, principal, reason)
        return run_answer(request, state).response()

    @post("/{workflowRunID:str}/pause", operation_id="pause-workflow-run", opt=WRITE)
    async def pause(self, request: AnyRequest, run_id: RunId) -> ASGIResponse:
        gateway = api_of(request).gateway
        return await run_command(request, run_id, partial(gateway.pause, run_id))

    @post("/{workflowRunID:str}/resume", operation_id="resume-workflow-run", opt=WRITE)
    async def resume(self, request: AnyRequest, run_id: RunId) -> ASGIResponse:
        gateway = api_of(request).gateway
        return await run_command(request, run_id, partial(gateway.resume, run_id))

    @post("/{workflowRunID:str}/retry", operation_id="retry-workflow-run", opt=TRIGGER)
    async def retry(self, request: AnyRequest, run_id: RunId) -> ASGIResponse:
        body = await read_action(request)
        gateway, principal = api_of(request).gateway, acting(request)
        dry_run = Query(request).flag("dry_run")
        await refuse_wrong(request, partial(gateway.get_run_view, run_id, principal))
        if dry_run:
            return ok(await gateway.retry_run(run_id, principal, dry_run=True))

        async def act(idempotency: Idempotency | None) -> Answer:
            made = await gateway.retry_run(run_id, principal, idempotency=idempotency)
            assert not isinstance(made, Preview)
            return made_run(made, stored=True)

        async def again(reference: str) -> Answer:
            return await shown_run(request, reference)

        return await once(request, await run_project(request, run_id), body, act, again)

    @post("/{workflowRunID:str}/pin", operation_id="pin-workflow-run", opt=WRITE)
    async def pin(self, request: AnyRequest, run_id: RunId) -> ASGIResponse:
        pin = partial(api_of(request).gateway.pin, run_id, pinned=True)
        return await run_command(request, run_id, pin)

    @post("/{workflowRunID:str}/unpin", operation_id="unpin-workflow-run", opt=WRITE)
    async def unpin(self, request: AnyRequest, run_id: RunId) -> ASGIResponse:
        unpin = partial(api_of(request).gateway.pin, run_id, pinned=False)
        return await run_command(request, run_id, unpin)


class InsightController(Controller):
    """Why a run is as it is."""

    path = "/workflow-runs/{workflowRunID:str}"

    @get("/graph", operation_id="get-workflow-run-graph", opt=READ_IN_MEMORY)
    async def graph(self, request: AnyRequest, run_id: RunId) -> ASGIResponse:
        state = await api_of(request).gateway.get_run(run_id, principal_of(request))
        note_format(request)
        await refuse_wrong(request)
        return ok(run_graph(state, now_ms()))

    @get("/timeline", operation_id="get-workflow-run-timeline", opt=READ_IN_MEMORY)
    async def timeline(self, request: AnyRequest, run_id: RunId) -> ASGIResponse:
        state = await api_of(request).gateway.get_run(run_id, principal_of(request))
        return ok(timeline(state, now_ms()))

    @get("/explain", operation_id="explain-workflow-run", opt=READ_IN_MEMORY)
    async def explain(self, request: AnyRequest, run_id: RunId) -> ASGIResponse:
        gateway = api_of(request).gateway
        state = await gateway.get_run(run_id, principal_of(request))
        return ok(explain(state, gateway.notes(state), gateway.quarantined.get(run_id)))

    @get("/events", operation_id="list-workflow-run-events", opt=READ)
    async def events(self, request: AnyRequest, run_id: RunId) -> ASGIResponse:
        gateway, principal = api_of(request).gateway, principal_of(request)
        query = Query(request)
        limit, after = query.limit(), query.whole("after", 0)
        listing = Listing(request, query, run_id, always_page=True)
        position = listing.after
        await refuse_wrong(request, partial(gateway.get_run_view, run_id, principal))
        after = position[0] if position is not None else after
        items = await gateway.history(run_id, principal, after, limit + 1)
        rows = [msgspec.Raw(item) for item in items[:limit]]
        last = _Seq.decode(rows[-1]).seq if len(items) > limit else None
        return listing.answer(rows, None if last is None else (last, ""))


class _SeqOnly(msgspec.Struct):
    seq: int


_Seq = msgspec.json.Decoder(_SeqOnly)
