"""Runs that fail again and again or cannot be read, on a real server with its own store: set
apart, listed, repaired in the store and released, or discarded. The others never notice.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tests.blackbox.api import Api, Json, ServerProcess, approval, job, message
from tests.support.waiting import wait_until_sync


@pytest.fixture
def store(own_server: ServerProcess) -> Iterator[redis.Redis]:
    with redis.Redis(unix_socket_path=str(own_server.data_dir / "s.sock")) as client:
        yield client


def key(run_id: str) -> str:
    return f"pilotage:{{s0}}:run:{run_id}"


def quarantined(api: Api) -> dict[str, Json]:
    page: Json = api.get("/v1/quarantine")
    return {row["workflow_run_id"]: row for row in page["data"]}


def test_a_run_whose_actor_fails_again_and_again_is_set_apart_repaired_and_ends(
    own_api: Api, store: redis.Redis
) -> None:
    api = own_api
    flow = api.workflow(approval("a"), job("b", after="a"))
    bad, good = api.trigger(flow), api.trigger(flow)
    for run in (bad, good):
        api.until_step(run, "a", "waiting/approval")
    was = store.hget(key(bad), "q")
    assert isinstance(was, bytes)
    # Its record claims a sequence that its contents do not have: no write ever fits again.
    store.hset(key(bad), "q", b"999999" + was[was.index(b" ") :])
    refused = api.request("POST", f"/v1/workflow-runs/{bad}/steps/a/approve")
    assert refused.status_code in {409, 503}, refused.text

    def set_apart() -> bool:
        api.request("POST", f"/v1/workflow-runs/{bad}/pause")
        return bad in quarantined(api)

    wait_until_sync(set_apart, "it is quarantined", within_secs=60)
    assert api.run(bad)["quarantined"] is True
    for line in api.explain(bad).values():
        assert line["reason"].startswith("the run is quarantined, release or discard it: ")
        assert "until" not in line
    told = message(api.act(bad, "pause", expect=409))
    assert "release" in told
    api.on(good, "a", "approve")
    api.until(good, "completed")

    store.hset(key(bad), "q", was)
    api.post(f"/v1/quarantine/{bad}/release", None, 204)
    assert not quarantined(api)
    if api.step(bad, "a")["status"] == "waiting":
        api.on(bad, "a", "approve")
    if api.run(bad)["status"] == "paused":
        api.act(bad, "resume")
    api.until(bad, "completed")


def test_damaged_runs_of_a_killed_server_are_set_apart_and_the_others_go_on(
    own_server: ServerProcess, own_api: Api, store: redis.Redis
) -> None:
    api = own_api
    flow = api.workflow(approval("a"), job("b", after="a"))
    done = api.start(job("x"))
    api.until(done, "completed")
    runs = [api.trigger(flow) for _ in range(4)]
    for run in runs:
        api.until_step(run, "a", "waiting/approval")
    repaired, discarded, *sound = runs
    was = store.hget(key(repaired), "h")
    assert isinstance(was, bytes)
    store.hset(key(repaired), "h", was[:-1] + bytes([was[-1] ^ 4]))
    store.hset(key(discarded), "s0", b"\x01cut")
    blob = store.get(key(done))
    assert isinstance(blob, bytes)
    store.set(key(done), blob[:-9])
    store.close()
    own_server.kill()
    own_server.start()
    assert set(quarantined(api)) == {repaired, discarded}
    for run in sound:
        api.on(run, "a", "approve")
        api.until(run, "completed")
    assert "checksum" in message(api.get(f"/v1/workflow-runs/{repaired}", 409))
    assert set(api.get(f"/v1/workflow-runs?project_id={api.project}")[0]) > {"id", "status"}
    api.get(f"/v1/workflow-runs/{done}", 409)
    assert set(quarantined(api)) == {repaired, discarded, done}

    told = api.post(f"/v1/quarantine/{repaired}/release", None, 409)
    assert "still cannot be read" in message(told)
    store.hset(key(repaired), "h", was)
    api.post(f"/v1/quarantine/{repaired}/release", None, 204)
    api.on(repaired, "a", "approve")
    api.until(repaired, "completed")
    for run in (discarded, done):
        api.post(f"/v1/quarantine/{run}/discard", None, 204)
        api.get(f"/v1/workflow-runs/{run}", 404)
        assert store.keys(f"*{run}*") == []
    assert not quarantined(api)
