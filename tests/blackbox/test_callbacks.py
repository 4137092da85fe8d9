"""202 and the callback API: late, twice, too late, by a stranger (section 5, definitions)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.blackbox.api import Api, Json, job
from tests.blackbox.jobserver import Call, Endpoint, JobServer, accepted, ok, status

Gates = Callable[[], threading.Event]


def report(
    api: Api, call: Call, action: str, body: Any = None, *, token: str | None = None
) -> httpx.Response:
    return httpx.post(
        f"{api.server.url}/sdk/v1/runs/{call.job_run_id}/{action}",
        json=body,
        headers={"Authorization": f"Bearer {call.token if token is None else token}"},
        timeout=10,
    )


def started(api: Api, jobs: JobServer, **fields: Any) -> tuple[str, Endpoint, Call]:
    endpoint = jobs.endpoint(accepted())
    run_id = api.start(job("a", api.job(endpoint, **fields)), job("b", "echo", after="a"))
    return run_id, endpoint, endpoint.call()


def test_after_202_the_step_runs_until_the_report(api: Api, jobs: JobServer) -> None:
    run_id, _, call = started(api, jobs)
    api.until_step(run_id, "a", "running")
    answer = report(api, call, "complete", {"result": {"n": 1}})
    assert answer.status_code in {200, 204}, answer.text
    api.until(run_id, "completed")
    assert api.step(run_id, "a")["output"] == {"n": 1}
    assert api.step(run_id, "b")["output"]["parent_outputs"] == {"a": {"n": 1}}


def test_a_report_without_a_result_completes_without_output(api: Api, jobs: JobServer) -> None:
    run_id, _, call = started(api, jobs)
    assert report(api, call, "complete").status_code in {200, 204}
    api.until(run_id, "completed")
    assert "output" not in api.step(run_id, "a")


def test_a_reported_failure_is_retryable_unless_final(api: Api, jobs: JobServer) -> None:
    run_id, endpoint, call = started(api, jobs, max_attempts=5, retry_initial_delay_secs=0)
    assert report(api, call, "fail", {"error": "not yet"}).status_code in {200, 204}
    second = endpoint.call(2)
    assert second.attempt == 2
    answer = report(api, second, "fail", {"error": "never ever", "final": True})
    assert answer.status_code in {200, 204}
    assert "never ever" in api.until(run_id, "failed")["error"]
    assert endpoint.attempts == [1, 2]


def test_a_superseded_attempt_is_refused_with_409(api: Api, jobs: JobServer) -> None:
    run_id, endpoint, first = started(api, jobs, max_attempts=2, retry_initial_delay_secs=0)
    report(api, first, "fail", {"error": "not yet"})
    second = endpoint.call(2)
    assert report(api, first, "complete", {"result": "late"}).status_code == 409
    assert api.step(run_id, "a")["status"] == "running"
    assert report(api, second, "complete", {"result": "new"}).status_code in {200, 204}
    api.until(run_id, "completed")
    assert api.step(run_id, "a")["output"] == "new"


@pytest.mark.parametrize("action", ["skip", "force-complete"])
def test_a_report_for_a_step_that_is_over_is_410(api: Api, jobs: JobServer, action: str) -> None:
    run_id, _, call = started(api, jobs)
    api.on(run_id, "a", action)
    assert report(api, call, "complete", {"result": 1}).status_code == 410
    assert report(api, call, "heartbeat").status_code == 410
    api.until(run_id, "completed")
    assert "output" not in api.step(run_id, "a")


def test_a_report_for_a_canceled_run_is_410(api: Api, jobs: JobServer) -> None:
    run_id, _, call = started(api, jobs)
    api.cancel(run_id)
    assert report(api, call, "complete", {"result": 1}).status_code == 410
    assert report(api, call, "fail", {"error": "x"}).status_code == 410
    assert api.run(run_id)["status"] == "canceled"


def test_the_same_report_twice_does_no_harm(api: Api, jobs: JobServer) -> None:
    run_id, _, call = started(api, jobs)
    assert report(api, call, "complete", {"result": 1}).status_code in {200, 204}
    assert report(api, call, "complete", {"result": 2}).status_code in {200, 204, 410}
    api.until(run_id, "completed")
    assert api.step(run_id, "a")["output"] == 1


def test_a_token_is_bound_to_its_attempt(api: Api, jobs: JobServer) -> None:
    run_id, _, call = started(api, jobs)
    _, _, other = started(api, jobs)
    for token in ("-", "nonsense", other.token, call.token[:-2], api.key):
        answer = report(api, call, "complete", {"result": 1}, token=token)
        assert answer.status_code == 401, (token, answer.text)
    assert api.step(run_id, "a")["status"] == "running"


def test_late_results_are_counted(api: Api, jobs: JobServer) -> None:
    run_id, _, call = started(api, jobs)
    before = counter(api, "pilotage_late_results_total")
    api.on(run_id, "a", "skip")
    report(api, call, "complete", {"result": 1})
    assert counter(api, "pilotage_late_results_total") > before


def counter(api: Api, name: str) -> float:
    text = api.request("GET", "/metrics").text
    values = [
        float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if line.startswith((name + " ", name + "{"))
    ]
    assert f"# TYPE {name} counter" in text
    return sum(values)


def test_missed_heartbeats_fail_the_attempt_retryable(api: Api, jobs: JobServer) -> None:
    run_id, endpoint, call = started(
        api, jobs, heartbeat_timeout_secs=1, max_attempts=2, retry_initial_delay_secs=0
    )
    assert report(api, call, "heartbeat").status_code in {200, 204}
    second = endpoint.call(2, within_secs=6)
    assert second.at - call.at >= 0.9
    assert second.attempt == 2
    report(api, second, "complete", {"result": 1})
    api.until(run_id, "completed")
    assert "heartbeat" in api.attempts(run_id, "a")[0]["error"]


def test_without_an_announced_heartbeat_none_is_missed(api: Api, jobs: JobServer) -> None:
    run_id, endpoint, call = started(api, jobs, heartbeat_timeout_secs=0.2, max_attempts=2)
    _, second_endpoint, beating = started(
        api, jobs, heartbeat_timeout_secs=0.4, max_attempts=2, retry_initial_delay_secs=0
    )
    report(api, beating, "heartbeat")
    second_endpoint.call(2, within_secs=6)
    assert len(endpoint.calls) == 1
    report(api, call, "complete")
    api.until(run_id, "completed")


def test_progress_and_logs_are_shown_on_the_job_run(api: Api, jobs: JobServer) -> None:
    run_id, _, call = started(api, jobs)
    assert report(api, call, "progress", {"percent": 40, "message": "on it"}).is_success
    assert report(api, call, "log", {"level": "info", "message": "hello"}).is_success
    record: Json = api.get(f"/v1/runs/{call.job_run_id}")
    assert "40" in str(record["progress"])
    assert "hello" in str(record["logs"])
    report(api, call, "complete")
    api.until(run_id, "completed")


@pytest.mark.parametrize(
    ("action", "body"),
    [
        ("progress", {"percent": 101}),
        ("progress", {"percent": "many"}),
        ("progress", {}),
        ("fail", {}),
        ("fail", {"error": 5}),
        ("log", {"level": "loud", "message": "x"}),
    ],
)
def test_garbage_reports_are_refused(api: Api, jobs: JobServer, action: str, body: Json) -> None:
    run_id, _, call = started(api, jobs)
    assert report(api, call, action, body).status_code == 422
    assert api.step(run_id, "a")["status"] == "running"


def test_a_reported_result_over_a_mebibyte_fails_the_step_or_is_refused(
    api: Api, jobs: JobServer
) -> None:
    run_id, endpoint, call = started(api, jobs, max_attempts=3, retry_initial_delay_secs=0)
    answer = report(api, call, "complete", {"result": "x" * (1024 * 1024 + 1)})
    assert answer.status_code < 500
    api.until(run_id, "failed")
    assert "MiB" in api.step(run_id, "a")["error"] or "bytes" in api.step(run_id, "a")["error"]
    assert endpoint.attempts == [1]


def test_a_report_while_paused_is_kept(api: Api, jobs: JobServer) -> None:
    run_id, endpoint, call = started(api, jobs)
    api.act(run_id, "pause")
    assert report(api, call, "complete", {"result": "kept"}).is_success
    api.until_step(run_id, "a", "completed")
    assert api.shown(run_id)["b"] == "pending/paused"
    api.act(run_id, "resume")
    api.until(run_id, "completed")
    assert len(endpoint.calls) == 1
    assert api.step(run_id, "a")["output"] == "kept"


def test_an_answer_that_comes_while_paused_is_kept(api: Api, jobs: JobServer, gate: Gates) -> None:
    held = gate()
    endpoint = jobs.endpoint(ok("kept", gate=held))
    run_id = api.start(job("a", api.job(endpoint)), job("b", after="a"))
    endpoint.call()
    api.act(run_id, "pause")
    held.set()
    api.until_step(run_id, "a", "completed")
    assert api.shown(run_id)["b"] == "pending/paused"
    api.act(run_id, "resume")
    api.until(run_id, "completed")
    assert len(endpoint.calls) == 1


def test_a_report_of_a_replayed_step_is_ignored(api: Api, jobs: JobServer) -> None:
    run_id, endpoint, first = started(api, jobs)
    api.on(run_id, "a", "replay-subtree", expect=200)
    second = endpoint.call(2)
    assert second.attempt == 2
    assert report(api, first, "complete", {"result": "old"}).status_code == 409
    report(api, second, "complete", {"result": "new"})
    api.until(run_id, "completed")
    assert api.step(run_id, "a")["output"] == "new"


def test_a_report_may_come_before_the_202_was_written(
    api: Api, jobs: JobServer, gate: Gates
) -> None:
    held = gate()
    answer = accepted()
    endpoint = jobs.endpoint(type(answer)(status=202, body=b"", gate=held))
    run_id = api.start(job("a", api.job(endpoint)))
    call = endpoint.call()
    assert report(api, call, "complete", {"result": "early"}).is_success
    held.set()
    api.until(run_id, "completed")
    assert api.step(run_id, "a")["output"] == "early"


def test_a_failing_answer_after_the_report_changes_nothing(
    api: Api, jobs: JobServer, gate: Gates
) -> None:
    held = gate()
    answer = status(500)
    endpoint = jobs.endpoint(type(answer)(status=500, body=b"no", gate=held))
    run_id = api.start(job("a", api.job(endpoint, max_attempts=3)))
    call = endpoint.call()
    assert report(api, call, "complete", {"result": "early"}).is_success
    held.set()
    api.until(run_id, "completed")
    assert api.step(run_id, "a")["output"] == "early"
    assert len(endpoint.calls) == 1
