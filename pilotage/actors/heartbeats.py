"""Heartbeats of remote attempts: from the first one on, missing them fails the attempt.

That a job has announced heartbeats stands in the record of its attempt, so that it is remembered
across restarts; when the next one is due is a timer that measures a duration: whoever sets the
clock, forward or back, neither fails an attempt nor gives it more time.
"""

from __future__ import annotations

from collections.abc import Callable

from pilotage.actors.kernel import Clock, Timers
from pilotage.actors.services import Directory, TimerKey
from pilotage.runtime.commands import AttemptFailed
from pilotage.runtime.state import RunState
from pilotage.runtime.status import StepStatus


class Heartbeats:
    """`published` gives the state of a run in memory. On the actors' loop."""

    def __init__(
        self,
        *,
        directory: Directory,
        published: Callable[[str], RunState | None],
        clock: Clock,
        timers: Timers[TimerKey],
    ) -> None:
        self._directory = directory
        self._published = published
        self._clock = clock
        self._timers = timers

    def expected(self, run_id: str, step: int, attempt: int) -> bool:
        """Whether the attempt is known to send them."""
        return _key(run_id, step, attempt) in self._timers

    def expect(self, run_id: str, step: int, attempt: int, secs: float) -> None:
        """The attempt has failed, retryable, if the next one does not come within `secs`."""

        def missed(_: TimerKey) -> None:
            state = self._published(run_id)
            if state is None or not in_progress(state, step, attempt):
                return  # it ended otherwise
            self._directory.notify(
                run_id,
                AttemptFailed(
                    step=step,
                    attempt=attempt,
                    error=f"no heartbeat for {secs:g} s",
                    error_class="heartbeat_timeout",
                ),
            )

        left_ms = round(secs * 1000)
        due_ms = self._clock.now_ms() + left_ms
        self._timers.set(_key(run_id, step, attempt), due_ms, missed, left_ms)

    def forget(self, run_id: str, step: int, attempt: int) -> None:
        """The attempt is over."""
        self._timers.cancel(_key(run_id, step, attempt))


def in_progress(state: RunState, step: int, attempt: int) -> bool:
    now = state.step(step)
    return now.status is StepStatus.RUNNING and now.attempt == attempt


def _key(run_id: str, step: int, attempt: int) -> TimerKey:
    return (f"heartbeat {run_id} {attempt}", step)
