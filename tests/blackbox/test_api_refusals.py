"""Refusals: one shape everywhere, the order of checks, and no input that gives a 500."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.blackbox.api import Api, Json, approval, job
from tests.blackbox.rest import UNKNOWN, details, key_of, member, operations, refused

RUNS = "/v1/workflow-runs"
BROKEN: list[bytes] = [
    b"{",
    b"}",
    b"nul",
    b"\x00",
    b"\xff\xfe",
    b'{"a":"\xff"}',
    b'{"a":1} x',
    b'{"a":1}\x00',
    b'{"payload":NaN}',
    b'{"payload":1e999}',
    b'{"reason":"\\ud800"}',
    b'{"a":1,"a":2}',
    b'{"payload":{"x":{"k":1,"k":1}}}',
    b"[" * 100_000 + b"]" * 100_000,
    b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
    b"\xef\xbb\xbf{}",
    "{}".encode("utf-16"),
]
ODD: list[Any] = [
    None,
    1,
    "x",
    [],
    {"name": "\0", "reason": "\0", "comment": "\0", "tags": {"a": "\0"}, "triggered_by": "\0"},
    {"payload": 10**50},
    {"result": 10**1000},
    {"delay_secs": 10**400, "buffer_secs": 10**400, "expires_in_days": 10**400},
    {"payload": json.loads("[" * 300 + "]" * 300)},
    {"workflow_run_ids": [None, "\0", {}, ""]},
    {"workflow_run_ids": [""]},
    {"step_overrides": [None], "scopes": [None], "steps": [None], "tags": [None]},
    {"name": [], "slug": {}, "project_id": [], "scopes": {}, "steps": {}, "cron": 1, "enabled": 2},
    {"endpoint_url": "http://\0/", "max_attempts": -1, "timeout_secs": True, "signing_secret": 1},
    {"steps": [{"step_ref": "a", "job_id": "noop", "condition": {"type": "not"}}] * 3},
]


@pytest.fixture
def ids(api: Api) -> dict[str, str]:
    """One of each, in the project of `api`."""
    job_id = "j-refusals"
    body = {"project_id": api.project, "slug": job_id, "endpoint_url": "http://127.0.0.1:9/"}
    api.post("/v1/jobs", body, 201)
    workflow = api.workflow(job("a"), approval("b", "a"))
    run_id = api.trigger(workflow)
    api.until_step(run_id, "b", "waiting/approval")
    return {
        "workflowRunID": run_id,
        "stepRef": "b",
        "workflowID": workflow,
        "jobID": job_id,
        "eventKey": "k",
    }


def writes(api: Api, ids: dict[str, str], prefix: str = "/v1") -> Iterator[tuple[str, str]]:
    for operation in operations(api, prefix):
        if operation.method in {"POST", "PATCH"}:
            yield operation.method, operation.at(ids)


def send(client: Api, method: str, path: str, content: bytes, **headers: str) -> httpx.Response:
    named = {"Authorization": f"Bearer {client.key}", "X-Project-Id": client.project, **headers}
    return httpx.request(method, client.server.url + path, content=content, headers=named)


def test_no_body_is_too_broken(api: Api, ids: dict[str, str]) -> None:
    with httpx.Client(headers={"Authorization": f"Bearer {api.key}"}) as client:
        for method, path in writes(api, ids):
            for content in BROKEN:
                answer = client.request(
                    method,
                    api.server.url + path,
                    content=content,
                    headers={"Content-Type": "application/json", "X-Project-Id": api.project},
                )
                refused(answer, 400)


def test_no_value_gives_a_500(api: Api, ids: dict[str, str]) -> None:
    headers = {"X-Project-Id": api.project, "Content-Type": "application/json"}
    headers["Authorization"] = f"Bearer {api.key}"
    with httpx.Client(headers=headers) as client:
        for method, path in writes(api, ids):
            for value in ODD:
                content = json.dumps(value).encode()
                answer = client.request(method, api.server.url + path, content=content)
                assert answer.status_code < 500, (method, path, value, answer.text)
                if answer.status_code >= 400:
                    refused(answer)


def test_callbacks_refuse_strangers_before_they_look_at_the_body(api: Api) -> None:
    for method, path in writes(api, {}, "/sdk"):
        refused(send(api, method, path, b"{"), 401)


@pytest.mark.parametrize("value", ["%00", "%ff", "..%2F..", "x" * 3_000, "*", "%7Bx%7D", UNKNOWN])
def test_an_id_that_is_none_is_404(api: Api, value: str) -> None:
    for operation in operations(api):
        if "{workflowRunID}" in operation.path:
            path = operation.at({"workflowRunID": value, "stepRef": "a"})
            refused(api.request(operation.method, path), 404)


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v2/x", "/v1/nope", "/v1/workflow-runs/x/steps/y", "/sdk/v1/runs", "/%00"]
)
def test_an_unknown_path_is_404(api: Api, path: str) -> None:
    refused(api.request("GET", path), 404)


def test_a_method_that_a_path_has_not_is_405_and_allow_names_the_others(api: Api) -> None:
    known: dict[str, set[str]] = {}
    for operation in operations(api, "/"):
        known.setdefault(operation.at({}), set()).add(operation.method)
    for path, methods in known.items():
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} - methods:
            answer = api.request(method, path)
            refused(answer, 405)
            allowed = {name.strip() for name in answer.headers["allow"].split(",")}
            assert allowed - {"HEAD", "OPTIONS"} == methods


@pytest.mark.parametrize("accept", ["text/html", "application/xml", "image/*"])
def test_who_takes_no_json_gets_406(api: Api, accept: str) -> None:
    refused(api.request("GET", f"{RUNS}?project_id=p", headers={"Accept": accept}), 406)


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("text/plain", 415),
        ("application/xml", 415),
        ("application/json; charset=latin1", 415),
        ("garbage", 415),
        ("application/json", 204),
        ("APPLICATION/JSON;charset=UTF-8", 204),
    ],
)
def test_a_body_is_json_in_utf8(
    api: Api, ids: dict[str, str], content_type: str, status: int
) -> None:
    path = f"{RUNS}/{ids['workflowRunID']}/pause"
    answer = send(api, "POST", path, b"{}", **{"Content-Type": content_type})
    assert answer.status_code == status
    if status == 415:
        refused(answer)


def test_bodies_are_bounded(api: Api, ids: dict[str, str]) -> None:
    trigger = f"/v1/workflows/{ids['workflowID']}/trigger"
    limit = (1 << 20) + (64 << 10)

    def body(size: int) -> bytes:
        return b'{"z":"' + b"x" * (size - 8) + b'"}'

    assert api.raw("POST", trigger, body(limit)).status_code == 201
    refused(api.raw("POST", trigger, body(limit + 1)), 413)
    refused(api.raw("POST", "/v1/workflows", body((8 << 20) + 1)), 413)
    details(send(api, "POST", "/v1/workflows", body(8 << 20)))


@pytest.mark.parametrize("key", ["", "plt_unknown"])
def test_an_upload_without_end_is_cut(api: Api, ids: dict[str, str], key: str) -> None:
    host, port = api.server.url.removeprefix("http://").split(":")
    chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    sent = 0
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            f"POST /v1/workflows/{ids['workflowID']}/trigger HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {key or api.key}\r\nContent-Type: application/json\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        try:
            while sent < 256 << 20:
                connection.sendall(chunk)
                sent += len(chunk)
        except ConnectionError:
            pass
    assert 1 << 20 < sent < 256 << 20


def test_an_announced_body_is_refused_before_it_is_sent(api: Api, ids: dict[str, str]) -> None:
    host, port = api.server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(
            f"POST /v1/workflows/{ids['workflowID']}/trigger HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {api.key}\r\nContent-Type: application/json\r\n"
            "Content-Length: 99999999999\r\n\r\n".encode()
        )
        assert connection.recv(1024).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("given", "taken"),
    [("abc-123", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ("<b>", False)],
)
def test_the_request_id_is_taken_over_or_made(api: Api, given: str, taken: bool) -> None:
    for path, status in (("/health", 200), ("/v1/nope", 404)):
        answer = api.request("GET", path, headers={"X-Request-Id": given})
        assert answer.status_code == status
        assert (answer.headers["x-request-id"] == given) == taken


def test_the_order_of_checks(api: Api, ids: dict[str, str]) -> None:
    """401, 403 scope, 413/415/400, 404, 403 approver, 422, 409."""
    workflow = api.workflow(approval("a", approvers=["somebody"]), job("z"))
    run_id = api.trigger(workflow)
    reader = member(api, "workflows:read")
    big = b'{"a":"' + b"x" * (2 << 20) + b'"}'
    pause, step = f"{RUNS}/{UNKNOWN}/pause", f"{RUNS}/{run_id}/steps"
    refused(httpx.post(api.server.url + pause, content=big), 401)
    refused(send(reader, "POST", pause, big), 403)
    refused(send(reader, "POST", pause, b"{", **{"Content-Type": "text/plain"}), 403)
    refused(send(api, "POST", pause, big), 413)
    refused(send(api, "POST", pause, b"{", **{"Content-Type": "text/plain"}), 415)
    refused(send(api, "POST", pause, b"{"), 400)
    refused(api.request("POST", pause, {}), 404)
    refused(api.request("POST", f"{step}/nope/approve", {"comment": 5}), 404)
    refused(api.request("POST", f"{step}/a/approve", {"comment": 5}), 403)
    api.until_step(run_id, "z", "completed")
    assert details(api.request("POST", f"{step}/z/skip", {"reason": 5}))[0].startswith("reason")
    refused(api.request("POST", f"{step}/z/skip", {}), 409)
    refused(api.request("PATCH", f"/v1/workflows/{UNKNOWN}", {"zz": 1}), 404)
    refused(api.request("POST", f"/v1/workflows/{UNKNOWN}/trigger", {"delay_secs": "x"}), 404)
    reader.close()


@pytest.mark.parametrize("what", ["pause", "resume", "pin", "steps/b/approve", "steps/b/reject"])
def test_nobody_who_asks_for_a_dry_run_gets_the_real_one(
    api: Api, ids: dict[str, str], what: str
) -> None:
    run = f"{RUNS}/{ids['workflowRunID']}"
    before = api.history(ids["workflowRunID"])
    assert "dry_run" in details(api.request("POST", f"{run}/{what}?dry_run=true"))[0]
    assert "dry_run" in details(api.request("DELETE", f"{run}?dry_run=true"))[0]
    trigger = f"/v1/workflows/{ids['workflowID']}/trigger?dry_run=true"
    assert "dry_run" in details(api.request("POST", trigger, {}))[0]
    key = key_of(api, api.project, "jobs:read")
    for path in (f"workflows/{ids['workflowID']}", f"jobs/{ids['jobID']}", f"api-keys/{key['id']}"):
        headers = {"X-Project-Id": api.project}
        answer = api.request("DELETE", f"/v1/{path}?dry_run=true", headers=headers)
        assert "dry_run" in details(answer)[0]
        if "keys" not in path:
            assert api.request("GET", f"/v1/{path}", headers=headers).status_code == 200
    reader = Api(api.server, project=api.project, key=key["key"])
    assert reader.request("GET", "/v1/jobs").status_code == 200, "its key is not revoked"
    reader.close()
    assert api.history(ids["workflowRunID"]) == before
    assert len(api.get(f"{RUNS}?project_id={api.project}")) == 1


def test_all_problems_of_a_key_are_told_at_once(api: Api) -> None:
    body: Json = {"name": "", "project_id": "a b", "scopes": ["zz"], "expires_in_days": 0, "foo": 1}
    told = details(api.request("POST", "/v1/api-keys", body))
    assert {problem.split(":")[0] for problem in told} == {
        "name",
        "project_id",
        "scopes[0]",
        "expires_in_days",
        "foo",
    }
    assert key_of(api, api.project, "*")["key"].startswith("plt_")
