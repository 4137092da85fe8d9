"""The callback API: what a job that took its order with 202 reports, under its run token."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Annotated

from litestar import Controller, post
from litestar.params import PathParameter
from litestar.response.base import ASGIResponse

from pilotage.actors.errors import UnauthenticatedError
from pilotage.http.answers import empty
from pilotage.http.auth import PUBLIC, bearer_token, count_failure, refuse_without_store
from pilotage.http.bodies import Fields, encode_json, read_action, read_json
from pilotage.http.call import AnyRequest, api_of, call_of, problems_of, refuse_wrong

JobRunId = Annotated[str, PathParameter(name="jobRunID")]
BY_TOKEN = {"scope": PUBLIC, "credential": "run-token"}
LEVELS = ("debug", "info", "warning", "error")
OTHER_LEVELS = {"warn": "warning", "critical": "error", "fatal": "error"}
"""What loggers in the world call them besides."""
MAX_ERROR = 16_384
MAX_MESSAGE = 2_000


def _token(request: AnyRequest, job_run_id: str) -> str:
    """The run token, checked before the body is read."""
    token = bearer_token(call_of(request.scope).headers)
    if token is None:
        count_failure(api_of(request), request.scope)
        raise UnauthenticatedError(
            "the run token of the attempt is needed; send Authorization: Bearer <X-Run-Token>"
        )
    try:
        api_of(request).gateway.callback_check(job_run_id, token)
    except UnauthenticatedError:
        count_failure(api_of(request), request.scope)
        raise
    refuse_without_store(api_of(request), {})
    return token


async def _report(report: Awaitable[None]) -> ASGIResponse:
    await report
    return empty()


class CallbacksController(Controller):
    path = "/sdk/v1/runs/{jobRunID:str}"

    @post("/complete", operation_id="complete-job-run", opt=BY_TOKEN)
    async def complete(self, request: AnyRequest, job_run_id: JobRunId) -> ASGIResponse:
        token = _token(request, job_run_id)
        fields = Fields(await read_json(request), problems_of(request))
        result = encode_json(fields.take("result"))
        await refuse_wrong(request)
        gateway = api_of(request).gateway
        return await _report(gateway.callback_complete(job_run_id, token, result))

    @post("/fail", operation_id="fail-job-run", opt=BY_TOKEN)
    async def fail(self, request: AnyRequest, job_run_id: JobRunId) -> ASGIResponse:
        token = _token(request, job_run_id)
        fields = Fields(await read_json(request), problems_of(request))
        error = fields.text("error", max_chars=MAX_ERROR, required=True) or ""
        final = fields.flag("final")
        await refuse_wrong(request)
        gateway = api_of(request).gateway
        return await _report(gateway.callback_fail(job_run_id, token, error, final=final))

    @post("/heartbeat", operation_id="heartbeat-job-run", opt=BY_TOKEN)
    async def heartbeat(self, request: AnyRequest, job_run_id: JobRunId) -> ASGIResponse:
        token = _token(request, job_run_id)
        await read_action(request)
        await refuse_wrong(request)
        gateway = api_of(request).gateway
        return await _report(gateway.callback_heartbeat(job_run_id, token))

    @post("/progress", operation_id="report-job-run-progress", opt=BY_TOKEN)
    async def progress(self, request: AnyRequest, job_run_id: JobRunId) -> ASGIResponse:
        token = _token(request, job_run_id)
        fields = Fields(await read_json(request), problems_of(request))
        percent = fields.number("percent", 0, 100)
        if fields.take("percent") is None:
            fields.problems.append("percent: required")
        message = fields.text("message", max_chars=MAX_MESSAGE)
        await refuse_wrong(request)
        gateway = api_of(request).gateway
        return await _report(gateway.callback_progress(job_run_id, token, percent or 0.0, message))

    @post("/log", operation_id="log-job-run", opt=BY_TOKEN)
    async def log(self, request: AnyRequest, job_run_id: JobRunId) -> ASGIResponse:
        token = _token(request, job_run_id)
        fields = Fields(await read_json(request), problems_of(request))
        level = fields.text("level", max_chars=16, required=True) or ""
        level = OTHER_LEVELS.get(level, level)
        message = fields.text("message", max_chars=MAX_MESSAGE, required=True) or ""
        data = encode_json(fields.take("data"))
        if level and level not in LEVELS:
            fields.problems.append(f"level: must be one of {', '.join(LEVELS)}")
        if data is not None and len(data) > MAX_ERROR:
            fields.problems.append(f"data: must be at most {MAX_ERROR} bytes of JSON")
        await refuse_wrong(request)
        gateway = api_of(request).gateway
        return await _report(gateway.callback_log(job_run_id, token, level, message, data))
