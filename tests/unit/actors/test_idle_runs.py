"""Which runs may leave memory: only those that nothing here works for, and that wait for long."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pilotage.actors.attempt_records import AttemptRecords
from pilotage.actors.idle_runs import Folded, IdleRuns, waits_long
from tests.support.run_story import Run, approval, event, job, sleep, sub

SECS = 600
LONG_MS = SECS * 1000

RUNS: dict[str, tuple[Callable[[], Run], bool]] = {
    "a person": (lambda: Run(approval("a")), True),
    "an event": (lambda: Run(event("e")), True),
    "a child": (lambda: Run(sub("s")), True),
    "a far time": (lambda: Run(sleep("s", secs=2 * SECS)), True),
    "a near time": (lambda: Run(sleep("s", secs=SECS / 2)), False),
    "a person, with little time": (lambda: Run(approval("a", approval_timeout_secs=5.0)), False),
    "the deadline of the run": (lambda: Run(approval("a"), timeout_secs=5.0), False),
    "an attempt in progress here": (lambda: Run(job("j"), approval("a")), False),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_leaves_memory_only_if_it_waits_for_long(name: str) -> None:
    make, may_go = RUNS[name]
    run = make()
    folded = Folded(run.state, 0.0, None)
    assert waits_long(folded, run.now + LONG_MS, run.now) is may_go


def test_a_run_whose_attempt_sends_heartbeats_stays() -> None:
    class Beating(AttemptRecords):
        @property
        def heartbeats(self) -> bool:
            return True

    run = Run(approval("a"))
    assert not waits_long(Folded(run.state, 0.0, Beating()), run.now + LONG_MS, run.now)


class Clock:
    """As the look wants it."""

    def __init__(self, now_ms: int) -> None:
        self._start, self.secs = now_ms, 0.0

    def monotonic(self) -> float:
        return self.secs

    def now_ms(self) -> int:
        return self._start + round(self.secs * 1000)


async def test_a_run_that_may_not_leave_yet_is_looked_at_again_and_stays_known() -> None:
    """Wherever it is, it is never out of sight: folded, or noted as away."""
    run = Run(sleep("s", secs=SECS * 2))
    idle, clock, run_id = IdleRuns(), Clock(run.now), run.state.id
    idle.passivate_after_secs = SECS * 1.5
    idle._fold(run.state, None, 0.0)  # pyright: ignore[reportPrivateUsage]
    for secs in (SECS, SECS * 1.6, SECS * 3.2, SECS * 10):
        clock.secs = secs
        await idle.put_aside({}, clock)
        assert (idle.state(run_id) is not None) is (run_id not in idle.away)
        assert idle.ageing is (run_id not in idle.away)
    assert idle.state(run_id) is not None, "its time is up: what fires it must find it here"
