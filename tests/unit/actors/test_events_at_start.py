"""An event reaches everybody who waits for it, or is refused: from the first instant on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pilotage.actors.errors import UnavailableError
from pilotage.actors.event_hub import EventReceipt
from pilotage.actors.runtime import Runtime
from pilotage.persistence.memory import MemoryServer, MemoryStore
from pilotage.persistence.port import StoredRun, StoreUnavailableError
from pilotage.runtime.validation import ParsedTrigger
from pilotage.settings import Settings

PROJECT = "p"
COUNT = 30

Start = Callable[[], Runtime]


@pytest.fixture
def make(tmp_path: Path) -> Start:
    """A runtime on what the runtimes before it have stored."""
    server, settings = MemoryServer(), Settings(data_dir=tmp_path)
    return lambda: Runtime(settings=settings, store=MemoryStore(server))


@pytest.fixture
async def parked(make: Start) -> int:
    """How many runs wait for the event, by the hand of a runtime that is gone."""
    runtime = make()
    await runtime.start()
    await park(runtime)
    await runtime.stop(0)
    return COUNT


async def park(runtime: Runtime) -> None:
    steps = [{"step_ref": "a", "step_type": "wait_for_event", "event_key": "paid"}]
    parsed = await runtime.catalog.parse_workflow(PROJECT, {"name": "w", "steps": steps})
    flow = await runtime.catalog.create_workflow(parsed, project_id=PROJECT, created_by="test")
    for _ in range(COUNT):
        await runtime.gateway.trigger(flow, ParsedTrigger(), actor="test")


async def paid(runtime: Runtime) -> EventReceipt:
    return await runtime.gateway.send_event(PROJECT, "paid", None, 0, actor="test")


class Slow:
    """A store whose runs are read when the test lets them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads, self.go = asyncio.Event(), asyncio.Event()
        self.fails = False
        load_runs = MemoryStore.load_runs

        async def slowly(store: MemoryStore, run_ids: Sequence[str]) -> list[StoredRun | None]:
            self.reads.set()
            await self.go.wait()
            if self.fails:
                raise StoreUnavailableError("gone")
            return await load_runs(store, run_ids)

        monkeypatch.setattr(MemoryStore, "load_runs", slowly)


async def test_an_event_at_the_first_instant_reaches_all_who_wait(make: Start, parked: int) -> None:
    runtime = make()
    await runtime.start()
    assert (await paid(runtime)).delivered == parked
    await runtime.stop(0)


async def test_an_event_during_the_recovery_waits_for_its_end(
    make: Start, parked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(monkeypatch)
    runtime = make()
    starting = asyncio.create_task(runtime.start())
    await slow.reads.wait()
    sending = asyncio.create_task(paid(runtime))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not sending.done()
    slow.go.set()
    assert (await sending).delivered == parked
    await starting
    await runtime.stop(0)


async def test_an_event_during_a_start_that_fails_is_refused(
    make: Start, parked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parked
    slow = Slow(monkeypatch)
    slow.fails = True
    runtime = make()
    starting = asyncio.create_task(runtime.start())
    await slow.reads.wait()
    sending = asyncio.create_task(paid(runtime))
    slow.go.set()
    with pytest.raises(StoreUnavailableError):
        await starting
    with pytest.raises(UnavailableError):
        await sending
    with pytest.raises(UnavailableError):
        await paid(runtime)
