"""A quarantined run that not even its own machine can end: nobody is left waiting for it."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from pilotage.actors import quarantine
from pilotage.actors.principal import ADMIN
from pilotage.cli.doctor_deep import BESIDE, RECORDS
from pilotage.persistence.redis_check import check_store
from pilotage.runtime.errors import PilotageError
from pilotage.runtime.rules import Rejection, RejectionCode
from pilotage.runtime.state import RunState
from tests.integration.actors.rig import Rig, gate, noop


def sub(ref: str, workflow: str) -> dict[str, Any]:
    return {"step_ref": ref, "step_type": "sub_workflow", "sub_workflow_id": workflow}


def cannot(how: str) -> Any:
    def step(state: RunState, command: object, now: int) -> Rejection:
        if how == "raises":
            raise PilotageError("the machine has no way to end it")
        return Rejection(code=RejectionCode.CONFLICT, message="not now")

    return step


@pytest.mark.parametrize("how", ["raises", "refuses"])
async def test_a_run_that_is_ended_by_force_tells_its_parent_and_its_children(
    world: Rig, valkey_url: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    leaf = await world.workflow("leaf", [gate("a")])
    middle = await world.workflow("middle", [noop("before"), sub("down", leaf.slug), gate("b")])
    parent = await world.workflow("parent", [sub("down", middle.slug), noop("after", "down")])
    run = await world.trigger(parent)
    await world.began_all("a", "b")
    middle_run = (await world.step(run, "down")).child_run_id
    assert middle_run is not None
    leaf_run = (await world.step(middle_run, "down")).child_run_id
    assert leaf_run is not None
    await world.quarantine(middle_run)
    monkeypatch.setattr(quarantine, "step", cannot(how))
    await world.gateway.discard_quarantined(middle_run, ADMIN)
    ended = await world.until(middle_run, "canceled")
    assert "discarded from quarantine" in (ended.vitals.error or "")
    assert [one.status.value for one in ended.steps()] == ["completed", "canceled", "canceled"]
    await world.until(leaf_run, "canceled")
    failed = await world.until(run, "failed")
    assert "discarded from quarantine" in (failed.vitals.error or "")
    assert not world.gateway.quarantined
    async with Redis.from_url(valkey_url, protocol=2) as client:
        assert await client.keys("*:out:*") == [], "everything was delivered"
    assert (await check_store(world.store, RECORDS, BESIDE)).problems == []
