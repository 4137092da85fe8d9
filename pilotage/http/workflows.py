"""Workflows: define, change, read, trigger, and what a run of them would do."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import msgspec
from litestar import Controller, delete, get, patch, post
from litestar.params import PathParameter
from litestar.response.base import ASGIResponse

from pilotage.actors.catalog_lookup import all_known
from pilotage.actors.catalog_model import Workflow
from pilotage.actors.idempotency import Idempotency
from pilotage.http.answers import empty, ok
from pilotage.http.bodies import DEFINITION_LIMIT, read_json
from pilotage.http.call import (
    AnyRequest,
    acting,
    api_of,
    call_of,
    named_project,
    principal_of,
    problems_of,
    refuse_wrong,
    required_project,
)
from pilotage.http.pages import Listing
from pilotage.http.queries import Query
from pilotage.http.repeats import Answer, once
from pilotage.http.resources import version_view, workflow_view
from pilotage.http.runs import (
    READ,
    TRIGGER,
    WRITE,
    answer_list,
    made_run,
    note_format,
    shown_run,
)
from pilotage.runtime.graph import StepGraph
from pilotage.runtime.insight import start_waves, workflow_graph
from pilotage.runtime.jsonvalues import is_object, type_name
from pilotage.runtime.tracing import parse_trace
from pilotage.runtime.validation import ParsedTrigger, parse_trigger, parse_workflow

WorkflowId = Annotated[str, PathParameter(name="workflowID")]


class DryRun(msgspec.Struct, frozen=True, kw_only=True):
    """What would start when: the steps of one wave need only those of the waves before, and are no
    more than may run at once.

    `disabled`: switched off by `step_overrides`; they are skipped at once, in no wave, and hold
    nothing up.
    """

    workflow_id: str
    version: int
    order: list[str]
    waves: list[list[str]]
    disabled: list[str]


def body_project(request: AnyRequest, body: Any) -> str:
    """The project of something that is made: named in the body, the header, or the key's own.

    Empty if none can be told, which is a problem of the request.
    """
    given = body.get("project_id") if is_object(body) else None
    if given is not None and not isinstance(given, str):
        problem = f"project_id: must be a string, not {type_name(given)}"
        problems_of(request).append(problem)
        return ""
    return required_project(request, given)


def require_object(body: Any) -> Mapping[str, Any]:
    """No body is the same as an empty object; the parser says what is missing."""
    return {} if body is None else body


async def find_workflow(
    request: AnyRequest, id_or_slug: str, query: Query | None = None
) -> Workflow:
    """`query`: of a list; it may name the project of a slug. An admin key needs none for an id."""
    given = None if query is None else query.one("project_id")
    project_id = named_project(request, given)
    of_any = given is None and principal_of(request).is_admin
    return await api_of(request).catalog.workflow(project_id, id_or_slug, of_any=of_any)


class WorkflowsController(Controller):
    path = "/workflows"

    @post("/", operation_id="create-workflow", opt=WRITE)
    async def create(self, request: AnyRequest) -> ASGIResponse:
        body = await read_json(request, DEFINITION_LIMIT)
        catalog, by = api_of(request).catalog, acting(request)
        raw = require_object(body)
        project_id = body_project(request, body)
        Query(request).no_dry_run()

        async def parse() -> None:
            """Only for its problems."""
            if project_id:
                await catalog.parse_workflow(project_id, raw)
            else:
                parse_workflow(raw, resolve=all_known(raw))

        await refuse_wrong(request, parse=parse)

        def encoded_view(workflow: Workflow) -> bytes:
            return msgspec.json.encode(workflow_view(workflow))

        def shown(workflow: Workflow) -> Answer:
            return Answer(
                status=201,
                body=encoded_view(workflow),
                headers={"Location": f"/v1/workflows/{workflow.id}"},
                reference=workflow.id,
                stored=True,
            )

        async def act(idempotency: Idempotency | None) -> Answer:
            parsed = await catalog.parse_workflow(project_id, raw)
            workflow = await catalog.create_workflow(
                parsed,
                project_id=project_id,
                created_by=by.name,
                idempotency=idempotency,
                body=encoded_view,
            )
            return shown(workflow)

        async def again(reference: str) -> Answer:
            return shown(await catalog.workflow(project_id, reference))

        return await once(request, project_id, body, act, again, location="/v1/workflows/")

    @get("/", operation_id="list-workflows", opt=READ)
    async def list_(self, request: AnyRequest) -> ASGIResponse:
        query = Query(request)
        limit = query.limit()
        project_id = required_project(request, query.one("project_id"))
        as_page = query.one("project_id") is None
        listing = Listing(request, query, project_id, always_page=as_page)
        after = listing.after
        await refuse_wrong(request)
        rows, after = await api_of(request).catalog.list_workflows(project_id, limit, after)
        return listing.answer([workflow_view(w, with_steps=False) for w in rows], after)

    @get("/{workflowID:str}", operation_id="get-workflow", opt=READ)
    async def read(self, request: AnyRequest, workflow_id: WorkflowId) -> ASGIResponse:
        workflow = await find_workflow(request, workflow_id)
        await refuse_wrong(request)
        return ok(workflow_view(workflow))

    @patch("/{workflowID:str}", operation_id="update-workflow", opt=WRITE)
    async def update(self, request: AnyRequest, workflow_id: WorkflowId) -> ASGIResponse:
        body = await read_json(request, DEFINITION_LIMIT)
        catalog, by = api_of(request).catalog, acting(request)
        workflow = await find_workflow(request, workflow_id)
        Query(request).no_dry_run()
        parse = partial(catalog.parse_patch, workflow, require_object(body))
        await refuse_wrong(request, parse=parse)
        parsed = await parse()
        return ok(
            workflow_view(await catalog.update_workflow(workflow, parsed, updated_by=by.name))
        )

    @delete("/{workflowID:str}", operation_id="delete-workflow", opt=WRITE, status_code=200)
    async def remove(self, request: AnyRequest, workflow_id: WorkflowId) -> ASGIResponse:
        workflow = await find_workflow(request, workflow_id)
        Query(request).no_dry_run()
        await refuse_wrong(request)
        await api_of(request).catalog.delete_workflow(workflow)
        return empty()

    @get("/{workflowID:str}/runs", operation_id="list-runs-of-workflow", opt=READ)
    async def runs(self, request: AnyRequest, workflow_id: WorkflowId) -> ASGIResponse:
        query = Query(request)
        workflow = await find_workflow(request, workflow_id, query)
        return await answer_list(request, workflow.project_id, query, workflow.id)

    @get("/{workflowID:str}/versions", operation_id="list-workflow-versions", opt=READ)
    async def versions(self, request: AnyRequest, workflow_id: WorkflowId) -> ASGIResponse:
        query = Query(request)
        workflow = await find_workflow(request, workflow_id, query)
        limit = query.limit()
        listing = Listing(request, query, workflow.id, always_page=True)
        after = listing.after
        await refuse_wrong(request)
        rows, after = await api_of(request).catalog.versions(workflow, limit, after)
        return listing.answer([version_view(v) for v in rows], after)

    @get("/{workflowID:str}/graph", operation_id="get-workflow-graph", opt=READ)
    async def graph(self, request: AnyRequest, workflow_id: WorkflowId) -> ASGIResponse:
        workflow = await find_workflow(request, workflow_id)
        note_format(request)
        await refuse_wrong(request)
        graph = await api_of(request).catalog.graph(workflow.version_id)
        return ok(workflow_graph(workflow.id, workflow.version, graph))

    @post("/{workflowID:str}/trigger", operation_id="trigger-workflow", opt=TRIGGER)
    async def trigger(self, request: AnyRequest, workflow_id: WorkflowId) -> ASGIResponse:
        body = await read_json(request)
        workflow = await find_workflow(request, workflow_id)
        Query(request).no_dry_run()
        await refuse_wrong(request, parse=partial(_parse_trigger, request, workflow, body))
        gateway, by = api_of(request).gateway, acting(request)

        async def act(idempotency: Idempotency | None) -> Answer:
            parsed, _ = await _parse_trigger(request, workflow, body)
            view = await gateway.trigger(workflow, parsed, actor=by.name, idempotency=idempotency)
            return made_run(view, stored=True)

        async def again(reference: str) -> Answer:
            return await shown_run(request, reference)

        return await once(request, workflow.project_id, body, act, again)

    @post("/{workflowID:str}/dry-run", operation_id="dry-run-workflow", opt=TRIGGER)
    async def dry_run(self, request: AnyRequest, workflow_id: WorkflowId) -> ASGIResponse:
        body = await read_json(request)
        workflow = await find_workflow(request, workflow_id)
        Query(request)  # dry it is, whatever `dry_run` says; other parameters are refused
        await refuse_wrong(request, parse=partial(_parse_trigger, request, workflow, body))

        async def shown() -> Answer:
            parsed, graph = await _parse_trigger(request, workflow, body)
            waves = start_waves(graph, parsed.disabled, workflow.spec.max_parallel_steps)
            found = DryRun(
                workflow_id=workflow.id,
                version=workflow.version,
                order=[ref for wave in waves for ref in wave],
                waves=waves,
                disabled=[s.step_ref for s in graph.steps if s.step_ref in parsed.disabled],
            )
            return Answer(status=200, body=msgspec.json.encode(found))

        async def act(_: Idempotency | None) -> Answer:
            return await shown()

        async def again(_: str) -> Answer:
            return await shown()

        return await once(request, workflow.project_id, body, act, again)


async def _parse_trigger(
    request: AnyRequest, workflow: Workflow, body: Any
) -> tuple[ParsedTrigger, StepGraph]:
    graph = await api_of(request).catalog.graph(workflow.version_id)
    parsed = parse_trigger(body, graph.index)
    trace = parse_trace(call_of(request.scope).header(b"traceparent"))
    return msgspec.structs.replace(parsed, trace=trace), graph
