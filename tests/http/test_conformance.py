"""The check that all tests of this folder rely on, and a search for answers that escape it."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from pilotage.http.openapi import document
from pilotage.http.openapi_examples import EXAMPLES
from tests.http.conftest import (
    ADMIN_KEY,
    PROJECT,
    Server,
    approval,
    define,
    job,
    trigger,
    wait_status,
)

VALUES: dict[str, Any] = {}


async def test_answers_are_really_checked(server: Server, client: httpx.AsyncClient) -> None:
    await define(client, "w", [job("a")])
    run = await trigger(client, "w")
    await client.get(f"/v1/workflow-runs/{run['id']}")
    await client.get(f"/v1/workflow-runs/{run['id']}/steps")
    await client.get("/v1/workflow-runs", params={"project_id": PROJECT})
    await client.post("/v1/events/a%2Fb/send")
    assert {
        ("create-workflow", 201),
        ("trigger-workflow", 201),
        ("get-workflow-run", 200),
        ("list-workflow-run-steps", 200),
        ("list-workflow-runs", 200),
        ("send-event", 200),
    } <= server.conformance.seen


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, {"id": "x"}, "missing"),
        (200, {**EXAMPLES["WorkflowRun"], "colour": 1}, "not documented"),
        (200, {**EXAMPLES["WorkflowRun"], "error": None}, "not string"),
        (200, {**EXAMPLES["WorkflowRun"], "status": "waiting"}, "not one of"),
        (200, {**EXAMPLES["WorkflowRun"], "created_at": "today"}, "not a time"),
        (200, {**EXAMPLES["WorkflowRun"], "workflow_version": 1.5}, "not integer"),
        (418, {}, "not documented"),
    ],
)
async def test_a_wrong_answer_is_noticed(
    server: Server, status: int, body: dict[str, Any], said: str
) -> None:
    request = httpx.Request("GET", f"{server.url}/v1/workflow-runs/x")
    response = httpx.Response(status, json=body, request=request)
    with pytest.raises(AssertionError, match=said):
        await server.conformance.check(response)


async def test_every_example_fits_its_schema(server: Server) -> None:
    schemas = document(server.app)["components"]["schemas"]
    for name, example in EXAMPLES.items():
        problems = server.conformance.problems(example, schemas[name], name)
        assert problems == [], name


# --- a search ------------------------------------------------------------------------------------

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=20)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)  # fmt: skip


def mutated(example: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """The example with some members replaced by whatever."""
    names = st.sampled_from(sorted(example))
    return st.dictionaries(names | st.text(max_size=8), JSON_VALUES, max_size=3).map(
        lambda changes: {**example, **changes}
    )


@st.composite
def requests(draw: st.DrawFn, made: dict[str, Any], ids: dict[str, str]) -> dict[str, Any]:
    """A request for some operation: mostly meaningful, partly nonsense."""
    path = draw(st.sampled_from(sorted(p for p in made["paths"] if p.startswith(("/v1", "/sdk")))))
    method = draw(st.sampled_from(sorted(made["paths"][path])))
    operation = made["paths"][path][method]
    text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)

    def fill(match: re.Match[str]) -> str:
        known = ids.get(match[1], "zzz")
        value = draw(st.just(known) | st.just(known) | text)
        return quote(value if value not in {".", ".."} else "dots", safe="")

    query = {
        p["name"]: draw(text | st.sampled_from(["true", "1", "", "2", "running", "a:b"]))
        for p in operation["parameters"]
        if p.get("in") == "query" and draw(st.booleans())
    }
    request: dict[str, Any] = {
        "method": method.upper(),
        "url": re.sub(r"\{(\w+)\}", fill, path),
        "params": query,
        "headers": {"X-Project-Id": PROJECT} if draw(st.booleans()) else {},
    }
    body = operation.get("requestBody")
    if body is not None:
        example = body["content"]["application/json"]["example"]
        kind = draw(st.sampled_from(["mutated", "mutated", "any", "bytes"]))
        if kind == "bytes":
            request["content"] = draw(st.binary(max_size=40))
            request["headers"]["Content-Type"] = "application/json"
        else:
            request["json"] = draw(mutated(example) if kind == "mutated" else JSON_VALUES)
    return request


@pytest.mark.slow
async def test_no_request_escapes_the_document(server: Server) -> None:
    """Random requests with an admin key: documented answers only, and never 500."""
    client = server.client(ADMIN_KEY)
    member = await server.member()
    workflow = await define(member, "order-pipeline", [approval("gate"), job("a", "flaky")])
    run = await trigger(member, "order-pipeline")
    await wait_status(member, run["id"], "failed")
    page = await member.get("/v1/runs", params={"workflow_run_id": run["id"]})
    ids = {
        "workflowRunID": run["id"],
        "stepRef": "gate",
        "workflowID": workflow["id"],
        "jobRunID": page.json()["data"][0]["id"],
        "jobID": "flaky",
        "eventKey": "k",
    }
    drawn: list[dict[str, Any]] = []

    @settings(
        max_examples=300,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(requests(document(server.app), ids))
    def collect(request: dict[str, Any]) -> None:
        drawn.append(request)

    collect()
    escaped: list[str] = []
    for request in drawn:
        try:
            answer = await client.request(**request)
        except AssertionError as failed:
            escaped.append(f"{request}: {failed}")
        else:
            if answer.status_code == 500:
                escaped.append(f"{request}: {answer.text}")
    assert escaped == []
    assert len({s for _, s in server.conformance.seen}) > 6
