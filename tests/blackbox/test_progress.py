"""Progress: conditions, limits, starting, ends, failure policies (section 4)."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tests.blackbox.api import Api, Json, approval, event, job, sleep, sub
from tests.blackbox.jobserver import JobServer, ok, status

Gates = Callable[[], threading.Event]
FALSE = {"type": "eq", "left": 1, "right": 2}
TRUE = {"type": "eq", "left": 1, "right": 1}


def test_a_false_condition_on_a_root_skips_it_and_satisfies_its_dependents(api: Api) -> None:
    run_id = api.start(job("a", condition=FALSE), job("b", after="a"), job("c", after="b"))
    api.until(run_id, "completed")
    assert api.shown(run_id) == {"a": "skipped", "b": "completed", "c": "completed"}
    step = api.step(run_id, "a")
    assert step["skipped_by"] == "condition"
    assert "error" not in step
    assert step["attempt"] == 0


def test_a_chain_of_false_conditions_settles_in_one_transition(api: Api) -> None:
    steps = [job("s0", condition=FALSE)]
    steps += [job(f"s{n}", after=f"s{n - 1}", condition=FALSE) for n in range(1, 50)]
    run_id = api.start(*steps)
    assert api.run(run_id)["status"] == "completed"
    assert set(api.shown(run_id).values()) == {"skipped"}


def test_a_run_of_skipped_steps_only_is_completed(api: Api) -> None:
    run_id = api.start(job("a", condition=FALSE), job("b", condition=FALSE))
    api.until(run_id, "completed")


def test_a_true_condition_lets_the_step_start(api: Api) -> None:
    run_id = api.start(job("a", condition=TRUE))
    api.until(run_id, "completed")
    assert api.shown(run_id) == {"a": "completed"}


def test_conditions_hold_for_every_type_of_step(api: Api) -> None:
    child = api.workflow(job("x"))
    run_id = api.start(
        approval("a", condition=FALSE),
        event("e", "k", condition=FALSE),
        sleep("s", 600, condition=FALSE),
        sub("w", child, condition=FALSE),
    )
    api.until(run_id, "completed")
    assert set(api.shown(run_id).values()) == {"skipped"}
    assert "child_workflow_run_id" not in api.step(run_id, "w")


def test_a_condition_that_cannot_be_evaluated_fails_the_step(api: Api) -> None:
    condition = {"type": "eq", "left": "{{ payload.nowhere }}", "right": 1}
    run_id = api.start(job("a", condition=condition))
    ended = api.until(run_id, "failed")
    step = api.step(run_id, "a")
    assert "nowhere" in step["error"]
    assert "nowhere" in ended["error"]
    assert step["attempt"] == 0


def test_the_policy_of_a_step_holds_for_its_condition_errors(api: Api) -> None:
    condition = {"type": "gt", "left": "{{ payload.text }}", "right": 1}
    run_id = api.start(
        job("a", condition=condition, on_failure="continue"),
        job("b", after="a"),
        payload={"text": "five"},
    )
    api.until(run_id, "completed")
    assert api.shown(run_id) == {"a": "failed", "b": "completed"}
    assert api.step(run_id, "a")["error"]


def test_conditions_see_the_status_of_earlier_steps(api: Api, jobs: JobServer) -> None:
    bad = api.job(jobs.endpoint(status(400)))
    failed: Json = {"type": "step_status", "step_ref": "a", "status": "failed"}
    run_id = api.start(
        job("a", bad, on_failure="continue"),
        job("on-failure", after="a", condition=failed),
        job("on-success", after="a", condition={"type": "not", "condition": failed}),
        job(
            "either",
            after="a",
            condition={
                "type": "step_status_in",
                "step_ref": "a",
                "statuses": ["completed", "failed"],
            },
        ),
    )
    api.until(run_id, "completed")
    assert api.shown(run_id) == {
        "a": "failed",
        "on-failure": "completed",
        "on-success": "skipped",
        "either": "completed",
    }


def test_max_parallel_steps_bounds_the_running_steps_in_definition_order(
    api: Api, jobs: JobServer, gate: Gates
) -> None:
    gates = [gate() for _ in range(4)]
    steps = [job(f"s{n}", api.job(jobs.endpoint(ok(n, gate=one)))) for n, one in enumerate(gates)]
    run_id = api.start(*steps, max_parallel_steps=2)
    held = "pending/parallel_limit"
    assert api.shown(run_id) == {"s0": "running", "s1": "running", "s2": held, "s3": held}
    gates[1].set()
    api.until_step(run_id, "s2", "running")
    assert api.step(run_id, "s3")["status"] == "pending"
    gates[0].set()
    api.until_step(run_id, "s3", "running")
    gates[2].set()
    gates[3].set()
    api.until(run_id, "completed")


def test_parked_steps_do_not_count_against_max_parallel_steps(api: Api) -> None:
    run_id = api.start(
        approval("a"), event("e", "k"), sleep("s", 600), job("j"), max_parallel_steps=1
    )
    api.until_step(run_id, "j", "completed")
    assert api.shown(run_id) == {
        "a": "waiting/approval",
        "e": "waiting/event",
        "s": "waiting/timer",
        "j": "completed",
    }


def test_a_step_in_its_backoff_gives_its_place_away(api: Api, jobs: JobServer) -> None:
    bad = api.job(jobs.endpoint(status(500)), max_attempts=2, retry_initial_delay_secs=600)
    run_id = api.start(job("a", bad), job("b"), max_parallel_steps=1)
    api.until_step(run_id, "b", "completed")
    assert api.shown(run_id)["a"] == "waiting/retry"


def test_one_running_step_for_each_concurrency_key(api: Api, jobs: JobServer, gate: Gates) -> None:
    first = gate()
    slow = api.job(jobs.endpoint(ok(1, gate=first)))
    run_id = api.start(
        job("a", slow, concurrency_key="db"),
        job("b", concurrency_key="db"),
        job("c", concurrency_key="other"),
    )
    api.until_step(run_id, "c", "completed")
    assert api.shown(run_id)["b"] == "pending/concurrency_key"
    first.set()
    api.until(run_id, "completed")


def test_a_concurrency_key_is_a_matter_of_one_run(api: Api, jobs: JobServer, gate: Gates) -> None:
    slow = api.job(jobs.endpoint(ok(1, gate=gate())))
    workflow = api.workflow(job("a", slow, concurrency_key="db"))
    for _ in range(2):
        assert api.shown(api.trigger(workflow)) == {"a": "running"}


def test_max_concurrency_of_a_job_holds_across_runs(api: Api, jobs: JobServer, gate: Gates) -> None:
    first = gate()
    endpoint = jobs.endpoint(ok(1, gate=first))
    workflow = api.workflow(job("a", api.job(endpoint, max_concurrency=1)))
    runs = [api.trigger(workflow) for _ in range(3)]
    endpoint.call(1)
    api.until_step(runs[1], "a", "pending/job_limit")
    api.until_step(runs[2], "a", "pending/job_limit")
    assert len(endpoint.calls) == 1
    first.set()
    for run_id in runs:
        api.until(run_id, "completed")
    assert len(endpoint.calls) == 3


def test_a_canceled_run_gives_its_place_at_the_job_back(
    api: Api, jobs: JobServer, gate: Gates
) -> None:
    endpoint = jobs.endpoint(ok(1, gate=gate()))
    workflow = api.workflow(job("a", api.job(endpoint, max_concurrency=1)))
    first, second = api.trigger(workflow), api.trigger(workflow)
    endpoint.call(1)
    api.until_step(second, "a", "pending/job_limit")
    api.cancel(first)
    api.until_step(second, "a", "running")
    endpoint.call(2)


def test_a_run_held_at_the_job_limit_can_be_canceled(
    api: Api, jobs: JobServer, gate: Gates
) -> None:
    first = gate()
    endpoint = jobs.endpoint(ok(1, gate=first), ok(2))
    workflow = api.workflow(job("a", api.job(endpoint, max_concurrency=1)))
    runs = [api.trigger(workflow) for _ in range(3)]
    endpoint.call(1)
    api.until_step(runs[1], "a", "pending/job_limit")
    api.cancel(runs[1])
    first.set()
    api.until(runs[0], "completed")
    api.until(runs[2], "completed")
    assert len(endpoint.calls) == 2
    assert api.shown(runs[1]) == {"a": "canceled"}


def test_fail_workflow_is_the_default_and_cancels_everything_at_once(
    api: Api, jobs: JobServer, gate: Gates
) -> None:
    slow = jobs.endpoint(ok(1, gate=gate()))
    run_id = api.start(
        approval("bad"), job("slow", api.job(slow)), approval("open"), job("later", after="open")
    )
    call = slow.call()
    api.on(run_id, "bad", "reject")
    api.until(run_id, "failed")
    assert api.shown(run_id) == {
        "bad": "failed",
        "slow": "canceled",
        "open": "canceled",
        "later": "canceled",
    }
    assert call.closed.wait(5), "the attempt in progress was not told to stop"


def test_fail_workflow_holds_also_while_paused(api: Api, jobs: JobServer, gate: Gates) -> None:
    opened = gate()
    endpoint = jobs.endpoint(status(400).__class__(status=400, body=b"no", gate=opened))
    run_id = api.start(job("a", api.job(endpoint)), approval("b"))
    endpoint.call()
    api.act(run_id, "pause")
    opened.set()
    api.until(run_id, "failed")
    assert api.shown(run_id) == {"a": "failed", "b": "canceled"}


def test_skip_dependents_skips_transitively_and_the_rest_goes_on(api: Api, jobs: JobServer) -> None:
    bad = api.job(jobs.endpoint(status(400)))
    run_id = api.start(
        job("a", bad, on_failure="skip_dependents"),
        job("b", after="a"),
        job("c", after=["b", "x"]),
        approval("x"),
        job("y", after="x"),
    )
    api.until_step(run_id, "c", "skipped")
    assert api.run(run_id)["status"] == "running"
    assert api.step(run_id, "c")["skipped_by"] == "dependency"
    api.on(run_id, "x", "approve")
    ended = api.until(run_id, "failed")
    assert api.shown(run_id) == {
        "a": "failed",
        "b": "skipped",
        "c": "skipped",
        "x": "completed",
        "y": "completed",
    }
    assert "'a'" in ended["error"] or "a" in ended["error"].split()


def test_continue_satisfies_dependents_without_output_and_the_run_completes(
    api: Api, jobs: JobServer
) -> None:
    bad = api.job(jobs.endpoint(status(400)))
    run_id = api.start(job("a", bad, on_failure="continue"), job("b", "echo", after="a"))
    ended = api.until(run_id, "completed")
    assert "error" not in ended
    assert api.step(run_id, "a")["status"] == "failed"
    assert api.step(run_id, "b")["output"] == {"parent_outputs": {}}


def test_an_unknown_failure_policy_is_refused(api: Api) -> None:
    body = {
        "project_id": api.project,
        "name": "w",
        "steps": [job("a", on_failure="ignore")],
    }
    answer = api.post("/v1/workflows", body, 422)
    assert any("steps[0].on_failure" in line for line in answer["error"]["details"])


def test_a_workflow_without_steps_is_answered_somehow_definite(api: Api) -> None:
    response = api.request(
        "POST", "/v1/workflows", {"project_id": api.project, "name": "w", "steps": []}
    )
    assert response.status_code in {201, 422}
    if response.status_code == 201:
        api.until(api.trigger(response.json()["id"]), "completed")


def test_two_steps_with_failures_under_both_policies_end_the_run_failed_at_once(
    api: Api, jobs: JobServer
) -> None:
    bad = api.job(jobs.endpoint(status(400)))
    run_id = api.start(
        job("soft", bad, on_failure="skip_dependents"), approval("hard"), approval("open")
    )
    api.until_step(run_id, "soft", "failed")
    assert api.run(run_id)["status"] == "running"
    api.on(run_id, "hard", "reject")
    api.until(run_id, "failed")
    assert api.shown(run_id)["open"] == "canceled"


def test_a_diamond_of_a_hundred_steps_completes(api: Api) -> None:
    middle = [f"m{n}" for n in range(98)]
    run_id = api.start(
        job("root"), *(job(ref, after="root") for ref in middle), job("join", after=middle)
    )
    api.until(run_id, "completed", within_secs=20)
    step = api.step(run_id, "join")
    assert (step["deps_completed"], step["deps_required"]) == (98, 98)
    assert step["attempt"] == 1


def test_a_timed_out_approval_follows_the_failure_policy(api: Api) -> None:
    run_id = api.start(
        approval("a", approval_timeout_secs=0.3, on_failure="skip_dependents"),
        job("b", after="a"),
        approval("c"),
    )
    api.until_step(run_id, "a", "failed")
    assert api.step(run_id, "a")["error"] == "approval timed out"
    assert api.shown(run_id)["b"] == "skipped"
    api.on(run_id, "c", "approve")
    assert "approval timed out" in api.until(run_id, "failed")["error"]
