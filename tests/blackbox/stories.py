"""What several files of tests begin with or look for."""

from __future__ import annotations

from tests.blackbox.api import Api, Json, approval, job, message
from tests.support.waiting import wait_until_sync


def run_in(api: Api, state: str) -> str:
    """A run in this status: an approval `a`, then a job `b`."""
    fields: Json = {}
    if state == "timed_out":
        fields["timeout_secs"] = 0.2
    if state == "pending":
        fields["max_concurrent_runs"] = 1
    workflow = api.workflow(approval("a"), job("b", after="a"), **fields)
    run_id = api.trigger(workflow)
    if state == "pending":
        run_id = api.trigger(workflow)
    if state == "completed":
        api.on(run_id, "a", "approve")
    if state == "failed":
        api.on(run_id, "a", "reject")
    if state == "canceled":
        api.cancel(run_id)
    if state == "paused":
        api.act(run_id, "pause")
    api.until(run_id, state)
    return run_id


def conflict(answer: Json, found: str, *allowed: str) -> None:
    """The message names the status found and those allowed."""
    assert answer["error"]["code"] == "conflict"
    assert answer["message"] == message(answer)
    assert answer["request_id"]
    for word in (found, *allowed):
        assert word in message(answer), message(answer)


def key_for(api: Api, project: str, *scopes: str) -> str:
    body = {"name": "robot", "project_id": project, "scopes": list(scopes)}
    key: str = api.post("/v1/api-keys", body, 201)["key"]
    return key


def child_of(api: Api, run_id: str, ref: str = "s") -> str:
    """The id of the child run of a step, once the child is there."""
    step = api.until_step(run_id, ref, lambda step: "child_workflow_run_id" in step)
    child_id: str = step["child_workflow_run_id"]

    def there() -> bool:
        return api.request("GET", f"/v1/workflow-runs/{child_id}").status_code == 200

    wait_until_sync(there, f"the child of {ref}")
    return child_id
