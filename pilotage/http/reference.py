"""The reference: the OpenAPI document, and a page made of it that loads nothing from anywhere."""

from __future__ import annotations

from html import escape
from typing import Any

import msgspec
from litestar import Controller, get
from litestar.exceptions import NotFoundException
from litestar.response.base import ASGIResponse

from pilotage.http.answers import encoded
from pilotage.http.auth import PUBLIC
from pilotage.http.call import AnyRequest, api_of
from pilotage.http.openapi import document
from pilotage.runtime.jsonvalues import is_array

OPEN: dict[str, Any] = {"scope": PUBLIC}
_CSP = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"
_HEADERS = {"Content-Security-Policy": _CSP, "X-Content-Type-Options": "nosniff"}
Json = dict[str, Any]


class ReferenceController(Controller):
    path = "/reference"

    @get("/openapi.json", operation_id="get-openapi", opt=OPEN)
    async def openapi(self, request: AnyRequest) -> ASGIResponse:
        return encoded(_made(request)[0])

    @get("/", operation_id="get-reference", opt=OPEN)
    async def page(self, request: AnyRequest) -> ASGIResponse:
        return ASGIResponse(body=_made(request)[1], media_type="text/html", headers=_HEADERS)


def _made(request: AnyRequest) -> tuple[bytes, bytes]:
    """Document and page; made at the first request."""
    api = api_of(request)
    if not api.settings.docs:
        raise NotFoundException
    if api.reference is None:
        made = document(request.app)
        api.reference = (msgspec.json.encode(made), page(made).encode())
    return api.reference


def page(made: Json) -> str:
    """The document as a page for people."""
    by_tag: dict[str, list[str]] = {tag["name"]: [] for tag in made["tags"]}
    links: dict[str, list[str]] = {tag["name"]: [] for tag in made["tags"]}
    for path, item in made["paths"].items():
        for method, operation in item.items():
            tag = operation["tags"][0]
            by_tag[tag].append(_operation(made, method.upper(), path, operation))
            links[tag].append(
                f'<li><a href="#{operation["operationId"]}">{escape(operation["summary"])}</a></li>'
            )
    nav = "".join(f"<h2>{escape(t)}</h2><ul>{''.join(items)}</ul>" for t, items in links.items())
    about = {tag["name"]: tag["description"] for tag in made["tags"]}
    sections = "".join(
        f"<section><h2>{escape(tag)}</h2><p>{escape(about[tag])}</p>{''.join(items)}</section>"
        for tag, items in by_tag.items()
    )
    schemas = "".join(
        f'<article id="schema-{name}"><h3>{name}</h3>{_schema_table(schema)}</article>'
        for name, schema in made["components"]["schemas"].items()
    )
    info = made["info"]
    intro = "".join(f"<p>{_marked(p)}</p>" for p in info["description"].split("\n\n"))
    title = escape(info["title"])
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title} API reference</title><style>{_STYLE}</style></head><body>"
        f'<nav aria-label="Operations"><p><b>{title}</b> {escape(info["version"])}</p>{nav}'
        '<h2>More</h2><ul><li><a href="#schemas">Schemas</a></li>'
        '<li><a href="/reference/openapi.json">OpenAPI document</a></li></ul></nav>'
        f"<main><h1>{title} API reference</h1>{intro}{sections}"
        f'<section id="schemas"><h2>Schemas</h2>{schemas}</section></main></body></html>'
    )


def _operation(made: Json, method: str, path: str, operation: Json) -> str:
    name = operation["operationId"]
    parts = [
        f'<article id="{name}"><h3>{escape(operation["summary"])}</h3>',
        f'<p><code class="m {method}">{method}</code> <code>{escape(path)}</code></p>',
    ]
    parts += [f"<p>{_marked(p)}</p>" for p in operation.get("description", "").split("\n\n") if p]
    parameters = [_resolve(made, p) for p in operation["parameters"]]
    if parameters:
        rows = "".join(
            f"<tr><td><code>{escape(p['name'])}</code>{'*' if p['required'] else ''}</td>"
            f"<td>{p['in']}</td><td>{_type(p['schema'])}</td>"
            f"<td>{_marked(p.get('description', ''))}</td></tr>"
            for p in parameters
        )
        parts.append(f"<h4>Parameters</h4><table>{rows}</table>")
    body = operation.get("requestBody")
    if body is not None:
        media = body["content"]["application/json"]
        need = "required" if body["required"] else "optional"
        parts.append(f"<h4>Request body ({need})</h4><p>{_type(media['schema'])}</p>")
    parts.append(f"<pre>{escape(_curl(method, path, operation))}</pre><h4>Answers</h4><table>")
    for status, response in operation["responses"].items():
        parts.append(_answer(status, _resolve(made, response)))
    parts.append("</table></article>")
    return "".join(parts)


def _answer(status: str, response: Json) -> str:
    types = ", ".join(
        f"{_type(media['schema'])} <small>{escape(kind)}</small>"
        for kind, media in response.get("content", {}).items()
    )
    example = ""
    if status < "300":
        for media in response.get("content", {}).values():
            text = msgspec.json.format(msgspec.json.encode(media.get("example")), indent=2).decode()
            example += f"<details><summary>example</summary><pre>{escape(text)}</pre></details>"
    about = _marked(response["description"])
    return f"<tr><td>{status}</td><td>{about} {types}{example}</td></tr>"


def _curl(method: str, path: str, operation: Json) -> str:
    line = f'curl -X {method} "http://localhost:8080{path}" -H "Authorization: Bearer $KEY"'
    body = operation.get("requestBody")
    if body is not None:
        example = msgspec.json.encode(body["content"]["application/json"]["example"]).decode()
        line += f" \\\n  -H 'Content-Type: application/json' -d '{example}'"
    return line


def _schema_table(schema: Json) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code>{'*' if name in schema.get('required', ()) else ''}"
        f"</td><td>{_type(field)}</td><td>{_marked(field.get('description', ''))}</td></tr>"
        for name, field in schema.get("properties", {}).items()
    )
    about = _marked(schema.get("description", ""))
    if "enum" in schema:
        about += " One of " + ", ".join(f"<code>{escape(str(v))}</code>" for v in schema["enum"])
    return f"<p>{about}</p>" + (f"<table>{rows}</table>" if rows else "")


_NULL = {"type": "null"}


def _type(schema: Json) -> str:
    """In words; null is left out, because in a request it is the same as no field."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#schema-{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(option) for option in schema["anyOf"] if option != _NULL)
    kind = schema.get("type")
    if is_array(kind):
        kind = " or ".join(str(k) for k in kind if k != "null")
    if kind == "array":
        return f"array of {_type(schema.get('items', {}))}"
    if "enum" in schema:
        return ", ".join(f"<code>{escape(str(v))}</code>" for v in schema["enum"] if v is not None)
    return escape(str(schema.get("format") or kind or "any JSON"))


def _resolve(made: Json, value: Json) -> Json:
    """What a reference into the components refers to."""
    if "$ref" not in value:
        return value
    _, _, kind, name = value["$ref"].split("/")
    found: Json = made["components"][kind][name]
    return found


def _marked(text: str) -> str:
    """Escaped text with `code` marked."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(pieces))


_STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8881}
body{margin:0;font:16px/1.5 system-ui,sans-serif;display:flex}
nav{width:17rem;flex:none;height:100vh;overflow:auto;position:sticky;top:0;padding:1rem;
box-sizing:border-box;border-right:1px solid var(--line);font-size:.875rem}
nav h2{font-size:.875rem;margin:1rem 0 .25rem}nav ul{list-style:none;margin:0;padding:0}
main{padding:1rem 2rem;min-width:0;max-width:60rem}
article{border-top:1px solid var(--line);padding:.5rem 0 1rem}
table{border-collapse:collapse;width:100%}td{border-top:1px solid var(--line);padding:.25rem .5rem;
vertical-align:top;overflow-wrap:anywhere}
code{font:.875em ui-monospace,monospace;background:var(--soft);padding:.1em .25em;border-radius:3px}
pre{background:var(--soft);padding:.5rem;overflow:auto;font:.8125rem/1.4 ui-monospace,monospace}
.m{font-weight:700}small{opacity:.75}h4{margin:.75rem 0 .25rem}
@media(max-width:50rem){body{display:block}nav{width:auto;height:auto;position:static}
main{padding:1rem}}
"""
