"""The OpenAPI document, the reference page, health and metrics."""

from __future__ import annotations

import re

import httpx
from openapi_spec_validator import validate

from tests.blackbox.api import Api, Json, approval
from tests.blackbox.rest import JSON, operations

SEED = {
    "list-workflow-runs": ("GET", "/v1/workflow-runs"),
    "get-workflow-run": ("GET", "/v1/workflow-runs/{workflowRunID}"),
    "cancel-workflow-run": ("DELETE", "/v1/workflow-runs/{workflowRunID}"),
    "list-workflow-run-steps": ("GET", "/v1/workflow-runs/{workflowRunID}/steps"),
    "pause-workflow-run": ("POST", "/v1/workflow-runs/{workflowRunID}/pause"),
    "resume-workflow-run": ("POST", "/v1/workflow-runs/{workflowRunID}/resume"),
    "retry-workflow-run": ("POST", "/v1/workflow-runs/{workflowRunID}/retry"),
    **{
        f"{operation}-workflow-{noun}": (
            "POST",
            f"/v1/workflow-runs/{{workflowRunID}}/steps/{{stepRef}}/{path}",
        )
        for operation, noun, path in (
            ("approve", "step", "approve"),
            ("skip", "step", "skip"),
            ("force-complete", "step", "force-complete"),
            ("retry", "step", "retry"),
            ("replay", "subtree", "replay-subtree"),
        )
    },
    "bulk-cancel-workflow-runs": ("POST", "/v1/workflow-runs/bulk-cancel"),
    "bulk-replay-workflow-runs": ("POST", "/v1/workflow-runs/bulk-replay"),
}


def test_the_document_is_valid_openapi(api: Api) -> None:
    document: Json = api.get("/reference/openapi.json")
    assert document["openapi"].startswith("3.1.")
    validate(document)


def test_the_operations_of_the_seed_have_their_names(api: Api) -> None:
    found = {o.doc["operationId"]: o for o in operations(api)}
    for name, (method, path) in SEED.items():
        operation = found[name]
        assert (operation.method, operation.path) == (method, path)
        in_path = {p["name"] for p in operation.doc["parameters"] if p.get("in") == "path"}
        assert in_path == set(re.findall(r"\{(\w+)\}", path))
        assert "security" not in operation.doc, "the bearer scheme of the whole document holds"
    assert len({o.doc["operationId"] for o in operations(api, "/")}) == len(
        list(operations(api, "/"))
    )


def test_every_operation_names_every_status(api: Api) -> None:
    for operation in operations(api):
        statuses = set(operation.doc["responses"])
        what = f"{operation.method} {operation.path}: {sorted(statuses)}"
        assert {"401", "403", "406", "429", "500", "503"} <= statuses, what
        if operation.method in {"POST", "PATCH"}:
            assert {"400", "413", "415", "422"} <= statuses, what
        if "{" in operation.path:
            assert "404" in statuses, what


def test_a_list_is_documented_in_all_its_forms(api: Api) -> None:
    for operation in operations(api):
        if operation.method != "GET" or "cursor" not in {
            p.get("name") for p in operation.doc["parameters"]
        }:
            continue
        schema: Json = operation.doc["responses"]["200"]["content"][JSON]["schema"]
        forms = [form["type"] for form in schema.get("anyOf", [schema])]
        always_page = operation.doc["operationId"] in {
            "list-api-keys",
            "list-quarantined-runs",
            "list-workflow-run-events",
            "list-workflow-versions",
            "list-approvals",
        }
        assert forms == (["object"] if always_page else ["array", "object"]), operation.path


def test_the_reference_loads_nothing_from_another_host(api: Api) -> None:
    page = httpx.get(f"{api.server.url}/reference")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    loads = re.findall(
        r"""<(?:script|link|img|iframe|object|embed|source)\b[^>]*?(?:src|href|data)=["']?([^"'\s>]+)"""
        r"""|@import\s+["']?([^"'\s;]+)|url\(["']?([^"')]+)""",
        page.text,
    )
    for found in loads:
        assert not re.match(r"(?:[a-z]+:)?//", "".join(found)), found


def test_health_needs_no_key_and_metrics_do(api: Api) -> None:
    url = api.server.url
    assert httpx.get(f"{url}/health").json()["status"] == "ok"
    assert httpx.get(f"{url}/health/ready").status_code == 200
    assert httpx.get(f"{url}/metrics").status_code == 401
    metrics = api.request("GET", "/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    for line in metrics.text.splitlines():
        assert re.match(r'# (HELP|TYPE) \w+ .+|\w+(\{(\w+="[^"]*",?)*\})? [-+0-9.e]+\Z', line), line


def test_what_is_counted_is_shown_before_it_happens(own_api: Api) -> None:
    text = own_api.request("GET", "/metrics").text
    for name in ("late_results", "http_auth_failures", "idempotent_replays"):
        assert re.search(rf"^pilotage_{name}_total 0$", text, re.MULTILINE), name


def test_metrics_have_no_label_of_a_callers_making(api: Api) -> None:
    run_id = api.start(approval("a"))
    api.request("GET", "/v1/a-path-of-mine")
    text = api.request("GET", "/metrics").text
    assert "a-path-of-mine" not in text
    assert run_id not in text


def test_bodies_are_said_so_that_generators_make_one_type_of_each(api: Api) -> None:
    """A union for a body that may be left out, or a list of types beside a list of words, breaks
    clients that are made of the document.
    """
    document = httpx.get(f"{api.server.url}/reference/openapi.json").json()
    bodies = [o.doc["requestBody"] for o in operations(api) if "requestBody" in o.doc]
    assert len(bodies) > 10
    assert all(list(body["content"][JSON]["schema"]) == ["$ref"] for body in bodies)
    fields = [
        (name, field)
        for name, schema in document["components"]["schemas"].items()
        for field in schema.get("properties", {}).values()
    ]
    assert not [name for name, field in fields if "enum" in field and field["type"] != "string"]


def test_the_key_that_is_made_is_in_the_example_of_its_making_only(api: Api) -> None:
    shown = {
        (o.doc["operationId"], status): "plt_" in str(answer["content"][JSON]["example"])
        for o in operations(api)
        for status, answer in o.doc["responses"].items()
        if "api-key" in o.doc["operationId"] and status < "204"
    }
    assert shown["create-api-key", "201"]
    assert sum(shown.values()) == 1
