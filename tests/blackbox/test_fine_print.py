"""Corners of section 10 and of the tables that need a story of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable

import httpx
import pytest

from tests.blackbox.api import Api, Json, approval, event, job, shown, sleep, sub
from tests.blackbox.jobserver import JobServer, ok, status
from tests.blackbox.stories import child_of, run_in

Gates = Callable[[], threading.Event]


@pytest.mark.parametrize("action", ["skip", "force-complete"])
def test_a_tolerated_failure_may_be_settled_by_hand_afterwards(
    api: Api, jobs: JobServer, action: str
) -> None:
    bad = api.job(jobs.endpoint(status(400)))
    run_id = api.start(job("a", bad, on_failure="continue"), job("b", after="a"))
    api.until(run_id, "completed")
    done = api.step(run_id, "b")
    api.on(run_id, "a", action, {"reason": "fine", "result": 5})
    api.until(run_id, "completed")
    assert api.step(run_id, "a")["status"] == ("skipped" if action == "skip" else "completed")
    assert api.step(run_id, "b") == done


@pytest.mark.parametrize("action", ["skip", "force-complete"])
def test_settling_a_failure_brings_back_what_was_skipped_because_of_it(
    api: Api, jobs: JobServer, action: str
) -> None:
    bad = api.job(jobs.endpoint(status(400)))
    run_id = api.start(
        job("a", bad, on_failure="skip_dependents"), job("b", after="a"), job("c", after="b")
    )
    api.until(run_id, "failed")
    api.on(run_id, "a", action)
    api.until(run_id, "completed")
    assert (api.shown(run_id)["b"], api.shown(run_id)["c"]) == ("completed", "completed")


def test_settling_one_of_two_failures_leaves_the_run_failed_by_the_other(
    api: Api, jobs: JobServer
) -> None:
    bad = api.job(jobs.endpoint(status(400)))
    run_id = api.start(
        job("one", bad, on_failure="skip_dependents"),
        job("two", bad, on_failure="skip_dependents"),
        job("join", after=["one", "two"]),
        job("after", after="one"),
    )
    api.until(run_id, "failed")
    api.on(run_id, "one", "skip")
    ended = api.until(run_id, "failed")
    assert "two" in ended["error"]
    assert api.shown(run_id) == {
        "one": "skipped",
        "two": "failed",
        "join": "skipped",
        "after": "completed",
    }
    api.on(run_id, "two", "force-complete")
    api.until(run_id, "completed")
    assert api.shown(run_id)["join"] == "completed"


def test_replay_in_a_queued_run_is_counted_and_the_run_stays_queued(api: Api) -> None:
    run_id = run_in(api, "pending")
    api.on(run_id, "a", "skip")
    assert api.on(run_id, "a", "replay-subtree", expect=200)["reset_steps"] == 2
    assert api.run(run_id)["status"] == "pending"
    assert api.shown(run_id)["a"] == "pending/run_queue"


def test_a_step_retry_in_a_queued_run_waits_for_the_slot(api: Api) -> None:
    run_id = run_in(api, "pending")
    api.on(run_id, "a", "skip")
    answer: Json = api.on(run_id, "a", "retry", expect=200)
    assert shown(answer["step_run"]) == "pending/run_queue"
    assert api.run(run_id)["status"] == "pending"


def test_a_step_retry_behind_a_concurrency_key_says_why_it_waits(
    api: Api, jobs: JobServer, gate: Gates
) -> None:
    slow = api.job(jobs.endpoint(ok(1, gate=(held := gate()))))
    run_id = api.start(
        job("quick", concurrency_key="k"), job("slow", slow, after="quick", concurrency_key="k")
    )
    api.until_step(run_id, "slow", "running")
    answer: Json = api.on(run_id, "quick", "retry", expect=200)
    assert shown(answer["step_run"]) == "pending/concurrency_key"
    assert answer["step_run"]["attempt"] == 1
    held.set()
    api.until(run_id, "completed")
    assert api.step(run_id, "quick")["attempt"] == 2


def test_skip_of_a_failed_sub_workflow_step_reopens_the_parent_only(api: Api) -> None:
    child = api.workflow(approval("c"))
    run_id = api.start(sub("s", child), job("b", after="s"))
    child_id = child_of(api, run_id)
    api.on(child_id, "c", "reject")
    api.until(run_id, "failed")
    api.on(run_id, "s", "skip")
    api.until(run_id, "completed")
    assert api.run(child_id)["status"] == "failed"


def test_attempt_rises_when_a_step_parks_and_not_when_it_is_skipped(api: Api) -> None:
    run_id = api.start(
        approval("a"), event("e", "k-att"), sleep("s", 600), approval("later", "a"), job("j")
    )
    api.until_step(run_id, "j", "completed")
    assert {ref: step["attempt"] for ref, step in api.steps(run_id).items()} == {
        "a": 1,
        "e": 1,
        "s": 1,
        "later": 0,
        "j": 1,
    }
    api.on(run_id, "later", "skip")
    api.on(run_id, "a", "skip")
    assert (api.step(run_id, "later")["attempt"], api.step(run_id, "a")["attempt"]) == (0, 1)
    api.cancel(run_id)
    assert api.step(run_id, "e")["attempt"] == 1


def test_a_template_error_keeps_the_number_and_is_not_retried(api: Api) -> None:
    run_id = api.start(job("a", payload={"x": "{{ payload.nope }}"}, retry_max_attempts=5))
    api.until(run_id, "failed")
    step = api.step(run_id, "a")
    assert step["attempt"] == 0
    assert "payload.nope" in step["error"]
    assert "job_run_id" not in step


def test_an_output_of_null_is_none(api: Api) -> None:
    run_id = api.start(job("a", "value", payload={"value": None}), job("b", "echo", after="a"))
    api.until(run_id, "completed")
    assert "output" not in api.step(run_id, "a")
    assert api.step(run_id, "b")["output"]["parent_outputs"] == {}


@pytest.mark.parametrize("text", ["github", "nightly import"])
def test_triggered_by_is_the_callers_text(api: Api, text: str) -> None:
    run_id = api.trigger(api.workflow(approval("a")), triggered_by=text)
    assert api.run(run_id)["triggered_by"] == text


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (None, None),
        (b"", "application/json"),
        (b"{}", None),
        (b'{"unknown": 1}', "application/json"),
    ],
)
def test_the_body_of_an_action_is_optional(
    api: Api, body: bytes | None, content_type: str | None
) -> None:
    headers = {"Authorization": f"Bearer {api.key}"}
    if content_type is not None:
        headers["Content-Type"] = content_type
    run_id = api.start(approval("a"), approval("b"), approval("c"), approval("d"))
    for command in (
        "pause",
        "resume",
        "steps/a/approve",
        "steps/b/skip",
        "steps/c/force-complete",
        "steps/d/reject",
    ):
        url = f"{api.server.url}/v1/workflow-runs/{run_id}/{command}"
        answer = httpx.post(url, content=body, headers=headers, timeout=10)
        assert answer.status_code == 204, (command, answer.text)
        assert answer.content == b""


@pytest.mark.parametrize("raw", [b"{", b"[]", b'"x"', b"\xff"])
def test_a_broken_body_on_an_action_is_refused(api: Api, raw: bytes) -> None:
    run_id = run_in(api, "running")
    response = api.raw("POST", f"/v1/workflow-runs/{run_id}/steps/a/skip", raw)
    assert response.status_code in {400, 422}, response.text
    assert api.shown(run_id)["a"] == "waiting/approval"


@pytest.mark.parametrize("reason", ["x" * 100_000, 5, {"a": 1}])
def test_a_reason_that_is_none_does_no_harm(api: Api, reason: object) -> None:
    run_id = run_in(api, "running")
    path = f"/v1/workflow-runs/{run_id}/steps/a/skip"
    response = api.request("POST", path, {"reason": reason})
    assert response.status_code in {204, 413, 422}
    assert len(str(api.step(run_id, "a"))) < 20_000


def test_many_operators_at_once_get_definite_answers_and_one_effect(api: Api) -> None:
    """Twelve threads command one run; each answer is a success or a conflict, nothing breaks."""
    run_id = api.start(*(approval(f"s{n}") for n in range(6)), job("end", after=["s0", "s5"]))
    commands = ["pause", "resume"]
    commands += [f"steps/s{n}/{verb}" for n in range(6) for verb in ("approve", "reject", "skip")]
    answers: list[int] = []

    def command(offset: int) -> None:
        client = Api(api.server, project=api.project)
        for n in range(len(commands)):
            name = commands[(n * 7 + offset * 3) % len(commands)]
            path = f"/v1/workflow-runs/{run_id}/{name}"
            answers.append(client.request("POST", path).status_code)
        client.close()

    threads = [threading.Thread(target=command, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(answers) <= {204, 409}
    assert api.run(run_id)["status"] in {"completed", "failed", "running", "paused"}
    items = api.history(run_id)
    assert [item["seq"] for item in items] == list(range(1, len(items) + 1))


def test_the_same_idempotent_trigger_from_many_threads_makes_one_run(api: Api) -> None:
    workflow = api.workflow(approval("a"))
    found: list[tuple[int, str]] = []

    def trigger() -> None:
        client = Api(api.server, project=api.project)
        response = client.request(
            "POST",
            f"/v1/workflows/{workflow}/trigger",
            {"payload": 1},
            headers={"Idempotency-Key": f"one-{workflow}"},
        )
        found.append((response.status_code, response.json().get("id", "")))
        client.close()

    threads = [threading.Thread(target=trigger) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {code for code, _ in found} <= {201, 409}
    assert len({run_id for code, run_id in found if code == 201}) == 1
    listed: list[Json] = api.get(f"/v1/workflow-runs?project_id={api.project}")
    assert len(listed) == 1


@pytest.mark.xfail(strict=True, reason="GET …/stream is not there yet")
def test_the_stream_tells_the_history_and_resumes(api: Api) -> None:
    run_id = run_in(api, "completed")
    seen = [item["type"] for item in api.history(run_id)]
    url = f"{api.server.url}/v1/workflow-runs/{run_id}/stream"
    headers = {"Authorization": f"Bearer {api.key}"}
    ids = stream_ids(url, headers, len(seen))
    assert ids == [str(n) for n in range(1, len(seen) + 1)]
    rest = stream_ids(url, headers | {"Last-Event-ID": ids[1]}, len(seen) - 2)
    assert rest == ids[2:]


def stream_ids(url: str, headers: dict[str, str], count: int) -> list[str]:
    """The ids of the first `count` events of a stream."""
    ids: list[str] = []
    with httpx.stream("GET", url, headers=headers, timeout=10) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if line.startswith("id:"):
                ids.append(line.removeprefix("id:").strip())
            if len(ids) >= count:
                break
    return ids


def test_reading_a_run_of_long_ago_and_an_active_one_gives_the_same_shape(api: Api) -> None:
    ended, active = run_in(api, "completed"), run_in(api, "running")
    for view in ("", "/steps", "/explain", "/graph", "/timeline", "/events"):
        for run_id in (ended, active):
            assert api.get(f"/v1/workflow-runs/{run_id}{view}") is not None


def test_queue_jobs_and_webhooks_are_refused_for_now(api: Api) -> None:
    body = {"project_id": api.project, "slug": "q", "execution_mode": "queue"}
    answer = api.post("/v1/jobs", body, 422)
    assert any("execution_mode" in line for line in answer["error"]["details"])


def test_deleting_a_workflow_with_active_runs_is_a_conflict(api: Api) -> None:
    workflow = api.workflow(approval("a"))
    run_id = api.trigger(workflow)
    assert api.request("DELETE", f"/v1/workflows/{workflow}").status_code == 409
    api.cancel(run_id)
    assert api.request("DELETE", f"/v1/workflows/{workflow}").status_code == 204
    assert api.run(run_id)["status"] == "canceled"


def test_a_reopen_of_a_run_whose_workflow_was_deleted_is_definite(api: Api) -> None:
    workflow = api.workflow(approval("a"))
    run_id = api.trigger(workflow)
    api.cancel(run_id)
    assert api.request("DELETE", f"/v1/workflows/{workflow}").status_code == 204
    response = api.request("POST", f"/v1/workflow-runs/{run_id}/steps/a/retry")
    assert response.status_code in {200, 409}, response.text
    again = api.request("POST", f"/v1/workflow-runs/{run_id}/retry")
    assert again.status_code in {201, 409}, again.text


def test_deleting_a_job_in_use_is_a_conflict(api: Api, jobs: JobServer) -> None:
    slug = api.job(jobs.endpoint())
    api.workflow(job("a", slug))
    found: Json = api.request(
        "GET", f"/v1/jobs/{slug}", headers={"X-Project-Id": api.project}
    ).json()
    assert api.request("DELETE", f"/v1/jobs/{found['id']}").status_code == 409


def test_dry_run_of_a_workflow_shows_the_order_and_starts_nothing(api: Api) -> None:
    workflow = api.workflow(job("a"), job("b", after="a"), approval("c", "b"))
    answer: Json = api.post(f"/v1/workflows/{workflow}/dry-run", {"payload": {}})
    assert all(ref in str(answer) for ref in ("a", "b", "c"))
    assert api.get(f"/v1/workflow-runs?project_id={api.project}") == []
