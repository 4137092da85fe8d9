"""A run while it is being moved: the mutable working copy behind `evolve` and `step`.

`apply` is the whole of evolve: it checks that an event fits the state (an event that does not is
a bug, `IllegalEventError`), changes what the event changes, and keeps the derived masks right.
`emit` applies an event and records it. `freeze` gives the new immutable state back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from pilotage.runtime.effects import Effect
from pilotage.runtime.errors import IllegalEventError
from pilotage.runtime.events import (
    Event,
    ParentAttemptChanged,
    RunCreated,
    RunEnded,
    RunHeldChanged,
    RunPaused,
    RunPinned,
    RunReopened,
    RunResumed,
    RunStarted,
    SlotDeclined,
    SlotRequested,
    StepAccepted,
    StepCanceled,
    StepCompleted,
    StepFailed,
    StepHeld,
    StepParked,
    StepReset,
    StepRetryScheduled,
    StepSkipped,
    StepStarted,
    StepTimeoutMoved,
    StepUnready,
)
from pilotage.runtime.state import CHUNK, Masks, RunState, RunVitals, StepState, satisfies
from pilotage.runtime.status import ACTIVE_RUN, RunStatus, SkippedBy, StepStatus, WaitingFor

_W, _P, _R = StepStatus.WAITING, StepStatus.PENDING, StepStatus.RUNNING


class Draft:
    """Working copy of one run for one transition.

    ready, want   steps that became startable in this transition (condition open / condition met)
    newly_*       steps whose consequences are not settled yet
    before        first state of every step changed here, by index
    reported      the step whose own result caused this transition: nobody has to stop it
    fired         the step whose timer caused this transition: that timer is spent
    timed_out     the step whose attempt has used up its time
    """

    __slots__ = (
        "actor", "before", "blocking", "cache", "chunks", "copied", "effects", "events", "fired",
        "fresh", "graph", "head", "held", "newly_blocking", "newly_satisfied",
        "newly_unsatisfied", "now", "open", "output_bytes", "ready", "reported", "requested",
        "running", "satisfied", "timed_out", "vitals", "want",
    )  # fmt: skip

    def __init__(self, state: RunState, now: int = 0, actor: str = "system") -> None:
        masks = state.masks
        self.head = state.head
        self.graph = state.graph
        self.vitals = state.vitals
        self.chunks = state.chunks
        self.copied: dict[int, list[StepState]] = {}
        self.satisfied = masks.satisfied
        self.open = masks.open
        self.running = masks.running
        self.fresh = masks.fresh
        self.held = masks.held
        self.requested = masks.requested
        self.blocking = masks.blocking
        self.output_bytes = masks.output_bytes
        self.ready = 0
        self.want = 0
        self.newly_satisfied: list[int] = []
        self.newly_unsatisfied: list[int] = []
        self.newly_blocking: list[int] = []
        self.before: dict[int, StepState] = {}
        self.events: list[Event] = []
        self.effects: list[Effect] = []
        self.cache: dict[Any, Any] = {}
        self.reported: int | None = None
        self.fired: int | None = None
        self.timed_out: int | None = None
        self.now = now
        self.actor = actor

    # --- reading ---------------------------------------------------------------------------

    @property
    def status(self) -> RunStatus:
        return self.vitals.status

    def step(self, i: int) -> StepState:
        chunk = self.copied.get(i // CHUNK)
        return chunk[i % CHUNK] if chunk is not None else self.chunks[i // CHUNK][i % CHUNK]

    def first(self, i: int) -> StepState:
        """Step i as it was before this transition."""
        return self.before.get(i) or self.step(i)

    # --- writing ---------------------------------------------------------------------------

    def emit(self, event: Event) -> None:
        """Apply an event and record it."""
        _APPLY[type(event)](self, event)
        self.events.append(event)

    def apply(self, event: Event) -> None:
        _APPLY[type(event)](self, event)

    def put(self, i: int, new: StepState) -> None:
        """Replace step i and keep every derived mask right."""
        old = self.step(i)
        chunk = self.copied.get(i // CHUNK)
        if chunk is None:
            chunk = self.copied[i // CHUNK] = list(self.chunks[i // CHUNK])
        chunk[i % CHUNK] = new
        self.before.setdefault(i, old)
        bit = 1 << i
        self._take_out(i, bit, old)
        self._put_in(i, bit, new)
        if old.output is not None:
            self.output_bytes -= len(old.output)
        if new.output is not None:
            self.output_bytes += len(new.output)

    def _take_out(self, i: int, bit: int, old: StepState) -> None:
        if self.ready & bit:
            self.ready ^= bit
        if self.want & bit:
            self.want ^= bit
        status = old.status
        if status is _R:
            self.running ^= bit
        elif status is _P:
            self.fresh &= ~bit
            self.held &= ~bit
            self.requested &= ~bit
        elif status is not _W:
            self.open |= bit
            if self.satisfied & bit:
                self.satisfied ^= bit
                self.newly_unsatisfied.append(i)
            self.blocking &= ~bit

    def _put_in(self, i: int, bit: int, new: StepState) -> None:
        status = new.status
        if status is _R:
            self.running |= bit
        elif status is _P:
            if new.checked and not self.graph.parking & bit:
                self.held |= bit
            else:
                self.fresh |= bit
            if new.wait is WaitingFor.JOB_LIMIT:
                self.requested |= bit
        elif status is not _W:
            self.open &= ~bit
            if satisfies(self.graph, i, new):
                self.satisfied |= bit
                self.newly_satisfied.append(i)
            else:
                self.blocking |= bit
                self.newly_blocking.append(i)

    def freeze(self) -> RunState:
        """The new state; the sequence has risen by one if anything happened."""
        chunks = self.chunks
        if self.copied:
            spine = list(chunks)
            for c, chunk in self.copied.items():
                spine[c] = tuple(chunk)
            chunks = tuple(spine)
        masks = Masks(
            satisfied=self.satisfied, open=self.open, running=self.running, fresh=self.fresh,
            held=self.held, requested=self.requested, blocking=self.blocking,
            output_bytes=self.output_bytes,
        )  # fmt: skip
        return RunState(
            head=self.head, graph=self.graph, vitals=self.vitals, chunks=chunks, masks=masks
        )

    def set_vitals(self, **changes: Any) -> None:
        self.vitals = msgspec.structs.replace(self.vitals, **changes)

    # --- checks ------------------------------------------------------------------------------

    def expect_run(self, event: Event, *allowed: RunStatus) -> None:
        if self.vitals.status not in allowed:
            raise IllegalEventError(f"{event!r} does not fit a run that is {self.vitals.status}")

    def expect_step(self, event: Event, i: int, *allowed: StepStatus) -> StepState:
        step = self.step(i)
        if step.status not in allowed:
            raise IllegalEventError(f"{event!r} does not fit a step that is {step.status}")
        return step


# --- one function per event ------------------------------------------------------------------


def _created(d: Draft, e: RunCreated) -> None:
    d.expect_run(e, RunStatus.PENDING)
    for i, step in e.carried:
        d.put(i, step)
    d.vitals = RunVitals(
        expires_at_ms=e.expires_at_ms,
        queued_at_ms=max(e.at_ms, e.head.delay_until_ms or 0),
        held=e.held,
        parent_attempt=e.parent_attempt,
    )


def _started(d: Draft, e: RunStarted) -> None:
    d.expect_run(e, RunStatus.PENDING)
    d.set_vitals(
        status=RunStatus.RUNNING, held=False, started_at_ms=d.vitals.started_at_ms or e.at_ms
    )


def _held_changed(d: Draft, e: RunHeldChanged) -> None:
    d.expect_run(e, RunStatus.PENDING)
    d.set_vitals(held=e.held)


def _paused(d: Draft, e: RunPaused) -> None:
    d.expect_run(e, RunStatus.RUNNING)
    d.set_vitals(status=RunStatus.PAUSED)


def _resumed(d: Draft, e: RunResumed) -> None:
    d.expect_run(e, RunStatus.PAUSED)
    d.set_vitals(status=RunStatus.RUNNING)


def _ended(d: Draft, e: RunEnded) -> None:
    d.expect_run(e, *ACTIVE_RUN)
    if d.open or not e.status.is_terminal:
        raise IllegalEventError(f"{e!r} leaves steps open or names no end")
    d.set_vitals(status=e.status, error=e.error, finished_at_ms=e.at_ms, held=False)


def _reopened(d: Draft, e: RunReopened) -> None:
    if not d.vitals.status.is_terminal:
        raise IllegalEventError(f"{e!r} does not fit a run that is {d.vitals.status}")
    started = d.vitals.started_at_ms
    if started is None and e.status is RunStatus.RUNNING:
        started = e.at_ms
    d.set_vitals(
        status=e.status,
        error=None,
        finished_at_ms=None,
        started_at_ms=started,
        expires_at_ms=e.expires_at_ms,
        queued_at_ms=e.at_ms,
        parent_attempt=e.parent_attempt,
    )


def _parent_attempt(d: Draft, e: ParentAttemptChanged) -> None:
    d.set_vitals(parent_attempt=e.parent_attempt)


def _pinned(d: Draft, e: RunPinned) -> None:
    d.set_vitals(pinned=e.pinned)


def _step_held(d: Draft, e: StepHeld) -> None:
    old = d.expect_step(e, e.step, _W, _P)
    d.put(
        e.step,
        StepState(
            status=_P,
            attempt=old.attempt,
            budget_start=old.budget_start,
            error=old.error,
            started_at_ms=old.started_at_ms,
            checked=e.checked or old.checked,
            child_run_id=old.child_run_id,
            ready_since_ms=old.ready_since_ms or e.at_ms,
        ),
    )


def _unready(d: Draft, e: StepUnready) -> None:
    old = d.expect_step(e, e.step, _P, _W)
    d.put(
        e.step,
        msgspec.structs.replace(old, status=_W, wait=None, due_ms=None, ready_since_ms=None),
    )


def _slot_requested(d: Draft, e: SlotRequested) -> None:
    old = d.expect_step(e, e.step, _W, _P)
    since = old.ready_since_ms or e.at_ms
    d.put(
        e.step,
        msgspec.structs.replace(
            old,
            status=_P,
            wait=WaitingFor.JOB_LIMIT,
            due_ms=None,
            checked=True,
            ready_since_ms=since,
        ),
    )


def _slot_declined(d: Draft, e: SlotDeclined) -> None:
    old = d.expect_step(e, e.step, _P)
    d.put(e.step, msgspec.structs.replace(old, wait=None))


def _step_started(d: Draft, e: StepStarted) -> None:
    old = d.expect_step(e, e.step, _W, _P)
    _expect_next_attempt(e, old, e.attempt)
    d.put(
        e.step,
        StepState(
            status=_R,
            attempt=e.attempt,
            budget_start=old.budget_start,
            started_at_ms=old.started_at_ms or e.at_ms,
            due_ms=e.due_ms,
            checked=True,
            child_run_id=e.child_run_id,
        ),
    )


def _expect_next_attempt(event: Event, old: StepState, attempt: int) -> None:
    if attempt != old.attempt + 1:
        raise IllegalEventError(f"{event!r} does not follow attempt {old.attempt}")


def _accepted(d: Draft, e: StepAccepted) -> None:
    old = d.expect_step(e, e.step, _R)
    d.put(e.step, msgspec.structs.replace(old, accepted=True, due_ms=e.due_ms or old.due_ms))


def _timeout_moved(d: Draft, e: StepTimeoutMoved) -> None:
    old = d.expect_step(e, e.step, _R)
    d.put(e.step, msgspec.structs.replace(old, due_ms=e.due_ms))


def _parked(d: Draft, e: StepParked) -> None:
    old = d.expect_step(e, e.step, _W, _P)
    _expect_next_attempt(e, old, e.attempt)
    d.put(
        e.step,
        StepState(
            status=_W,
            wait=e.wait,
            attempt=e.attempt,
            budget_start=old.budget_start,
            started_at_ms=old.started_at_ms or e.at_ms,
            due_ms=e.due_ms,
            checked=True,
            event_key=e.event_key,
        ),
    )


def _retry_scheduled(d: Draft, e: StepRetryScheduled) -> None:
    old = d.expect_step(e, e.step, _R)
    d.put(
        e.step,
        StepState(
            status=_W,
            wait=WaitingFor.RETRY,
            attempt=old.attempt,
            budget_start=old.budget_start,
            error=e.error,
            started_at_ms=old.started_at_ms,
            due_ms=e.due_ms,
            checked=True,
            child_run_id=old.child_run_id,
        ),
    )


def _completed(d: Draft, e: StepCompleted) -> None:
    old = d.expect_step(e, e.step, _W, _P, _R, StepStatus.FAILED)
    d.put(
        e.step,
        StepState(
            status=StepStatus.COMPLETED,
            attempt=old.attempt,
            budget_start=old.budget_start,
            output=e.output,
            started_at_ms=old.started_at_ms,
            finished_at_ms=e.at_ms,
            checked=True,
            child_run_id=old.child_run_id,
            event_key=old.event_key,
            resolution=e.resolution,
        ),
    )


def _failed(d: Draft, e: StepFailed) -> None:
    old = d.expect_step(e, e.step, _W, _P, _R)
    d.put(
        e.step,
        StepState(
            status=StepStatus.FAILED,
            attempt=old.attempt,
            budget_start=old.budget_start,
            error=e.error,
            started_at_ms=old.started_at_ms,
            finished_at_ms=e.at_ms,
            checked=True,
            child_run_id=old.child_run_id,
            event_key=old.event_key,
            resolution=e.resolution,
        ),
    )


def _skipped(d: Draft, e: StepSkipped) -> None:
    old = d.expect_step(e, e.step, _W, _P, _R, StepStatus.FAILED)
    d.put(
        e.step,
        StepState(
            status=StepStatus.SKIPPED,
            attempt=old.attempt,
            budget_start=old.budget_start,
            error=e.reason if e.by is SkippedBy.OPERATOR else None,
            started_at_ms=old.started_at_ms,
            finished_at_ms=e.at_ms,
            skipped_by=e.by,
            child_run_id=old.child_run_id,
        ),
    )


def _canceled(d: Draft, e: StepCanceled) -> None:
    old = d.expect_step(e, e.step, _W, _P, _R)
    d.put(
        e.step,
        StepState(
            status=StepStatus.CANCELED,
            attempt=old.attempt,
            budget_start=old.budget_start,
            error=old.error,
            started_at_ms=old.started_at_ms,
            finished_at_ms=e.at_ms,
            child_run_id=None if e.unstarted else old.child_run_id,
        ),
    )


def _reset(d: Draft, e: StepReset) -> None:
    old = d.step(e.step)
    d.put(
        e.step,
        StepState(
            attempt=old.attempt,
            budget_start=old.attempt,
            checked=e.checked,
            child_run_id=old.child_run_id if e.keep_child else None,
        ),
    )


_APPLY: dict[type[Event], Callable[[Draft, Any], None]] = {
    RunCreated: _created,
    RunStarted: _started,
    RunHeldChanged: _held_changed,
    RunPaused: _paused,
    RunResumed: _resumed,
    RunEnded: _ended,
    RunReopened: _reopened,
    ParentAttemptChanged: _parent_attempt,
    RunPinned: _pinned,
    StepHeld: _step_held,
    StepUnready: _unready,
    SlotRequested: _slot_requested,
    SlotDeclined: _slot_declined,
    StepStarted: _step_started,
    StepAccepted: _accepted,
    StepTimeoutMoved: _timeout_moved,
    StepParked: _parked,
    StepRetryScheduled: _retry_scheduled,
    StepCompleted: _completed,
    StepFailed: _failed,
    StepSkipped: _skipped,
    StepCanceled: _canceled,
    StepReset: _reset,
}
