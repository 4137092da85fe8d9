"""API keys: made, listed, revoked."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import msgspec
from litestar import Controller, delete, get, post
from litestar.params import PathParameter
from litestar.response.base import ASGIResponse

from pilotage.actors.api_keys import MAX_DAYS, MAX_NAME, check_key, scope_problem
from pilotage.actors.errors import ConflictError, InvalidError
from pilotage.actors.idempotency import Idempotency
from pilotage.actors.principal import ANY, SCOPES
from pilotage.http.answers import empty
from pilotage.http.bodies import Fields, read_json
from pilotage.http.call import (
    AnyRequest,
    acting,
    api_of,
    is_project_id,
    named_project,
    note_no_project,
    problems_of,
    refuse_wrong,
)
from pilotage.http.pages import Listing
from pilotage.http.queries import Query
from pilotage.http.repeats import Answer, once
from pilotage.http.resources import api_key_view

KeyId = Annotated[str, PathParameter(name="keyID")]
MANAGE = {"scope": "api-keys:manage"}
MIN_DAYS = 1 / 86_400
"""A second."""


class KeysController(Controller):
    path = "/api-keys"

    @post("/", operation_id="create-api-key", opt=MANAGE)
    async def create(self, request: AnyRequest) -> ASGIResponse:
        """A repeat with the same Idempotency-Key is refused: no key is shown twice."""
        body = await read_json(request)
        by = acting(request)
        fields = Fields(body, problems_of(request))
        name = fields.text("name", max_chars=MAX_NAME, required=True) or ""
        project = fields.text("project_id", max_chars=128)
        if project is None:
            project = named_project(request, None)
        scopes = fields.texts("scopes", 1, len(SCOPES), scope_problem)
        days = fields.number("expires_in_days", MIN_DAYS, MAX_DAYS)
        fields.close()
        if project is None:
            note_no_project(
                request, 'project_id: required with an admin key ("*" for an admin key)'
            )
        elif project != ANY and not is_project_id(project):
            fields.problems.append('project_id: must match [A-Za-z0-9_.-]{1,128}, or be "*"')
        try:
            check_key(name or "unknown", scopes or (ANY,), days)
        except InvalidError as exc:
            fields.problems += exc.details
        Query(request).no_dry_run()
        await refuse_wrong(request)
        assert project is not None  # or it would be a problem

        async def act(idempotency: Idempotency | None) -> Answer:
            key, secret = await api_of(request).catalog.keys.create(
                name=name,
                project_id=project,
                scopes=scopes,
                by=by,
                expires_in_days=days,
                idempotency=idempotency,
            )
            return Answer(
                status=201,
                body=msgspec.json.encode(api_key_view(key, secret)),
                headers={"Location": f"/v1/api-keys/{key.id}"},
                reference=key.id,
                stored=True,
            )

        return await once(request, by.project_id, body, act, _refuse_repeat)

    @get("/", operation_id="list-api-keys", opt=MANAGE)
    async def list_(self, request: AnyRequest) -> ASGIResponse:
        query = Query(request)
        project_id = query.one("project_id")
        if project_id != ANY or not acting(request).is_admin:
            project_id = named_project(request, project_id)
        limit = query.limit()
        listing = Listing(request, query, project_id or ANY, always_page=True)
        position = listing.after
        await refuse_wrong(request)
        rows, after = await api_of(request).catalog.keys.visible_to(
            acting(request), project_id, limit, position
        )
        return listing.answer([api_key_view(k) for k in rows], after)

    @delete("/{keyID:str}", operation_id="revoke-api-key", opt=MANAGE, status_code=200)
    async def revoke(self, request: AnyRequest, key_id: KeyId) -> ASGIResponse:
        keys, by = api_of(request).catalog.keys, acting(request)
        Query(request).no_dry_run()
        await refuse_wrong(request, partial(keys.visible, key_id, by))
        await keys.revoke(key_id, by)
        return empty()


async def _refuse_repeat(_: str) -> Answer:
    raise ConflictError(
        "a key was made with this Idempotency-Key already and is not shown again; "
        "revoke it and make another with a new Idempotency-Key if it was lost"
    )
