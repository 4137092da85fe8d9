"""Reopen by step retry, subtree replay, skip, force-complete (sections 2, 6, 10)."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tests.blackbox.api import Api, Json, approval, event, job, shown, sleep, sub
from tests.blackbox.jobserver import Answer, Endpoint, JobServer, ok, status
from tests.blackbox.stories import child_of, conflict, run_in

Gates = Callable[[], threading.Event]


def failed_once(api: Api, jobs: JobServer, *more: Json) -> tuple[str, Endpoint]:
    """A run that failed: `bad` answers 400 once, then 7. Around it whatever is given."""
    endpoint = jobs.endpoint(status(400, "bad day"), ok(7))
    run_id = api.start(job("bad", api.job(endpoint)), *more)
    api.until(run_id, "failed")
    return run_id, endpoint


def tried(times: int) -> Callable[[Json], bool]:
    return lambda step: step["attempt"] == times


def test_step_retry_reopens_the_run_in_place(api: Api, jobs: JobServer) -> None:
    run_id, endpoint = failed_once(api, jobs, job("after", "echo", after="bad"))
    ended = api.run(run_id)
    answer: Json = api.on(run_id, "bad", "retry", expect=200)
    step = answer["step_run"]
    assert (step["step_ref"], step["status"], step["attempt"]) == ("bad", "running", 2)
    assert "error" not in step
    again = api.until(run_id, "completed")
    assert again["id"] == run_id
    assert again["started_at"] == ended["started_at"]
    assert "error" not in again
    assert endpoint.attempts == [1, 2]
    assert api.step(run_id, "after")["output"]["parent_outputs"] == {"bad": 7}


def test_a_step_retry_gives_a_fresh_budget_of_attempts(api: Api, jobs: JobServer) -> None:
    endpoint = jobs.endpoint(status(500))
    slug = api.job(endpoint, max_attempts=2, retry_initial_delay_secs=0)
    run_id = api.start(job("a", slug))
    api.until(run_id, "failed")
    for expected in (4, 6):
        api.on(run_id, "a", "retry", expect=200)
        api.until_step(run_id, "a", tried(expected))
        api.until(run_id, "failed")
    assert endpoint.attempts == [1, 2, 3, 4, 5, 6]


def test_side_branches_come_back_with_the_reopen(api: Api, jobs: JobServer, gate: Gates) -> None:
    slow = jobs.endpoint(ok("never", gate=gate()), ok("side"))
    endpoint = jobs.endpoint(Answer(status=400, gate=(held := gate())), ok(7))
    run_id = api.start(
        job("bad", api.job(endpoint)),
        job("after", after="bad"),
        job("side", api.job(slow)),
        approval("wait"),
        sleep("nap", 600),
        event("ev", "k-side"),
        job("tail", after=["side", "wait"]),
    )
    slow.call()
    held.set()
    api.until(run_id, "failed")
    assert set(api.shown(run_id).values()) == {"failed", "canceled"}
    api.on(run_id, "bad", "retry", expect=200)
    api.until_step(run_id, "after", "completed")
    api.until_step(run_id, "side", "completed")
    assert api.shown(run_id) == {
        "bad": "completed",
        "after": "completed",
        "side": "completed",
        "wait": "waiting/approval",
        "nap": "waiting/timer",
        "ev": "waiting/event",
        "tail": "waiting/dependencies",
    }
    assert slow.attempts == [1, 2]
    api.on(run_id, "wait", "approve")
    api.on(run_id, "nap", "skip")
    assert api.send("k-side", 1)["delivered"] == 1
    api.until(run_id, "completed")


@pytest.mark.parametrize("action", ["skip", "force-complete"])
def test_skip_or_force_complete_of_a_failed_step_reopens(
    api: Api, jobs: JobServer, action: str
) -> None:
    run_id, endpoint = failed_once(api, jobs, job("after", "echo", after="bad"), approval("side"))
    assert api.shown(run_id) == {"bad": "failed", "after": "canceled", "side": "canceled"}
    body = {"reason": "by hand"} if action == "skip" else {"result": 3}
    api.on(run_id, "bad", action, body)
    assert api.run(run_id)["status"] == "running"
    api.until_step(run_id, "after", "completed")
    assert api.shown(run_id)["side"] == "waiting/approval"
    api.on(run_id, "side", "approve")
    assert "error" not in api.until(run_id, "completed")
    outputs = {} if action == "skip" else {"bad": 3}
    assert api.step(run_id, "after")["output"]["parent_outputs"] == outputs
    step = api.step(run_id, "bad")
    assert step["attempt"] == 1
    if action == "force-complete":
        assert "error" not in step
    assert endpoint.attempts == [1]


def test_steps_skipped_because_of_the_failure_come_back(api: Api, jobs: JobServer) -> None:
    endpoint = jobs.endpoint(status(400), ok(7))
    run_id = api.start(
        job("bad", api.job(endpoint), on_failure="skip_dependents"),
        job("b", after="bad"),
        job("c", after="b"),
        job("other"),
    )
    api.until(run_id, "failed")
    assert api.shown(run_id)["c"] == "skipped"
    api.on(run_id, "bad", "retry", expect=200)
    api.until(run_id, "completed")
    assert api.shown(run_id) == dict.fromkeys(["bad", "b", "c", "other"], "completed")
    assert api.step(run_id, "other")["attempt"] == 1


def test_dependents_that_completed_stay_after_a_step_retry(api: Api) -> None:
    run_id = api.start(job("a", "who"), job("b", "who", after="a"))
    api.until(run_id, "completed")
    before = api.step(run_id, "b")
    api.on(run_id, "a", "retry", expect=200)
    api.until(run_id, "completed")
    assert api.step(run_id, "a")["output"]["attempt"] == 2
    assert api.step(run_id, "b") == before


def test_a_step_retry_in_an_active_run(api: Api) -> None:
    run_id = api.start(job("a"), approval("b"))
    api.until_step(run_id, "a", "completed")
    api.on(run_id, "a", "retry", expect=200)
    api.until_step(run_id, "a", lambda s: s["attempt"] == 2 and s["status"] == "completed")
    assert api.run(run_id)["status"] == "running"


def test_a_step_retry_in_a_paused_run_waits(api: Api) -> None:
    run_id = api.start(job("a"), approval("b"))
    api.until_step(run_id, "a", "completed")
    api.act(run_id, "pause")
    answer: Json = api.on(run_id, "a", "retry", expect=200)
    assert shown(answer["step_run"]) == "pending/paused"
    assert answer["step_run"]["attempt"] == 1
    assert api.run(run_id)["status"] == "paused"
    api.act(run_id, "resume")
    api.until_step(run_id, "a", lambda s: s["attempt"] == 2 and s["status"] == "completed")


@pytest.mark.parametrize("kind", ["running", "waiting"])
def test_a_step_retry_is_for_terminal_steps(
    api: Api, jobs: JobServer, gate: Gates, kind: str
) -> None:
    slow = api.job(jobs.endpoint(ok(1, gate=gate())))
    run_id = api.start(job("a", slow) if kind == "running" else approval("a"))
    conflict(api.on(run_id, "a", "retry", expect=409), kind, "failed", "completed")


def test_a_step_retry_of_a_skipped_and_of_a_canceled_step(api: Api) -> None:
    run_id = run_in(api, "canceled")
    answer: Json = api.on(run_id, "a", "retry", expect=200)
    assert shown(answer["step_run"]) == "waiting/approval"
    assert api.run(run_id)["status"] == "running"
    api.on(run_id, "a", "skip")
    api.until(run_id, "completed")
    api.on(run_id, "a", "retry", expect=200)
    assert api.shown(run_id) == {"a": "waiting/approval", "b": "completed"}
    assert "skipped_by" not in api.step(run_id, "a")
    api.on(run_id, "a", "approve")
    api.until(run_id, "completed")


def test_a_step_retry_does_not_evaluate_the_condition_again(api: Api) -> None:
    run_id = api.start(job("a", condition={"type": "eq", "left": 1, "right": 2}))
    api.until(run_id, "completed")
    api.on(run_id, "a", "retry", expect=200)
    api.until(run_id, "completed")
    assert api.shown(run_id) == {"a": "completed"}
    assert api.step(run_id, "a")["attempt"] == 1


def test_a_step_retry_with_unmet_dependencies_waits(api: Api) -> None:
    run_id = run_in(api, "canceled")
    answer: Json = api.on(run_id, "b", "retry", expect=200)
    assert shown(answer["step_run"]) == "waiting/dependencies"
    assert api.shown(run_id) == {"a": "waiting/approval", "b": "waiting/dependencies"}
    api.on(run_id, "a", "approve")
    api.until(run_id, "completed")


def test_a_step_retry_that_can_never_start_is_409_with_the_step_to_retry(
    api: Api, jobs: JobServer
) -> None:
    run_id, _ = failed_once(api, jobs, job("mid", after="bad"), job("end", after="mid"))
    answer = api.on(run_id, "end", "retry", expect=409)
    conflict(answer, "bad")
    assert api.run(run_id)["status"] == "failed"
    assert api.shown(run_id) == {"bad": "failed", "mid": "canceled", "end": "canceled"}


def test_a_failed_step_left_standing_counts_as_skip_dependents(api: Api, jobs: JobServer) -> None:
    run_id, endpoint = failed_once(
        api, jobs, job("after", after="bad"), approval("side"), job("tail", after="side")
    )
    api.on(run_id, "side", "retry", expect=200)
    assert api.run(run_id)["status"] == "running"
    assert api.shown(run_id) == {
        "bad": "failed",
        "after": "skipped",
        "side": "waiting/approval",
        "tail": "waiting/dependencies",
    }
    assert api.step(run_id, "after")["skipped_by"] == "dependency"
    api.on(run_id, "side", "approve")
    ended = api.until(run_id, "failed")
    assert "bad day" in ended["error"] or "400" in ended["error"]
    assert "bad" in ended["error"]
    assert api.shown(run_id)["tail"] == "completed"
    assert endpoint.attempts == [1]


def test_a_join_of_the_failed_and_the_retried_branch_is_skipped(api: Api, jobs: JobServer) -> None:
    run_id, _ = failed_once(api, jobs, approval("side"), job("join", after=["bad", "side"]))
    api.on(run_id, "side", "retry", expect=200)
    api.on(run_id, "side", "approve")
    api.until(run_id, "failed")
    assert api.shown(run_id) == {"bad": "failed", "side": "completed", "join": "skipped"}
    api.on(run_id, "bad", "retry", expect=200)
    api.until(run_id, "completed")
    assert api.shown(run_id)["join"] == "completed"


# -- replay subtree


def test_replay_resets_the_step_and_all_transitive_dependents(api: Api) -> None:
    run_id = api.start(
        job("up", "who"),
        job("a", "who", after="up"),
        job("b", "who", after="a"),
        job("c", "who", after=["b", "side"]),
        job("side", "who", after="up"),
    )
    api.until(run_id, "completed")
    answer: Json = api.on(run_id, "a", "replay-subtree", expect=200)
    assert answer["reset_steps"] == 3
    api.until(run_id, "completed")
    attempts = {ref: step["output"]["attempt"] for ref, step in api.steps(run_id).items()}
    assert attempts == {"up": 1, "a": 2, "b": 2, "c": 2, "side": 1}


def test_replayed_steps_read_the_current_outputs(api: Api, jobs: JobServer) -> None:
    endpoint = jobs.endpoint(ok("old"), ok("new"))
    run_id = api.start(job("a", api.job(endpoint)), job("b", "echo", after="a"))
    api.until(run_id, "completed")
    assert api.step(run_id, "b")["output"]["parent_outputs"] == {"a": "old"}
    api.on(run_id, "a", "retry", expect=200)
    api.until(run_id, "completed")
    assert api.step(run_id, "b")["output"]["parent_outputs"] == {"a": "old"}
    api.on(run_id, "b", "replay-subtree", expect=200)
    api.until(run_id, "completed")
    assert api.step(run_id, "b")["output"]["parent_outputs"] == {"a": "new"}


def test_replay_clears_outputs_and_errors(api: Api, jobs: JobServer, gate: Gates) -> None:
    endpoint = jobs.endpoint(ok("old"), ok("new", gate=(held := gate())))
    run_id = api.start(job("a", api.job(endpoint)), job("b", after="a"))
    api.until(run_id, "completed")
    api.on(run_id, "a", "replay-subtree", expect=200)
    for step in api.steps(run_id).values():
        assert not {"output", "error", "finished_at"} & step.keys(), step
    run = api.run(run_id)
    assert run["status"] == "running"
    assert "finished_at" not in run
    held.set()
    api.until(run_id, "completed")


def test_replay_stops_attempts_in_progress_and_withdraws_waits(
    api: Api, jobs: JobServer, gate: Gates
) -> None:
    endpoint = jobs.endpoint(ok("old", gate=gate()), ok("new"))
    run_id = api.start(
        job("up"),
        job("a", api.job(endpoint), after="up"),
        event("e", "k-replay", "up"),
        approval("hold", ["a", "e"]),
    )
    call = endpoint.call()
    answer: Json = api.on(run_id, "up", "replay-subtree", expect=200)
    assert answer["reset_steps"] == 4
    assert call.closed.wait(5)
    api.until_step(run_id, "a", "completed")
    assert api.step(run_id, "a")["output"] == "new"
    assert api.send("k-replay", 1)["delivered"] == 1
    assert api.step(run_id, "e")["attempt"] == 2
    api.until_step(run_id, "hold", "waiting/approval")


@pytest.mark.parametrize("state", ["completed", "failed", "timed_out", "canceled"])
def test_replay_of_the_root_reopens_any_ended_run(api: Api, state: str) -> None:
    run_id = run_in(api, state)
    assert api.on(run_id, "a", "replay-subtree", expect=200)["reset_steps"] == 2
    assert api.run(run_id)["status"] == "running"
    assert api.shown(run_id) == {"a": "waiting/approval", "b": "waiting/dependencies"}
    api.on(run_id, "a", "approve")
    api.until(run_id, "completed")


def test_replay_evaluates_conditions_anew(api: Api, jobs: JobServer) -> None:
    endpoint = jobs.endpoint(ok(1), ok(2))
    condition = {"type": "eq", "left": "{{ steps.a.output }}", "right": 2}
    run_id = api.start(job("a", api.job(endpoint)), job("b", after="a", condition=condition))
    api.until(run_id, "completed")
    assert api.shown(run_id)["b"] == "skipped"
    api.on(run_id, "a", "replay-subtree", expect=200)
    api.until(run_id, "completed")
    assert api.shown(run_id)["b"] == "completed"
    assert "skipped_by" not in api.step(run_id, "b")


def test_replay_of_a_paused_run_stays_paused(api: Api) -> None:
    run_id = api.start(job("a"), approval("b", "a"))
    api.until_step(run_id, "b", "waiting/approval")
    api.act(run_id, "pause")
    api.on(run_id, "a", "replay-subtree", expect=200)
    assert api.run(run_id)["status"] == "paused"
    assert api.shown(run_id) == {"a": "pending/paused", "b": "waiting/dependencies"}
    api.act(run_id, "resume")
    api.until_step(run_id, "b", "waiting/approval")


def test_replay_of_a_subtree_below_a_failure_leaves_the_failure_standing(
    api: Api, jobs: JobServer
) -> None:
    run_id, _ = failed_once(api, jobs, approval("side"), job("tail", after="side"))
    assert api.on(run_id, "side", "replay-subtree", expect=200)["reset_steps"] == 2
    api.on(run_id, "side", "approve")
    assert "bad" in api.until(run_id, "failed")["error"]
    assert api.shown(run_id)["tail"] == "completed"


def test_attempt_never_goes_down(api: Api, jobs: JobServer) -> None:
    endpoint = jobs.endpoint(ok(1))
    run_id = api.start(job("a", api.job(endpoint)), approval("b", "a"))
    api.until_step(run_id, "b", "waiting/approval")
    api.on(run_id, "b", "approve")
    api.until(run_id, "completed")
    api.on(run_id, "a", "replay-subtree", expect=200)
    api.until_step(run_id, "b", "waiting/approval")
    api.on(run_id, "a", "retry", expect=200)
    api.until_step(run_id, "a", lambda s: s["attempt"] == 3 and s["status"] == "completed")
    api.cancel(run_id)
    api.on(run_id, "a", "replay-subtree", expect=200)
    api.until_step(run_id, "b", lambda s: s["attempt"] == 3)
    assert endpoint.attempts == [1, 2, 3, 4]


def test_a_reopened_canceled_run_forgets_its_cancellation(api: Api) -> None:
    run_id = run_in(api, "running")
    api.cancel(run_id, "oops")
    api.on(run_id, "a", "replay-subtree", expect=200)
    assert "error" not in api.run(run_id)
    assert any("oops" in str(item) for item in api.history(run_id))


def test_a_reopen_can_be_repeated_many_times(api: Api, jobs: JobServer) -> None:
    endpoint = jobs.endpoint(status(400))
    run_id = api.start(job("bad", api.job(endpoint)), approval("side"))
    for n in range(2, 8):
        api.until(run_id, "failed")
        api.on(run_id, "bad", "retry", expect=200)
        api.until_step(run_id, "bad", tried(n))
    api.until(run_id, "failed")
    assert endpoint.attempts == list(range(1, 8))


# -- dry runs


@pytest.mark.parametrize(
    "command",
    [
        "retry",
        "steps/bad/retry",
        "steps/bad/replay-subtree",
        "steps/bad/skip",
        "steps/bad/force-complete",
    ],
)
def test_a_dry_run_says_what_would_be_and_changes_nothing(
    api: Api, jobs: JobServer, command: str
) -> None:
    run_id, _ = failed_once(api, jobs, job("after", after="bad"), approval("side"))
    before = api.run(run_id), api.steps(run_id), api.history(run_id)
    answer = api.act(run_id, f"{command}?dry_run=true", expect=200)
    text = str(answer)
    assert "bad" in text
    assert "side" in text
    assert command == "retry" or "after" in text
    assert (api.run(run_id), api.steps(run_id), api.history(run_id)) == before


def test_a_dry_run_of_what_is_a_conflict_is_that_conflict(api: Api) -> None:
    run_id = run_in(api, "running")
    api.act(run_id, "retry?dry_run=true", expect=409)
    api.act(run_id, "steps/a/retry?dry_run=true", expect=409)
    api.act(run_id, "steps/zzz/skip?dry_run=true", expect=404)


def test_a_reopen_of_a_parent_step_with_a_child_is_told_apart(api: Api) -> None:
    child = api.workflow(approval("c"))
    run_id = api.start(sub("s", child), job("t", after="s"))
    first = child_of(api, run_id)
    api.on(run_id, "s", "replay-subtree", expect=200)
    second = api.step(run_id, "s")
    assert second["child_workflow_run_id"] != first
    assert second["attempt"] == 2
    api.until(first, "canceled")
