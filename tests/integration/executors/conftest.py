from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.integration.executors.http_client import Client
from tests.integration.executors.peers import Peer


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    client = Client()
    yield client
    await client.executor.aclose()


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    async with Peer() as peer:
        yield peer
