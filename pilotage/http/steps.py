"""Steps of a run: list, approve, reject, skip, force-complete, retry, replay."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Protocol

import msgspec
from litestar import Controller, get, post
from litestar.params import PathParameter
from litestar.response.base import ASGIResponse

from pilotage.actors.errors import ForbiddenError, NotFoundError
from pilotage.actors.executors.port import MAX_OUTPUT_BYTES
from pilotage.actors.idempotency import Idempotency
from pilotage.http.answers import ok
from pilotage.http.bodies import Fields, encode_json, read_json
from pilotage.http.call import AnyRequest, acting, api_of, principal_of, problems_of, refuse_wrong
from pilotage.http.pages import Listing
from pilotage.http.ports import Body
from pilotage.http.queries import Query
from pilotage.http.repeats import Answer, once
from pilotage.http.runs import (
    READ_IN_MEMORY,
    WRITE,
    RunId,
    applied,
    run_project,
    wants_representation,
)
from pilotage.runtime.preview import Preview
from pilotage.runtime.state import RunState
from pilotage.runtime.views import StepView, step_view

StepRef = Annotated[str, PathParameter(name="stepRef")]
Done = RunState | Preview


class StepRunBody(msgspec.Struct, frozen=True, kw_only=True):
    step_run: StepView


class ResetBody(msgspec.Struct, frozen=True, kw_only=True):
    reset_steps: int


def step_body(state: RunState, step_ref: str) -> bytes:
    view = step_view(state, state.graph.index[step_ref])
    return msgspec.json.encode(StepRunBody(step_run=view))


def preferred_step(request: AnyRequest, state: RunState, step_ref: str) -> bytes | None:
    """The step, for a client that prefers to see it."""
    return step_body(state, step_ref) if wants_representation(request) else None


def always_step(_request: AnyRequest, state: RunState, step_ref: str) -> bytes | None:
    return step_body(state, step_ref)


def _answer(request: AnyRequest, body: bytes | None) -> Answer:
    """204, or what is shown."""
    if body is None:
        return Answer(status=204, stored=True)
    return Answer(status=200, body=body, headers=applied(request), stored=True)


async def look_for_step(
    request: AnyRequest, run_id: str, step_ref: str, *, deciding: bool = False
) -> None:
    """404 if there is none, 403 for who may not decide about it."""
    state = await api_of(request).gateway.get_run(run_id, principal_of(request))
    index = state.graph.index.get(step_ref)
    if index is None:
        raise NotFoundError(f'the run has no step "{step_ref}"')
    approvers = state.graph.steps[index].approval_approvers
    if deciding and approvers and acting(request).name not in approvers:
        raise ForbiddenError(
            f'"{acting(request).name}" may not decide; approvers are {", ".join(approvers)}'
        )


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A command on a step as it came."""

    body: Any
    fields: Fields
    dry_run: bool


async def asked(request: AnyRequest, *, deciding: bool = False) -> Asked:
    """`deciding`: an approval, which has no dry run."""
    body = await read_json(request)
    query = Query(request)
    dry_run = False
    if deciding:
        query.no_dry_run()
    else:
        dry_run = query.flag("dry_run")
    return Asked(body=body, fields=Fields(body, problems_of(request)), dry_run=dry_run)


class StepCommand(Protocol):
    """A command of the gateway with everything but how it is remembered."""

    async def __call__(self, *, idempotency: Idempotency | None, body: Body) -> Done: ...


async def step_command(
    request: AnyRequest,
    run_id: str,
    step_ref: str,
    what: Asked,
    do: StepCommand,
    show: Callable[[AnyRequest, RunState, str], bytes | None] = preferred_step,
) -> ASGIResponse:
    """Do it once. `show` makes the answer's body of the state that it led to."""

    def shown(state: RunState) -> bytes | None:
        return show(request, state, step_ref)

    async def act(idempotency: Idempotency | None) -> Answer:
        state = await do(idempotency=idempotency, body=shown)
        assert not isinstance(state, Preview)
        return _answer(request, shown(state))

    async def again(_: str) -> Answer:
        state = await api_of(request).gateway.get_run(run_id, principal_of(request))
        return _answer(request, shown(state))

    project_id = await run_project(request, run_id)
    return await once(request, project_id, what.body, act, again, headers=applied(request))


class StepsController(Controller):
    path = "/workflow-runs/{workflowRunID:str}/steps"

    @get("/", operation_id="list-workflow-run-steps", opt=READ_IN_MEMORY)
    async def list_(self, request: AnyRequest, run_id: RunId) -> ASGIResponse:
        query = Query(request)
        listing = Listing(request, query, run_id)
        limit, after = query.limit(), listing.after
        views = await api_of(request).gateway.steps(run_id, principal_of(request))
        await refuse_wrong(request)
        if not listing.as_page and query.one("limit") is None:
            return ok(views)
        start = 0 if after is None else after[0] + 1
        page = views[start : start + limit]
        more = start + limit < len(views)
        return listing.answer(page, (start + limit - 1, "") if more else None)

    @post("/{stepRef:str}/approve", operation_id="approve-workflow-step", opt=WRITE)
    async def approve(self, request: AnyRequest, run_id: RunId, step_ref: StepRef) -> ASGIResponse:
        what = await asked(request, deciding=True)
        comment = what.fields.text("comment")
        look = partial(look_for_step, request, run_id, step_ref, deciding=True)
        await refuse_wrong(request, look)
        gateway, by = api_of(request).gateway, acting(request)

        do = partial(gateway.approve, run_id, step_ref, by, comment, by.name)
        return await step_command(request, run_id, step_ref, what, do)

    @post("/{stepRef:str}/reject", operation_id="reject-workflow-step", opt=WRITE)
    async def reject(self, request: AnyRequest, run_id: RunId, step_ref: StepRef) -> ASGIResponse:
        what = await asked(request, deciding=True)
        reason = what.fields.text("reason")
        look = partial(look_for_step, request, run_id, step_ref, deciding=True)
        await refuse_wrong(request, look)
        gateway, by = api_of(request).gateway, acting(request)

        do = partial(gateway.reject, run_id, step_ref, by, reason, by.name)
        return await step_command(request, run_id, step_ref, what, do)

    @post("/{stepRef:str}/skip", operation_id="skip-workflow-step", opt=WRITE)
    async def skip(self, request: AnyRequest, run_id: RunId, step_ref: StepRef) -> ASGIResponse:
        what = await asked(request)
        reason = what.fields.text("reason")
        await refuse_wrong(request, partial(look_for_step, request, run_id, step_ref))
        gateway, by = api_of(request).gateway, acting(request)

        do = partial(gateway.skip, run_id, step_ref, by, reason)
        if what.dry_run:
            return ok(await do(dry_run=True))
        return await step_command(request, run_id, step_ref, what, do)

    @post("/{stepRef:str}/force-complete", operation_id="force-complete-workflow-step", opt=WRITE)
    async def force_complete(
        self, request: AnyRequest, run_id: RunId, step_ref: StepRef
    ) -> ASGIResponse:
        what = await asked(request)
        result = encode_json(what.fields.take("result"))
        if result is not None and len(result) > MAX_OUTPUT_BYTES:
            what.fields.problems.append(f"result: must be at most {MAX_OUTPUT_BYTES} bytes of JSON")
        await refuse_wrong(request, partial(look_for_step, request, run_id, step_ref))
        gateway, by = api_of(request).gateway, acting(request)

        do = partial(gateway.force_complete, run_id, step_ref, by, result)
        if what.dry_run:
            return ok(await do(dry_run=True))
        return await step_command(request, run_id, step_ref, what, do)

    @post("/{stepRef:str}/retry", operation_id="retry-workflow-step", opt=WRITE)
    async def retry(self, request: AnyRequest, run_id: RunId, step_ref: StepRef) -> ASGIResponse:
        what = await asked(request)
        await refuse_wrong(request, partial(look_for_step, request, run_id, step_ref))
        gateway, by = api_of(request).gateway, acting(request)

        do = partial(gateway.retry_step, run_id, step_ref, by)
        if what.dry_run:
            return ok(await do(dry_run=True))
        return await step_command(request, run_id, step_ref, what, do, always_step)

    @post("/{stepRef:str}/replay-subtree", operation_id="replay-workflow-subtree", opt=WRITE)
    async def replay_subtree(
        self, request: AnyRequest, run_id: RunId, step_ref: StepRef
    ) -> ASGIResponse:
        what = await asked(request)
        await refuse_wrong(request, partial(look_for_step, request, run_id, step_ref))
        gateway, by = api_of(request).gateway, acting(request)
        if what.dry_run:
            return ok(await gateway.replay_subtree(run_id, step_ref, by, dry_run=True))

        def shown(state: RunState) -> bytes:
            count = 1 + len(state.graph.descendants(state.graph.index[step_ref]))
            return msgspec.json.encode(ResetBody(reset_steps=count))

        async def act(idempotency: Idempotency | None) -> Answer:
            count = await gateway.replay_subtree(
                run_id, step_ref, by, idempotency=idempotency, body=shown
            )
            assert isinstance(count, int)
            body = msgspec.json.encode(ResetBody(reset_steps=count))
            return Answer(status=200, body=body, stored=True)

        async def again(_: str) -> Answer:
            return Answer(status=200, body=shown(await gateway.get_run(run_id, by)))

        return await once(request, await run_project(request, run_id), what.body, act, again)
