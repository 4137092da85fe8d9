"""A store that is nearly full, as a client sees it: new runs are refused, all else goes on."""

from __future__ import annotations

import pytest

from pilotage.actors import housekeeping
from pilotage.persistence.memory import MemoryStore
from pilotage.persistence.port import MemoryUse
from tests.http.conftest import StartServer, define, trigger, wait_for, wait_status
from tests.support.waiting import wait_until


async def test_new_runs_are_refused_in_words_and_everything_else_goes_on(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "ROOM_SECS", 0.01)
    store = MemoryStore()
    server = await start_server(store)
    client = await server.member()
    gate = {"step_ref": "gate", "step_type": "approval"}
    await define(client, "w", [gate, {"step_ref": "a", "job_id": "echo", "depends_on": ["gate"]}])
    run = await trigger(client, "w")
    store.server.memory_use = MemoryUse(934 << 20, 1000 << 20)
    await wait_until(lambda: server.runtime.degraded is not None, "it has noticed")

    refused = await client.post("/v1/workflows/w/trigger", json={})
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    message = refused.json()["error"]["message"]
    assert "93%" in message
    assert "no new run is taken on" in message
    ready = await server.client().get("/health/ready")
    assert ready.status_code == 200
    assert ready.json()["status"] == "degraded"
    assert "93%" in ready.json()["reason"]
    assert (await server.client().get("/health")).json()["ready"] is True
    metrics = (await server.admin.get("/metrics")).text
    assert "pilotage_store_full 1" in metrics
    assert "pilotage_store_used_ratio 0.934" in metrics

    event = "/v1/events/paid/send"
    refused = await client.post(event, json={"buffer_secs": 60})
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    message = refused.json()["error"]["message"]
    assert "93%" in message
    assert "no step waits for the event paid, and it is not kept" in message
    assert (await client.post(event, json={})).json()["delivered"] == 0, "it was not to be kept"
    await define(client, "other", [gate])  # definitions pass

    path = f"/v1/workflow-runs/{run['id']}"
    assert (await client.get("/v1/workflow-runs")).status_code == 200
    assert (await client.post(f"{path}/steps/gate/approve")).status_code == 204
    await wait_status(client, run["id"], "completed")
    assert (await client.post(f"{path}/retry")).status_code in {409, 503}

    store.server.memory_use = MemoryUse(500 << 20, 1000 << 20)
    await wait_until(lambda: server.runtime.degraded is None, "there is room again")
    again = await trigger(client, "w")
    await wait_for(client, again["id"], lambda found: found["status"] == "running", "it runs")
    assert (await server.client().get("/health/ready")).json() == {"status": "ready"}
