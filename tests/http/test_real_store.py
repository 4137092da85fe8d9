"""The same API over a real Redis or Valkey server: what depends on the store."""

from __future__ import annotations

import asyncio

import pytest

from tests.http.conftest import (
    PROJECT,
    Server,
    StartServer,
    approval,
    define,
    job,
    trigger,
    wait_status,
)

KEY = {"Idempotency-Key": "k"}


@pytest.fixture
async def real(start_server: StartServer, valkey_url: str) -> Server:
    return await start_server(real_store=True, redis_url=valkey_url)


async def test_runs_are_listed_filtered_and_paged(real: Server) -> None:
    client = await real.member()
    await define(client, "w", [approval("gate")])
    await define(client, "done", [job("a")])
    runs = await asyncio.gather(
        *(trigger(client, "w", tags={"n": str(n % 2)}) for n in range(7)), trigger(client, "done")
    )
    await wait_status(client, runs[-1]["id"], "completed")
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        answer = await client.get("/v1/workflow-runs", params={"limit": 3, "cursor": cursor})
        seen += [r["id"] for r in answer.json()["data"]]
        cursor = answer.json().get("next_cursor")
    assert sorted(seen) == sorted(r["id"] for r in runs)
    found = await client.get(
        "/v1/workflow-runs", params={"project_id": PROJECT, "status": "running", "tag": "n:1"}
    )
    assert len(found.json()) == 3


async def test_the_first_answer_is_given_again_after_a_restart(
    real: Server, start_server: StartServer, valkey_url: str
) -> None:
    key = await real.key()
    client = real.client(key)
    await define(client, "w", [approval("gate")])
    run = (await client.post("/v1/workflows/w/trigger", headers=KEY)).json()
    paused = await client.post(f"/v1/workflow-runs/{run['id']}/pause", headers=KEY)
    assert paused.status_code == 204
    await real.stop()
    again = await start_server(real_store=True, redis_url=valkey_url)
    client = again.client(key)
    answer = await client.post("/v1/workflows/w/trigger", headers=KEY)
    assert answer.json()["id"] == run["id"]
    assert answer.headers["idempotency-replayed"] == "true"
    answer = await client.post(f"/v1/workflow-runs/{run['id']}/pause", headers=KEY)
    assert answer.headers["idempotency-replayed"] == "true"
    assert (await client.get(f"/v1/workflow-runs/{run['id']}")).json()["status"] == "paused"


async def test_a_repeated_bulk_replay_makes_each_run_once(real: Server) -> None:
    client = await real.member()
    await define(client, "w", [job("a")])
    runs = [(await trigger(client, "w"))["id"] for _ in range(30)]
    for run_id in runs:
        await wait_status(client, run_id, "completed")
    body = {"workflow_run_ids": runs}
    first = await client.post("/v1/workflow-runs/bulk-replay", json=body, headers=KEY)
    again = await client.post("/v1/workflow-runs/bulk-replay", json=body, headers=KEY)
    assert first.json()["replayed"] == 30
    assert again.json() == first.json()
    assert again.headers["idempotency-replayed"] == "true"
