"""Bulk cancel and bulk replay (section 6)."""

from __future__ import annotations

import pytest

from tests.blackbox.api import Api, Json, approval, job
from tests.blackbox.stories import key_for, run_in

CANCEL = "/v1/workflow-runs/bulk-cancel"
REPLAY = "/v1/workflow-runs/bulk-replay"
UNKNOWN = "0199aaaa-0000-7000-8000-000000000000"


def test_bulk_cancel_cancels_each_and_says_so_in_request_order(api: Api) -> None:
    ids = [run_in(api, state) for state in ("running", "completed", "paused", "canceled")]
    ids = [*ids, UNKNOWN, "no id", ids[0]]
    answer: Json = api.post(CANCEL, {"workflow_run_ids": ids})
    assert (answer["canceled"], answer["failed"]) == (3, 3)
    results = answer["results"]
    assert [item["workflow_run_id"] for item in results] == ids[:-1]
    assert [item["status"] for item in results] == [
        "canceled",
        "failed",
        "canceled",
        "canceled",
        "failed",
        "failed",
    ]
    assert all(("error" in item) == (item["status"] == "failed") for item in results)
    assert "completed" in results[1]["error"]


@pytest.mark.parametrize("path", [CANCEL, REPLAY])
@pytest.mark.parametrize(
    "body",
    [None, {}, {"workflow_run_ids": []}, {"workflow_run_ids": "x"}, {"workflow_run_ids": [1]}],
)
def test_bulk_needs_a_list_of_1_to_100_ids(api: Api, path: str, body: Json | None) -> None:
    answer = api.post(path, body, 422)
    assert any("workflow_run_ids" in line for line in answer["error"]["details"])


@pytest.mark.parametrize("path", [CANCEL, REPLAY])
def test_bulk_takes_a_hundred_ids_and_no_more(api: Api, path: str) -> None:
    ids = [f"id-{n}" for n in range(101)]
    api.post(path, {"workflow_run_ids": ids}, 422)
    answer = api.post(path, {"workflow_run_ids": ids[:100]})
    assert answer["failed"] == 100


def test_bulk_replay_makes_new_runs(api: Api) -> None:
    states = ["completed", "failed", "timed_out", "canceled", "running", "pending", "paused"]
    ids = [run_in(api, state) for state in states]
    answer: Json = api.post(REPLAY, {"workflow_run_ids": [*ids, UNKNOWN]})
    assert (answer["replayed"], answer["failed"]) == (4, 4)
    results = answer["results"]
    assert [item["workflow_run_id"] for item in results] == [*ids, UNKNOWN]
    for state, item in zip([*states, "unknown"], results, strict=True):
        if state in states[:4]:
            assert item["status"] == "replayed"
            made = api.run(item["new_workflow_run_id"])
            assert made["retry_of_run_id"] == item["workflow_run_id"]
            assert made["triggered_by"] == ("replay" if state == "completed" else "retry")
        else:
            assert item["status"] == "failed"
            assert item["error"]
            assert "new_workflow_run_id" not in item


def test_bulk_replay_of_a_completed_run_starts_from_the_beginning(api: Api) -> None:
    run_id = api.start(job("a", "echo"), approval("b", "a"), payload={"x": 1})
    api.until_step(run_id, "b", "waiting/approval")
    api.on(run_id, "b", "approve")
    api.until(run_id, "completed")
    answer: Json = api.post(REPLAY, {"workflow_run_ids": [run_id, run_id]})
    assert answer["replayed"] == 1
    new = answer["results"][0]["new_workflow_run_id"]
    api.until_step(new, "b", "waiting/approval")
    assert api.step(new, "a")["output"]["x"] == 1
    assert api.run(new)["payload"] == {"x": 1}
    assert api.run(run_id)["status"] == "completed"


def test_bulk_of_another_project_fails_item_by_item(api: Api) -> None:
    run_id = run_in(api, "running")
    stranger = Api(api.server, key=key_for(api, "elsewhere", "*"))
    canceled = stranger.post(CANCEL, {"workflow_run_ids": [run_id, UNKNOWN]})
    assert (canceled["canceled"], canceled["failed"]) == (0, 2)
    errors = [item["error"].replace(run_id, "?") for item in canceled["results"]]
    assert errors[0] == errors[1].replace(UNKNOWN, "?")
    assert api.run(run_id)["status"] == "running"
    stranger.close()


@pytest.mark.parametrize("path", [CANCEL, REPLAY])
def test_a_dry_run_of_bulk_changes_nothing(api: Api, path: str) -> None:
    ids = [run_in(api, state) for state in ("running", "failed")]
    before = [api.run(run_id) for run_id in ids]
    answer: Json = api.post(f"{path}?dry_run=true", {"workflow_run_ids": ids})
    assert answer
    assert [api.run(run_id) for run_id in ids] == before
