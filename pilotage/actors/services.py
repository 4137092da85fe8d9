"""What the run actors share: one instance each, put together by `pilotage.actors.runtime`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from pilotage.actors.admission import Admission
from pilotage.actors.event_hub import EventHub
from pilotage.actors.executors.port import Executor
from pilotage.actors.kernel import Clock, LoopDispatcher, Timers
from pilotage.actors.messages import Answer
from pilotage.actors.writer import Writer
from pilotage.runtime.commands import Command
from pilotage.runtime.effects import StartChild
from pilotage.runtime.state import RunState
from pilotage.runtime.status import RunStatus

if TYPE_CHECKING:
    from pilotage.actors.heartbeats import Heartbeats
    from pilotage.actors.run_timers import RunTimers

TimerKey = tuple[str, int]
"""(run id, step index), step -1 for the run's own timer."""
RUN_TIMER = -1


class Directory(Protocol):
    """How a run reaches other runs, and leaves memory."""

    async def command(self, run_id: str, command: Command) -> Answer: ...

    def notify(self, run_id: str, message: object) -> None: ...


class Services:
    """`start_child` creates a child run if it is absent. `count` adds one to a named counter.
    `confirm_owner` raises `UnavailableError` if the store is not this process's any more.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        dispatcher: LoopDispatcher,
        timers: Timers[TimerKey],
        writer: Writer,
        admission: Admission,
        executors: Executor,
        retention_secs: Mapping[RunStatus, int],
        count: Callable[[str], None],
    ) -> None:
        self.clock = clock
        self.dispatcher = dispatcher
        self.timers = timers
        self.writer = writer
        self.admission = admission
        self.executors = executors
        self.retention_secs = retention_secs
        self.count = count
        # the rest refers back to the directory and is set when that exists
        self.directory: Directory
        self.hub: EventHub
        self.heartbeats: Heartbeats
        self.confirm_owner: Callable[[], Awaitable[None]]
        self.fence: Callable[[], int]
        self.start_child: Callable[[RunState, StartChild], Awaitable[None]]
        self.run_timers: RunTimers
