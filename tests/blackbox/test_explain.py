"""Whatever keeps a step from going on is shown: what it waits for, why, since when, until when."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime

import pytest

from pilotage.runtime.status import WaitingFor
from tests.blackbox.api import Api, Json, approval, event, job, sleep, sub
from tests.blackbox.jobserver import JobServer, accepted, ok, status
from tests.blackbox.stories import child_of

Gates = Callable[[], threading.Event]


class Watcher:
    """Reads `explain` and holds it against the steps; `seen`: what they waited for."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.seen: set[str] = set()

    def line(self, run_id: str, ref: str, waiting_for: str, *words: str) -> Json:
        """The step's line; it says what is expected, as the step itself does."""
        line, step = self.api.explain(run_id)[ref], self.api.step(run_id, ref)
        assert line["waiting_for"] == waiting_for
        assert line["status"] == step["status"]
        if step["status"] != "running":
            assert step["waiting_for"] == waiting_for
            self.seen.add(waiting_for)
        for word in words:
            assert word in line["reason"], line
        assert line["since"]
        return line

    def endless(self, run_id: str, ref: str, waiting_for: str, *words: str) -> None:
        assert "until" not in self.line(run_id, ref, waiting_for, *words)

    def until(self, run_id: str, ref: str, waiting_for: str, *words: str) -> float:
        """For how many seconds it waits; the time of the end stands in the words too."""
        line = self.line(run_id, ref, waiting_for, *words)
        begin, end = (datetime.fromisoformat(line[name]) for name in ("since", "until"))
        return (end - begin).total_seconds()


@pytest.fixture
def explained(api: Api) -> Watcher:
    return Watcher(api)


def test_everything_that_a_step_may_wait_for(
    api: Api, explained: Watcher, jobs: JobServer, gate: Gates
) -> None:
    parked_steps(api, explained)
    attempts(api, explained, jobs, gate)
    limits(api, explained, jobs, gate)
    pauses_queues_and_delays(api, explained)
    assert explained.seen == {value.value for value in WaitingFor}


def parked_steps(api: Api, explained: Watcher) -> None:
    run_id = api.start(
        approval("timed", approval_timeout_secs=60),
        approval("listed", approvers=["ops", "boss"]),
        event("e", "paid", event_timeout_secs=120),
        sleep("s", 600),
        job("d", after=["timed", "listed"]),
    )
    assert explained.until(run_id, "timed", "approval", "anyone", "fails at") == 60
    explained.endless(run_id, "listed", "approval", '"ops"', '"boss"')
    assert explained.until(run_id, "e", "event", '"paid"', "/v1/events/paid/send") == 120
    assert explained.until(run_id, "s", "timer", "sleeps until") == 600
    explained.endless(run_id, "d", "dependencies", '"timed"', '"listed"')


def attempts(api: Api, explained: Watcher, jobs: JobServer, gate: Gates) -> None:
    slow = api.job(jobs.endpoint(ok(gate=gate())), timeout_secs=100)
    later = api.job(jobs.endpoint(accepted()), timeout_secs=50)
    slug = api.job(jobs.endpoint(status(500)), max_attempts=5, retry_initial_delay_secs=600)
    run_id = api.start(job("slow", slow), job("later", later), job("again", slug))
    api.until_step(run_id, "again", "waiting/retry")
    assert 480 <= explained.until(run_id, "again", "retry", "attempt 1 of 5", "500") <= 730
    api.until_step(run_id, "later", lambda _: "callback" in api.explain(run_id)["later"]["reason"])
    assert explained.until(run_id, "slow", "result", "attempt 1 is in progress", "timeout") == 100
    assert explained.until(run_id, "later", "result", "reports its end by callback") == 50


def limits(api: Api, explained: Watcher, jobs: JobServer, gate: Gates) -> None:
    endpoint = jobs.endpoint(ok(gate=gate()))
    slow, single = api.job(endpoint), api.job(endpoint, max_concurrency=1)
    run_id = api.start(job("a", slow), job("b", slow), max_parallel_steps=1)
    explained.endless(run_id, "b", "parallel_limit", "max_parallel_steps is 1", '"a"')
    run_id = api.start(job("a", slow, concurrency_key="x"), job("b", slow, concurrency_key="x"))
    explained.endless(run_id, "b", "concurrency_key", '"a"', '"x"')
    run_id = api.start(job("a", single), job("b", single), job("c", single))
    api.until_step(run_id, "a", "running")
    explained.endless(
        run_id, "b", "job_limit", f'job "{single}" (its max_concurrency', "number 1 in the queue"
    )
    explained.endless(run_id, "c", "job_limit", "number 2 in the queue for 1 slots")


def pauses_queues_and_delays(api: Api, explained: Watcher) -> None:
    workflow = api.workflow(approval("a"), job("b", after="a"), max_concurrent_runs=1)
    paused, queued = api.trigger(workflow), api.trigger(workflow)
    delayed = api.trigger(workflow, delay_secs=500)
    api.act(paused, "pause")
    explained.endless(paused, "a", "approval", "the run is paused")
    api.on(paused, "a", "approve")
    explained.endless(paused, "b", "paused", "resume it")
    explained.endless(queued, "a", "run_queue", "max_concurrent_runs", "number 1 in the queue")
    assert explained.until(delayed, "a", "run_queue", "triggered to start at") == 500


def test_children(api: Api, explained: Watcher) -> None:
    run_id = api.start(sub("c", api.workflow(approval("x"))))
    explained.endless(run_id, "c", "child_run", child_of(api, run_id, "c"))


def test_a_host_that_cannot_be_reached(api: Api, explained: Watcher) -> None:
    with JobServer(time.monotonic) as elsewhere:
        slug = api.job(elsewhere.endpoint(), max_attempts=50, retry_initial_delay_secs=0)
    run_id = api.start(job("a", slug))
    api.until_step(run_id, "a", lambda _: "held back" in held(api, run_id))
    line = explained.line(run_id, "a", "result", "could not be reached 5 times")
    assert line["until"] > line["since"]
    api.cancel(run_id)


def held(api: Api, run_id: str) -> str:
    reason: str = api.explain(run_id).get("a", {}).get("reason", "")
    return reason if "reached" in reason else ""
