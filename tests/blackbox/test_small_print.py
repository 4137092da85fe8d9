"""Single sentences of the rules that no longer story tells: events that steps send, changed jobs,
and job runs."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tests.blackbox.api import Api, Json, approval, event, job, sleep, sub
from tests.blackbox.jobserver import JobServer, accepted, ok, status
from tests.support.waiting import wait_until_sync

Gates = Callable[[], threading.Event]


def test_a_step_of_any_type_sends_its_event_when_it_completes(api: Api) -> None:
    """By itself or by hand; with its output."""
    refs = ["ok", "nap", "heard", "below", "forced"]
    waiting = api.start(*(event(ref, f"{ref}-done") for ref in refs))
    child = api.workflow(job("inner"))
    run_id = api.start(
        approval("ok", event_emit_key="ok-done"),
        sleep("nap", 0.01, event_emit_key="nap-done"),
        event("heard", "outside", event_emit_key="heard-done"),
        sub("below", child, event_emit_key="below-done"),
        approval("forced", event_emit_key="forced-done"),
    )
    api.on(run_id, "ok", "approve")
    api.send("outside", {"x": 1})
    api.on(run_id, "forced", "force-complete", {"result": 7})
    api.until(run_id, "completed")
    api.until(waiting, "completed")
    sent = {ref: step.get("output") for ref, step in api.steps(waiting).items()}
    done = {ref: step.get("output") for ref, step in api.steps(run_id).items()}
    assert sent == done
    assert sent["heard"] == {"x": 1}
    assert sent["below"] == {"inner": {"ok": 1}}
    assert sent["forced"] == 7
    assert sent["nap"] is None


def test_a_step_that_does_not_complete_sends_no_event(api: Api) -> None:
    waiting, never = api.start(event("e", "never")), {"event_emit_key": "never"}
    run_id = api.start(
        approval("skipped", **never),
        job("failed", "plain", **never, payload={"raise": "no"}, on_failure="continue"),
        job("unwanted", **never, condition={"type": "eq", "left": 1, "right": 2}),
        approval("last", event_emit_key="at-last"),
    )
    marker = api.start(event("m", "at-last"))
    api.on(run_id, "skipped", "skip")
    api.until_step(run_id, "failed", "failed")
    api.on(run_id, "last", "approve")  # messages of a run are delivered in order
    api.until(marker, "completed")
    assert api.shown(waiting) == {"e": "waiting/event"}


def test_an_emitted_event_is_not_kept_for_those_who_come_later(api: Api) -> None:
    marker = api.start(event("m", "sent-after"))
    api.start(job("a", event_emit_key="gone-by"), job("b", after="a", event_emit_key="sent-after"))
    api.until(marker, "completed")  # messages of a run are delivered in order
    late = api.start(event("e", "gone-by"))
    assert api.send("gone-by", "mine")["delivered"] == 1
    api.until(late, "completed")
    assert api.step(late, "e")["output"] == "mine"


def test_a_changed_endpoint_is_used_at_the_next_attempt_a_changed_policy_in_the_next_run(
    api: Api, jobs: JobServer
) -> None:
    old, new = jobs.endpoint(ok("old")), jobs.endpoint(ok("new"), status(500))
    slug = api.job(old)
    workflow = api.workflow(
        job("a", slug), approval("ok", "a"), job("b", slug, "ok"), job("c", slug, "b")
    )
    run_id = api.trigger(workflow)
    api.until_step(run_id, "ok", "waiting/approval")
    change = {"endpoint_url": new.url, "max_attempts": 9}
    headers = {"X-Project-Id": api.project}
    answered = api.request("PATCH", f"/v1/jobs/{slug}", change, headers=headers)
    assert answered.status_code == 200, answered.text
    api.on(run_id, "ok", "approve")
    api.until(run_id, "failed")
    assert [api.step(run_id, ref).get("output") for ref in "ab"] == ["old", "new"]
    assert (len(old.calls), new.attempts) == (1, [1, 1])


def test_a_job_that_is_disabled_keeps_the_next_attempt_waiting(api: Api, jobs: JobServer) -> None:
    endpoint = jobs.endpoint(ok(1))
    slug = api.job(endpoint, max_attempts=5, retry_initial_delay_secs=600)
    run_id = api.start(job("a", slug), approval("ok", "a"), job("b", slug, "ok"))
    api.until_step(run_id, "ok", "waiting/approval")
    headers = {"X-Project-Id": api.project}
    answered = api.request("PATCH", f"/v1/jobs/{slug}", {"enabled": False}, headers=headers)
    assert answered.status_code == 200, answered.text
    api.on(run_id, "ok", "approve")
    why = f'job "{slug}" is disabled; enable it, or skip the step'
    wait_until_sync(lambda: why in api.explain(run_id)["b"].get("reason", ""), "it is held back")
    assert len(endpoint.calls) == 1
    answered = api.request("PATCH", f"/v1/jobs/{slug}", {"enabled": True}, headers=headers)
    assert answered.status_code == 200, answered.text
    api.until(run_id, "completed")
    assert endpoint.attempts == [1, 1]


def test_the_status_of_a_job_run_follows_its_attempt(
    api: Api, jobs: JobServer, gate: Gates
) -> None:
    slow, remote = jobs.endpoint(ok(1, gate=gate())), jobs.endpoint(accepted())
    late = jobs.endpoint(ok(1, gate=gate()))
    bad = jobs.endpoint(status(500))
    retried = api.job(bad, max_attempts=2, retry_initial_delay_secs=600)
    run_id = api.start(
        job("slow", api.job(slow)),
        job("remote", api.job(remote)),
        job("late", api.job(late), timeout_secs_override=0.2, on_failure="continue"),
        job("bad", retried),
    )
    api.until_step(run_id, "late", "failed")
    api.until_step(run_id, "bad", "waiting/retry")
    slow.call()
    remote.call()

    def found(ref: str) -> Json:
        return api.attempts(run_id, ref)[-1]

    api.until_step(run_id, "remote", lambda _: found("remote")["status"] == "waiting")
    assert found("slow")["status"] == "executing"
    assert found("late")["status"] == "timed_out"
    assert found("bad")["status"] == "failed"
    assert found("bad")["next_retry_at"] > found("bad")["finished_at"]
    assert "next_retry_at" not in found("slow")
    api.cancel(run_id)
    assert found("slow")["status"] == found("remote")["status"] == "canceled"


@pytest.mark.parametrize(
    ("step", "field"),
    [
        ({"step_type": "wait_for_event", "event_key": "k", "event_timeout_secs": 2_592_001},
         "event_timeout_secs"),
        ({"job_id": "noop", "concurrency_key": "k" * 129}, "concurrency_key"),
        ({"job_id": "noop", "retry_max_attempts": 101}, "retry_max_attempts"),
        ({"job_id": "noop", "timeout_secs_override": 86_401}, "timeout_secs_override"),
        ({"job_id": "noop", "retry_backoff": "random"}, "retry_backoff"),
    ],
)  # fmt: skip
def test_a_bound_of_a_step_is_named_and_its_last_value_taken(
    api: Api, step: Json, field: str
) -> None:
    body = {"project_id": api.project, "name": "w", "steps": [{"step_ref": "s", **step}]}
    answer = api.post("/v1/workflows", body, 422)
    assert any(line.startswith(f"steps[0].{field}") for line in answer["error"]["details"])
    within = {
        "event_timeout_secs": 2_592_000,
        "concurrency_key": "k" * 128,
        "retry_max_attempts": 100,
        "timeout_secs_override": 86_400,
        "retry_backoff": "linear",
    }
    body["steps"] = [{"step_ref": "s", **step, field: within[field]}]
    api.post("/v1/workflows", body, 201)
