"""`RunTimers`: what arms the timers of runs, and what they call when they are due.

What a run waits for is a time of day, stored with it. An attempt in progress is bounded by a
duration: whoever sets the wall clock neither shortens nor stretches it (see `Timers`). Which
attempt a timer bounds is known by its callback, so that it cannot end the next one.

A run whose attempts keep their time across a jump hears of it (`MoveTimeout`), so that what it has
stored, which is shown and armed again after a restart, says when that is by now. Some runs at a
time: passivated ones are loaded for it. A timer that is due meanwhile does not wait for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from pilotage.actors.executors.port import Accepted
from pilotage.actors.kernel import Moved
from pilotage.actors.kernel.timers import JUMP_MS
from pilotage.actors.services import RUN_TIMER, Services, TimerKey
from pilotage.runtime.commands import AttemptAccepted, MoveTimeout, TimerFired
from pilotage.runtime.effects import ScheduleTimer
from pilotage.runtime.graph import bits
from pilotage.runtime.state import RunState

TOLD_AT_ONCE: Final = 50
"""Runs that hear of a jump before others get their turn."""
TELL_PAUSE_SECS: Final = 0.025
"""How long the others get: 100,000 runs have heard of it after a minute."""
KEPT_CALLBACKS: Final = 1_000


class AttemptTime:
    """The callback of the timers that bound an attempt of this number, of whatever run."""

    __slots__ = ("_is_up", "attempt")

    def __init__(self, attempt: int, is_up: Callable[[TimerKey, AttemptTime], None]) -> None:
        self.attempt = attempt
        self._is_up = is_up

    def __call__(self, key: TimerKey) -> None:
        self._is_up(key, self)


class RunTimers:
    """`published` gives the state of a run in memory. On the actors' loop."""

    def __init__(self, services: Services, published: Callable[[str], RunState | None]) -> None:
        self._services = services
        self._published = published
        self._callbacks: dict[int, AttemptTime] = {}  # one a number: no timer has its own
        self._to_tell: dict[TimerKey, tuple[int, int]] = {}  # -> attempt, when its time is up
        self._telling: asyncio.Handle | None = None
        services.timers.on_jump.append(self._moved)

    def close(self) -> None:
        """The runs hear of nothing any more."""
        self._to_tell.clear()
        if self._telling is not None:
            self._telling.cancel()

    def arm(self, run_id: str, effect: ScheduleTimer) -> None:
        """Do as the effect says."""
        timers = self._services.timers
        i, attempt = effect.step, effect.attempt
        if i is None or attempt is None:
            timers.set((run_id, RUN_TIMER if i is None else i), effect.due_ms, self._fired)
            return
        timers.set((run_id, i), effect.due_ms, self._callback(attempt), effect.left_ms)

    def accepted(self, run_id: str, i: int, attempt: int, report: Accepted) -> AttemptAccepted:
        """The job has taken the attempt: from now on the run's state has to know when its time is
        up. It may not, if the attempt was held back or dispatched again, or the clock was set.
        """
        key, due_ms = (run_id, i), report.times_out_ms
        if due_ms is not None:
            if self.measures(run_id, i, attempt):
                left_ms = due_ms - self._services.clock.now_ms()
                self._services.timers.set(key, due_ms, self._callback(attempt), left_ms)
        else:
            armed, state = self._services.timers.due_ms(key), self._published(run_id)
            stored = None if state is None else state.step(i).due_ms
            if armed is not None and stored is not None and abs(armed - stored) >= JUMP_MS:
                due_ms = armed
        return AttemptAccepted(step=i, attempt=attempt, due_ms=due_ms)

    def measures(self, run_id: str, i: int, attempt: int) -> bool:
        """Whether this attempt is in progress and its time is not up."""
        callback = self._services.timers.callback((run_id, i))
        return isinstance(callback, AttemptTime) and callback.attempt == attempt

    def measured(self, state: RunState) -> list[int]:
        """The steps of a run that is loaded again whose attempts, which remote jobs have taken, are
        measured already: the clock may have been set, which nobody has noticed yet.
        """
        return [
            i
            for i in bits(state.masks.running)
            if state.step(i).accepted and self.measures(state.id, i, state.step(i).attempt)
        ]

    def not_stored(self, state: RunState) -> list[MoveTimeout]:
        """What a run that is loaded again has not stored of what it was told of its attempts."""
        found: list[MoveTimeout] = []
        for i in self.measured(state):
            step, due_ms = state.step(i), self._services.timers.due_ms((state.id, i)) or 0
            if abs(due_ms - (step.due_ms or 0)) >= JUMP_MS:
                found.append(MoveTimeout(step=i, attempt=step.attempt, due_ms=due_ms))
        return found

    def _callback(self, attempt: int) -> AttemptTime:
        found = self._callbacks.get(attempt)
        if found is None:
            if len(self._callbacks) >= KEPT_CALLBACKS:
                self._callbacks.clear()
            found = self._callbacks[attempt] = AttemptTime(attempt, self._is_up)
        return found

    def _fired(self, key: TimerKey) -> None:
        run_id, i = key
        self._services.directory.notify(run_id, TimerFired(step=None if i == RUN_TIMER else i))

    def _is_up(self, key: TimerKey, time: AttemptTime) -> None:
        """The time of an attempt is armed when it is dispatched: what holds it back after that must
        not burn it.
        """
        services, (run_id, i) = self._services, key
        later_ms = services.executors.times_out_ms(run_id, i, time.attempt)
        if later_ms is not None:
            left_ms = later_ms - services.clock.now_ms()
            if left_ms > 0:
                services.timers.set(key, later_ms, time, left_ms)
                return
        self._to_tell.pop(key, None)
        services.directory.notify(run_id, TimerFired(step=i, attempt=time.attempt))

    # --- the wall clock is set --------------------------------------------------------------------

    def _moved(self, _: int, moved: Moved[TimerKey]) -> None:
        for key, callback, due_ms in moved:
            if isinstance(callback, AttemptTime):
                self._to_tell[key] = (callback.attempt, due_ms)
        if self._telling is None and self._to_tell:
            self._telling = asyncio.get_running_loop().call_soon(self._tell_some)

    def _tell_some(self) -> None:
        for key in list(self._to_tell)[:TOLD_AT_ONCE]:
            attempt, due_ms = self._to_tell.pop(key)
            command = MoveTimeout(step=key[1], attempt=attempt, due_ms=due_ms)
            self._services.directory.notify(key[0], command)
        self._telling = None
        if self._to_tell:
            loop = asyncio.get_running_loop()
            self._telling = loop.call_later(TELL_PAUSE_SECS, self._tell_some)
