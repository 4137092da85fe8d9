"""SIGKILL at bad moments: nothing acknowledged is lost, nothing is stuck (section 9)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import httpx
import pytest

from tests.blackbox.api import Api, Json, ServerProcess, approval, event, job, shown, sleep, sub
from tests.blackbox.jobserver import JobServer, accepted, ok, status
from tests.blackbox.stories import child_of
from tests.blackbox.test_callbacks import report
from tests.support.waiting import wait_until_sync

Gates = Callable[[], threading.Event]


def restart(server: ServerProcess) -> None:
    server.kill()
    server.start()


def ready(api: Api) -> None:
    def is_ready() -> bool:
        return api.request("GET", "/health/ready").status_code == 200

    wait_until_sync(is_ready, "ready", within_secs=20)


def test_every_acknowledged_command_survives_a_kill(
    own_api: Api, own_server: ServerProcess, jobs: JobServer
) -> None:
    api = own_api
    slug = api.job(jobs.endpoint(status(400, "bad")))
    queue = api.workflow(approval("a"), max_concurrent_runs=1)
    workflow = api.workflow(
        approval("a"), approval("b"), job("c", after="a"), event("e", "k"), sleep("s", 600)
    )
    approved, rejected, paused, canceled, skipped, forced = (
        api.trigger(workflow, {"n": n}) for n in range(6)
    )
    api.on(approved, "a", "approve", {"comment": "yes"})
    api.on(rejected, "a", "reject", {"reason": "no"})
    api.act(paused, "pause")
    api.on(paused, "a", "approve")
    api.cancel(canceled, "bored")
    api.on(skipped, "a", "skip", {"reason": "why not"})
    api.on(forced, "a", "force-complete", {"result": [1]})
    failed = api.start(job("x", slug), approval("y"))
    api.until(failed, "failed")
    api.on(failed, "x", "skip")
    running, queued = api.trigger(queue), api.trigger(queue)
    runs = (approved, rejected, paused, canceled, skipped, forced, failed, running, queued)
    for run_id in (approved, skipped, forced):
        api.until_step(run_id, "c", "completed")
    before = {run_id: (api.run(run_id), api.steps(run_id)) for run_id in runs}
    histories = {run_id: api.history(run_id) for run_id in runs}
    restart(own_server)
    ready(api)
    for run_id in runs:
        assert (api.run(run_id), api.steps(run_id)) == before[run_id]
        assert api.history(run_id)[: len(histories[run_id])] == histories[run_id]
    api.on(running, "a", "approve")
    api.until(queued, "running")
    api.act(paused, "resume")
    api.until_step(paused, "c", "completed")
    assert api.send("k", 1)["delivered"] == 4
    api.on(failed, "y", "approve")
    api.until(failed, "completed")


def test_an_attempt_in_progress_is_dispatched_again_with_the_same_number(
    own_api: Api, own_server: ServerProcess, jobs: JobServer, gate: Gates
) -> None:
    api = own_api
    endpoint = jobs.endpoint(status(500), ok("lost", gate=gate()), ok("kept"))
    run_id = api.start(
        job("a", api.job(endpoint, max_attempts=2, retry_initial_delay_secs=0)),
        job("b", "echo", after="a"),
    )
    first_try = endpoint.call(2)
    restart(own_server)
    second_try = endpoint.call(3)
    api.until(run_id, "completed")
    assert endpoint.attempts == [1, 2, 2]
    assert first_try.headers["idempotency-key"] == second_try.headers["idempotency-key"]
    assert first_try.job_run_id == second_try.job_run_id
    assert api.step(run_id, "a")["attempt"] == 2
    assert api.step(run_id, "b")["output"]["parent_outputs"] == {"a": "kept"}


def test_a_token_from_before_the_kill_stays_valid(
    own_api: Api, own_server: ServerProcess, jobs: JobServer
) -> None:
    api = own_api
    endpoint = jobs.endpoint(accepted())
    run_id = api.start(job("a", api.job(endpoint)))
    call = endpoint.call()
    api.until_step(run_id, "a", "running")
    restart(own_server)
    ready(api)
    assert report(api, call, "complete", {"result": "from before"}).is_success
    api.until(run_id, "completed")
    assert api.step(run_id, "a")["output"] == "from before"


def test_timers_backoffs_deadlines_and_delays_go_on_after_a_kill(
    own_api: Api, own_server: ServerProcess, jobs: JobServer
) -> None:
    api = own_api
    endpoint = jobs.endpoint(status(500), ok(1))
    slug = api.job(endpoint, max_attempts=2, retry_initial_delay_secs=1)
    retrying = api.start(job("a", slug))
    sleeping = api.start(sleep("s", 1))
    dying = api.start(approval("a"), timeout_secs=1)
    expiring = api.start(approval("a", approval_timeout_secs=1))
    delayed = api.trigger(api.workflow(approval("a")), delay_secs=1)
    api.send("later", "kept", buffer_secs=600)
    endpoint.call()
    api.until_step(retrying, "a", "waiting/retry")
    restart(own_server)
    api.until(retrying, "completed")
    assert endpoint.attempts == [1, 2]
    api.until(sleeping, "completed")
    api.until(dying, "timed_out")
    api.until(expiring, "failed")
    api.until(delayed, "running")
    waiting = api.start(event("e", "later"))
    api.until(waiting, "completed")


def test_parents_and_children_find_each_other_after_a_kill(
    own_api: Api, own_server: ServerProcess
) -> None:
    api = own_api
    child = api.workflow(approval("c"))
    done, failed, gone = (api.start(sub("s", child), job("t", after="s")) for _ in range(3))
    children = {run_id: child_of(api, run_id) for run_id in (done, failed)}
    gone_child = child_of(api, gone)
    api.cancel(gone)
    restart(own_server)
    ready(api)
    api.on(children[done], "c", "approve")
    api.on(children[failed], "c", "reject")
    api.until(done, "completed")
    api.until(failed, "failed")
    api.until(gone_child, "canceled")
    assert child_of(api, done) == children[done]


def test_the_limit_of_a_job_holds_after_a_kill(
    own_api: Api, own_server: ServerProcess, jobs: JobServer, gate: Gates
) -> None:
    api = own_api
    first = gate()
    endpoint = jobs.endpoint(ok(1, gate=gate()), ok(1, gate=first), ok(2))
    workflow = api.workflow(job("a", api.job(endpoint, max_concurrency=1)))
    runs = [api.trigger(workflow) for _ in range(3)]
    endpoint.call(1)
    for run_id in runs[1:]:
        api.until_step(run_id, "a", "pending/job_limit")
    restart(own_server)
    ready(api)
    endpoint.call(2)
    held = [run_id for run_id in runs if shown(api.step(run_id, "a")) == "pending/job_limit"]
    assert len(held) == 2
    assert len(endpoint.calls) == 2
    first.set()
    for run_id in runs:
        api.until(run_id, "completed")


def test_an_idempotent_trigger_is_remembered_across_a_kill(
    own_api: Api, own_server: ServerProcess
) -> None:
    api = own_api
    workflow = api.workflow(approval("a"))
    key = {"Idempotency-Key": "once-and-for-all"}
    path = f"/v1/workflows/{workflow}/trigger"
    first: Json = api.post(path, {"payload": 1}, 201, headers=key)
    restart(own_server)
    ready(api)
    response = api.request("POST", path, {"payload": 1}, headers=key)
    assert response.status_code == 201
    assert response.json()["id"] == first["id"]
    assert response.headers["idempotency-replayed"] == "true"
    api.post(path, {"payload": 2}, 422, headers=key)


def test_killed_at_any_instant_under_load_nothing_is_lost_or_stuck(
    own_api: Api, own_server: ServerProcess, jobs: JobServer
) -> None:
    """Three kills while runs are triggered and approved as fast as the server takes them."""
    api = own_api
    endpoint = jobs.endpoint(ok({"fine": True}))
    workflow = api.workflow(
        job("a", api.job(endpoint, max_attempts=5)),
        approval("ok", "a"),
        job("b", "noop", after="ok"),
        job("c", after="b"),
        max_parallel_steps=2,
    )
    acknowledged: list[str] = []
    approved: list[str] = []
    for round_number in range(3):
        ready(api)
        stop = threading.Event()
        workers = [
            threading.Thread(target=hammer, args=(api, workflow, acknowledged, approved, stop))
            for _ in range(3)
        ]
        for worker in workers:
            worker.start()
        target = 15 * (round_number + 1)
        wait_until_sync(at_least(approved, target), "some load", within_secs=20)
        own_server.kill()
        stop.set()
        for worker in workers:
            worker.join()
        own_server.start()
    ready(api)
    for run_id in approved:
        assert api.step(run_id, "ok")["status"] == "completed"
    for run_id in acknowledged:
        api.until_step(run_id, "ok", lambda s: shown(s) in {"waiting/approval", "completed"})
        if api.step(run_id, "ok")["status"] != "completed":
            api.on(run_id, "ok", "approve")
        run = api.until(run_id, "completed")
        assert run["status"] == "completed"
        sequence = [item["seq"] for item in api.history(run_id)]
        assert sequence == list(range(1, len(sequence) + 1))


def at_least(things: list[str], count: int) -> Callable[[], bool]:
    return lambda: len(things) >= count


def hammer(
    api: Api, workflow: str, acknowledged: list[str], approved: list[str], stop: threading.Event
) -> None:
    client = Api(api.server, project=api.project)
    deadline = time.monotonic() + 15
    try:
        while not stop.is_set() and time.monotonic() < deadline:
            run_id = client.trigger(workflow, {"x": 1})
            acknowledged.append(run_id)
            client.until_step(run_id, "ok", "waiting/approval")
            client.on(run_id, "ok", "approve")
            approved.append(run_id)
    except (httpx.HTTPError, AssertionError):
        pass
    finally:
        client.close()


def test_a_clean_stop_hands_attempts_back_and_ends_with_0(
    own_api: Api, own_server: ServerProcess, jobs: JobServer, gate: Gates
) -> None:
    api = own_api
    endpoint = jobs.endpoint(ok("lost", gate=gate()), ok("kept"))
    run_id = api.start(job("a", api.job(endpoint)))
    endpoint.call()
    assert own_server.stop() == 0
    own_server.start()
    api.until(run_id, "completed")
    assert endpoint.attempts == [1, 1]
    assert api.step(run_id, "a")["output"] == "kept"


@pytest.mark.parametrize("kind", ["completed", "failed"])
def test_a_clean_stop_after_sub_workflows_is_quick(
    own_api: Api, own_server: ServerProcess, kind: str
) -> None:
    api = own_api
    run_id = api.start(sub("s", api.workflow(approval("c"))))
    child_id = child_of(api, run_id)
    api.on(child_id, "c", "approve" if kind == "completed" else "reject")
    api.until(run_id, kind)
    assert own_server.stop() == 0
    assert "not everything could be flushed" not in own_server.log.read_text(encoding="utf-8")
