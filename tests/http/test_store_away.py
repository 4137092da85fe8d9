"""A store that is silent: all are told at once, or as soon as it is known; then all goes on."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pilotage.actors import housekeeping
from pilotage.persistence.memory import MemoryStore
from tests.http.conftest import StartServer, approval, define, trigger, wait_status
from tests.http.test_access import error_of, filled, guarded
from tests.support.waiting import wait_until

IN_MEMORY = {
    "/v1/workflow-runs/{workflowRunID}",
    "/v1/workflow-runs/{workflowRunID}/steps",
    "/v1/workflow-runs/{workflowRunID}/graph",
    "/v1/workflow-runs/{workflowRunID}/timeline",
    "/v1/workflow-runs/{workflowRunID}/explain",
}


class SilentStore(MemoryStore):
    """A process that was stopped: whatever is asked waits until it goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or not inspect.iscoroutinefunction(found):
            return found
        return self._later(found)

    def _later(self, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def later(*args: Any, **kwargs: Any) -> Any:
            await self.goes_on.wait()
            return await method(*args, **kwargs)

        return later


async def test_a_silent_store_is_told_at_once_on_every_route_that_needs_it(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "WATCH_TIMEOUT_SECS", 0.2)
    store = SilentStore()
    server = await start_server(store)
    client = await server.member()
    workflow = await define(client, "w", [approval("gate")])
    run = await trigger(client, "w")
    values = {"workflowRunID": run["id"], "stepRef": "gate", "workflowID": workflow["id"]}
    gateway = server.runtime.gateway

    store.goes_on.clear()
    try:
        # Those who asked before it was known wait for a store that never answers.
        early = [
            asyncio.create_task(client.post(f"/v1/workflow-runs/{run['id']}/pause")),
            asyncio.create_task(client.get("/v1/workflow-runs")),
            asyncio.create_task(client.get("/v1/workflows")),
        ]
        await wait_until(lambda: gateway.store_away is not None, "it is known")
        seen = 0
        for method, path, _ in guarded(server):
            answer = await client.request(method, filled(path, values))
            if method == "GET" and path in IN_MEMORY:
                assert answer.status_code == 200, (path, answer.text)
                continue
            seen += 1
            assert answer.status_code == 503, (method, path, answer.text)
            assert int(answer.headers["retry-after"]) >= 1
            error = error_of(answer)
            assert error["code"] == "service_unavailable"
            assert "nothing was done" in error["message"], (method, path)
        assert seen > 35
        for answer in await asyncio.gather(*early):
            assert answer.status_code == 503, answer.text
            assert int(answer.headers["retry-after"]) >= 1
        # A run that is not in memory is looked for, but not for long.
        elsewhere = f"{'1' if run['id'][0] == '0' else '0'}{run['id'][1:]}"
        assert (await client.get(f"/v1/workflow-runs/{elsewhere}")).status_code == 503
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/health/ready")).status_code == 503
        assert (await server.admin.get("/metrics")).status_code == 200

    finally:
        store.goes_on.set()
    await wait_until(lambda: gateway.store_away is None, "it is back")
    for verb, status in (("pause", "paused"), ("resume", "running")):
        assert (await client.post(f"/v1/workflow-runs/{run['id']}/{verb}")).status_code == 204
        await wait_status(client, run["id"], status)
