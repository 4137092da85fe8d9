"""An attempt that a later transition of the same write takes back was never in progress."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pilotage.actors.executors.port import Attempt, Reporter
from pilotage.runtime.commands import ApproveStep, CancelRun
from tests.integration.actors.rig import Rig, noop, rig


@pytest.fixture
async def world(valkey_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig(valkey_url, tmp_path) as made:
        yield made


@pytest.mark.parametrize("taken_back", [True, False])
async def test_it_is_dispatched_only_if_it_stands(
    world: Rig, monkeypatch: pytest.MonkeyPatch, taken_back: bool
) -> None:
    executors, dispatched = world.runtime.executors, list[str]()
    start = executors.start

    def spy(attempt: Attempt, report: Reporter) -> None:
        dispatched.append(attempt.step_ref)
        start(attempt, report)

    monkeypatch.setattr(executors, "start", spy)
    flow = await world.workflow(
        "w", [{"step_ref": "ok", "step_type": "approval"}, noop("job", "ok")]
    )
    run = await world.trigger(flow)
    await world.until_step(run, "ok", "waiting", "approval")
    seq = (await world.state(run)).vitals.seq
    writes = world.runtime.writer.writes
    world.runtime.supervisor.notify(run, ApproveStep(step=0, actor="test"))
    if taken_back:
        world.runtime.supervisor.notify(run, CancelRun(actor="test"))
    ended = await world.until(run, "canceled" if taken_back else "completed")
    assert dispatched == ([] if taken_back else ["job"])
    if taken_back:
        assert (ended.vitals.seq - seq, world.runtime.writer.writes - writes) == (2, 1)
