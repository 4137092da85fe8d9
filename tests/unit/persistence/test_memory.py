"""The store in memory: the hooks through which faults are played."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pilotage.persistence.memory import MemoryServer, MemoryStore
from pilotage.persistence.port import RunWrite, StoreUnavailableError, Verdict
from tests.contract.store.building import Life


def away(batch: Sequence[RunWrite]) -> None:
    raise StoreUnavailableError(f"played, {len(batch)} writes")


async def test_a_fault_before_the_commit_leaves_nothing() -> None:
    store = MemoryStore(before_commit=away)
    await store.open()
    life = Life(1)
    write = life.write()
    with pytest.raises(StoreUnavailableError, match="played, 1 writes"):
        await store.commit([write], 0)
    assert await store.load_runs([life.id]) == [None]
    store.before_commit = None
    assert await store.commit([write], 0) == [Verdict.OK]


async def test_a_fault_after_the_commit_is_a_lost_reply() -> None:
    store = MemoryStore(after_commit=away)
    await store.open()
    life = Life(1)
    write = life.write(history=2)
    with pytest.raises(StoreUnavailableError):
        await store.commit([write], 0)
    store.after_commit = None
    assert await store.commit([write], 0) == [Verdict.OK]
    assert len(await store.history(life.id, 0, 10)) == 2


async def test_given_clock_and_bytes_it_is_deterministic() -> None:
    now = [1_000]
    server = MemoryServer(clock_ms=lambda: now[0], random_bytes=lambda n: b"r" * n)
    store = MemoryStore(server)
    await store.open()
    fence = await store.acquire("owner", 10.0)
    assert await store.secret("x") == b"r" * 32
    await store.buffer_event("p", "k", "1", b"e", 5, fence)
    now[0] += 5_000
    assert await store.take_event("p", "k", "r", fence) is None
    assert server.live_lease() is not None
    now[0] += 5_000
    assert server.live_lease() is None
