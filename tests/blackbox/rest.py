"""What every answer of the REST API has to look like, and the operations that it says it has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import uuid4

import httpx
import msgspec

from tests.blackbox.api import Api, Json

PAGE = "application/vnd.pilotage.page+json"
JSON = "application/json"
UNKNOWN = "019a3f5b-2a10-7d41-8f6e-5b1c2d3e4f50"
CODES = {
    400: "bad_request",
    401: "authentication_required",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    409: "conflict",
    410: "gone",
    413: "payload_too_large",
    415: "unsupported_media_type",
    422: "validation_failed",
    429: "rate_limited",
    503: "service_unavailable",
}


class Operation(msgspec.Struct, frozen=True):
    method: str
    path: str
    doc: Json

    def at(self, ids: Mapping[str, str]) -> str:
        """The path with these ids; what is not among them is unknown."""
        return re.sub(r"\{(\w+)\}", lambda found: ids.get(found[1], UNKNOWN), self.path)


def operations(api: Api, prefix: str = "/v1") -> Iterator[Operation]:
    """All operations of the server's own document."""
    document: Json = api.get("/reference/openapi.json")
    for path, methods in document["paths"].items():
        if path.startswith(prefix):
            for method, doc in methods.items():
                yield Operation(method.upper(), path, doc)


def refused(response: httpx.Response, status: int | None = None) -> Json:
    """The `error` of a refusal, after a look at its shape."""
    what = f"{response.request.method} {response.request.url}: {response.status_code}"
    what = f"{what} {response.text[:500]}"
    assert status in {None, response.status_code}, f"{what}, not {status}"
    assert response.headers["content-type"] == JSON, what
    body: Json = response.json()
    assert set(body) == {"error", "message", "request_id"}, what
    error: Json = body["error"]
    assert set(error) <= {"code", "message", "details"}, what
    assert error["code"] == CODES[response.status_code], what
    assert error["message"], what
    assert error["message"] == body["message"], what
    assert body["request_id"] == response.headers["x-request-id"], what
    if response.status_code == 422:
        assert error["details"], what
        assert error["details"][0][:100] in error["message"], what
    if response.status_code == 405:
        assert response.headers["allow"], what
    if response.status_code in {429, 503}:
        assert int(response.headers["retry-after"]) >= 0, what
    return error


def details(response: httpx.Response) -> list[str]:
    found: list[str] = refused(response, 422)["details"]
    return found


def key_of(api: Api, project: str, *scopes: str, name: str | None = None) -> Json:
    """A new API key as it is shown once."""
    body = {"name": name or f"k-{uuid4().hex[:8]}", "project_id": project, "scopes": list(scopes)}
    made: Json = api.post("/v1/api-keys", body, 201)
    return made


def member(api: Api, *scopes: str, name: str | None = None) -> Api:
    """A client with a key of the same project. The caller closes it."""
    key: str = key_of(api, api.project, *(scopes or ("*",)), name=name)["key"]
    return Api(api.server, project=api.project, key=key)


def walk(api: Api, path: str, limit: int) -> Iterator[list[Any]]:
    """The pages of a list, one after the other."""
    cursor = ""
    joint = "&" if "?" in path else "?"
    for _ in range(1_000):
        page: Json = api.get(f"{path}{joint}limit={limit}&cursor={cursor}")
        yield page["data"]
        assert page["has_more"] == ("next_cursor" in page)
        if not page["has_more"]:
            return
        cursor = page["next_cursor"]
    raise AssertionError(f"{path} never ends")
