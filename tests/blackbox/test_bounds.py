"""What bounds a run (runs.md, "Bounds of a run"), nesting, attempts that wait for their turn."""

from __future__ import annotations

import time

from tests.blackbox.api import Api, Json, approval, job, sub
from tests.blackbox.jobserver import Answer, JobServer, ok, status
from tests.blackbox.stories import child_of
from tests.support.waiting import wait_until_sync

MIB = 1 << 20
JOB_RUNS_KEPT = 100
OUTPUTS_MIB = 64
PREVIEWED = 64 * 1024


def big(size: int) -> Answer:
    """A result of so many bytes of JSON."""
    return ok("x" * (size - 2))


def approve_when_it_can_be(api: Api, path: str) -> None:
    """To ask for the steps would be to read 64 MiB each time."""
    wait_until_sync(
        lambda: api.request("POST", path).status_code == 204, f"POST {path}", within_secs=120
    )


def test_the_nesting_of_sub_workflows_ends_where_the_step_says(api: Api) -> None:
    leaf = api.workflow(job("a"))
    middle = api.workflow(sub("deeper", leaf, max_nesting_depth=1))
    run_id = api.start(sub("down", middle, max_nesting_depth=1))
    api.until(run_id, "failed")
    child = child_of(api, run_id, "down")
    step = api.step(child, "deeper")
    assert (step["status"], "child_workflow_run_id" in step) == ("failed", False)
    assert "may be nested 1 deep at most" in step["error"]
    deep_enough = api.workflow(sub("deeper", leaf, max_nesting_depth=2))
    api.until(api.start(sub("down", deep_enough)), "completed")


def test_workflows_are_nested_ten_deep_at_most(api: Api) -> None:
    workflow = api.workflow(job("a"))
    for _ in range(11):
        workflow = api.workflow(sub("s", workflow))
    run_id = api.trigger(workflow)
    api.until(run_id, "failed")
    for _ in range(10):
        run_id = child_of(api, run_id)
    assert "may be nested 10 deep at most" in api.step(run_id, "s")["error"]


def test_the_newest_hundred_job_runs_of_a_step_are_kept(api: Api, jobs: JobServer) -> None:
    slug = api.job(jobs.endpoint(status(500)), max_attempts=60, retry_initial_delay_secs=0)
    run_id = api.start(job("a", slug))
    api.until(run_id, "failed", within_secs=60)
    api.on(run_id, "a", "retry", expect=200)
    api.until_step(run_id, "a", lambda s: s["status"] == "failed" and s["attempt"] == 120,
                   within_secs=60)  # fmt: skip
    listed = api.get(f"/v1/runs?workflow_run_id={run_id}&project_id={api.project}&limit=200")
    kept = sorted(record["attempt"] for record in listed if record["step_ref"] == "a")
    assert kept == list(range(120 - JOB_RUNS_KEPT + 1, 121))


def test_outputs_of_a_run_and_the_input_of_an_attempt_are_bounded(
    api: Api, jobs: JobServer
) -> None:
    """What is beyond fails its step, final, with a clear error; what is within is as ever."""
    policy = {"max_attempts": 5, "retry_initial_delay_secs": 0}
    large, nearly, small = (
        api.job(jobs.endpoint(big(size)), **policy) for size in (MIB, MIB - 4096, 8192)
    )
    endpoint = jobs.endpoint(ok(None))
    takes = api.job(endpoint, **policy)
    refs = [f"s{n}" for n in range(OUTPUTS_MIB - 1)]
    run_id = api.start(
        *(job(ref, large) for ref in refs),
        job("seven", takes, after=refs[:7]),
        job("eight", takes, after=refs[:8], on_failure="continue"),
        approval("all", after=[*refs, "seven", "eight"]),
        job("fits", nearly, after="all"),
        approval("go_on", after="fits"),
        job("more", small, after="go_on"),
    )
    for ref in ("all", "go_on"):
        approve_when_it_can_be(api, f"/v1/workflow-runs/{run_id}/steps/{ref}/approve")
    api.until(run_id, "failed", within_secs=60)
    steps = api.steps(run_id)
    assert {steps[ref]["status"] for ref in [*refs, "seven", "fits"]} == {"completed"}
    assert len(endpoint.call().raw) > 7 * MIB
    assert (steps["eight"]["status"], steps["eight"]["attempt"]) == ("failed", 0)
    assert f"at most {8 * MIB} are sent" in steps["eight"]["error"]
    assert len(endpoint.calls) == 1, "nothing was sent"
    assert (steps["more"]["status"], steps["more"]["attempt"]) == ("failed", 1)
    assert str(OUTPUTS_MIB * MIB) in steps["more"]["error"]
    (shown,) = api.attempts(run_id, "seven")
    assert shown["payload"]["truncated"] is True
    assert shown["payload"]["size_bytes"] > 7 * MIB
    assert len(shown["payload"]["preview"]) == 1024


def test_an_input_above_64_kib_is_shown_as_size_and_preview(api: Api, jobs: JobServer) -> None:
    endpoint = jobs.endpoint(ok(None))
    slug = api.job(endpoint)
    shown: list[Json] = []
    for size in (PREVIEWED - 1024, PREVIEWED):
        text = "y" * size
        run_id = api.start(job("a", slug), payload={"text": text})
        api.until(run_id, "completed")
        assert endpoint.calls[-1].body["text"] == text, "the job gets all of it"
        shown += [record["payload"] for record in api.attempts(run_id, "a")]
    whole, preview = shown
    assert whole["text"] == "y" * (PREVIEWED - 1024)
    assert set(preview) == {"truncated", "size_bytes", "preview"}
    assert PREVIEWED < preview["size_bytes"] < PREVIEWED + 1024
    assert len(preview["preview"]) == 1024
    assert "yyyy" in preview["preview"]


def test_an_attempt_that_waits_for_its_turn_is_queued(api: Api) -> None:
    with JobServer(time.monotonic) as elsewhere:
        slug = api.job(elsewhere.endpoint(), max_attempts=50, retry_initial_delay_secs=0)
    run_id = api.start(job("a", slug))
    api.until_step(run_id, "a", lambda _: api.attempts(run_id, "a")[-1]["status"] == "queued")
    waiting = api.attempts(run_id, "a")[-1]
    assert "started_at" not in waiting
    assert api.get(f"/v1/runs/{waiting['id']}")["status"] == "queued"
    assert "could not be reached" in api.explain(run_id)["a"]["reason"]
    api.cancel(run_id)
    ended = api.attempts(run_id, "a")[-1]
    assert (ended["status"], ended["attempt"]) == ("canceled", waiting["attempt"])
