"""A request whose time is over works on; how it ends is said where somebody can do something."""

from __future__ import annotations

import asyncio
import gc
from types import SimpleNamespace
from typing import Any

import pytest

from pilotage.actors.errors import UnavailableError
from pilotage.actors.idempotency import Idempotency
from pilotage.http import repeats
from tests.support.waiting import wait_until


@pytest.mark.parametrize(
    ("error", "told"), [(UnavailableError("the store is away"), False), (KeyError("a bug"), True)]
)
async def test_a_refusal_that_nobody_hears_is_no_error_and_a_bug_is_one(
    error: Exception, told: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    api, request = SimpleNamespace(in_progress=set[Any]()), SimpleNamespace()
    entered, go_on, unretrieved = asyncio.Event(), asyncio.Event(), list[object]()

    def idempotency_of(*_: object) -> Idempotency:
        return Idempotency(key="k", request_hash="h")

    async def nothing_known(*_: object) -> None:
        return None

    async def act(_: Idempotency | None) -> repeats.Answer:
        entered.set()
        await go_on.wait()
        raise error

    def api_of(_: object) -> SimpleNamespace:
        return api

    monkeypatch.setattr(repeats, "idempotency_of", idempotency_of)
    monkeypatch.setattr(repeats, "_known", nothing_known)
    monkeypatch.setattr(repeats, "api_of", api_of)
    asyncio.get_running_loop().set_exception_handler(lambda _, what: unretrieved.append(what))
    asked: Any = request
    working = asyncio.create_task(repeats.once(asked, "p", None, act))
    await entered.wait()
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert api.in_progress, "it works on, and holds its key"
    go_on.set()
    await wait_until(lambda: not api.in_progress, "it has ended")
    await asyncio.sleep(0)
    gc.collect()
    assert unretrieved == []
    assert ("a request that was given up has failed" in caplog.text) is told
