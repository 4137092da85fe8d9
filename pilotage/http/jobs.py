"""Jobs, and job runs: the record of every attempt."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import msgspec
from litestar import Controller, delete, get, patch, post
from litestar.params import PathParameter
from litestar.response.base import ASGIResponse

from pilotage.actors.catalog_model import Job
from pilotage.actors.idempotency import Idempotency
from pilotage.http.answers import empty, ok
from pilotage.http.bodies import read_json
from pilotage.http.call import (
    AnyRequest,
    api_of,
    named_project,
    principal_of,
    refuse_wrong,
    required_project,
)
from pilotage.http.pages import Listing
from pilotage.http.queries import Query
from pilotage.http.repeats import Answer, once
from pilotage.http.resources import job_view
from pilotage.http.workflows import body_project, require_object
from pilotage.runtime.validation import parse_job, parse_job_patch

JobId = Annotated[str, PathParameter(name="jobID")]
JobRunId = Annotated[str, PathParameter(name="jobRunID")]
READ = {"scope": "jobs:read"}
WRITE = {"scope": "jobs:write"}


async def find_job(request: AnyRequest, id_or_slug: str) -> Job:
    """An admin key needs no project for an id."""
    project_id, of_any = named_project(request, None), principal_of(request).is_admin
    return await api_of(request).catalog.job(project_id, id_or_slug, of_any=of_any)


async def _parse(body: Any, current: Job | None = None) -> None:
    """Only for its problems."""
    raw = require_object(body)
    if current is None:
        parse_job(raw)
    else:
        parse_job_patch(raw, current)


class JobsController(Controller):
    path = "/jobs"

    @post("/", operation_id="create-job", opt=WRITE)
    async def create(self, request: AnyRequest) -> ASGIResponse:
        body = await read_json(request)
        catalog = api_of(request).catalog
        project_id = body_project(request, body)
        Query(request).no_dry_run()
        await refuse_wrong(request, parse=partial(_parse, body))

        def encoded_view(job: Job) -> bytes:
            return msgspec.json.encode(job_view(job))

        def shown(job: Job) -> Answer:
            return Answer(
                status=201,
                body=encoded_view(job),
                headers={"Location": f"/v1/jobs/{job.id}"},
                reference=job.id,
                stored=True,
            )

        async def act(idempotency: Idempotency | None) -> Answer:
            parsed = parse_job(require_object(body))
            job = await catalog.create_job(
                parsed, project_id=project_id, idempotency=idempotency, body=encoded_view
            )
            return shown(job)

        async def again(reference: str) -> Answer:
            return shown(await catalog.job(project_id, reference))

        return await once(request, project_id, body, act, again, location="/v1/jobs/")

    @get("/", operation_id="list-jobs", opt=READ)
    async def list_(self, request: AnyRequest) -> ASGIResponse:
        query = Query(request)
        limit = query.limit()
        project_id = required_project(request, query.one("project_id"))
        as_page = query.one("project_id") is None
        listing = Listing(request, query, project_id, always_page=as_page)
        after = listing.after
        await refuse_wrong(request)
        rows, after = await api_of(request).catalog.list_jobs(project_id, limit, after)
        return listing.answer([job_view(j) for j in rows], after)

    @get("/{jobID:str}", operation_id="get-job", opt=READ)
    async def read(self, request: AnyRequest, job_id: JobId) -> ASGIResponse:
        job = await find_job(request, job_id)
        await refuse_wrong(request)
        return ok(job_view(job))

    @patch("/{jobID:str}", operation_id="update-job", opt=WRITE)
    async def update(self, request: AnyRequest, job_id: JobId) -> ASGIResponse:
        body = await read_json(request)
        job = await find_job(request, job_id)
        Query(request).no_dry_run()
        await refuse_wrong(request, parse=partial(_parse, body, job))
        parsed = parse_job_patch(require_object(body), job)
        return ok(job_view(await api_of(request).catalog.update_job(job, parsed)))

    @delete("/{jobID:str}", operation_id="delete-job", opt=WRITE, status_code=200)
    async def remove(self, request: AnyRequest, job_id: JobId) -> ASGIResponse:
        job = await find_job(request, job_id)
        Query(request).no_dry_run()
        await refuse_wrong(request)
        await api_of(request).catalog.delete_job(job)
        return empty()


class JobRunsController(Controller):
    path = "/runs"

    @get("/", operation_id="list-job-runs", opt=READ)
    async def list_(self, request: AnyRequest) -> ASGIResponse:
        """Newest first: by creation, then by id."""
        query = Query(request)
        project_id = named_project(request, query.one("project_id"))
        run_id = query.one("workflow_run_id")
        limit = query.limit()
        if not run_id:
            query.problems.append("workflow_run_id: required")
        as_page = query.one("project_id") is None
        listing = Listing(request, query, run_id or "", always_page=as_page)
        after = listing.after
        await refuse_wrong(request)
        assert run_id is not None  # or it would be a problem
        views = await api_of(request).gateway.job_runs(run_id, principal_of(request))
        rows = sorted(
            (v for v in views if project_id is None or v.project_id == project_id),
            key=lambda v: (v.created_at, v.attempt, v.id),
            reverse=True,
        )
        start = 0
        if after is not None:
            start = next((k + 1 for k, v in enumerate(rows) if v.id == after[1]), len(rows))
        page = rows[start : start + limit]
        more = start + limit < len(rows)
        return listing.answer(page, (0, page[-1].id) if more else None)

    @get("/{jobRunID:str}", operation_id="get-job-run", opt=READ)
    async def read(self, request: AnyRequest, job_run_id: JobRunId) -> ASGIResponse:
        return ok(await api_of(request).gateway.job_run(job_run_id, principal_of(request)))
