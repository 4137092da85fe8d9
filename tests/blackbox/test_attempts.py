"""Attempts, retries, timeouts, and a job server that misbehaves (section 5, definitions)."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import threading
import time
from collections.abc import Callable

import pytest

from tests.blackbox.api import Api, Json, approval, job
from tests.blackbox.jobserver import Answer, JobServer, ok, status
from tests.support.waiting import wait_until_sync

Gates = Callable[[], threading.Event]


def gaps(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def test_max_attempts_is_three_by_default(api: Api, jobs: JobServer) -> None:
    endpoint = jobs.endpoint(status(500))
    slug = f"{api.project}-default"
    body = {
        "project_id": api.project,
        "slug": slug,
        "endpoint_url": endpoint.url,
        "retry_initial_delay_secs": 0,
    }
    created: Json = api.post("/v1/jobs", body, 201)
    assert (created["max_attempts"], created["timeout_secs"]) == (3, 300)
    assert (created["retry_max_delay_secs"], created["name"]) == (3600, slug)
    run_id = api.start(job("a", slug))
    api.until(run_id, "failed")
    assert endpoint.attempts == [1, 2, 3]
    assert api.step(run_id, "a")["attempt"] == 3


def test_the_default_initial_delay_is_a_second(api: Api, jobs: JobServer) -> None:
    endpoint = jobs.endpoint(status(500), ok(1))
    slug = f"{api.project}-default"
    body = {"project_id": api.project, "slug": slug, "endpoint_url": endpoint.url}
    created: Json = api.post("/v1/jobs", body, 201)
    assert created["retry_initial_delay_secs"] == 1
    api.until(api.start(job("a", slug)), "completed")
    [delay] = gaps([call.at for call in endpoint.calls])
    assert 0.8 <= delay <= 1.5


def test_a_step_overrides_the_policy_of_its_job(api: Api, jobs: JobServer) -> None:
    endpoint = jobs.endpoint(status(500))
    slug = api.job(endpoint, max_attempts=9, retry_initial_delay_secs=500)
    run_id = api.start(job("a", slug, retry_max_attempts=2, retry_initial_delay_secs=0))
    api.until(run_id, "failed")
    assert endpoint.attempts == [1, 2]


@pytest.mark.parametrize(
    ("backoff", "factors"),
    [("exponential", [1, 2, 4]), ("linear", [1, 2, 3]), ("fixed", [1, 1, 1])],
)
def test_the_backoff_grows_as_its_name_says(
    api: Api, jobs: JobServer, backoff: str, factors: list[int]
) -> None:
    endpoint = jobs.endpoint(status(500))
    slug = api.job(endpoint, max_attempts=4, retry_backoff=backoff, retry_initial_delay_secs=0.25)
    api.until(api.start(job("a", slug)), "failed")
    for found, factor in zip(gaps([c.at for c in endpoint.calls]), factors, strict=True):
        assert 0.25 * factor * 0.8 <= found <= 0.25 * factor * 1.2 + 0.15, (found, factor)


def test_the_cap_comes_after_the_jitter(api: Api, jobs: JobServer) -> None:
    endpoint = jobs.endpoint(status(500))
    slug = api.job(endpoint, max_attempts=5, retry_initial_delay_secs=10, retry_max_delay_secs=0.1)
    api.until(api.start(job("a", slug)), "failed")
    for found in gaps([call.at for call in endpoint.calls]):
        assert 0.1 <= found <= 0.25


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 422, 301, 302, 304])
def test_these_answers_are_final(api: Api, jobs: JobServer, code: int) -> None:
    endpoint = jobs.endpoint(status(code, "" if code == 304 else "no"))
    run_id = api.start(job("a", api.job(endpoint, max_attempts=3, retry_initial_delay_secs=0)))
    api.until(run_id, "failed")
    assert endpoint.attempts == [1]
    assert str(code) in api.step(run_id, "a")["error"]


@pytest.mark.parametrize("code", [408, 409, 425, 429, 500, 502, 503, 504])
def test_these_answers_are_retryable(api: Api, jobs: JobServer, code: int) -> None:
    endpoint = jobs.endpoint(status(code), ok({"fine": True}))
    run_id = api.start(job("a", api.job(endpoint, max_attempts=2, retry_initial_delay_secs=0)))
    api.until(run_id, "completed")
    step = api.step(run_id, "a")
    assert endpoint.attempts == [1, 2]
    assert step["output"] == {"fine": True}
    assert step["attempt"] == 2
    assert "error" not in step


def test_a_redirect_is_not_followed(api: Api, jobs: JobServer) -> None:
    target = jobs.endpoint(ok(1))
    endpoint = jobs.endpoint(status(307, "there", Location=target.url))
    run_id = api.start(job("a", api.job(endpoint, max_attempts=3, retry_initial_delay_secs=0)))
    api.until(run_id, "failed")
    assert not target.calls
    assert len(endpoint.calls) == 1


def test_a_hung_up_connection_is_retryable(api: Api, jobs: JobServer) -> None:
    endpoint = jobs.endpoint(Answer(gate=opened(), hang_up=True), ok(2))
    run_id = api.start(job("a", api.job(endpoint, max_attempts=2, retry_initial_delay_secs=0)))
    api.until(run_id, "completed")
    assert endpoint.attempts == [1, 2]


def opened() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


@pytest.mark.parametrize("code", [429, 503])
def test_retry_after_is_honoured(api: Api, jobs: JobServer, code: int) -> None:
    endpoint = jobs.endpoint(status(code, "later", Retry_After="1"), ok(1))
    run_id = api.start(job("a", api.job(endpoint, max_attempts=2, retry_initial_delay_secs=0)))
    api.until(run_id, "completed")
    [delay] = gaps([call.at for call in endpoint.calls])
    assert 0.95 <= delay <= 1.6


def test_retry_after_is_honoured_up_to_the_cap_only(api: Api, jobs: JobServer) -> None:
    endpoint = jobs.endpoint(status(429, "later", Retry_After="3000"), ok(1))
    slug = api.job(endpoint, max_attempts=2, retry_initial_delay_secs=0, retry_max_delay_secs=0.2)
    api.until(api.start(job("a", slug)), "completed")
    [delay] = gaps([call.at for call in endpoint.calls])
    assert 0.15 <= delay <= 0.6


def test_retry_after_of_other_answers_is_ignored(api: Api, jobs: JobServer) -> None:
    endpoint = jobs.endpoint(status(500, "later", Retry_After="3000"), ok(1))
    slug = api.job(endpoint, max_attempts=2, retry_initial_delay_secs=0)
    api.until(api.start(job("a", slug)), "completed")


@pytest.mark.parametrize("text", ["soon", "-5", "1e400", "nan", "", "9" * 400])
def test_a_retry_after_that_is_nonsense_does_no_harm(api: Api, jobs: JobServer, text: str) -> None:
    endpoint = jobs.endpoint(status(503, "later", Retry_After=text), ok(1))
    slug = api.job(endpoint, max_attempts=2, retry_initial_delay_secs=0, retry_max_delay_secs=0.2)
    api.until(api.start(job("a", slug)), "completed")


def test_the_timeout_is_a_hard_bound_and_retryable(api: Api, jobs: JobServer, gate: Gates) -> None:
    endpoint = jobs.endpoint(ok(1, gate=gate()), ok(2))
    slug = api.job(endpoint, timeout_secs=1, max_attempts=2, retry_initial_delay_secs=0)
    run_id = api.start(job("a", slug))
    assert endpoint.call().closed.wait(5), "the connection was not closed at the bound"
    api.until(run_id, "completed")
    assert endpoint.attempts == [1, 2]
    assert api.step(run_id, "a")["output"] == 2
    assert "timed out after 1 s" in api.attempts(run_id, "a")[0]["error"]


def test_the_step_names_the_timeout_and_may_override_it(
    api: Api, jobs: JobServer, gate: Gates
) -> None:
    endpoint = jobs.endpoint(ok(1, gate=gate()))
    run_id = api.start(job("a", api.job(endpoint), timeout_secs_override=1))
    api.until(run_id, "failed")
    assert "timed out after 1 s" in api.step(run_id, "a")["error"]


def test_a_slow_trickle_does_not_get_round_the_timeout(
    api: Api, jobs: JobServer, gate: Gates
) -> None:
    never = gate()
    endpoint = jobs.endpoint(Answer(status=202, body=b""), ok(gate=never))
    run_id = api.start(job("a", api.job(endpoint), timeout_secs_override=1))
    api.until(run_id, "failed", within_secs=4)
    assert "timed out after 1 s" in api.step(run_id, "a")["error"]


def test_all_attempts_are_kept_and_shown(api: Api, jobs: JobServer) -> None:
    endpoint = jobs.endpoint(status(500, "one"), status(503, "two"), ok("three"))
    run_id = api.start(job("a", api.job(endpoint, max_attempts=3, retry_initial_delay_secs=0)))
    api.until(run_id, "completed")
    records = api.attempts(run_id, "a")
    assert [(r["attempt"], r["status"]) for r in records] == [
        (1, "failed"),
        (2, "failed"),
        (3, "completed"),
    ]
    assert "500" in records[0]["error"]
    assert records[2]["result"] == "three"
    step = api.step(run_id, "a")
    assert step["job_run_id"] == records[2]["id"]
    for record, call in zip(records, endpoint.calls, strict=True):
        assert record["id"] == call.job_run_id
        assert record["workflow_step_run_id"] == step["id"]
        assert api.get(f"/v1/runs/{record['id']}")["id"] == record["id"]


def test_an_attempt_carries_the_headers_of_the_contract(api: Api, jobs: JobServer) -> None:
    endpoint = jobs.endpoint(status(500), ok(1))
    secret = "s3cret-" * 5
    slug = api.job(endpoint, max_attempts=2, retry_initial_delay_secs=0, signing_secret=secret)
    run_id = api.start(job("a", slug), payload={"x": 1})
    api.until(run_id, "completed")
    first, second = endpoint.calls
    for number, call in enumerate(endpoint.calls, 1):
        headers = call.headers
        assert headers["x-workflow-run-id"] == run_id
        assert headers["x-step-ref"] == "a"
        assert headers["x-attempt"] == str(number)
        assert headers["x-run-id"]
        assert headers["x-job-id"]
        assert headers["x-run-token"]
        assert headers["traceparent"].startswith("00-")
        assert headers["content-type"].startswith("application/json")
        stamp = headers["x-signature-timestamp"]
        expected = hmac.new(
            secret.encode(), stamp.encode() + b"." + call.raw, hashlib.sha256
        ).hexdigest()
        assert headers["x-signature"] == f"v1={expected}"
        assert call.body == {"x": 1, "parent_outputs": {}}
    assert first.headers["idempotency-key"] != second.headers["idempotency-key"]
    assert first.headers["x-run-id"] != second.headers["x-run-id"]


def test_a_signing_secret_is_never_shown(api: Api, jobs: JobServer) -> None:
    slug = api.job(jobs.endpoint(), signing_secret="hush-hush-hush-hush")
    response = api.request("GET", f"/v1/jobs/{slug}", headers={"X-Project-Id": api.project})
    assert response.status_code == 200
    assert "hush" not in response.text


@pytest.mark.parametrize(
    ("answer", "output"),
    [
        (ok({"a": [1, None]}), {"a": [1, None]}),
        (ok(0), 0),
        (ok(data := False), data),
        (ok(""), ""),
        (Answer(body=b"just text", content_type="text/plain"), "just text"),
        (Answer(status=201, body=b'"x"'), "x"),
        (Answer(status=299, body=b"[]"), []),
        (Answer(body=b'{"v": 1}', content_type="application/vnd.x+json; charset=utf-8"), {"v": 1}),
    ],
)
def test_the_output_of_an_http_job_is_its_answer(
    api: Api, jobs: JobServer, answer: Answer, output: object
) -> None:
    run_id = api.start(job("a", api.job(jobs.endpoint(answer))))
    api.until(run_id, "completed")
    assert api.step(run_id, "a")["output"] == output


@pytest.mark.parametrize(
    "answer", [Answer(status=204, body=b""), Answer(body=b""), ok(None)], ids=["204", "0", "null"]
)
def test_an_empty_or_null_answer_is_no_output(api: Api, jobs: JobServer, answer: Answer) -> None:
    run_id = api.start(job("a", api.job(jobs.endpoint(answer))))
    api.until(run_id, "completed")
    assert "output" not in api.step(run_id, "a")


@pytest.mark.parametrize("body", [b"{", b"nan", b"{'a': 1}", b"\xff\xfe", b"[1,2", b"[" * 100_000])
def test_a_broken_json_answer_is_final(api: Api, jobs: JobServer, body: bytes) -> None:
    endpoint = jobs.endpoint(Answer(body=body))
    run_id = api.start(job("a", api.job(endpoint, max_attempts=3, retry_initial_delay_secs=0)))
    api.until(run_id, "failed")
    assert endpoint.attempts == [1]
    assert api.step(run_id, "a")["error"]


def test_bytes_that_are_no_text_do_not_break_the_run(api: Api, jobs: JobServer) -> None:
    answer = Answer(body=b"\xff\xfe\x00caf\xe9", content_type="text/plain")
    run_id = api.start(job("a", api.job(jobs.endpoint(answer))))
    api.until(run_id, "completed", "failed")


def test_an_error_body_of_a_megabyte_is_shortened(api: Api, jobs: JobServer) -> None:
    endpoint = jobs.endpoint(status(400, "x" * 1_000_000))
    run_id = api.start(job("a", api.job(endpoint)))
    ended = api.until(run_id, "failed")
    assert len(ended["error"]) < 10_000


def test_an_output_over_a_mebibyte_is_final_with_a_clear_error(api: Api, jobs: JobServer) -> None:
    endpoint = jobs.endpoint(ok("x" * (1024 * 1024 + 10)))
    run_id = api.start(job("a", api.job(endpoint, max_attempts=3, retry_initial_delay_secs=0)))
    api.until(run_id, "failed")
    assert endpoint.attempts == [1]
    assert "MiB" in api.step(run_id, "a")["error"] or "1048576" in api.step(run_id, "a")["error"]


def test_an_output_of_just_a_mebibyte_is_accepted(api: Api, jobs: JobServer) -> None:
    value = "x" * (1024 * 1024 - 2)
    run_id = api.start(job("a", api.job(jobs.endpoint(ok(value)))))
    api.until(run_id, "completed")
    assert api.step(run_id, "a")["output"] == value


def test_an_unknown_job_at_run_time_is_final(api: Api, jobs: JobServer) -> None:
    endpoint = jobs.endpoint()
    slug = api.job(endpoint, max_attempts=3, retry_initial_delay_secs=600)
    workflow = api.workflow(approval("ok"), job("a", slug, after="ok"), enabled=True)
    run_id = api.trigger(workflow)
    answered = api.request("PATCH", f"/v1/workflows/{workflow}", {"enabled": False})
    assert answered.status_code == 200, answered.text
    gone = api.request("DELETE", f"/v1/jobs/{slug}", headers={"X-Project-Id": api.project})
    assert gone.status_code == 204, gone.text
    api.on(run_id, "ok", "approve")
    api.until(run_id, "failed")
    assert "does not exist" in api.step(run_id, "a")["error"]
    assert not endpoint.calls


def test_python_jobs_get_input_and_context(api: Api) -> None:
    run_id = api.start(job("a", "who"), job("p", "plain"))
    api.until(run_id, "completed")
    steps = api.steps(run_id)
    assert steps["a"]["output"]["run"] == run_id
    assert steps["a"]["output"]["step"] == "a"
    assert steps["a"]["output"]["attempt"] == 1
    assert run_id in steps["a"]["output"]["key"]
    assert steps["p"]["output"] == {"plain": True}


def test_retry_and_fail_of_a_python_job_override_the_policy(api: Api) -> None:
    run_id = api.start(job("again", "retry_once"), job("no", "ordered_to_fail", "again"))
    ended = api.until(run_id, "failed")
    steps = api.steps(run_id)
    assert steps["again"]["output"] == 2
    assert steps["no"]["attempt"] == 1
    assert "enough of this" in ended["error"]


def test_a_type_mismatch_of_a_python_job_is_final(api: Api) -> None:
    run_id = api.start(job("a", "typed"), payload={"amount": "many"})
    api.until(run_id, "failed")
    step = api.step(run_id, "a")
    assert step["attempt"] == 1
    assert "amount" in step["error"]


def test_an_exception_of_a_python_job_is_the_error(api: Api) -> None:
    run_id = api.start(job("a", "plain"), payload={"raise": "no such table"})
    assert "no such table" in api.until(run_id, "failed")["error"]


@pytest.mark.parametrize(
    "fields",
    [
        {"retry_max_attempts": 0},
        {"retry_max_attempts": 101},
        {"retry_max_attempts": 1.5},
        {"retry_backoff": "random"},
        {"retry_initial_delay_secs": -1},
        {"timeout_secs_override": 86_401},
        {"timeout_secs_override": 0},
        {"concurrency_key": "k" * 129},
    ],
    ids=json.dumps,
)
def test_a_policy_out_of_bounds_is_refused(api: Api, fields: Json) -> None:
    body = {"project_id": api.project, "name": "w", "steps": [job("a", **fields)]}
    answer = api.post("/v1/workflows", body, 422)
    assert f"steps[0].{next(iter(fields))}" in " ".join(answer["error"]["details"])


def test_an_open_breaker_holds_attempts_back_instead_of_burning_them(api: Api) -> None:
    with JobServer(time.monotonic) as elsewhere:
        base = elsewhere.base
    body = {
        "project_id": api.project,
        "slug": "gone",
        "endpoint_url": base,
        "max_attempts": 20,
        "retry_initial_delay_secs": 0,
    }
    api.post("/v1/jobs", body, 201)
    run_id = api.start(job("a", "gone"))
    wait_until_sync(lambda: api.step(run_id, "a")["attempt"] >= 5, "five connection failures")
    api.until_step(run_id, "a", lambda step: step["status"] != "completed")
    assert api.run(run_id)["status"] == "running"
    assert api.step(run_id, "a")["attempt"] <= 6
    assert api.explain(run_id)["a"]["reason"]
    api.cancel(run_id)
