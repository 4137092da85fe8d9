"""A simulated outside for one run: it does what the effects say and reports what happens.

Everything it keeps mirrors what the real outside would hold: attempts in progress, armed timers,
job slots and grants under way, subscriptions, child runs, the run's place in the queue. The
invariants compare it with the run's state after every transition.
"""

from __future__ import annotations

from collections.abc import Callable

from pilotage.runtime.commands import (
    AttemptCompleted,
    AttemptFailed,
    ChildEnded,
    Command,
    CreateRun,
    EventReceived,
    SlotGranted,
    TimerFired,
)
from pilotage.runtime.effects import (
    CancelTimer,
    Effect,
    EmitEvent,
    ParkEvent,
    QueueRun,
    ReleaseRunSlot,
    ReleaseSlot,
    RequestSlot,
    ScheduleTimer,
    StartAttempt,
    StartChild,
    StopAttempt,
    TellChild,
    TellParent,
    UnparkEvent,
)
from pilotage.runtime.events import RunReopened, RunStarted
from pilotage.runtime.graph import StepGraph
from pilotage.runtime.machine import Transition, blank_run, step
from pilotage.runtime.rules import Rejection
from pilotage.runtime.state import RunState
from pilotage.runtime.status import RunStatus


class Child:
    """A child run as its parent knows it."""

    def __init__(self, step: int, attempt: int) -> None:
        self.step = step
        self.attempt = attempt
        self.active = True
        self.paused = False


class World:
    """`state` and everything outside of it. `log` is the story so far, for failures.

    `job_slots`: how many steps may hold a slot of a limited job at a time.
    """

    job_slots = 2

    def __init__(self, graph: StepGraph, create: CreateRun, now: int) -> None:
        self.now = now
        self.state: RunState = blank_run(create.head, graph)
        self.attempts: set[tuple[int, int]] = set()
        self.past_attempts: set[tuple[int, int]] = set()
        self.timers: dict[int | None, int] = {}
        self.measured: dict[int | None, int | None] = {}  # the attempt that each bounds
        self.requests: dict[int, int] = {}
        self.holders: set[int] = set()
        self.grants: list[SlotGranted] = []
        self.parked: dict[int, tuple[int, str]] = {}
        self.children: dict[str, Child] = {}
        self.reports: list[ChildEnded] = []
        self.queued = False
        self.slot = False
        self.told_parent: list[TellParent] = []
        self.emitted: list[EmitEvent] = []
        self.log: list[str] = []
        self.checks: list[Callable[[World, RunState, Command, Transition], None]] = []

    # --- commands ------------------------------------------------------------------------------

    def give(self, command: Command) -> Transition | Rejection:
        """Time goes on a little, the run decides, the outside does what follows."""
        self.now += 1
        before = self.state
        result = step(before, command, self.now)
        self.log.append(f"{self.now}: {command} -> {_short(result)}")
        if isinstance(result, Rejection):
            return result
        self.state = result.state
        self.slot = self.slot or any(
            isinstance(e, RunReopened) and e.status is RunStatus.RUNNING for e in result.events
        )
        self._note_report(command)
        for effect in result.effects:
            getattr(self, _DO[type(effect)])(effect)
        if before.status is RunStatus.PENDING and any(type(e) is RunStarted for e in result.events):
            self.queued, self.slot = False, not self.state.status.is_terminal
        self._grant()
        for check in self.checks:
            check(self, before, command, result)
        return result

    def fired(self, key: int | None) -> TimerFired:
        """What the timer that is armed now tells the run."""
        return TimerFired(step=key, attempt=self.measured[key])

    def _note_report(self, command: Command) -> None:
        if isinstance(command, AttemptCompleted | AttemptFailed):
            self.attempts.discard((command.step, command.attempt))
        elif isinstance(command, EventReceived):
            found = self.parked.get(command.step)
            if found is not None and found[0] == command.attempt:
                self.parked.pop(command.step)

    # --- effects -------------------------------------------------------------------------------

    def _start(self, effect: StartAttempt) -> None:
        key = (effect.step, effect.attempt)
        assert key not in self.past_attempts, f"attempt {key} is started twice"
        self.past_attempts.add(key)
        self.attempts.add(key)

    def _stop(self, effect: StopAttempt) -> None:
        key = (effect.step, effect.attempt)
        if effect.reported:
            return  # of use after a crash only, when there are two orders for it
        assert key in self.attempts, f"attempt {key} is stopped but not in progress"
        self.attempts.discard(key)

    def _request(self, effect: RequestSlot) -> None:
        assert effect.step not in self.holders, f"step {effect.step} asks while it holds a slot"
        self.requests.setdefault(effect.step, effect.since_ms)

    def _release(self, effect: ReleaseSlot) -> None:
        self.holders.discard(effect.step)
        self.requests.pop(effect.step, None)

    def _grant(self) -> None:
        while self.requests and len(self.holders) < self.job_slots:
            i = min(self.requests, key=lambda k: (self.requests[k], k))
            self.grants.append(SlotGranted(step=i, since_ms=self.requests.pop(i)))
            self.holders.add(i)

    def _schedule(self, effect: ScheduleTimer) -> None:
        self.timers[effect.step] = effect.due_ms
        self.measured[effect.step] = effect.attempt

    def _cancel_timer(self, effect: CancelTimer) -> None:
        self.timers.pop(effect.step, None)

    def _park(self, effect: ParkEvent) -> None:
        assert effect.step not in self.parked, f"step {effect.step} is parked twice"
        self.parked[effect.step] = (effect.attempt, effect.event_key)

    def _unpark(self, effect: UnparkEvent) -> None:
        found = self.parked.pop(effect.step, None)
        assert found is None or found[1] == effect.event_key, "another key is withdrawn"

    def _start_child(self, effect: StartChild) -> None:
        assert effect.child_run_id not in self.children, "a child's id is used twice"
        self.children[effect.child_run_id] = Child(effect.step, effect.attempt)

    def _tell_child(self, effect: TellChild) -> None:
        child = self.children[effect.child_run_id]
        if effect.what == "cancel":
            if child.active:
                self.end_child(effect.child_run_id, RunStatus.CANCELED)
        elif effect.what == "reopen":
            assert effect.parent_attempt > child.attempt
            child.attempt = effect.parent_attempt
            child.active = True
        elif child.active:
            child.paused = effect.what == "pause"

    def end_child(self, child_run_id: str, status: RunStatus) -> None:
        child = self.children[child_run_id]
        child.active = child.paused = False
        done = status is RunStatus.COMPLETED
        self.reports.append(
            ChildEnded(
                step=child.step,
                attempt=child.attempt,
                child_run_id=child_run_id,
                status=status,
                output=b'{"v": 1}' if done else None,
                error=None if done else "broken",
            )
        )

    def _queue(self, _: QueueRun) -> None:
        self.queued = True

    def _release_run(self, _: ReleaseRunSlot) -> None:
        self.slot = self.queued = False

    def _tell_parent(self, effect: TellParent) -> None:
        self.told_parent.append(effect)

    def _emit(self, effect: EmitEvent) -> None:
        self.emitted.append(effect)


def _short(result: Transition | Rejection) -> str:
    if isinstance(result, Rejection):
        return result.message
    names = [f"{type(e).__name__}{getattr(e, 'step', '')}" for e in result.events]
    names += [f"+{type(e).__name__}{getattr(e, 'step', '')}" for e in result.effects]
    return " ".join(names) or str(result.reply)


_DO: dict[type[Effect], str] = {
    StartAttempt: "_start",
    StopAttempt: "_stop",
    RequestSlot: "_request",
    ReleaseSlot: "_release",
    ReleaseRunSlot: "_release_run",
    QueueRun: "_queue",
    ScheduleTimer: "_schedule",
    CancelTimer: "_cancel_timer",
    StartChild: "_start_child",
    ParkEvent: "_park",
    UnparkEvent: "_unpark",
    TellChild: "_tell_child",
    TellParent: "_tell_parent",
    EmitEvent: "_emit",
}
"""The method that does an effect; a family of runs overrides some."""
