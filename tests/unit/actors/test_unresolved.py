"""A key is not free while its first command may still be carried out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from pilotage.actors import supervisor
from pilotage.actors.errors import UnavailableError
from pilotage.actors.idempotency import Idempotency, recall
from pilotage.actors.principal import ADMIN
from pilotage.actors.runtime import Runtime
from pilotage.persistence.memory import MemoryServer, MemoryStore
from pilotage.persistence.port import RunWrite, Verdict
from pilotage.runtime.validation import ParsedTrigger
from pilotage.settings import Settings
from tests.support.waiting import wait_until

PROJECT = "p"
KEY = Idempotency(key="k", request_hash="h", project_id=PROJECT)


class Held:
    """Commits go on when the test lets them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = asyncio.Event()
        commit = MemoryStore.commit

        async def held(store: MemoryStore, batch: Sequence[RunWrite], fence: int) -> list[Verdict]:
            await self.go.wait()
            return await commit(store, batch, fence)

        monkeypatch.setattr(MemoryStore, "commit", held)


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[Runtime]:
    made = Runtime(settings=Settings(data_dir=tmp_path), store=MemoryStore(MemoryServer()))
    await made.start()
    yield made
    await made.stop(0)


@pytest.mark.parametrize("what", ["trigger", "cancel"])
async def test_a_repeat_waits_until_it_is_known_what_became_of_the_first(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    gateway = runtime.gateway
    raw = {"name": "w", "steps": [{"step_ref": "a", "step_type": "approval"}]}
    parsed = await runtime.catalog.parse_workflow(PROJECT, raw)
    flow = await runtime.catalog.create_workflow(parsed, project_id=PROJECT, created_by="test")
    run = await gateway.trigger(flow, ParsedTrigger(), actor="test")
    assert await gateway.first_answer(KEY) is None
    held = Held(monkeypatch)
    monkeypatch.setattr(supervisor, "ASK_TIMEOUT_SECS", 0.05)
    doing: Coroutine[Any, Any, object]
    if what == "trigger":
        doing = gateway.trigger(flow, ParsedTrigger(), actor="test", idempotency=KEY)
    else:
        doing = gateway.cancel(run.id, ADMIN, "enough", idempotency=KEY)
    with pytest.raises(UnavailableError, match="in time"):
        await doing
    for _ in range(3):
        with pytest.raises(UnavailableError, match="is still being carried out"):
            await gateway.first_answer(KEY)
    assert await gateway.first_answer(Idempotency(key="k2", request_hash="h")) is None
    held.go.set()
    await wait_until(lambda: not len(runtime.supervisor.unresolved), "it is known")
    data = await gateway.first_answer(KEY)
    assert data is not None
    assert recall(data).status < 300
