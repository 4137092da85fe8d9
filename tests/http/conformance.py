"""Whether an answer is what the OpenAPI document says: status, media type, schema.

A small part of JSON Schema, the part that the document uses; anything else in it is an error.
"""

from __future__ import annotations

import re
from typing import Any

import httpx
from litestar import Litestar
from litestar.exceptions import HTTPException

from pilotage.http.openapi import document
from pilotage.runtime.jsonvalues import is_array, is_object

Json = dict[str, Any]
KNOWN = frozenset(
    {"$ref", "anyOf", "type", "properties", "required", "additionalProperties", "items", "enum"}
    | {"description", "format", "minimum", "maximum", "maxLength", "minLength", "pattern"}
    | {"minItems", "maxItems", "uniqueItems", "maxProperties", "propertyNames", "default"}
    | {"const", "not", "if", "then", "else"}  # of requests: held against the server elsewhere
)
WHEN = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\Z")


class Conformance:
    """Checks answers against the document of one app."""

    def __init__(self, app: Litestar) -> None:
        self._app = app
        self._document = document(app)
        self.seen: set[tuple[str, int]] = set()

    async def check(self, response: httpx.Response) -> None:
        """An httpx event hook: fails for an answer that is not documented."""
        operation = self._operation(response.request)
        if operation is None:
            return
        name, status = operation["operationId"], response.status_code
        self.seen.add((name, status))
        documented = operation["responses"].get(str(status))
        assert documented is not None, f"{name} answers {status}, which is not documented"
        documented = self._resolve(documented)
        await response.aread()
        content = documented.get("content")
        if content is None:
            assert response.content == b"", f"{name} {status} has a body"
            return
        media_type = response.headers["content-type"].partition(";")[0]
        assert media_type in content, f"{name} {status} is {media_type}, not {list(content)}"
        if media_type.endswith("json"):
            problems = list(self.problems(response.json(), content[media_type]["schema"], "$"))
            if media_type == "application/json" and problems and status == 200:
                problems = self._as_page(response.json(), content, problems)
            assert not problems, f"{name} {status}: {problems}\n{response.text[:2000]}"

    def _as_page(self, body: Any, content: Json, problems: list[str]) -> list[str]:
        """A page is sent as plain JSON to who asked with a cursor."""
        page = next((m["schema"] for t, m in content.items() if t.endswith("page+json")), None)
        return problems if page is None else list(self.problems(body, page, "$"))

    def _operation(self, request: httpx.Request) -> Json | None:
        if request.url.path.endswith("/"):
            return None
        try:
            routed = self._app.asgi_router.handle_routing(
                path=request.url.path, method=request.method
            )
        except HTTPException:
            return None
        template = routed[-1]
        if template.startswith("/v1/events/"):
            if not request.url.path.endswith("/send"):
                return None
            template = "/v1/events/{eventKey}/send"
        template = re.sub(r"\{(\w+):\w+\}", r"{\1}", template)
        found: Json | None = self._document["paths"].get(template, {}).get(request.method.lower())
        return found

    def _resolve(self, value: Json) -> Json:
        while "$ref" in value:
            found: Any = self._document
            for part in value["$ref"].removeprefix("#/").split("/"):
                found = found[part]
            value = found
        return value

    def problems(self, value: Any, schema: Json, path: str) -> list[str]:
        schema = self._resolve(schema)
        unknown = set(schema) - KNOWN
        assert not unknown, f"{path}: the validator does not know {unknown}"
        if "anyOf" in schema:
            options = [self.problems(value, option, path) for option in schema["anyOf"]]
            return [] if any(not found for found in options) else min(options, key=len)
        found: list[str] = []
        kind = schema.get("type")
        if kind is not None and not _is(value, kind):
            return [f"{path}: {value!r} is not {kind}"]
        if "enum" in schema and value not in schema["enum"]:
            found.append(f"{path}: {value!r} is not one of {schema['enum']}")
        if schema.get("format") == "date-time" and not WHEN.match(value):
            found.append(f"{path}: {value!r} is not a time")
        if is_object(value) and kind is not None:
            found += self._object_problems(value, schema, path)
        if is_array(value) and kind is not None:
            for i, item in enumerate(value):
                found += self.problems(item, schema.get("items", {}), f"{path}[{i}]")
        return found

    def _object_problems(self, value: Json, schema: Json, path: str) -> list[str]:
        found = [f"{path}.{n}: missing" for n in schema.get("required", ()) if n not in value]
        properties = schema.get("properties", {})
        rest = schema.get("additionalProperties")
        for name, member in value.items():
            if name in properties:
                found += self.problems(member, properties[name], f"{path}.{name}")
            elif isinstance(rest, dict):
                found += self.problems(member, schema["additionalProperties"], f"{path}.{name}")
            elif properties:
                found.append(f"{path}.{name}: not documented")
        return found


def _is(value: Any, kind: str | list[str]) -> bool:
    if isinstance(kind, list):
        return any(_is(value, one) for one in kind)
    if kind == "null":
        return value is None
    if kind == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "number":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    kinds: dict[str, type] = {"string": str, "boolean": bool, "object": dict, "array": list}
    return isinstance(value, kinds[kind])
