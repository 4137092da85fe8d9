"""A store that is not there at the start: for how long it is waited for, and what is said."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import pytest

from pilotage.actors import ownership
from pilotage.actors.ownership import Patience, take_store
from pilotage.persistence.memory import MemoryStore
from pilotage.persistence.port import (
    StoreError,
    StoreLoadingError,
    StoreUnavailableError,
    UnsuitableStoreError,
)

AWAY = StoreUnavailableError("away")


class Coming(MemoryStore):
    """Fails to open with each of the errors, then opens."""

    def __init__(self, errors: Sequence[StoreError]) -> None:
        super().__init__()
        self.errors = list(errors)
        self.closed = 0

    async def open(self) -> None:
        if self.errors:
            raise self.errors.pop(0)
        await super().open()

    async def close(self) -> None:
        self.closed += 1
        await super().close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "FIRST_PAUSE_SECS", 0.0)


async def take(store: Coming, wait_secs: float) -> int:
    return await take_store(store, "me", lease_secs=60, wait_secs=wait_secs)


async def test_a_store_that_comes_is_taken(quick: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    store = Coming([AWAY, StoreLoadingError("loading (10 %)", 100), AWAY])
    assert await take(store, 3600) == 1
    assert store.closed == 3, "the next try looks at the server anew"
    said = [record.message for record in caplog.records]
    assert said[0] == "waiting for the store, for 3600 s if nothing changes: away"
    assert said[1] == "waiting for the store, for 3600 s if nothing changes: loading (10 %)"
    assert said[-1].startswith("the store is there, after")


async def test_a_store_that_is_there_is_taken_without_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    assert await take(Coming([]), 3600) == 1
    assert caplog.records == []


async def test_without_patience_the_first_word_holds() -> None:
    with pytest.raises(StoreUnavailableError, match=r"^away$"):
        await take(Coming([AWAY]), 0)


async def test_a_store_that_will_not_do_is_not_waited_for() -> None:
    with pytest.raises(UnsuitableStoreError):
        await take(Coming([UnsuitableStoreError("another kind of server")]), 3600)


async def test_what_loads_is_waited_for_as_long_as_it_gets_further(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    patience = Patience(30)
    monkeypatch.undo()  # the loop needs its own again; the patience keeps the other
    for loaded in range(10):
        await patience.endure(StoreLoadingError("loading", loaded))
        now += 29
    now += 2
    with pytest.raises(StoreUnavailableError, match="PILOTAGE_STORE_WAIT_SECS"):
        await patience.endure(StoreLoadingError("loading", 9))


async def test_it_is_said_again_from_time_to_time(
    quick: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    patience = Patience(30)
    monkeypatch.undo()
    for _ in range(12):
        await patience.endure(AWAY)
        now += 1.0
    assert [record.message.partition(" if")[0] for record in caplog.records] == [
        f"waiting for the store, for {left} s" for left in (30, 25, 20)
    ]
