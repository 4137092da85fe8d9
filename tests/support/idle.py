"""Runs put aside by a test instead of by the time that passes."""

from __future__ import annotations

from collections.abc import Iterable

from pilotage.actors.supervisor import Supervisor
from pilotage.runtime.commands import TimerFired
from tests.support.waiting import wait_until

AT_ONCE = 0.000_001


async def fold(supervisor: Supervisor, *runs: str) -> None:
    """They lose their actors and stay in memory."""

    async def folded() -> bool:
        await supervisor.put_aside()
        return all(supervisor.idle.state(run) is not None for run in runs)

    await wait_until(folded, "they are folded")


async def passivate(supervisor: Supervisor, *runs: str, staying: Iterable[str] = ()) -> None:
    """They leave memory: all that was folded is taken for old enough. Runs that are idle go with
    them, but for those that are `staying`: they keep their actors.
    """
    idle = supervisor.idle
    before, idle.passivate_after_secs = idle.passivate_after_secs, AT_ONCE

    async def left() -> bool:
        for run in staying:
            actor = supervisor._entries[run].actor
            assert actor is not None
            actor.moved = True
        await supervisor.put_aside()
        return all(run in idle.away for run in runs)

    try:
        for run in runs:  # it is folded again, now with an age
            await supervisor.ask(run, TimerFired(step=None))
        await wait_until(left, "they have left memory")
    finally:
        idle.passivate_after_secs = before
    assert all(supervisor.published(run) is None for run in runs)
