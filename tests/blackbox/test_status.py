"""Run status, step status and what a step waits for (sections 2 and 3)."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable

import pytest

from tests.blackbox.api import Api, approval, event, job, shown, sleep, sub
from tests.blackbox.jobserver import JobServer, ok, status

Gates = Callable[[], threading.Event]
UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def test_a_triggered_run_is_running_and_ends_completed(api: Api) -> None:
    run_id = api.start(approval("ok"))
    running = api.run(run_id)
    assert running["status"] == "running"
    assert "started_at" in running
    assert "finished_at" not in running
    assert "error" not in running
    api.on(run_id, "ok", "approve")
    ended = api.run(run_id)
    assert ended["status"] == "completed"
    assert ended["started_at"] == running["started_at"]
    assert ended["finished_at"] >= ended["started_at"]


def test_the_trigger_answers_201_with_the_run(api: Api) -> None:
    workflow = api.workflow(approval("ok"), max_parallel_steps=3)
    run = api.post(
        f"/v1/workflows/{workflow}/trigger", {"payload": {"a": 1}, "tags": {"team": "x"}}, 201
    )
    assert run["workflow_id"] == workflow
    assert run["payload"] == {"a": 1}
    assert run["tags"] == {"team": "x"}
    assert run["triggered_by"] == "manual"
    assert run["workflow_version"] == 1
    assert run["max_parallel_steps"] == 3
    assert run["created_by"] == "admin"
    assert api.run(run["id"]) == run


def test_unset_fields_are_omitted_and_ids_and_times_have_their_form(api: Api) -> None:
    run_id = api.start(job("a"), approval("b", "a"))
    api.until_step(run_id, "b", "waiting/approval")
    run = api.run(run_id)
    steps = api.steps(run_id)
    for thing in (run, *steps.values()):
        assert None not in thing.values()
        assert UUID7.fullmatch(thing["id"]), thing["id"]
        for name, found in thing.items():
            if name.endswith("_at"):
                assert RFC3339.fullmatch(found), (name, found)
    assert "max_parallel_steps" not in run
    assert run["workflow_version"] == 1
    for step in steps.values():
        assert {"attempt", "deps_completed", "deps_required"} <= step.keys()
        assert step["workflow_run_id"] == run_id


def test_the_id_of_a_step_run_never_changes(api: Api) -> None:
    run_id = api.start(job("a"), job("b", after="a"))
    api.until(run_id, "completed")
    before = {ref: step["id"] for ref, step in api.steps(run_id).items()}
    api.on(run_id, "a", "replay-subtree", expect=200)
    api.until(run_id, "completed")
    api.on(run_id, "b", "retry", expect=200)
    api.until(run_id, "completed")
    assert {ref: step["id"] for ref, step in api.steps(run_id).items()} == before


def test_a_full_workflow_queues_runs_first_in_first_out(api: Api) -> None:
    workflow = api.workflow(approval("ok"), max_concurrent_runs=1)
    first, second, third = (api.trigger(workflow) for _ in range(3))
    assert [api.run(r)["status"] for r in (first, second, third)] == [
        "running",
        "pending",
        "pending",
    ]
    assert "started_at" not in api.run(second)
    assert api.shown(second) == {"ok": "pending/run_queue"}
    api.on(first, "ok", "approve")
    api.until(second, "running")
    assert api.run(third)["status"] == "pending"
    api.cancel(second)
    api.until(third, "running")


def test_a_paused_run_holds_its_slot(api: Api) -> None:
    workflow = api.workflow(approval("ok"), max_concurrent_runs=1)
    first, second = api.trigger(workflow), api.trigger(workflow)
    api.act(first, "pause")
    assert api.run(second)["status"] == "pending"
    api.on(first, "ok", "approve")
    api.until(first, "completed")
    api.until(second, "running")


def test_a_canceled_queued_run_gives_no_slot_and_takes_none(api: Api) -> None:
    workflow = api.workflow(approval("ok"), max_concurrent_runs=1)
    first, second, third = (api.trigger(workflow) for _ in range(3))
    api.cancel(second)
    assert api.run(second)["status"] == "canceled"
    assert api.run(third)["status"] == "pending"
    api.on(first, "ok", "approve")
    api.until(third, "running")
    assert api.run(second)["status"] == "canceled"


def test_with_two_slots_two_run(api: Api) -> None:
    workflow = api.workflow(approval("ok"), max_concurrent_runs=2)
    runs = [api.trigger(workflow) for _ in range(3)]
    assert [api.run(r)["status"] for r in runs] == ["running", "running", "pending"]


def test_a_reopened_run_queues_at_the_end_when_the_slots_are_taken(api: Api) -> None:
    workflow = api.workflow(approval("ok"), max_concurrent_runs=1)
    first = api.trigger(workflow)
    api.on(first, "ok", "reject")
    api.until(first, "failed")
    second, third = api.trigger(workflow), api.trigger(workflow)
    answer = api.on(first, "ok", "retry", expect=200)
    assert shown(answer["step_run"]) == "pending/run_queue"
    reopened = api.run(first)
    assert reopened["status"] == "pending"
    assert "error" not in reopened
    assert "finished_at" not in reopened
    api.cancel(second)
    api.until(third, "running")
    assert api.run(first)["status"] == "pending"
    api.cancel(third)
    api.until(first, "running")
    assert api.step(first, "ok")["attempt"] == 2


def test_a_failed_run_names_the_step_and_its_error_under_fail_workflow(
    api: Api, jobs: JobServer
) -> None:
    bad = api.job(jobs.endpoint(status(400, "card declined")))
    run_id = api.start(job("charge-it", bad))
    error = api.until(run_id, "failed")["error"]
    assert "charge-it" in error
    assert api.step(run_id, "charge-it")["error"] in error


def test_a_failed_run_names_the_step_and_its_error_under_skip_dependents(
    api: Api, jobs: JobServer
) -> None:
    bad = api.job(jobs.endpoint(status(400, "card declined")))
    run_id = api.start(job("charge-it", bad, on_failure="skip_dependents"), job("other"))
    error = api.until(run_id, "failed")["error"]
    assert "charge-it" in error
    assert api.step(run_id, "charge-it")["error"] in error


def test_the_deadline_times_a_running_run_out(api: Api) -> None:
    workflow = api.workflow(approval("ok"), job("after", after="ok"), timeout_secs=0.3)
    run_id = api.trigger(workflow)
    assert api.run(run_id)["expires_at"] > api.run(run_id)["created_at"]
    ended = api.until(run_id, "timed_out")
    assert ended["error"]
    assert ended["finished_at"] >= ended["expires_at"]
    assert set(api.shown(run_id).values()) == {"canceled"}


def test_durations_may_be_fractional(api: Api) -> None:
    workflow = api.workflow(
        approval("a", approval_timeout_secs=600.5),
        event("e", "k", event_timeout_secs=600.25),
        sleep("s", 600.125),
        job("j", after="a", retry_initial_delay_secs=0.5, timeout_secs_override=2.5),
        timeout_secs=600.75,
    )
    found = api.get(f"/v1/workflows/{workflow}")
    assert found["timeout_secs"] == 600.75
    assert found["steps"][2]["sleep_duration_secs"] == 600.125
    assert api.run(api.trigger(workflow, delay_secs=0.05))["status"] in {"pending", "running"}


def test_the_deadline_keeps_running_while_paused(api: Api) -> None:
    run_id = api.start(approval("ok"), timeout_secs=0.3)
    api.act(run_id, "pause")
    api.until(run_id, "timed_out")


def test_the_deadline_times_a_queued_run_out(api: Api) -> None:
    workflow = api.workflow(approval("ok"), max_concurrent_runs=1, timeout_secs=0.3)
    first, second = api.trigger(workflow), api.trigger(workflow)
    assert api.run(second)["status"] == "pending"
    api.until(first, "timed_out")
    api.until(second, "timed_out", "running")
    api.until(second, "timed_out")


def test_a_reopen_computes_the_deadline_anew(api: Api) -> None:
    run_id = api.start(approval("ok"), timeout_secs=0.3)
    ended = api.until(run_id, "timed_out")
    api.on(run_id, "ok", "retry", expect=200)
    reopened = api.run(run_id)
    assert reopened["status"] == "running"
    assert reopened["expires_at"] > ended["finished_at"]
    api.on(run_id, "ok", "approve")
    api.until(run_id, "completed")


def test_waiting_for_tells_each_parked_step_apart(api: Api, jobs: JobServer) -> None:
    flaky = api.job(jobs.endpoint(status(500)), max_attempts=5, retry_initial_delay_secs=600)
    child = api.workflow(approval("c"))
    run_id = api.start(
        approval("a"),
        event("e", "never"),
        sleep("s", 600),
        sub("w", child),
        job("r", flaky),
        job("d", after="a"),
    )
    api.until_step(run_id, "r", "waiting/retry")
    assert api.shown(run_id) == {
        "a": "waiting/approval",
        "e": "waiting/event",
        "s": "waiting/timer",
        "w": "running",
        "r": "waiting/retry",
        "d": "waiting/dependencies",
    }


def test_a_running_step_has_no_waiting_for(api: Api, jobs: JobServer, gate: Gates) -> None:
    opened = gate()
    run_id = api.start(job("a", api.job(jobs.endpoint(ok(1, gate=opened)))))
    running = api.until_step(run_id, "a", "running")
    assert "waiting_for" not in running
    assert "started_at" in running
    assert "finished_at" not in running
    opened.set()
    api.until(run_id, "completed")


def test_deps_completed_counts_satisfied_dependencies_only(api: Api, jobs: JobServer) -> None:
    bad = api.job(jobs.endpoint(status(400)))
    run_id = api.start(
        job("done"),
        job("tolerated", bad, on_failure="continue"),
        job("no", condition={"type": "eq", "left": 1, "right": 2}),
        approval("open"),
        job("last", after=["done", "tolerated", "no", "open"]),
    )
    last = api.until_step(run_id, "last", lambda step: step["deps_completed"] == 3)
    assert last["deps_required"] == 4
    assert shown(last) == "waiting/dependencies"
    api.on(run_id, "open", "approve")
    api.until(run_id, "completed")
    assert api.step(run_id, "last")["deps_completed"] == 4


def test_deps_completed_is_derived_again_after_a_replay(api: Api) -> None:
    run_id = api.start(job("a"), approval("b", "a"), job("c", after=["a", "b"]))
    api.until_step(run_id, "b", "waiting/approval")
    api.on(run_id, "b", "approve")
    api.until(run_id, "completed")
    for _ in range(3):
        api.on(run_id, "a", "replay-subtree", expect=200)
        found = api.until_step(run_id, "b", "waiting/approval")
        assert (found["deps_completed"], found["deps_required"]) == (1, 1)
        assert api.step(run_id, "c")["deps_completed"] == 1
    api.on(run_id, "b", "approve")
    api.until(run_id, "completed")


def test_a_failed_dependency_under_skip_dependents_is_not_counted(
    api: Api, jobs: JobServer
) -> None:
    bad = api.job(jobs.endpoint(status(400)))
    run_id = api.start(job("a", bad, on_failure="skip_dependents"), job("b", after="a"))
    api.until(run_id, "failed")
    step = api.step(run_id, "b")
    assert (step["status"], step["skipped_by"]) == ("skipped", "dependency")
    assert step["deps_completed"] == 0
    assert "error" not in step


@pytest.mark.parametrize("ended", ["completed", "failed", "canceled"])
def test_a_terminal_run_has_no_open_steps(api: Api, ended: str) -> None:
    run_id = api.start(approval("a"), job("b", after="a"))
    if ended == "canceled":
        api.cancel(run_id)
    else:
        api.on(run_id, "a", "approve" if ended == "completed" else "reject")
    api.until(run_id, ended)
    for step in api.steps(run_id).values():
        assert step["status"] in {"completed", "failed", "skipped", "canceled"}
        assert "waiting_for" not in step
        assert "finished_at" in step
