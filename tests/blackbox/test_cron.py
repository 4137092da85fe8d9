"""Fire times of a real server, whose clock is set so that one is near."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from uuid import UUID

import pytest

from tests.blackbox.api import Api, Json, ServerProcess, approval, job
from tests.support.waiting import wait_until_sync

FIRE = "2040-01-10T01:00:00.000Z"
FIRE_MS = round(datetime.fromisoformat(FIRE).timestamp() * 1000)


class CronServer(ServerProcess):
    """A server that believes it is shortly before or after the fire time."""

    def at(self, secs: float) -> None:
        """Start it `secs` after the fire time."""
        self.start(FIRE_MS + round(secs * 1000) - time.time_ns() // 1_000_000)


@pytest.fixture
def cron_api(cron_server: CronServer) -> Iterator[Api]:
    client = Api(cron_server)
    yield client
    client.close()


@pytest.fixture
def cron_server(tmp_path: Path) -> Iterator[CronServer]:
    process = CronServer(tmp_path / "data")
    process.at(-1_800)
    yield process
    if process.running:
        process.stop()


def runs_of(api: Api, workflow: str) -> list[Json]:
    path = f"/v1/workflow-runs?project_id={api.project}&workflow_id={workflow}"
    found: list[Json] = api.get(path)
    return found


def test_a_fire_time_makes_one_run_and_none_while_one_is_to_be_skipped(
    cron_server: CronServer, cron_api: Api
) -> None:
    api = cron_api
    once = api.workflow(job("a"), cron="0 1 * * *")
    zoned = api.workflow(job("a"), cron="30 6 * * *", cron_timezone="Asia/Kolkata")
    elsewhere = api.workflow(job("a"), cron="30 6 * * *")
    skips = api.workflow(approval("a"), cron="0 1 * * *", skip_if_running=True)
    goes_on = api.workflow(approval("a"), cron="0 1 * * *")
    disabled = api.workflow(job("a"), cron="0 1 * * *", enabled=False)
    idle = api.workflow(approval("a"), cron="0 1 * * *", skip_if_running=True)
    blocking = [api.trigger(skips), api.trigger(goes_on)]
    assert not runs_of(api, once), "it is half an hour too early"
    cron_server.stop()
    cron_server.at(-0.5)  # on a slow machine this is made up for: the outcome is the same
    expected = [1, 1, 2, 1]

    def counts() -> list[int]:
        return [len(runs_of(api, w)) for w in (once, zoned, goes_on, idle)]

    wait_until_sync(lambda: counts() == expected, "all have fired")
    for run in (*runs_of(api, once), *runs_of(api, zoned)):
        assert (run["triggered_by"], run["created_by"]) == ("cron", "cron")
        assert UUID(run["id"]).int >> 80 == FIRE_MS
        assert run["created_at"] >= FIRE
        assert not {"payload", "parent_workflow_run_id", "retry_of_run_id"} & run.keys()
        api.until(run["id"], "completed")
    cron_server.stop()
    cron_server.at(60)  # what was decided stays decided
    for run_id in blocking:
        api.cancel(run_id)
    assert counts() == expected
    assert [run["id"] for run in runs_of(api, skips)] == blocking[:1]
    assert not runs_of(api, elsewhere)
    assert not runs_of(api, disabled)
