"""A slot that was taken to reopen a run goes back when the run is not reopened after all."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from pilotage.actors import supervisor
from pilotage.actors.errors import UnavailableError
from pilotage.actors.principal import ADMIN
from pilotage.actors.runtime import Runtime
from pilotage.persistence.memory import MemoryServer, MemoryStore
from pilotage.persistence.port import RunWrite, Verdict
from pilotage.runtime.status import RunStatus
from pilotage.runtime.validation import ParsedTrigger
from pilotage.settings import Settings
from tests.support.waiting import wait_until

PROJECT = "p"


async def test_it_goes_back_when_the_actor_fails_before_the_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime(settings=Settings(data_dir=tmp_path), store=MemoryStore(MemoryServer()))
    await runtime.start()
    gateway, catalog = runtime.gateway, runtime.catalog
    steps = [{"step_ref": "a", "step_type": "approval"}]
    flow, another = [
        await catalog.create_workflow(
            await catalog.parse_workflow(
                PROJECT, {"name": name, "steps": steps, "max_concurrent_runs": 1}
            ),
            project_id=PROJECT,
            created_by="test",
        )
        for name in ("w", "v")
    ]
    run = await gateway.trigger(flow, ParsedTrigger(), actor="test")
    await gateway.approve(run.id, "a", ADMIN, None, "ops")
    begun, go = asyncio.Event(), asyncio.Event()
    commit = MemoryStore.commit

    async def held(store: MemoryStore, batch: Sequence[RunWrite], fence: int) -> list[Verdict]:
        begun.set()
        await go.wait()
        return await commit(store, batch, fence)

    monkeypatch.setattr(MemoryStore, "commit", held)
    other = asyncio.ensure_future(gateway.trigger(another, ParsedTrigger(), actor="test"))
    await begun.wait()  # the writer is busy: what comes now is not on its way
    monkeypatch.setattr(supervisor, "ASK_TIMEOUT_SECS", 0.05)
    with pytest.raises(UnavailableError, match="in time"):
        await gateway.replay_subtree(run.id, "a", ADMIN)
    assert runtime.admission.holds_run_slot(flow.id, run.id)
    runtime.supervisor.notify(run.id, object())  # which no run can take
    await wait_until(lambda: not runtime.admission.holds_run_slot(flow.id, run.id), "it goes back")
    go.set()
    assert (await other).status is RunStatus.RUNNING
    await runtime.stop(0)
