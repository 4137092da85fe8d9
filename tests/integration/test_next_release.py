"""A store through an upgrade and back: left by one release, opened by the next, then by the first.

The store is the golden one, left by a real server of schema 1. The next release is a copy of these
sources with another stored form of every type (`tests/golden/next_release.py`), in processes of
its own. What a user sees is asked over HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from pilotage.persistence import codec
from pilotage.persistence.store_report import look_at
from tests.blackbox.api import Api
from tests.golden import next_release, stores
from tests.golden.snapshots.samples import SAMPLES
from tests.golden.stores.process import GoldenServer
from tests.golden.stores.story import EARLY, ONCE, PROJECT

LATER_MS = 60_000
VERSIONS = range(1, codec.SCHEMA_VERSION + 1)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return next_release.make(tmp_path_factory.mktemp("next"))


@pytest.fixture
def client(valkey_url: str) -> Iterator[Any]:
    with Redis.from_url(valkey_url, protocol=2) as made:
        yield made


def finish(api: Api, notes: dict[str, Any]) -> None:
    """Bring every run that was under way to its end, as its user would."""
    runs = notes["going on"]
    for name in ("approval", "first of two"):
        api.on(runs[name], "first", "approve")
    api.until_step(runs["second of two"], "first", "waiting/approval")
    api.on(runs["second of two"], "first", "approve")
    api.act(runs["paused"], "resume")
    api.on(runs["paused"], "first", "approve")
    api.on(notes["child"], "first", "approve")
    assert api.send("paid", {"by": "card"})["delivered"] == 1
    answer = httpx.post(
        f"{api.server.url}/sdk/v1/runs/{notes['job run']}/complete",
        json={"result": {"n": 1}},
        headers={"Authorization": f"Bearer {notes['token']}"},
        timeout=20,
    )
    assert answer.status_code in {200, 204}, answer.text
    for run_id in (*runs.values(), notes["child"]):
        api.until(run_id, "completed", within_secs=60)


def take_the_early_event(api: Api) -> None:
    waiting = api.start({"step_ref": "e", "step_type": "wait_for_event", "event_key": EARLY})
    api.until(waiting, "completed")


def check_what_was_kept(api: Api, notes: dict[str, Any]) -> None:
    """Everything that was there can be read, and is remembered."""
    over = notes["over"]
    ends = {name: api.run(run_id)["status"] for name, run_id in over.items()}
    assert ends == dict.fromkeys(over, "completed") | {"failed": "failed", "canceled": "canceled"}
    listed = {run["id"] for run in api.get(f"/v1/workflow-runs?project_id={PROJECT}&limit=100")}
    everything = {*over.values(), *notes["going on"].values(), notes["child"]}
    assert listed >= everything
    for run_id in everything:
        items = api.history(run_id)
        assert [item["seq"] for item in items] == list(range(1, len(items) + 1))
        assert items
        api.job_runs(run_id)
    assert api.job_runs(over["finished"])[0]["status"] == "completed"
    mine = Api(api.server, project=PROJECT, key=notes["key"])
    again = mine.request("POST", notes["trigger"], notes["once"], headers=ONCE)
    mine.close()
    assert (again.status_code, again.json()["id"]) == (201, over["finished"])
    assert api.get("/v1/quarantine")["data"] == []


def lasting(client: Any) -> list[Any]:
    return [(key.name, key.type, key.content) for key in stores.contents(client)]


def versions(client: Any) -> set[int]:
    """The schema versions of all parts of the runs in the store."""
    found: set[int] = set()
    for name in client.keys("*:run:*"):
        if client.type(name) == b"hash":
            fields = client.hgetall(name)
            found |= {data[0] for field, data in fields.items() if field != b"q"}
        else:
            line, _, rest = client.get(name).partition(b"\n")
            found |= {rest[0], rest[int(line.split(b" ")[3])]}
    return found


def opened(client: Any, version: int, url: str, log: Path, **more: Any) -> GoldenServer:
    store = stores.read(version)
    stores.restore(client, store)
    return GoldenServer(url, "go", log, now_ms=store.made_ms + LATER_MS, **more)


@pytest.mark.parametrize("version", VERSIONS)
def test_this_release_finishes_what_every_release_before_it_has_begun(
    version: int, client: Any, valkey_url: str, tmp_path: Path
) -> None:
    notes = stores.read(version).notes
    with opened(client, version, valkey_url, tmp_path / "log") as server:
        api = server.api(PROJECT)
        finish(api, notes)
        take_the_early_event(api)
        check_what_was_kept(api, notes)
        api.close()
        assert server.stop() == 0
    assert client.get("pilotage:{s0}:format").split()[0] == b"%d" % codec.SCHEMA_VERSION


def test_the_next_release_finishes_what_this_one_has_begun_and_cannot_be_taken_back(
    client: Any, valkey_url: str, tmp_path: Path, tree: Path
) -> None:
    made_ms = stores.read(codec.SCHEMA_VERSION).made_ms
    notes = stores.read(codec.SCHEMA_VERSION).notes
    log = tmp_path / "log"
    with opened(client, codec.SCHEMA_VERSION, valkey_url, log, tree=tree) as server:
        api = server.api(PROJECT)
        check_what_was_kept(api, notes)
        assert versions(client) >= {codec.SCHEMA_VERSION, next_release.VERSION}, "as it goes"
        finish(api, notes)
        take_the_early_event(api)
        check_what_was_kept(api, notes)
        api.close()
        assert server.stop() == 0
    assert client.get("pilotage:{s0}:format") == b"%d 99.0.0" % next_release.VERSION
    before = lasting(client)
    with GoldenServer(valkey_url, "go", log, now_ms=made_ms + LATER_MS) as older:
        assert older.refused is not None
        assert "this store has format 2, of pilotage 99.0.0" in older.refused
        assert "start pilotage 99.0.0 or newer" in older.refused
    assert lasting(client) == before, "nothing was touched"
    with GoldenServer(valkey_url, "go", log, now_ms=made_ms + LATER_MS, tree=tree) as server:
        api = server.api(PROJECT)
        check_what_was_kept(api, notes)
        api.close()


def test_a_server_that_is_replaced_by_the_next_release_does_not_come_back(
    client: Any, valkey_url: str, tmp_path: Path, tree: Path
) -> None:
    """A rolling restart: the old one is killed in the middle, and started again by its keeper."""
    log = tmp_path / "log"
    store = stores.read(codec.SCHEMA_VERSION)
    with opened(client, codec.SCHEMA_VERSION, valkey_url, log) as old:
        old.kill()
    with GoldenServer(valkey_url, "go", log, now_ms=store.made_ms + LATER_MS, tree=tree) as server:
        with GoldenServer(valkey_url, "go", log) as back:
            assert "start pilotage 99.0.0 or newer" in str(back.refused)
        api = server.api(PROJECT)
        finish(api, store.notes)
        check_what_was_kept(api, store.notes)
        api.close()
        assert server.stop() == 0


def test_the_next_release_has_another_form_of_everything_that_is_stored() -> None:
    """A new stored type needs a line there."""
    types = {type(value).__name__ for value in SAMPLES.values()}
    parts = {"FinishedRun", "StepCompleted", "WorkflowSpec", "JobSpec"}
    assert types - parts == next_release.stored_types()


async def test_doctor_tells_which_releases_may_open_the_store(client: Any, valkey_url: str) -> None:
    assert (await look_at(valkey_url, "pilotage")).format is None
    stores.restore(client, stores.read(codec.SCHEMA_VERSION))
    known = (await look_at(valkey_url, "pilotage")).format
    assert known is not None
    assert known.version == codec.SCHEMA_VERSION
    client.set("pilotage:{s0}:format", "7 9.9.9")
    (problem,) = (await look_at(valkey_url, "pilotage")).problems
    assert "this store has format 7, of pilotage 9.9.9" in problem
    client.set("pilotage:{s0}:format", "what")
    (problem,) = (await look_at(valkey_url, "pilotage")).problems
    assert "the format of this store cannot be read ('what')" in problem
