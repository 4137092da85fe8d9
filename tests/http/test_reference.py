from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from pilotage.http.app import handlers_of
from pilotage.http.openapi import document
from tests.http.conftest import Server, StartServer

SEED = {
    "list-workflow-runs": ("get", "/v1/workflow-runs"),
    "get-workflow-run": ("get", "/v1/workflow-runs/{workflowRunID}"),
    "cancel-workflow-run": ("delete", "/v1/workflow-runs/{workflowRunID}"),
    "list-workflow-run-steps": ("get", "/v1/workflow-runs/{workflowRunID}/steps"),
    "pause-workflow-run": ("post", "/v1/workflow-runs/{workflowRunID}/pause"),
    "resume-workflow-run": ("post", "/v1/workflow-runs/{workflowRunID}/resume"),
    "retry-workflow-run": ("post", "/v1/workflow-runs/{workflowRunID}/retry"),
    "approve-workflow-step": ("post", "/v1/workflow-runs/{workflowRunID}/steps/{stepRef}/approve"),
    "skip-workflow-step": ("post", "/v1/workflow-runs/{workflowRunID}/steps/{stepRef}/skip"),
    "force-complete-workflow-step": (
        "post",
        "/v1/workflow-runs/{workflowRunID}/steps/{stepRef}/force-complete",
    ),
    "retry-workflow-step": ("post", "/v1/workflow-runs/{workflowRunID}/steps/{stepRef}/retry"),
    "replay-workflow-subtree": (
        "post",
        "/v1/workflow-runs/{workflowRunID}/steps/{stepRef}/replay-subtree",
    ),
    "bulk-cancel-workflow-runs": ("post", "/v1/workflow-runs/bulk-cancel"),
    "bulk-replay-workflow-runs": ("post", "/v1/workflow-runs/bulk-replay"),
}
NOT_IN_THE_DOCUMENT = {"get-openapi", "get-reference"}


def operations(made: dict[str, Any]) -> dict[str, tuple[str, str, dict[str, Any]]]:
    return {
        operation["operationId"]: (method, path, operation)
        for path, item in made["paths"].items()
        for method, operation in item.items()
    }


def references(made: dict[str, Any]) -> set[str]:
    return set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(made)))


def resolve(made: dict[str, Any], pointer: str) -> Any:
    found: Any = made
    for part in pointer.removeprefix("#/").split("/"):
        found = found[part]
    return found


async def test_the_document_has_every_operation_of_the_seed(server: Server) -> None:
    made = (await server.client().get("/reference/openapi.json")).json()
    assert made["openapi"].startswith("3.1")
    found = operations(made)
    for operation_id, where in SEED.items():
        assert found[operation_id][:2] == where


async def test_the_document_has_every_route_of_the_app(server: Server) -> None:
    found = operations(document(server.app))
    routes = {str(getattr(h, "operation_id", None)) for h in handlers_of(server.app)}
    assert set(found) == routes - NOT_IN_THE_DOCUMENT


async def test_every_operation_lists_what_it_can_be_refused_with(server: Server) -> None:
    made = document(server.app)
    for operation_id, (method, path, operation) in operations(made).items():
        statuses = set(operation["responses"])
        assert {"500", "503"} <= statuses, operation_id
        if path.startswith("/v1"):
            assert {"401", "403", "406", "422", "429"} <= statuses, operation_id
        if path.startswith("/v1") and "{" in path:
            assert "404" in statuses, operation_id
        if method in {"post", "patch"}:
            assert {"400", "413", "415", "422"} <= statuses, operation_id


async def test_every_reference_of_the_document_leads_somewhere(server: Server) -> None:
    made = document(server.app)
    assert references(made)
    for pointer in references(made):
        resolve(made, pointer)


async def test_no_schema_of_an_answer_allows_null(server: Server) -> None:
    schemas = document(server.app)["components"]["schemas"]
    answers = {n: s for n, s in schemas.items() if not n.endswith(("Input", "Patch"))}
    assert {"WorkflowRun", "Step", "Health", "Error"} <= answers.keys()
    assert '"null"' not in str(answers).replace("'", '"')
    assert schemas["WorkflowRun"]["required"]
    assert "error" not in schemas["WorkflowRun"]["required"]


async def test_the_reference_does_not_speak_of_null_in_types(server: Server) -> None:
    page = (await server.admin.get("/reference")).text
    assert "array of" in page
    for form in ("<td>null", "or null", "&#x27;null", ", null", "<code>None</code>"):
        assert form not in page, form


async def test_every_json_body_has_an_example(server: Server) -> None:
    made = document(server.app)
    for operation_id, (_, _, operation) in operations(made).items():
        bodies = [operation.get("requestBody"), *operation["responses"].values()]
        for given in bodies:
            if given is None:
                continue
            body = resolve(made, given["$ref"]) if "$ref" in given else given
            for media in body.get("content", {}).values():
                assert "example" in media or media["schema"] == {"type": "string"}, operation_id


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.targets: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = dict(attrs)
        self.targets += [v for k, v in attrs if k in {"href", "src"} and v is not None]
        if named.get("id"):
            self.ids.add(str(named["id"]))


async def test_the_reference_loads_nothing_from_another_host(server: Server) -> None:
    answer = await server.client().get("/reference")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    links = Links()
    links.feed(answer.text)
    assert not {"script", "link", "img", "iframe"} & set(links.tags)
    assert not re.search(r"url\(|@import", answer.text)
    assert all(t.startswith(("#", "/")) for t in links.targets)
    for target in links.targets:
        if target.startswith("#"):
            assert target[1:] in links.ids, target
    for operation_id in SEED:
        assert operation_id in links.ids


@pytest.mark.parametrize("path", ["/reference", "/reference/openapi.json"])
async def test_the_reference_can_be_switched_off(start_server: StartServer, path: str) -> None:
    server = await start_server(docs=False)
    assert (await server.client().get(path)).status_code == 404
