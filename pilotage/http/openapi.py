"""The OpenAPI 3.1 document, made from the routes of the app and what is written about them.

A route's path, method and scope are what the app does; the rest comes from the `Doc` of its
operation id, or of its `opt["doc"]`. Every status that an operation can answer is in it.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any

from litestar import Litestar
from litestar.handlers import HTTPRouteHandler
from litestar.routes import HTTPRoute

from pilotage import __version__
from pilotage.http.auth import PUBLIC
from pilotage.http.openapi_examples import ERRORS, EXAMPLES, SHOWN_ONCE
from pilotage.http.openapi_model import TAGS, Doc
from pilotage.http.openapi_operations import DOCS
from pilotage.http.openapi_parameters import PARAMETERS, header_parameters, path_parameters
from pilotage.http.openapi_schemas import components
from pilotage.http.pages import PAGE_TYPE

Json = dict[str, Any]
_JSON = "application/json"
_PARAMETER = re.compile(r"\{(\w+)\}")

ABOUT = """Runs of workflows: every active run is an actor that owns its graph of steps.

Send `Authorization: Bearer <key>`. Errors have one shape, see `Error`; every answer carries
`X-Request-Id`. Every POST but those for API keys and callbacks takes an `Idempotency-Key`: the same
key and request give the first answer again, with `Idempotency-Replayed: true`, for 24 hours.
Unset fields are omitted, never null; in a request null is the same as a field left out. Changes
refuse query parameters that look like a mistyped one of theirs."""


def document(app: Litestar) -> Json:
    """The whole document of `app`."""
    paths: dict[str, Json] = {}
    for path, handler in _operations(app):
        doc = _doc_of(handler)
        if doc is None:
            continue
        item = paths.setdefault(path, {})
        for method in sorted(handler.http_methods):
            item[method.lower()] = _operation(path, method, handler, doc)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Pilotage",
            "version": __version__,
            "description": ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://localhost:8080"}],
        "tags": [{"name": name, "description": about} for name, about in TAGS.items()],
        "security": [{"bearerAuth": []}],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": dict(sorted(components().items())),
            "responses": {f"Error{status}": _error(status) for status in ERRORS},
            "parameters": PARAMETERS,
            "securitySchemes": {
                "bearerAuth": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key: `plt_` and 43 characters.",
                },
                "runToken": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The `X-Run-Token` that the attempt was sent with.",
                },
            },
        },
    }


def _operations(app: Litestar) -> list[tuple[str, HTTPRouteHandler]]:
    found: list[tuple[str, HTTPRouteHandler]] = []
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            path = route.path_format
            if path == "/v1/events/{eventKey}":
                path += "/send"
            found += [(path, h) for h in route.route_handlers if h.http_methods != {"OPTIONS"}]
    return found


def _doc_of(handler: HTTPRouteHandler) -> Doc | None:
    doc = handler.opt.get("doc")
    if isinstance(doc, Doc):
        return doc
    return DOCS.get(str(handler.operation_id))


def _operation(path: str, method: str, handler: HTTPRouteHandler, doc: Doc) -> Json:
    scope = handler.opt["scope"]
    by_token = handler.opt.get("credential") == "run-token"
    operation: Json = {
        "operationId": handler.operation_id,
        "tags": [doc.tag],
        "summary": doc.summary,
        "parameters": _parameters(path, method, doc, scope),
        "responses": _responses(path, method, doc, scope, by_token=by_token),
    }
    about = doc.about
    if scope != PUBLIC:
        about = f"{about}\n\nScope: `{scope}`.".strip()
    if about:
        operation["description"] = about
    if doc.body is not None:
        # Null is the same as no body; to say so here breaks clients that are generated from it.
        media: Json = {"schema": _schema(doc.body), "example": EXAMPLES[doc.body]}
        operation["requestBody"] = {
            "required": doc.body_required,
            "content": {_JSON: media},
        }
    if by_token:
        operation["security"] = [{"runToken": []}]
    elif scope == PUBLIC and path != "/metrics":
        operation["security"] = []
    return operation


def _parameters(path: str, method: str, doc: Doc, scope: str) -> list[Json]:
    parameters = path_parameters(path)
    for p in doc.query:
        schema: Json = p.schema
        if p.repeatable:
            schema = {"type": "array", "items": schema, "maxItems": p.at_most}
        parameters.append(
            {
                "name": p.name,
                "in": "query",
                "required": p.required,
                "description": p.about,
                "schema": schema,
            }
        )
    if scope != PUBLIC:
        parameters += header_parameters(path, method, prefer=doc.prefer is not None)
    return parameters


def _responses(path: str, method: str, doc: Doc, scope: str, *, by_token: bool) -> Json:
    responses: Json = {str(doc.status): _success(doc.status, doc.answer, doc)}
    for schema, about in ((doc.prefer, "With `Prefer`."), (doc.preview, "With `dry_run`.")):
        if schema is not None:
            responses["200"] = _also(responses.get("200"), schema, about)
    for status in sorted(_refusals(path, method, doc, scope, by_token=by_token)):
        if str(status) not in responses:
            responses[str(status)] = {"$ref": f"#/components/responses/Error{status}"}
    return responses


def _refusals(path: str, method: str, doc: Doc, scope: str, *, by_token: bool) -> set[int]:
    """Every status that the operation can be refused with."""
    statuses = {500, 503, *doc.errors}
    rules = (
        (scope != PUBLIC, {401, 403, 406, 422, 429}),
        (path == "/metrics" or by_token, {401, 429}),
        (by_token, {422}),
        (_PARAMETER.search(path) is not None and not by_token, {404}),
        (any(p.name == "cursor" for p in doc.query), {400}),
        (method in {"POST", "PATCH"}, {400, 413, 415, 422}),
        (method == "POST" and not by_token, {409}),
    )
    for holds, follow in rules:
        if holds:
            statuses |= follow
    return statuses


def _success(status: int, answer: str | None, doc: Doc) -> Json:
    response: Json = {"description": HTTPStatus(status).phrase}
    if answer is None:
        return response
    if answer == "text":
        response["content"] = {"text/plain": {"schema": {"type": "string"}}}
        return response
    name = answer.removesuffix("[]")
    example = EXAMPLES[name]
    if status == HTTPStatus.CREATED and name in SHOWN_ONCE:
        example = {**example, **SHOWN_ONCE[name]}
    content: Json = {_JSON: {"schema": _schema(answer), "example": example}}
    if answer.endswith("[]"):
        page: Json = {
            "type": "object",
            "required": ["data", "has_more"],
            "properties": {
                "data": {"type": "array", "items": _schema(name)},
                "has_more": {"type": "boolean"},
                "next_cursor": {"type": "string"},
            },
        }
        shown = {"data": [example], "has_more": False}
        if not _has_array_form(doc):
            content[_JSON] = {"schema": page, "example": shown}
        else:
            either = {"anyOf": [_schema(answer), page]}
            content[_JSON] = {"schema": either, "example": [example]}
            content[PAGE_TYPE] = {"schema": page, "example": shown}
        response["headers"] = _LIST_HEADERS
    if status == 201:
        response["headers"] = {"Location": {"schema": {"type": "string"}}}
    response["content"] = content
    return response


def _has_array_form(doc: Doc) -> bool:
    """As plain JSON: an array, or the page for who sends a cursor or names no project."""
    if doc.tag == "API keys":
        return False
    return doc.tag == "Steps" or any(p.name == "project_id" for p in doc.query)


def _also(response: Json | None, schema: str, about: str) -> Json:
    """Another answer with the same status."""
    media: Json = {"schema": _schema(schema), "example": EXAMPLES[schema]}
    if response is None:
        return {"description": about, "content": {_JSON: media}}
    known = response["content"][_JSON]["schema"]
    if known == media["schema"]:
        return response
    options = [*known.get("anyOf", [known]), media["schema"]]
    content = {**response["content"][_JSON], "schema": {"anyOf": options}}
    return {
        **response,
        "description": f"{response['description']} {about}",
        "content": {_JSON: content},
    }


def _schema(name: str) -> Json:
    if name.endswith("[]"):
        return {"type": "array", "items": _schema(name.removesuffix("[]"))}
    return {"$ref": f"#/components/schemas/{name}"}


def _error(status: int) -> Json:
    response: Json = {
        "description": _MEANING[status],
        "content": {_JSON: {"schema": _schema("Error"), "example": ERRORS[status]}},
    }
    if status in {429, 503}:
        response["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    if status == 401:
        response["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
    return response


_MEANING = {
    400: "The body is not JSON, or the cursor is not of this list.",
    401: "No key, or one that is malformed, unknown, expired or revoked.",
    403: "The scope is missing, the project is not the key's, or the caller is no approver.",
    404: "Unknown, or another project's.",
    405: "The path has other methods, see `Allow`.",
    406: "The client takes no JSON.",
    409: "The state does not allow it, or a request with this Idempotency-Key is in progress.",
    410: "It is over and takes no more reports.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    422: "Not valid; `details` has every problem with its path.",
    429: "Too many requests, or too many failed authentications.",
    500: "A bug; the cause is logged under the request id.",
    503: "Not now: the store is away, or the server starts or stops.",
}
_LIST_HEADERS: Json = {
    "Link": {"schema": {"type": "string"}, "description": '`<…>; rel="next"`, if there is more.'},
    "X-Next-Cursor": {"schema": {"type": "string"}, "description": "If there is more."},
}
