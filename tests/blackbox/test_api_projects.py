"""Keys, scopes, and projects that cannot see each other, over every route there is."""

from __future__ import annotations

import re

import httpx
import pytest

from tests.blackbox.api import Api, approval, event, job
from tests.blackbox.rest import UNKNOWN, Operation, key_of, member, operations, refused

RUNS = "/v1/workflow-runs"
SCOPES = (
    "workflows:read",
    "workflows:write",
    "workflows:trigger",
    "jobs:read",
    "jobs:write",
    "api-keys:manage",
)


def scope_of(operation: Operation) -> str:
    """By the rules of the specification, not by the document."""
    method, path = operation.method, operation.path
    if path.startswith("/v1/api-keys"):
        return "api-keys:manage"
    if path.startswith("/v1/jobs"):
        return "jobs:read" if method == "GET" else "jobs:write"
    if path.startswith("/v1/runs"):
        return "jobs:read"
    if path.startswith("/v1/events") or path.endswith(("/trigger", "/dry-run")):
        return "workflows:trigger"
    if path == "/v1/workflow-runs/{workflowRunID}/retry":
        return "workflows:trigger"
    return "workflows:read" if method == "GET" else "workflows:write"


def test_every_route_needs_a_key(api: Api) -> None:
    with httpx.Client(base_url=api.server.url) as client:
        for operation in operations(api):
            for key in ("", "Basic x", f"Bearer {api.key}x"):
                headers = {"Authorization": key} if key else {}
                answer = client.request(operation.method, operation.at({}), headers=headers)
                refused(answer, 401)
                assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("scope", SCOPES)
def test_every_route_needs_its_scope_and_the_refusal_names_it(api: Api, scope: str) -> None:
    client = member(api, scope)
    for operation in operations(api):
        answer = client.request(operation.method, operation.at({}))
        wanted = scope_of(operation)
        if wanted == scope:
            assert answer.status_code != 403, (operation, answer.text)
        else:
            assert wanted in refused(answer, 403)["message"]
    client.close()


def test_an_admin_key_needs_no_project_for_an_id_and_none_is_in_the_way(api: Api) -> None:
    body = {"project_id": api.project, "slug": "j", "endpoint_url": "http://127.0.0.1:9/"}
    job_id = api.post("/v1/jobs", body, 201)["id"]
    workflow = api.workflow(approval("a"), slug="w")
    run_id = api.trigger(workflow)
    for path in (f"jobs/{job_id}", f"workflows/{workflow}", f"workflow-runs/{run_id}"):
        for headers in ({}, {"X-Project-Id": api.project}, {"X-Project-Id": "elsewhere"}):
            assert api.request("GET", f"/v1/{path}", headers=headers).status_code == 200
    for path in ("jobs/j", "workflows/w"):
        refused(api.request("GET", f"/v1/{path}", headers={"X-Project-Id": "elsewhere"}), 404)


def test_another_projects_things_do_not_exist(api: Api) -> None:
    """404, and word for word what is said about things that are nowhere."""
    body = {"project_id": api.project, "slug": "j", "endpoint_url": "http://127.0.0.1:9/"}
    workflow = api.workflow(job("a"), approval("b"), slug="w")
    run_id = api.trigger(workflow)
    step = api.until_step(run_id, "a", "completed")
    ids = {
        "workflowRunID": run_id,
        "stepRef": "b",
        "workflowID": workflow,
        "jobID": api.post("/v1/jobs", body, 201)["id"],
        "jobRunID": step["job_run_id"],
        "keyID": key_of(api, api.project, "*")["id"],
    }
    slugs = {"workflowID": "w", "jobID": "j"}
    before = (api.history(run_id), api.get(f"/v1/workflows/{workflow}"))
    stranger = Api(api.server, key=key_of(api, "stranger", "*")["key"])

    def said(operation: Operation, known: dict[str, str]) -> str:
        answer = stranger.request(operation.method, operation.at(known))
        refused(answer, 404)
        text = re.sub(r'"request_id":"[^"]*"', "", answer.text)
        for value in known.values():
            text = text.replace(f'\\"{value}\\"', "?")
        return text

    for operation in operations(api):
        names = set(re.findall(r"\{(\w+)\}", operation.path)) - {"stepRef"}
        if not names or names == {"eventKey"}:
            continue
        assert said(operation, ids) == said(operation, dict.fromkeys(names, UNKNOWN)), operation
        if names <= set(slugs):
            assert said(operation, slugs) == said(operation, dict.fromkeys(names, "nowhere"))
    assert (api.history(run_id), api.get(f"/v1/workflows/{workflow}")) == before
    stranger.close()


def test_events_filters_and_references_stop_at_the_project(api: Api) -> None:
    workflow = api.workflow(event("e", "k"))
    run_id = api.trigger(workflow)
    stranger = Api(api.server, key=key_of(api, "stranger", "*")["key"])
    assert stranger.post("/v1/events/k/send", {})["delivered"] == 0
    refused(stranger.request("POST", "/v1/events/k/send", {"project_id": api.project}), 403)
    assert stranger.get(f"{RUNS}?workflow_id={workflow}")["data"] == []
    refused(stranger.request("GET", f"/v1/runs?workflow_run_id={run_id}"), 404)
    steps = [{"step_ref": "s", "type": "sub_workflow", "sub_workflow_id": workflow}]
    refused(stranger.request("POST", "/v1/workflows", {"slug": "s", "steps": steps}), 422)
    body = {"project_id": api.project, "slug": "s", "steps": [job("a")]}
    refused(stranger.request("POST", "/v1/workflows", body), 403)
    assert api.step(run_id, "e")["status"] == "waiting"
    assert api.post("/v1/events/k/send", {"project_id": api.project})["delivered"] == 1
    stranger.close()


def test_a_fraction_of_a_second_is_long_enough_to_keep_an_event(api: Api) -> None:
    body = {"project_id": api.project, "buffer_secs": 0.5}
    assert api.post("/v1/events/k/send", body)["buffered"] is True


def test_a_key_is_shown_once_and_refused_once_revoked(api: Api) -> None:
    made = key_of(api, api.project, "workflows:read")
    assert re.fullmatch(r"plt_[A-Za-z0-9_-]{43}", made["key"])
    listed = api.get(f"/v1/api-keys?project_id={api.project}")["data"]
    assert [set(key) & {"key", "hash"} for key in listed] == [set()]
    client = Api(api.server, key=made["key"])
    assert client.get(RUNS)["data"] == []
    assert api.request("DELETE", f"/v1/api-keys/{made['id']}").status_code == 204
    refused(client.request("GET", RUNS), 401)
    client.close()


def test_nobody_gives_away_more_than_they_hold(api: Api) -> None:
    keeper = member(api, "api-keys:manage")
    path = "/v1/api-keys"
    for project, scopes in ((api.project, ["*"]), ("*", ["*"]), ("other", ["api-keys:manage"])):
        body = {"name": "x", "project_id": project, "scopes": scopes}
        refused(keeper.request("POST", path, body), 403)
    others = key_of(api, "other", "*")["id"]
    refused(keeper.request("DELETE", f"{path}/{others}"), 404)
    refused(keeper.request("GET", f"{path}?project_id=other"), 403)
    assert {key["project_id"] for key in keeper.get(path)["data"]} == {api.project}
    keeper.close()


def test_only_an_admin_key_acts_for_others(api: Api) -> None:
    run_id = api.start(approval("a", approvers=["ops"]), approval("b", approvers=["ops"]))
    step = f"{RUNS}/{run_id}/steps"
    other, ops = member(api), member(api, name="ops")
    as_ops = {"X-Actor-Id": "ops"}
    refused(other.request("POST", f"{step}/a/approve", headers=as_ops), 403)
    refused(api.request("POST", f"{step}/a/approve"), 403)
    assert api.request("POST", f"{step}/a/approve", headers=as_ops).status_code == 204
    assert ops.request("POST", f"{step}/b/approve").status_code == 204
    refused(other.request("POST", f"{step}/a/approve"), 403)
    for wrong in ("x" * 129, "system"):
        named = {"X-Actor-Id": wrong}
        refused(api.request("POST", f"{RUNS}/{run_id}/pause", headers=named), 422)
        refused(api.request("POST", f"{step}/a/approve", headers=named), 403)
    other.close()
    ops.close()
