"""Random graphs under random commands: the invariants hold, and every run can be ended."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.blackbox.api import Api, Json, approval, event, job, sleep, sub
from tests.blackbox.invariants import Watched, ended
from tests.blackbox.jobserver import JobServer, ok, status
from tests.support.waiting import wait_until_sync

SEEDS = range(24)
VERBS = (
    "pause",
    "resume",
    "resume",
    "approve",
    "approve",
    "reject",
    "skip",
    "force-complete",
    "retry",
    "replay-subtree",
    "cancel",
    "event",
)


class World:
    """Jobs and children that random steps are made of."""

    def __init__(self, api: Api, jobs: JobServer, rng: random.Random) -> None:
        self.api = api
        self.rng = rng
        flaky = [status(500), ok(1)] * 50
        self.jobs = [
            "noop",
            api.job(jobs.endpoint(ok({"v": 1}))),
            api.job(jobs.endpoint(status(400))),
            api.job(jobs.endpoint(*flaky), max_attempts=2, retry_initial_delay_secs=0.01),
        ]
        self.child = api.workflow(job("x"), approval("y", "x"))

    def step(self, ref: str, earlier: list[str]) -> Json:
        rng = self.rng
        after = rng.sample(earlier, min(len(earlier), rng.choice([0, 1, 1, 2, 3])))
        more: dict[str, Any] = {}
        policy = rng.choice([None, None, "continue", "skip_dependents", "skip_dependents"])
        if policy is not None:
            more["on_failure"] = policy
        if rng.random() < 0.2:
            right = rng.choice([1, 2, "{{ payload.nowhere }}"])
            more["condition"] = {"type": "eq", "left": 1, "right": right}
        kind = rng.choice(["job", "job", "job", "approval", "event", "sleep", "sub"])
        if kind == "approval":
            return approval(ref, after, **more)
        if kind == "event":
            return event(ref, "shared", after, **more)
        if kind == "sleep":
            return sleep(ref, rng.choice([0.01, 0.05]), after, **more)
        if kind == "sub":
            return sub(ref, self.child, after, **more)
        if rng.random() < 0.3:
            more["concurrency_key"] = rng.choice("kl")
        return job(ref, rng.choice(self.jobs), after, **more)

    def command(self, run_id: str, refs: list[str]) -> None:
        """One random command; it may be a conflict, it may not be anything worse."""
        verb = self.rng.choice(VERBS)
        path = f"/v1/workflow-runs/{run_id}"
        if verb == "event":
            self.api.send("shared", 1)
            return
        if verb == "cancel":
            response = self.api.request("DELETE", path)
        elif verb in {"pause", "resume"}:
            response = self.api.request("POST", f"{path}/{verb}")
        else:
            response = self.api.request("POST", f"{path}/steps/{self.rng.choice(refs)}/{verb}")
        assert response.status_code in {200, 204, 409}, (verb, response.text)

    def help(self, run_id: str) -> bool:
        """Do what the run waits for. True when it has ended."""
        api = self.api
        run = api.run(run_id)
        if run["status"] == "paused":
            api.request("POST", f"/v1/workflow-runs/{run_id}/resume")
        for ref, step in api.steps(run_id).items():
            if step.get("waiting_for") == "approval":
                api.request("POST", f"/v1/workflow-runs/{run_id}/steps/{ref}/approve")
            if step.get("waiting_for") == "event":
                api.send("shared", 1)
            if step["status"] == "running" and "child_workflow_run_id" in step:
                child = f"/v1/workflow-runs/{step['child_workflow_run_id']}"
                api.request("POST", f"{child}/steps/y/approve")
        return ended(run)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_commands_on_a_random_run(api: Api, jobs: JobServer, seed: int) -> None:
    rng = random.Random(seed)
    world = World(api, jobs, rng)
    steps: list[Json] = []
    for number in range(rng.randint(2, 8)):
        steps.append(world.step(f"s{number}", [step["step_ref"] for step in steps]))
    refs = [step["step_ref"] for step in steps]
    limit = rng.choice([0, 0, 1, 2])
    run_id = api.start(*steps, max_parallel_steps=limit)
    watched = Watched(api, run_id, steps, limit)
    for _ in range(rng.randint(4, 16)):
        world.command(run_id, refs)
        assert watched.problems() == []
    wait_until_sync(lambda: world.help(run_id), f"run {run_id} ends: {api.shown(run_id)}")
    assert watched.problems() == []
    sequence = [item["seq"] for item in api.history(run_id)]
    assert sequence == list(range(1, len(sequence) + 1))
