"""A world with one server behind it, for each implementation."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from pilotage.persistence.memory import MemoryServer
from tests.contract.store.worlds import MemoryWorld, RedisWorld, World


@pytest.fixture(params=["memory", "redis"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    made: World
    if request.param == "memory":
        made = MemoryWorld(MemoryServer())
    else:
        made = RedisWorld(request.getfixturevalue("valkey_url"))
    await made.begin()
    yield made
    await made.end()


@pytest.fixture
async def redis_world(valkey_url: str) -> AsyncIterator[RedisWorld]:
    made = RedisWorld(valkey_url)
    await made.begin()
    yield made
    await made.end()
