"""A dispatcher on the test's own loop, and actors that several tests use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from pilotage.actors.kernel import LoopActor, LoopDispatcher, RejectError

Action = Callable[["Recorder"], Any]


class Recorder(LoopActor):
    """Keeps what it is sent; a callable is called with the actor, and its result is the answer."""

    def __init__(self, dispatcher: LoopDispatcher, urn: str) -> None:
        super().__init__(dispatcher, urn)
        self.seen: list[Any] = []
        self.hooks: list[str] = []

    def on_stop(self) -> None:
        self.hooks.append("on_stop")

    def on_failure(self, *_: Any, **__: Any) -> None:
        self.hooks.append("on_failure")

    def on_receive(self, message: Any) -> Any:
        if callable(message):
            return message(self)
        self.seen.append(message)
        return len(self.seen)


class DemoRefusalError(RejectError):
    """A refusal that a business rule makes."""


def do(action: Action) -> Action:
    """`action`, a message that is called with its receiver; gives lambdas their type."""
    return action


def raising(exc: BaseException) -> Action:
    """A message whose handling raises `exc`."""

    def handle(_: Recorder) -> None:
        raise exc

    return handle


@pytest.fixture
async def dispatcher() -> AsyncIterator[LoopDispatcher]:
    made = LoopDispatcher()
    yield made
    async with asyncio.timeout(10):
        await made.close()
