"""Events: send one to every step that waits for its key."""

from __future__ import annotations

from math import ceil
from typing import Annotated

import msgspec
from litestar import Controller, post
from litestar.exceptions import NotFoundException
from litestar.params import PathParameter
from litestar.response.base import ASGIResponse

from pilotage.actors.event_hub import EventPlan
from pilotage.actors.idempotency import Idempotency
from pilotage.http.api import Api
from pilotage.http.bodies import Fields, encode_json, read_json
from pilotage.http.call import (
    AnyRequest,
    acting,
    api_of,
    problems_of,
    refuse_wrong,
    required_project,
)
from pilotage.http.queries import Query
from pilotage.http.repeats import Answer, begin, once
from pilotage.http.runs import TRIGGER
from pilotage.runtime.views import rfc3339

MAX_KEY = 512
MAX_BUFFER_SECS = 86_400
MAX_PAYLOAD = 1 << 20
_SUFFIX = "/send"


class EventSent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`delivered`: how many steps took it; `expires_at`: until when it is kept for a later one."""

    event_key: str
    delivered: int
    buffered: bool
    expires_at: str | None = None


class EventsController(Controller):
    path = "/events"

    @post("/{eventKey:path}", operation_id="send-event", opt=TRIGGER)
    async def send(
        self, request: AnyRequest, path: Annotated[str, PathParameter(name="eventKey")]
    ) -> ASGIResponse:
        """`/v1/events/{eventKey}/send`; a key may contain slashes."""
        if not path.endswith(_SUFFIX) or len(path) <= len(_SUFFIX) + 1:
            raise NotFoundException
        key = path[1 : -len(_SUFFIX)]
        body = await read_json(request)
        fields = Fields(body, problems_of(request))
        payload = encode_json(fields.take("payload"))
        buffer_secs = fields.number("buffer_secs", 0, MAX_BUFFER_SECS)
        project = fields.text("project_id", max_chars=128)
        if len(key) > MAX_KEY or "\0" in key:
            fields.problems.append(
                f"event_key: must have 1 to {MAX_KEY} characters, none of them NUL"
            )
        if payload is not None and len(payload) > MAX_PAYLOAD:
            fields.problems.append(f"payload: must be at most {MAX_PAYLOAD} bytes of JSON")
        project_id = required_project(request, project)
        Query(request).no_dry_run()
        await refuse_wrong(request)
        api, by, secs = api_of(request), acting(request), ceil(buffer_secs or 0)

        async def act(idempotency: Idempotency | None) -> Answer:
            plan, again = None, False
            if idempotency is not None:
                plan, again = await _planned(api, idempotency, project_id, key, secs)
            receipt = await api.gateway.send_event(
                project_id, key, payload, secs, actor=by.name, plan=plan, again=again
            )
            expires = receipt.expires_at_ms
            sent = EventSent(
                event_key=receipt.event_key,
                delivered=receipt.delivered,
                buffered=receipt.buffered,
                expires_at=None if expires is None else rfc3339(expires),
            )
            return Answer(status=200, body=msgspec.json.encode(sent))

        return await once(request, project_id, body, act)


async def _planned(
    api: Api, idempotency: Idempotency, project_id: str, key: str, buffer_secs: int
) -> tuple[EventPlan, bool]:
    """Who is to have it, stored before anybody has; and whether that was decided before."""
    if idempotency.begun is not None:
        return msgspec.msgpack.decode(idempotency.begun, type=EventPlan), True
    plan = await api.gateway.plan_event(project_id, key, buffer_secs)
    await begin(api, idempotency, msgspec.msgpack.encode(plan))
    return plan, False
