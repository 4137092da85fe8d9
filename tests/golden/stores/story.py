"""What is in a golden store: a run in every place where one can stand, and what is around them."""

from __future__ import annotations

from typing import Any

from tests.blackbox.api import Api, Json, approval, event, job, sleep, sub
from tests.blackbox.jobserver import JobServer, accepted
from tests.blackbox.stories import child_of
from tests.golden.stores.server import CUT_OFF
from tests.support.waiting import wait_until_sync

PROJECT = "acme"
ONCE = {"Idempotency-Key": "order 17"}
EARLY = "early"
STATES = {
    "approval": "waiting/approval",
    "event": "waiting/event",
    "sleep": "waiting/timer",
    "retry": "waiting/retry",
    "running": "running",
    "wants the slot": "pending/job_limit",
}
"""How the first step of these runs stands."""


def fill(api: Api, jobs: JobServer) -> dict[str, Any]:
    """Tell the story to a server that holds; the names of what is in the store then."""
    after = job("after", after="first")
    flow = api.workflow(job("first"), job("second", after="first"), tags={"team": "red"})
    once = {"payload": {"order": 17}, "tags": {"env": "prod"}}
    trigger = f"/v1/workflows/{flow}/trigger"
    finished = api.post(trigger, once, 201, headers=ONCE)["id"]
    pinned = api.trigger(flow, {"n": 2})
    failed = api.start(job("first", "broken"), after)
    canceled = api.start(approval("first"), after)
    going_on = {
        "approval": api.start(job("zero"), approval("first", after="zero"), after),
        "event": api.start(event("first", "paid"), after),
        "sleep": api.start(sleep("first", 45), after),
        "retry": api.start(job("first", "flaky"), after),
        "running": api.start(job("first", "gate"), after),
        "delayed": api.trigger(flow, {"n": 3}, delay_secs=45),
        "has the slot": api.start(job("first", "one_at_a_time"), after),
        "paused": api.start(approval("first"), after),
        "accepted": "",
    }
    api.until_step(going_on["has the slot"], "first", "running")
    going_on["wants the slot"] = api.start(job("first", "one_at_a_time"), after)
    endpoint = jobs.endpoint(accepted())
    going_on["accepted"] = api.start(job("first", api.job(endpoint)), after)
    alone = api.workflow(approval("first"), after, max_concurrent_runs=1)
    going_on["first of two"] = api.trigger(alone)
    going_on["second of two"] = api.trigger(alone)
    inner = api.workflow(approval("first"), after)
    going_on["parent"] = api.start(sub("child", inner), job("last", after="child"))
    going_on["sender"] = api.start(job("first", event_emit_key=CUT_OFF), after)
    gone = api.workflow(job("first"))
    orphan = api.trigger(gone)
    for run_id in (finished, pinned, orphan, going_on["sender"]):
        api.until(run_id, "completed")
    api.until(failed, "failed")
    for name, state in STATES.items():
        api.until_step(going_on[name], "first", state)
    child = child_of(api, going_on["parent"], "child")
    api.until_step(child, "first", "waiting/approval")
    api.act(pinned, "pin")
    api.act(going_on["paused"], "pause")
    api.cancel(canceled, "not wanted")
    api.request("DELETE", f"/v1/workflows/{gone}")
    made: Json = {"project_id": PROJECT, "name": "deploy", "scopes": ["*"]}
    key = api.post("/v1/api-keys", made, 201)["key"]
    api.send(EARLY, {"n": 1}, buffer_secs=3600)
    every_minute = api.workflow(job("first"), cron="* * * * *")
    listed = f"/v1/workflow-runs?workflow_id={every_minute}&project_id={PROJECT}"
    fired = _fired(api, listed)
    call = endpoint.call()
    return {
        "over": {
            "finished": finished, "pinned": pinned, "failed": failed, "canceled": canceled,
            "orphan": orphan, "fired": fired,
        },
        "going on": going_on, "child": child, "key": key, "trigger": trigger,
        "once": once, "job run": call.job_run_id, "token": call.token,
    }  # fmt: skip


def _fired(api: Api, listed: str) -> str:
    wait_until_sync(lambda: bool(api.get(listed)), "the minute is over", within_secs=90)
    run_id: str = api.get(listed)[0]["id"]
    api.until(run_id, "completed")
    return run_id
