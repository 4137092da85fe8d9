"""A server and the stores that use it, the same for every implementation."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any

from redis.asyncio import Redis

from pilotage.persistence.memory import MemoryServer, MemoryStore
from pilotage.persistence.port import RunWrite, Store, Verdict
from pilotage.persistence.redis_store import RedisStore
from tests.contract.store.key_table import check_keys

OWNER = "first server"


class World(ABC):
    """`store` is open and owns the server with the token `fence`."""

    store: Store
    fence: int

    def __init__(self) -> None:
        self._opened: list[Store] = []

    async def begin(self) -> None:
        self.store = await self.another_store()
        self.fence = await self.store.acquire(OWNER, 60.0)

    async def end(self) -> None:
        for store in self._opened:
            await store.close()

    async def another_store(self) -> Store:
        """A second process on the same server."""
        store = self._make()
        await store.open()
        self._opened.append(store)
        return store

    @abstractmethod
    def _make(self) -> Store: ...

    @abstractmethod
    async def contents(self) -> Any:
        """Everything the server has, for comparing."""

    @abstractmethod
    async def lease_is_free(self) -> bool: ...

    async def put(self, *writes: RunWrite) -> None:
        """Commit what must be accepted."""
        verdicts = await self.store.commit(writes, self.fence)
        assert verdicts == [Verdict.OK] * len(writes)

    async def commit(self, write: RunWrite, fence: int | None = None) -> Verdict:
        (verdict,) = await self.store.commit([write], self.fence if fence is None else fence)
        return verdict


class MemoryWorld(World):
    def __init__(self, server: MemoryServer) -> None:
        super().__init__()
        self.server = server

    def _make(self) -> MemoryStore:
        return MemoryStore(self.server)

    async def lease_is_free(self) -> bool:
        return self.server.live_lease() is None

    async def contents(self) -> Any:
        runs = {
            run_id: {name: copy.copy(getattr(run, name)) for name in run.__slots__}
            for run_id, run in self.server.runs.items()
        }
        answers = {project: dict(kept) for project, kept in self.server.answers.items() if kept}
        return runs, answers, dict(self.server.records), dict(self.server.slugs)


class RedisWorld(World):
    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.client = Redis.from_url(url, protocol=2)

    def _make(self) -> RedisStore:
        return RedisStore(self.url)

    async def end(self) -> None:
        await super().end()
        try:
            await check_keys(self.client)
        finally:
            await self.client.aclose()

    async def lease_is_free(self) -> bool:
        return not await self.client.exists("pilotage:{s0}:lease")

    async def contents(self) -> Any:
        return {key: await self.client.dump(key) for key in await self.client.keys()}
