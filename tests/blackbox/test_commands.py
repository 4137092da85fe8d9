"""Cancel, pause, resume, approve, reject, skip, force-complete: effects, repeats, conflicts.

Section 6 with its fine print in section 10.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tests.blackbox.api import Api, Json, approval, event, job, message, shown, sleep
from tests.blackbox.jobserver import Answer, JobServer, ok, status
from tests.blackbox.stories import conflict, key_for, run_in

Gates = Callable[[], threading.Event]
TERMINAL = ["completed", "failed", "timed_out", "canceled"]


# -- cancel


@pytest.mark.parametrize("state", ["pending", "running", "paused"])
def test_cancel_ends_an_active_run(api: Api, state: str) -> None:
    run_id = run_in(api, state)
    api.cancel(run_id, "too late")
    run = api.run(run_id)
    assert run["status"] == "canceled"
    assert run["error"] == "canceled by admin: too late"
    assert run["finished_at"]
    assert api.shown(run_id) == {"a": "canceled", "b": "canceled"}
    assert any(item.get("reason") and "too late" in str(item) for item in api.history(run_id))


def test_cancel_of_a_canceled_run_is_a_success_without_effect(api: Api) -> None:
    run_id = run_in(api, "canceled")
    before, history = api.run(run_id), api.history(run_id)
    api.cancel(run_id, "again")
    assert api.run(run_id) == before
    assert api.history(run_id) == history


@pytest.mark.parametrize("state", ["completed", "failed", "timed_out"])
def test_cancel_of_an_ended_run_is_a_conflict(api: Api, state: str) -> None:
    run_id = run_in(api, state)
    conflict(api.cancel(run_id, expect=409), state, "running")


def test_cancel_tells_the_attempts_in_progress_to_stop(
    api: Api, jobs: JobServer, gate: Gates
) -> None:
    endpoint = jobs.endpoint(ok(1, gate=gate()))
    run_id = api.start(job("a", api.job(endpoint)))
    call = endpoint.call()
    api.cancel(run_id)
    assert call.closed.wait(5)
    assert [record["status"] for record in api.attempts(run_id, "a")] == ["canceled"]


def test_cancel_withdraws_waits(api: Api) -> None:
    run_id = api.start(approval("a"), event("e", "k-cancel"), sleep("s", 0.3))
    api.cancel(run_id)
    assert api.send("k-cancel", 1)["delivered"] == 0
    api.on(run_id, "a", "approve", expect=409)
    later = api.start(sleep("s", 0.5))
    api.until(later, "completed")
    assert set(api.shown(run_id).values()) == {"canceled"}


# -- pause and resume


def test_pause_and_resume_repeated_are_successes_without_effect(api: Api) -> None:
    run_id = run_in(api, "running")
    api.act(run_id, "resume")
    assert api.run(run_id)["status"] == "running"
    api.act(run_id, "pause")
    history = api.history(run_id)
    api.act(run_id, "pause")
    assert api.history(run_id) == history
    api.act(run_id, "resume")
    history = api.history(run_id)
    api.act(run_id, "resume")
    assert api.history(run_id) == history


@pytest.mark.parametrize("state", ["pending", *TERMINAL])
def test_pause_is_for_running_runs(api: Api, state: str) -> None:
    run_id = run_in(api, state)
    conflict(api.act(run_id, "pause", expect=409), state, "running")
    assert api.run(run_id)["status"] == state


@pytest.mark.parametrize("state", ["pending", *TERMINAL])
def test_resume_is_for_paused_runs(api: Api, state: str) -> None:
    run_id = run_in(api, state)
    conflict(api.act(run_id, "resume", expect=409), state, "paused")
    assert api.run(run_id)["status"] == state


def test_while_paused_approvals_events_and_timers_are_recorded(api: Api) -> None:
    run_id = api.start(
        approval("a"),
        event("e", "k-paused"),
        sleep("s", 0.1),
        job("after-a", after="a"),
        job("after-e", after="e"),
        job("after-s", after="s"),
    )
    api.act(run_id, "pause")
    api.on(run_id, "a", "approve")
    assert api.send("k-paused", {"v": 1})["delivered"] == 1
    api.until_step(run_id, "s", "completed")
    assert api.shown(run_id) == {
        "a": "completed",
        "e": "completed",
        "s": "completed",
        "after-a": "pending/paused",
        "after-e": "pending/paused",
        "after-s": "pending/paused",
    }
    api.act(run_id, "resume")
    api.until(run_id, "completed")


def test_a_retry_whose_backoff_ends_while_paused_waits(api: Api, jobs: JobServer) -> None:
    endpoint = jobs.endpoint(status(500), ok(1))
    slug = api.job(endpoint, max_attempts=2, retry_initial_delay_secs=0.3)
    run_id = api.start(job("a", slug))
    api.until_step(run_id, "a", "waiting/retry")
    api.act(run_id, "pause")
    api.until_step(run_id, "a", "pending/paused")
    assert len(endpoint.calls) == 1
    api.act(run_id, "resume")
    api.until(run_id, "completed")
    assert endpoint.attempts == [1, 2]


def test_an_attempt_that_fails_while_paused_is_retried_after_the_resume(
    api: Api, jobs: JobServer, gate: Gates
) -> None:
    held = gate()
    endpoint = jobs.endpoint(Answer(status=500, body=b"no", gate=held), ok(1))
    run_id = api.start(job("a", api.job(endpoint, max_attempts=2, retry_initial_delay_secs=0)))
    endpoint.call()
    api.act(run_id, "pause")
    held.set()
    api.until_step(run_id, "a", "pending/paused")
    api.act(run_id, "resume")
    api.until(run_id, "completed")
    assert endpoint.attempts == [1, 2]


def test_a_paused_run_ends_at_once_when_nothing_is_left(api: Api) -> None:
    run_id = api.start(approval("a"), approval("b"))
    api.act(run_id, "pause")
    api.on(run_id, "a", "approve")
    assert api.run(run_id)["status"] == "paused"
    api.on(run_id, "b", "approve")
    assert api.run(run_id)["status"] == "completed"


def test_a_paused_run_whose_last_dependents_are_skipped_ends_at_once(api: Api) -> None:
    run_id = api.start(approval("a", on_failure="skip_dependents"), job("b", after="a"))
    api.act(run_id, "pause")
    api.on(run_id, "a", "reject", {"reason": "no"})
    assert api.run(run_id)["status"] == "failed"
    assert api.shown(run_id) == {"a": "failed", "b": "skipped"}


def test_resume_starts_everything_in_one_transition(api: Api) -> None:
    run_id = api.start(approval("a"), approval("b", "a"), sleep("s", 600, "a"))
    api.act(run_id, "pause")
    api.on(run_id, "a", "approve")
    assert api.shown(run_id) == {"a": "completed", "b": "pending/paused", "s": "pending/paused"}
    api.act(run_id, "resume")
    assert api.shown(run_id) == {
        "a": "completed",
        "b": "waiting/approval",
        "s": "waiting/timer",
    }


# -- skip and force-complete


def test_skip_of_a_parked_step_satisfies_its_dependents(api: Api) -> None:
    run_id = api.start(approval("a"), event("e", "k-skip", "a"), job("b", "echo", after="e"))
    api.on(run_id, "a", "skip", {"reason": "known"})
    step = api.step(run_id, "a")
    assert (step["status"], step["error"]) == ("skipped", "known")
    assert step["skipped_by"] == "operator"
    assert "output" not in step
    api.on(run_id, "e", "skip")
    assert "error" not in api.step(run_id, "e") or api.step(run_id, "e")["error"]
    api.until(run_id, "completed")
    assert api.send("k-skip", 1)["delivered"] == 0
    assert api.step(run_id, "b")["output"]["parent_outputs"] == {}


def test_skip_of_a_step_whose_dependencies_are_unmet(api: Api) -> None:
    run_id = api.start(approval("a"), job("b", after="a"), job("c", after="b"))
    api.on(run_id, "b", "skip")
    assert api.shown(run_id) == {"a": "waiting/approval", "b": "skipped", "c": "completed"} or (
        api.until_step(run_id, "c", "completed")
    )
    api.on(run_id, "a", "approve")
    api.until(run_id, "completed")
    assert api.shown(run_id)["b"] == "skipped"


def test_skip_of_a_running_step_stops_the_attempt_and_ignores_its_result(
    api: Api, jobs: JobServer, gate: Gates
) -> None:
    endpoint = jobs.endpoint(ok("late", gate=gate()))
    run_id = api.start(job("a", api.job(endpoint)))
    call = endpoint.call()
    api.on(run_id, "a", "skip", {"reason": "enough"})
    assert call.closed.wait(5)
    api.until(run_id, "completed")
    step = api.step(run_id, "a")
    assert (step["status"], step["error"]) == ("skipped", "enough")
    assert [record["status"] for record in api.attempts(run_id, "a")] == ["canceled"]


@pytest.mark.parametrize("action", ["skip", "force-complete"])
def test_skip_and_force_complete_of_a_step_in_backoff(
    api: Api, jobs: JobServer, action: str
) -> None:
    endpoint = jobs.endpoint(status(500), ok(1))
    slug = api.job(endpoint, max_attempts=2, retry_initial_delay_secs=0.2)
    run_id = api.start(job("a", slug), sleep("s", 0.6))
    api.until_step(run_id, "a", "waiting/retry")
    api.on(run_id, "a", action)
    api.until(run_id, "completed")
    assert endpoint.attempts == [1]


def test_skip_repeated_is_a_success_without_effect(api: Api) -> None:
    run_id = run_in(api, "running")
    api.on(run_id, "a", "skip", {"reason": "one"})
    before, history = api.step(run_id, "a"), api.history(run_id)
    api.on(run_id, "a", "skip", {"reason": "two"})
    assert api.step(run_id, "a") == before
    api.until(run_id, "completed")
    assert len(api.history(run_id)) >= len(history)


def test_skip_of_a_step_that_a_condition_skipped_is_a_success(api: Api) -> None:
    run_id = api.start(job("a", condition={"type": "eq", "left": 1, "right": 2}), approval("b"))
    api.on(run_id, "a", "skip", {"reason": "me too"})
    assert api.step(run_id, "a")["skipped_by"] == "condition"


@pytest.mark.parametrize("action", ["skip", "force-complete"])
def test_skip_and_force_complete_of_a_completed_step_are_conflicts(api: Api, action: str) -> None:
    run_id = api.start(job("a"), approval("b"))
    api.until_step(run_id, "a", "completed")
    conflict(api.on(run_id, "a", action, expect=409), "completed", "failed", "waiting")
    assert api.step(run_id, "a")["output"] == {"ok": 1}


@pytest.mark.parametrize("action", ["skip", "force-complete"])
def test_skip_and_force_complete_of_a_canceled_step_are_conflicts(api: Api, action: str) -> None:
    run_id = run_in(api, "canceled")
    conflict(api.on(run_id, "a", action, expect=409), "canceled")
    assert api.run(run_id)["status"] == "canceled"


def test_force_complete_gives_the_output(api: Api) -> None:
    run_id = api.start(approval("a"), job("b", "echo", after="a"))
    api.on(run_id, "a", "force-complete", {"result": {"by": "hand"}})
    api.until(run_id, "completed")
    assert api.step(run_id, "a")["output"] == {"by": "hand"}
    assert api.step(run_id, "b")["output"]["parent_outputs"] == {"a": {"by": "hand"}}


@pytest.mark.parametrize("value", [0, False, "", [], {}, "text", [1]])
def test_force_complete_takes_any_json(api: Api, value: object) -> None:
    run_id = run_in(api, "running")
    api.on(run_id, "a", "force-complete", {"result": value})
    assert api.step(run_id, "a")["output"] == value


@pytest.mark.parametrize("body", [None, {}, {"result": None}, {"unknown": 1}])
def test_force_complete_without_a_result_has_no_output(api: Api, body: Json | None) -> None:
    run_id = run_in(api, "running")
    api.on(run_id, "a", "force-complete", body)
    assert "output" not in api.step(run_id, "a")


def test_force_complete_needs_no_dependencies(api: Api) -> None:
    run_id = api.start(approval("a"), job("b", after="a"), approval("c", "b"))
    api.on(run_id, "b", "force-complete", {"result": 1})
    assert api.shown(run_id) == {
        "a": "waiting/approval",
        "b": "completed",
        "c": "waiting/approval",
    }


def test_force_complete_repeated_with_an_equal_result_is_a_success(api: Api) -> None:
    run_id = run_in(api, "running")
    api.on(run_id, "a", "force-complete", {"result": {"x": 1, "y": [1.0]}})
    api.on(run_id, "a", "force-complete", {"result": {"y": [1], "x": 1}})
    conflict(api.on(run_id, "a", "force-complete", {"result": 2}, expect=409), "completed")
    conflict(api.on(run_id, "a", "force-complete", expect=409), "completed")
    assert api.step(run_id, "a")["output"] == {"x": 1, "y": [1.0]}


def test_force_complete_of_a_skipped_step_is_answered_definitely(api: Api) -> None:
    run_id = api.start(approval("a"), approval("b"))
    api.on(run_id, "a", "skip")
    conflict(api.on(run_id, "a", "force-complete", expect=409), "skipped")


def test_skip_on_a_queued_run_is_recorded_and_the_run_waits_for_its_slot(api: Api) -> None:
    workflow = api.workflow(approval("a"), approval("b"), max_concurrent_runs=1)
    first, second = api.trigger(workflow), api.trigger(workflow)
    api.on(second, "a", "skip", {"reason": "early"})
    api.on(second, "b", "force-complete", {"result": 5})
    assert api.run(second)["status"] == "pending"
    assert api.shown(second) == {"a": "skipped", "b": "completed"}
    api.cancel(first)
    api.until(second, "completed")
    assert api.step(second, "b")["output"] == 5


def test_a_result_over_a_mebibyte_is_refused(api: Api) -> None:
    run_id = run_in(api, "running")
    body = {"result": "x" * (1024 * 1024 + 1)}
    response = api.request("POST", f"/v1/workflow-runs/{run_id}/steps/a/force-complete", body)
    assert response.status_code in {413, 422}
    assert api.shown(run_id)["a"] == "waiting/approval"


# -- the form of answers, strangers


def test_prefer_representation_answers_200_with_the_run_or_the_step(api: Api) -> None:
    run_id = run_in(api, "running")
    prefer = {"Prefer": "return=representation"}
    base = f"/v1/workflow-runs/{run_id}"
    assert api.post(f"{base}/pause", None, 200, headers=prefer)["status"] == "paused"
    assert api.post(f"{base}/resume", None, 200, headers=prefer)["status"] == "running"
    answer: Json = api.post(f"{base}/steps/a/approve", None, 200, headers=prefer)
    assert shown(answer["step_run"]) == "completed"
    answer = api.post(f"{base}/steps/b/skip", None, 409, headers=prefer)
    other = run_in(api, "running")
    response = api.request("DELETE", f"/v1/workflow-runs/{other}", headers=prefer)
    assert response.status_code == 200
    assert response.json()["status"] == "canceled"


COMMANDS = [
    "pause",
    "resume",
    "retry",
    "steps/a/approve",
    "steps/a/reject",
    "steps/a/skip",
    "steps/a/force-complete",
    "steps/a/retry",
    "steps/a/replay-subtree",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_unknown_runs_and_steps_are_404(api: Api, command: str) -> None:
    run_id = run_in(api, "running")
    for unknown in ("nope", "0199aaaa-0000-7000-8000-000000000000"):
        answer = api.act(unknown, command, expect=404)
        assert answer["error"]["code"] == "not_found"
    if command.startswith("steps/"):
        api.act(run_id, command.replace("steps/a", "steps/zzz"), expect=404)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_of_another_project_does_not_exist(api: Api, command: str) -> None:
    run_id = run_in(api, "running")
    stranger = Api(api.server, key=key_for(api, "elsewhere", "*"))
    theirs = stranger.act(run_id, command, expect=404)
    unknown = stranger.act("0199aaaa-0000-7000-8000-000000000000", command, expect=404)
    assert theirs["error"]["message"].replace(run_id, "?") == unknown["error"]["message"].replace(
        "0199aaaa-0000-7000-8000-000000000000", "?"
    )
    stranger.cancel(run_id, expect=404)
    assert api.shown(run_id)["a"] == "waiting/approval"
    stranger.close()


def test_a_missing_scope_is_403_and_named(api: Api) -> None:
    run_id = run_in(api, "running")
    reader = Api(api.server, project=api.project, key=key_for(api, api.project, "workflows:read"))
    assert reader.run(run_id)["id"] == run_id
    for command in ("pause", "steps/a/approve", "steps/a/retry", "steps/a/replay-subtree"):
        assert "workflows:write" in message(reader.act(run_id, command, expect=403))
    assert "workflows:trigger" in message(reader.act(run_id, "retry", expect=403))
    assert "workflows:write" in message(reader.cancel(run_id, expect=403))
    reader.close()
