"""Idempotency keys on every POST: the first answer again, whatever happened in between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import httpx
import msgspec

from tests.blackbox.api import Api, Json, approval, job
from tests.blackbox.rest import details, key_of, refused

RUNS = "/v1/workflow-runs"
REPLAYED = "idempotency-replayed"


class Sent(msgspec.Struct):
    """A POST that was done once."""

    path: str
    body: Any
    other: Any
    headers: dict[str, str]
    first: httpx.Response

    def again(self, api: Api) -> None:
        """The first answer again; another body is refused."""
        second = api.request("POST", self.path, self.body, headers=self.headers)
        what = f"{self.path}: {second.status_code} {second.text[:300]}"
        assert second.status_code == self.first.status_code, what
        assert second.headers[REPLAYED] == "true", what
        assert second.headers.get("location") == self.first.headers.get("location"), what
        assert _lasting(second) == _lasting(self.first), what
        if self.other is not None:
            details(api.request("POST", self.path, self.other, headers=self.headers))


def _lasting(answer: httpx.Response) -> Any:
    """The answer, of a run only what does not go on by itself."""
    if not answer.content:
        return None
    body: Json = answer.json()
    return body["id"] if "triggered_by" in body else body


def post(
    api: Api,
    path: str,
    body: Any = None,
    other: Any = None,
    *,
    status: int,
    headers: Mapping[str, str] | None = None,
) -> Sent:
    named = {"Idempotency-Key": uuid4().hex, "X-Project-Id": api.project, **(headers or {})}
    first = api.request("POST", path, body, headers=named)
    assert first.status_code == status, f"{path}: {first.status_code} {first.text[:300]}"
    assert REPLAYED not in first.headers
    sent = Sent(path, body, other, named, first)
    sent.again(api)
    return sent


def made(api: Api) -> list[Json]:
    runs: list[Json] = api.get(f"{RUNS}?project_id={api.project}&limit=100")
    return runs


def one_of_each(api: Api) -> list[Sent]:
    """Every POST that remembers, each on a run where it does something."""
    steps = [job("a"), approval("b", "a")]
    definition = {"slug": "w", "steps": steps}
    done = [
        post(api, "/v1/workflows", definition, {"slug": "v", "steps": steps}, status=201),
        post(
            api,
            "/v1/jobs",
            {"slug": "j", "endpoint_url": "http://127.0.0.1:9/"},
            {"slug": "i", "endpoint_url": "http://127.0.0.1:9/"},
            status=201,
        ),
    ]
    trigger = f"/v1/workflows/{done[0].first.json()['id']}/trigger"
    done.append(post(api, trigger, {"payload": {"x": 1}}, {"payload": {"x": 2}}, status=201))
    run_id: str = done[-1].first.json()["id"]
    run, step = f"{RUNS}/{run_id}", f"{RUNS}/{run_id}/steps"
    assert len(made(api)) == 1
    done += [
        post(api, f"{run}/{action}", {}, {"x": 1}, status=204)
        for action in ("pause", "resume", "pin", "unpin")
    ]
    prefer = {"Prefer": "return=representation"}
    done.append(post(api, f"{run}/pause", None, {"x": 1}, status=200, headers=prefer))
    done.append(post(api, f"{run}/resume", None, None, status=204))
    api.until_step(run_id, "b", "waiting/approval")
    done.append(post(api, f"{step}/b/approve", {"comment": "yes"}, {"comment": "no"}, status=204))
    api.until(run_id, "completed")
    done.append(post(api, f"{step}/a/retry", None, {"x": 1}, status=200))
    api.until(run_id, "completed")
    assert api.step(run_id, "a")["attempt"] == 2
    done.append(post(api, f"{step}/a/replay-subtree", {}, {"x": 1}, status=200))
    api.until_step(run_id, "b", "waiting/approval")
    assert api.step(run_id, "a")["attempt"] == 3
    done.append(post(api, f"{step}/b/reject", {"reason": "x"}, {"reason": "y"}, status=204))
    api.until(run_id, "failed")
    return [*done, *of_new_runs(api, run), *of_many_runs(api, run)]


def of_new_runs(api: Api, run: str) -> list[Sent]:
    """Of a failed run: retried, and the retries helped on."""
    prefer = {"Prefer": "return=representation"}
    before = len(made(api))
    retried = post(api, f"{run}/retry", None, {"x": 1}, status=201)
    assert len(made(api)) == before + 1
    path = f"{RUNS}/{retried.first.json()['id']}/steps/b/force-complete"
    forced = post(api, path, {"result": 1}, {"result": 2}, status=200, headers=prefer)
    other: str = api.post(f"{run}/retry", expect=201)["id"]
    path = f"{RUNS}/{other}/steps/b/skip"
    return [retried, forced, post(api, path, {"reason": "x"}, {"reason": "y"}, status=204)]


def of_many_runs(api: Api, run: str) -> list[Sent]:
    active: str = api.post(f"{run}/retry", expect=201)["id"]
    some, others = {"workflow_run_ids": [active, "no"]}, {"workflow_run_ids": ["no"]}
    canceled = post(api, f"{RUNS}/bulk-cancel", some, others, status=200)
    before = len(made(api))
    replayed = post(api, f"{RUNS}/bulk-replay", some, others, status=200)
    assert len(made(api)) == before + 1
    event = {"payload": 1, "buffer_secs": 60}
    sent = post(api, "/v1/events/k/send", event, {"payload": 2}, status=200)
    return [canceled, replayed, sent]


def test_every_post_gives_its_first_answer_again_also_after_a_kill(own_api: Api) -> None:
    done = one_of_each(own_api)
    before = [run["id"] for run in made(own_api)]
    own_api.server.kill()
    own_api.server.start()
    for sent in done:
        sent.again(own_api)
    assert [run["id"] for run in made(own_api)] == before


def test_a_key_is_never_shown_again(api: Api) -> None:
    body = {"name": "once", "project_id": api.project, "scopes": ["*"]}
    headers = {"Idempotency-Key": uuid4().hex}
    assert api.request("POST", "/v1/api-keys", body, headers=headers).status_code == 201
    again = api.request("POST", "/v1/api-keys", body, headers=headers)
    refused(again, 409)
    assert "plt_" not in again.text
    assert len(api.get(f"/v1/api-keys?project_id={api.project}")["data"]) == 1


def test_at_the_same_time_it_is_done_once(api: Api) -> None:
    workflow = api.workflow(approval("a"))
    headers = {"Idempotency-Key": uuid4().hex}

    def trigger(_: int) -> httpx.Response:
        return httpx.post(
            f"{api.server.url}/v1/workflows/{workflow}/trigger",
            json={"payload": "x" * 50_000},
            headers={"Authorization": f"Bearer {api.key}", **headers},
        )

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(trigger, range(32)))
    statuses = Counter((a.status_code, REPLAYED in a.headers) for a in answers)
    assert statuses[201, False] == 1
    assert set(statuses) <= {(201, False), (201, True), (409, False)}
    assert len({a.json()["id"] for a in answers if a.status_code == 201}) == 1
    assert len(made(api)) == 1


def test_a_refusal_is_not_remembered(api: Api) -> None:
    headers = {"Idempotency-Key": uuid4().hex, "X-Project-Id": api.project}
    body = {"slug": "not good", "steps": [job("a")]}
    details(api.request("POST", "/v1/workflows", body, headers=headers))
    body["slug"] = "good"
    answer = api.request("POST", "/v1/workflows", body, headers=headers)
    assert answer.status_code == 201
    assert REPLAYED not in answer.headers


def test_a_key_belongs_to_one_path_and_one_project(api: Api) -> None:
    key = uuid4().hex
    for project in ("one", "two"):
        named = f"{api.project}-{project}"
        headers = {"X-Project-Id": named, "Idempotency-Key": key}
        for path, body in (
            ("/v1/workflows", {"slug": "x", "steps": [job("a")]}),
            ("/v1/jobs", {"slug": "x", "endpoint_url": "http://127.0.0.1:9/"}),
        ):
            answer = api.request("POST", path, body, headers=headers)
            assert (answer.status_code, REPLAYED in answer.headers) == (201, False)
    client = Api(api.server, key=key_of(api, f"{api.project}-one", "*")["key"])
    body = {"slug": "x", "steps": [job("a")]}
    again = client.request("POST", "/v1/workflows", body, headers={"X-Idempotency-Key": key})
    assert again.headers[REPLAYED] == "true"
    client.close()


def test_a_key_has_at_most_256_characters_also_of_a_dry_run(api: Api) -> None:
    run_id = api.start(approval("a"))
    for path in (f"{RUNS}/{run_id}/pause", f"{RUNS}/{run_id}/steps/a/skip?dry_run=true"):
        headers = {"Idempotency-Key": "x" * 257}
        assert "Idempotency-Key" in details(api.request("POST", path, headers=headers))[0]
        headers = {"Idempotency-Key": "x" * 256}
        assert api.request("POST", path, headers=headers).status_code < 300


def test_a_dry_run_does_not_use_up_its_key(api: Api) -> None:
    run_id = api.start(approval("a"))
    skip = f"{RUNS}/{run_id}/steps/a/skip"
    headers = {"Idempotency-Key": uuid4().hex}
    assert api.request("POST", f"{skip}?dry_run=true", headers=headers).status_code == 200
    assert api.step(run_id, "a")["status"] == "waiting"
    assert api.request("POST", skip, headers=headers).status_code == 204
    assert api.step(run_id, "a")["status"] == "skipped"
