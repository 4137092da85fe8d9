from __future__ import annotations

import re

import httpx
import pytest

from tests.http.conftest import (
    PROJECT,
    Server,
    approval,
    define,
    job,
    trigger,
    wait_status,
    wait_step,
)

PAGE = "application/vnd.pilotage.page+json"


async def three_runs(client: httpx.AsyncClient) -> list[str]:
    """Ids, newest first."""
    await define(client, "w", [approval("gate")])
    return [(await trigger(client, "w", tags={"n": str(n)}))["id"] for n in range(3)][::-1]


async def test_a_list_is_an_array_newest_first_with_a_link_to_the_next(
    client: httpx.AsyncClient,
) -> None:
    ids = await three_runs(client)
    seen: list[str] = []
    url = f"/v1/workflow-runs?project_id={PROJECT}&limit=2"
    while url:
        answer = await client.get(url)
        assert isinstance(answer.json(), list)
        seen += [r["id"] for r in answer.json()]
        link = re.search(r'<([^>]+)>; rel="next"', answer.headers.get("link", ""))
        assert (link is None) == ("x-next-cursor" not in answer.headers)
        if link is None:
            break
        url = f"/v1/workflow-runs?project_id={PROJECT}&limit=2"
        # the link asks with a cursor: from then on pages
        page = (await client.get(link[1])).json()
        seen += [r["id"] for r in page["data"]]
        assert page["has_more"] is False
        break
    assert seen == ids


async def test_pages_lead_through_the_whole_list(client: httpx.AsyncClient) -> None:
    ids = await three_runs(client)
    seen: list[str] = []
    cursor = ""
    for _ in range(5):
        answer = await client.get("/v1/workflow-runs", params={"limit": 1, "cursor": cursor})
        page = answer.json()
        seen += [r["id"] for r in page["data"]]
        assert page["has_more"] == ("next_cursor" in page)
        if not page["has_more"]:
            break
        cursor = page["next_cursor"]
        assert answer.headers["x-next-cursor"] == cursor
    assert seen == ids


@pytest.mark.parametrize(
    ("params", "headers", "is_page"),
    [
        ({"project_id": PROJECT}, {}, False),
        ({"project_id": PROJECT, "cursor": ""}, {}, True),
        ({}, {}, True),
        ({"project_id": PROJECT}, {"Accept": PAGE}, True),
        ({"project_id": PROJECT}, {"Accept": f"{PAGE}, application/json"}, True),
        ({"project_id": PROJECT}, {"Accept": "application/json"}, False),
    ],
)
async def test_who_asks_for_a_page_gets_one(
    client: httpx.AsyncClient, params: dict[str, str], headers: dict[str, str], is_page: bool
) -> None:
    for path in ("/v1/workflow-runs", "/v1/workflows", "/v1/jobs"):
        answer = await client.get(path, params=params, headers=headers)
        assert answer.status_code == 200
        assert isinstance(answer.json(), dict) is is_page, path
        if PAGE in headers.get("Accept", ""):
            assert answer.headers["content-type"] == PAGE


async def test_filters_combine(client: httpx.AsyncClient) -> None:
    newest, middle, oldest = await three_runs(client)
    other = await define(client, "other", [job("a")])
    done = (await trigger(client, "other", tags={"n": "1"}))["id"]
    await wait_status(client, done, "completed")
    runs = (await client.get(f"/v1/workflow-runs/{middle}")).json()

    async def ids(**params: str | list[str]) -> set[str]:
        answer = await client.get("/v1/workflow-runs", params={"project_id": PROJECT, **params})
        assert answer.status_code == 200, answer.text
        return {r["id"] for r in answer.json()}

    assert await ids(status="completed") == {done}
    assert await ids(status="running") == {newest, middle, oldest}
    assert await ids(workflow_id=other["id"]) == {done}
    assert await ids(tag="n:1") == {middle, done}
    assert await ids(tag="n:1", status="running") == {middle}
    assert await ids(tag=["n:1", "n:2"]) == set()
    assert await ids(created_after=runs["created_at"], status="running") <= {newest}
    assert await ids(created_before=runs["created_at"]) <= {oldest}
    assert await ids(workflow_id="unknown") == set()
    of_workflow = (await client.get("/v1/workflows/other/runs")).json()
    assert [r["id"] for r in of_workflow["data"]] == [done]


@pytest.mark.parametrize(
    "params",
    [
        {"limit": "0"},
        {"limit": "-1"},
        {"limit": "x"},
        {"limit": "1.5"},
        {"status": "waiting"},
        {"created_after": "yesterday"},
        {"created_before": "2026-01-01"},
        {"tag": "nocolon"},
    ],
)
async def test_a_bad_parameter_is_named(client: httpx.AsyncClient, params: dict[str, str]) -> None:
    answer = await client.get("/v1/workflow-runs", params={"project_id": PROJECT, **params})
    assert answer.status_code == 422
    assert answer.json()["error"]["details"][0].startswith(next(iter(params)))


async def test_all_bad_parameters_are_told_at_once(client: httpx.AsyncClient) -> None:
    answer = await client.get(
        "/v1/workflow-runs",
        params={"project_id": PROJECT, "limit": "x", "status": "y", "created_after": "z"},
    )
    assert len(answer.json()["error"]["details"]) == 3


async def test_a_limit_above_a_hundred_is_a_hundred(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/workflow-runs", params={"limit": "100000000000000000000000"})
    assert answer.status_code == 200


async def test_a_cursor_of_another_list_is_refused(client: httpx.AsyncClient) -> None:
    await three_runs(client)
    page = (await client.get("/v1/workflow-runs", params={"limit": 1})).json()
    cursor = page["next_cursor"]
    for path, params in (
        ("/v1/workflow-runs", {"cursor": "nonsense"}),
        ("/v1/workflow-runs", {"cursor": cursor[:-2]}),
        ("/v1/workflow-runs", {"cursor": "é" * 10}),
        ("/v1/workflow-runs", {"cursor": "A" * 5000}),
        ("/v1/workflow-runs", {"cursor": cursor, "status": "running"}),
        ("/v1/workflows", {"cursor": cursor}),
    ):
        answer = await client.get(path, params=params)
        assert answer.status_code == 400, params
        assert answer.json()["error"]["code"] == "bad_request"
    # another limit is fine
    again = await client.get("/v1/workflow-runs", params={"cursor": cursor, "limit": 5})
    assert len(again.json()["data"]) == 2


async def test_steps_are_an_array_unless_a_page_is_asked_for(client: httpx.AsyncClient) -> None:
    await define(client, "w", [approval(f"s{n}") for n in range(5)])
    run_id = (await trigger(client, "w"))["id"]
    path = f"/v1/workflow-runs/{run_id}/steps"
    every = (await client.get(path)).json()
    assert [s["step_ref"] for s in every] == [f"s{n}" for n in range(5)]
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = (await client.get(path, params={"cursor": cursor, "limit": 2})).json()
        seen += [s["step_ref"] for s in page["data"]]
        cursor = page.get("next_cursor")
    assert seen == [s["step_ref"] for s in every]


async def test_the_history_has_every_transition_in_order(client: httpx.AsyncClient) -> None:
    await define(client, "w", [job("a"), approval("gate", "a")])
    run_id = (await trigger(client, "w"))["id"]
    await wait_step(client, run_id, "gate", "waiting")
    await client.post(f"/v1/workflow-runs/{run_id}/steps/gate/approve", json={"comment": "ok"})
    path = f"/v1/workflow-runs/{run_id}/events"
    items = (await client.get(path)).json()["data"]
    assert [i["seq"] for i in items] == list(range(1, len(items) + 1))
    assert items[0]["type"] == "run_created"
    assert items[-1]["type"] == "run_ended"
    assert {"seq", "at", "type", "actor"} <= set(items[0])
    approved = next(i for i in items if i["actor"] == "tester" and i.get("step_ref") == "gate")
    assert approved["type"] == "step_completed"
    seen: list[int] = []
    cursor = ""
    while True:
        page = (await client.get(path, params={"limit": 2, "cursor": cursor})).json()
        seen += [i["seq"] for i in page["data"]]
        if not page["has_more"]:
            break
        cursor = page["next_cursor"]
    assert seen == [i["seq"] for i in items]
    later = (await client.get(path, params={"after": 3})).json()["data"]
    assert [i["seq"] for i in later] == [i["seq"] for i in items[3:]]


async def test_job_runs_show_every_attempt(server: Server, client: httpx.AsyncClient) -> None:
    await define(client, "w", [job("a", "flaky")])
    run_id = (await trigger(client, "w"))["id"]
    await wait_status(client, run_id, "failed")
    server.latch.failing = False
    await client.post(f"/v1/workflow-runs/{run_id}/steps/a/retry")
    await wait_status(client, run_id, "completed")
    answer = await client.get("/v1/runs", params={"workflow_run_id": run_id})
    page = answer.json()
    assert [(r["attempt"], r["status"]) for r in page["data"]] == [(2, "completed"), (1, "failed")]
    array = await client.get(
        "/v1/runs", params={"workflow_run_id": run_id, "project_id": PROJECT, "limit": 1}
    )
    assert [r["attempt"] for r in array.json()] == [2]
    next_page = await client.get(
        "/v1/runs",
        params={
            "workflow_run_id": run_id,
            "project_id": PROJECT,
            "limit": 1,
            "cursor": array.headers["x-next-cursor"],
        },
    )
    assert [r["attempt"] for r in next_page.json()["data"]] == [1]
    one = (await client.get(f"/v1/runs/{page['data'][1]['id']}")).json()
    assert one == page["data"][1]
    assert "out of order" in one["error"]
    assert (await client.get("/v1/runs")).status_code == 422


async def test_versions_of_a_workflow_are_kept(client: httpx.AsyncClient) -> None:
    await define(client, "w", [job("a")])
    renamed = (await client.patch("/v1/workflows/w", json={"name": "new name"})).json()
    assert renamed["version"] == 1
    changed = (await client.patch("/v1/workflows/w", json={"max_parallel_steps": 1})).json()
    assert changed["version"] == 2
    page = (await client.get("/v1/workflows/w/versions")).json()
    assert [v["version"] for v in page["data"]] == [2, 1]
    assert page["data"][0]["version_id"] == changed["version_id"]
