"""The kernel as one more `RUNTIMES` entry of Pykka's own test suite.

Imported by the conftest of that suite in a process of its own, where `tests` is Pykka's package:
nothing of our `tests` may be imported here.
"""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self
from unittest import mock

import pytest
from pykka import ActorRegistry

from pilotage.actors.kernel import AwaitableFuture, LoopActor, LoopDispatcher, LoopRef


def _dispatcher_on_a_thread() -> LoopDispatcher:
    """A dispatcher whose loop runs until the process ends."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="actors", daemon=True).start()

    async def make() -> LoopDispatcher:
        return LoopDispatcher()

    return asyncio.run_coroutine_threadsafe(make(), loop).result(10)


DISPATCHER = _dispatcher_on_a_thread()


class RegisteredLoopActor(LoopActor):
    """A loop actor by Pykka's rules: own URN, in the registry, alive after a failed ask."""

    ask_failures_are_crashes = False

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        super().__init__(DISPATCHER, uuid.uuid4().urn)

    @classmethod
    def start(cls, *args: Any, **kwargs: Any) -> LoopRef[Self]:  # pyright: ignore[reportIncompatibleMethodOverride]
        actor = cls(*args, **kwargs)
        ActorRegistry.register(actor.actor_ref)
        return actor.launch()

    def _stop(self) -> None:
        ActorRegistry.unregister(self.actor_ref)
        super()._stop()

    def _handle_failure(
        self,
        exception_type: type[BaseException] | None,
        exception_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        ActorRegistry.unregister(self.actor_ref)
        super()._handle_failure(exception_type, exception_value, traceback)


RUNTIME_ARGUMENTS: dict[str, Any] = {
    "name": "loop",
    "actor_class": RegisteredLoopActor,
    "event_class": threading.Event,
    "future_class": AwaitableFuture,
    "sleep_func": time.sleep,
}


class _Patch:
    def __init__(self, undo: ExitStack) -> None:
        self._undo = undo

    def object(self, target: Any, attribute: str, **kwargs: Any) -> Any:
        return self._undo.enter_context(mock.patch.object(target, attribute, **kwargs))


class Mocker:
    """The few names of pytest-mock that the suite uses."""

    Mock = mock.Mock
    MagicMock = mock.MagicMock
    NonCallableMock = mock.NonCallableMock

    def __init__(self, undo: ExitStack) -> None:
        self.patch = _Patch(undo)


@pytest.fixture
def mocker() -> Iterator[Mocker]:
    with ExitStack() as undo:
        yield Mocker(undo)
