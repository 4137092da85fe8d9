"""Where time, chance and the jobs' executor of the product come from while a seed is played.

Modules are given other sources; no line of the product is changed. Pace constants are set wider
where a virtual hour would otherwise cost real seconds of polling.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from random import Random
from typing import Any

from pilotage.actors import collector, housekeeping, idle_runs, runtime, writer
from pilotage.actors.kernel import dispatcher, mailbox
from pilotage.actors.outside import Outside
from pilotage.persistence import memory
from tests.simulation.loop import SimLoop
from tests.simulation.outside import Jobs, SimExecutor
from tests.simulation.plan import Plan


class _Time:
    """For `time.monotonic`: a turn of an actor takes no time at all or, for the share `slow`, all
    that actors have before others get the loop.
    """

    def __init__(self, loop: SimLoop, rnd: Random, slow: float) -> None:
        self._loop = loop
        self._rnd = rnd
        self._slow = slow
        self._spent = 0.0

    def monotonic(self) -> float:
        if self._slow and self._rnd.random() < self._slow:
            self._spent += 2 * dispatcher.SLICE_SECS
        return self._loop.now + self._spent


class _NoCollection:
    """For `gc`: what a recovery does to the collector would be done to the tests."""

    @staticmethod
    def disable() -> None: ...

    @staticmethod
    def enable() -> None: ...

    @staticmethod
    def collect() -> None: ...

    @staticmethod
    def freeze() -> None: ...

    @staticmethod
    def get_threshold() -> tuple[int, ...]:
        return ()


@contextmanager
def patched(
    loop: SimLoop, rnd: Random, jobs: Jobs, *, plan: Plan, deliver: object
) -> Generator[None]:
    executor = type("BoundSimExecutor", (SimExecutor,), {"world": jobs})
    time = _Time(loop, Random(rnd.random()), plan.slow_turns)

    def token_hex(size: int) -> str:
        return rnd.randbytes(size).hex()

    wanted: list[tuple[Any, str, object]] = [
        (dispatcher, "time", time),
        (mailbox, "time", time),
        (secrets, "randbits", rnd.getrandbits),
        (secrets, "token_hex", token_hex),
        (os, "urandom", rnd.randbytes),
        (collector, "gc", _NoCollection),
        (runtime, "HttpExecutor", executor),
        (writer, "random", rnd),
        (Outside, "_deliver", deliver),
        (housekeeping, "WATCH_SECS", 2.0),
        (idle_runs, "FOLD_AFTER_SECS", plan.fold_secs),
        (memory, "_POLL_SECS", 0.25),
    ]
    kept = [(module, name, getattr(module, name)) for module, name, _ in wanted]
    for module, name, value in wanted:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in kept:
            setattr(module, name, value)
