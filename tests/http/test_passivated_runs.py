"""Whether a run is in memory cannot be told from any answer of the API."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from pilotage.runtime.jsonvalues import is_array, is_object
from tests.http.conftest import (
    PROJECT,
    Server,
    StartServer,
    approval,
    define,
    job,
    trigger,
    wait_status,
    wait_step,
)
from tests.support.idle import fold, passivate

RUNS = "/v1/workflow-runs"


@pytest.fixture
async def server(start_server: StartServer) -> Server:
    """Nothing is put aside but by the tests."""
    return await start_server(passivate_after_secs=3_600)


async def waiting_runs(client: httpx.AsyncClient) -> list[str]:
    """Three that wait for a person, an event and a far time; newest first."""
    event = {"step_ref": "w", "step_type": "wait_for_event", "event_key": "k", "depends_on": ["a"]}
    nap = {"step_ref": "s", "step_type": "sleep", "sleep_duration_secs": 86_400}
    await define(client, "person", [job("a"), approval("ok", "a")], max_concurrent_runs=5)
    await define(client, "event", [job("a"), event])
    await define(client, "time", [nap])
    found: list[str] = []
    for slug, ref in (("person", "ok"), ("event", "w"), ("time", "s")):
        run = (await trigger(client, slug, tags={"n": slug}, payload={"of": slug}))["id"]
        await wait_step(client, run, ref, "waiting")
        found.insert(0, run)
    return found


async def everything(client: httpx.AsyncClient, runs: list[str]) -> dict[str, Any]:
    """All that can be read of the runs, one by one and in lists."""
    one = ("", "/steps", "/graph", "/timeline", "/explain", "/events")
    paths = [f"{RUNS}/{run}{what}" for run in runs for what in one]
    lists = ["", "&status=running", "&status=pending", "&tag=n:event", "&limit=2"]
    paths += [f"{RUNS}?project_id={PROJECT}{more}" for more in lists]
    paths += [f"{RUNS}?cursor=&limit=2", "/v1/workflows/person/runs"]
    paths += [f"/v1/runs?workflow_run_id={run}" for run in runs]
    found: dict[str, Any] = {}
    for path in paths:
        answer = await client.get(path)
        assert answer.status_code == 200, (path, answer.text)
        found[path] = without_durations(answer.json())
    return found


def without_durations(value: Any) -> Any:
    """What is still going on has lasted longer at each look."""
    if is_object(value):
        return {k: without_durations(v) for k, v in value.items() if not k.endswith("_ms")}
    if is_array(value):
        return [without_durations(v) for v in value]
    return value


async def test_runs_read_the_same_with_an_actor_folded_and_away(server: Server) -> None:
    client, supervisor = await server.member(), server.runtime.supervisor
    runs = await waiting_runs(client)
    with_actors = await everything(client, runs)
    assert [r["id"] for r in with_actors[f"{RUNS}?project_id={PROJECT}"]] == runs
    await fold(supervisor, *runs)
    assert await everything(client, runs) == with_actors
    await passivate(supervisor, *runs)
    assert len(supervisor) == 0
    assert await everything(client, runs) == with_actors
    assert supervisor.idle.away == set(runs), "reading wakes nobody"


async def test_bulk_operations_and_dry_runs_reach_runs_that_have_left_memory(
    server: Server,
) -> None:
    client, supervisor = await server.member(), server.runtime.supervisor
    runs = await waiting_runs(client)
    await passivate(supervisor, *runs)
    body = {"workflow_run_ids": [*runs, "unknown"]}
    dry = (await client.post(f"{RUNS}/bulk-cancel?dry_run=true", json=body)).json()
    assert (dry["canceled"], dry["failed"]) == (3, 1)
    assert [(await client.get(f"{RUNS}/{run}")).json()["status"] for run in runs] == ["running"] * 3
    await passivate(supervisor, *runs)
    done = (await client.post(f"{RUNS}/bulk-cancel", json=body)).json()
    assert done == dry
    for run in runs:
        await wait_status(client, run, "canceled")
    again = (await client.post(f"{RUNS}/bulk-replay", json={"workflow_run_ids": runs})).json()
    assert (again["replayed"], again["failed"]) == (3, 0)
    assert supervisor.active == 3
