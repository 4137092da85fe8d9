"""Planted bugs, one of each kind: what the simulation must find to be worth anything.

Each is a patch of the product, applied by a test while seeds are played and taken back afterwards.
The product has no switch for any of them. The name says what is broken.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from typing import Any

import msgspec

from pilotage.actors import gateway, outside, recover, run_actor, run_write
from pilotage.actors.admission import Admission
from pilotage.actors.catalog_model import Workflow
from pilotage.actors.event_hub import EventHub
from pilotage.actors.executors.dispatch import Executors
from pilotage.actors.executors.port import Attempt
from pilotage.actors.idempotency import Idempotency
from pilotage.actors.kernel import Timers
from pilotage.actors.messages import Answer
from pilotage.actors.outside import Outside
from pilotage.actors.run_actor import RunActor
from pilotage.actors.runtime import Runtime
from pilotage.actors.supervisor import Supervisor
from pilotage.persistence.memory import MemoryStore
from pilotage.persistence.port import Verdict
from pilotage.runtime import decide_report, machine, recovery
from pilotage.runtime.draft import Draft
from pilotage.runtime.effects import (
    CancelTimer,
    Effect,
    ParkEvent,
    ReleaseSlot,
    ScheduleTimer,
    StartAttempt,
    TellChild,
)
from pilotage.runtime.insight_reasons import Note, Reasons
from pilotage.runtime.status import StepStatus

Patch = tuple[object, str, object]
MUTANTS: dict[str, Callable[[], list[Patch]]] = {}
"""Name -> what to put in which place."""


def nothing(*_: object) -> None:
    """Instead of what should be done."""


def mutant(make: Callable[[], list[Patch]]) -> Callable[[], list[Patch]]:
    MUTANTS[make.__name__] = make
    return make


@contextmanager
def planted(name: str) -> Generator[None]:
    patches = MUTANTS[name]()
    kept: list[Patch] = []
    for place, attribute, value in patches:
        raw = vars(place)[attribute]  # a static method as such
        kept.append((place, attribute, raw))
        setattr(place, attribute, value)
    try:
        yield
    finally:
        for place, attribute, raw in reversed(kept):
            setattr(place, attribute, raw)


# --- what is stored, and when ------------------------------------------------------------------


@mutant
def effect_before_write() -> list[Patch]:
    """Attempts are dispatched when the write is sent."""
    original: Any = RunActor.collect

    def collect(self: RunActor) -> Any:
        write, batch = original(self), self._in_flight
        if batch is not None:
            before, self.published = self.published, self._working
            starts = [e for e in batch.effects if isinstance(e, StartAttempt)]
            batch.effects = [e for e in batch.effects if not isinstance(e, StartAttempt)]
            self._outside.do_all(starts, {})
            self.published = before
        return write

    return [(RunActor, "collect", collect)]


@mutant
def answer_before_write() -> list[Patch]:
    """The caller hears of success when the write is sent."""
    original: Any = RunActor.collect

    def collect(self: RunActor) -> Any:
        write, batch = original(self), self._in_flight
        if batch is not None:
            for reply, result in batch.replies:
                reply.answer(Answer(result=result, state=self._working))
        return write

    return [(RunActor, "collect", collect)]


@mutant
def missing_fence_check() -> list[Patch]:
    """The store takes the writes of an owner that was superseded."""
    original: Any = MemoryStore._verdict

    def verdict(server: Any, write: Any, fence: int) -> Verdict | None:
        found: Verdict | None = original(server, write, server.fence)
        return found

    return [(MemoryStore, "_verdict", staticmethod(verdict))]


@mutant
def superseded_owner_goes_on() -> list[Patch]:
    """A process that has lost its fence stays up."""
    return [(Runtime, "_lost_fence", nothing)]


@mutant
def step_left_out_of_a_write() -> list[Patch]:
    """Of three or more steps that a batch changed the last one is not written."""
    original: Any = run_write.Batch.add

    def add(self: run_write.Batch, before: Any, transition: Any) -> None:
        original(self, before, transition)
        if len(self.changed) > 2:
            self.changed.discard(max(self.changed))

    return [(run_write.Batch, "add", add)]


@mutant
def history_not_written() -> list[Patch]:
    """The end of a run does not come into its history."""
    original: Any = run_write.Batch.add

    def add(self: run_write.Batch, before: Any, transition: Any) -> None:
        original(self, before, transition)
        if transition.state.status.is_terminal and not before.status.is_terminal:
            self.history.pop()

    return [(run_write.Batch, "add", add)]


@mutant
def idempotency_key_not_stored() -> list[Patch]:
    """A repeat makes another run."""
    original: Any = Idempotency.record

    def record(self: Idempotency, **rest: Any) -> Any:
        return msgspec.structs.replace(original(self, **rest), key="elsewhere")

    return [(Idempotency, "record", record)]


# --- the machine ---------------------------------------------------------------------------------


@mutant
def counter_not_derived() -> list[Patch]:
    """Satisfied dependencies are only ever added up, also when one is reset."""
    original: Any = Draft._take_out

    def take_out(self: Draft, i: int, bit: int, old: Any) -> None:
        before = self.satisfied
        original(self, i, bit, old)
        self.satisfied = before

    return [(Draft, "_take_out", take_out)]


@mutant
def late_result_accepted() -> list[Patch]:
    """The result of an older attempt ends the present one."""
    original: Any = decide_report._late

    def late(d: Draft, i: int, attempt: int) -> Any:
        if d.step(i).status is StepStatus.RUNNING and d.step(i).child_run_id is None:
            return None
        return original(d, i, attempt)

    return [(decide_report, "_late", late)]


@mutant
def slot_not_released() -> list[Patch]:
    """A step that times out keeps the slot of its job."""
    original: Any = machine._effects

    def effects(d: Draft, state: Any) -> tuple[Effect, ...]:
        found: tuple[Effect, ...] = original(d, state)
        if d.timed_out is None:
            return found
        return tuple(e for e in found if not isinstance(e, ReleaseSlot))

    return [(machine, "_effects", effects)]


@mutant
def children_not_told() -> list[Patch]:
    """A child run is not canceled with its parent's step."""
    original: Any = machine._taken_back

    def taken_back(d: Draft, i: int, before: Any, after: Any, out: list[Effect]) -> None:
        original(d, i, before, after, out)
        out[:] = [e for e in out if not (isinstance(e, TellChild) and e.what == "cancel")]

    return [(machine, "_taken_back", taken_back)]


# --- recovery ------------------------------------------------------------------------------------


def _recovering(change: Callable[[Effect], Iterable[Effect]]) -> list[Patch]:
    original: Any = recovery.recovery_effects

    def effects(state: Any, now: int) -> list[Effect]:
        return [new for effect in original(state, now) for new in change(effect)]

    return [(run_actor, "recovery_effects", effects)]


@mutant
def lost_timer() -> list[Patch]:
    """After a crash sleeping steps are not woken."""
    return _recovering(lambda e: () if isinstance(e, ScheduleTimer) else (e,))


@mutant
def attempt_not_dispatched_again() -> list[Patch]:
    """After a crash attempts that were in progress run into their timeout."""
    return _recovering(lambda e: () if isinstance(e, StartAttempt) else (e,))


@mutant
def double_dispatch() -> list[Patch]:
    """An attempt is dispatched, and once more under the next number."""
    original: Any = Executors.start

    def start(self: Executors, attempt: Attempt, report: Any) -> None:
        original(self, attempt, report)
        original(self, msgspec.structs.replace(attempt, attempt=attempt.attempt + 1), report)

    return [(Executors, "start", start)]


@mutant
def subscription_lost() -> list[Patch]:
    """After a crash steps that wait for an event are not parked."""
    return [
        (recover, "note_subscriptions", nothing),
        *_recovering(lambda e: () if isinstance(e, ParkEvent) else (e,)),
    ]


@mutant
def open_before_recovery() -> list[Patch]:
    """Events are taken while runs are still being recovered."""

    async def wait_open(self: Supervisor) -> None:
        del self

    return [(Supervisor, "wait_open", wait_open)]


@mutant
def outbox_not_sent_again() -> list[Patch]:
    """After a crash messages to other runs stay in the store."""
    return [(Outside, "deliver_all", nothing)]


@mutant
def slots_forgotten_in_recovery() -> list[Patch]:
    """After a crash the slots of attempts in progress count as free."""
    return [
        (Admission, "hold_job_slot", nothing),
        (Admission, "hold_run_slot", nothing),
    ]


# --- at run time ---------------------------------------------------------------------------------


@mutant
def timer_not_canceled() -> list[Patch]:
    """Timers of what is over stay armed."""
    changed: dict[type[Effect], Any] = dict(Outside._AT_ONCE)
    changed[CancelTimer] = nothing
    return [(Outside, "_AT_ONCE", changed)]


@mutant
def durations_by_the_wall_clock() -> list[Patch]:
    """The time of an attempt is up when the wall clock says so, though it was set."""

    def move(*_: object) -> list[object]:
        return []

    return [(Timers, "_move", move)]


@mutant
def queue_not_moved_on() -> list[Patch]:
    """A run that ends passes its workflow's slot on to nobody."""

    def release(self: Admission, workflow_id: str, run_id: str) -> None:
        pool = self._runs.get(workflow_id)
        if pool is not None:
            pool.holders.pop(run_id, None)
            pool.leave_queue(run_id)

    return [(Admission, "release_run", release)]


@mutant
def early_event_left_behind() -> list[Patch]:
    """A step that parks does not look for an event that came before."""

    async def take_early(*_: object) -> None: ...

    return [(EventHub, "take_early", take_early)]


@mutant
def delivery_given_up() -> list[Patch]:
    """What cannot be delivered to another run at once is not tried again, and acknowledged."""

    async def insist(self: Outside, effect: Effect, message_id: str | None, *, again: bool) -> None:
        with suppress(*outside._NOT_NOW):
            await self._deliver(effect, message_id, again=again)

    return [(Outside, "_insist", insist)]


# --- what is told of it --------------------------------------------------------------------------


@mutant
def place_not_explained() -> list[Patch]:
    """Nobody is told where a run or a step stands in its queue."""

    def nobody(*_: object) -> dict[int | None, Note]:
        return {}

    return [(gateway, "notes_about", nobody)]


@mutant
def wrong_time_explained() -> list[Patch]:
    """What waits for its timer is said to wait a second longer."""
    original: Any = Reasons.of

    def of(self: Reasons, *given: Any) -> Any:
        found = original(self, *given)
        late_ms = None if found.until_ms is None else found.until_ms + 1000
        return msgspec.structs.replace(found, until_ms=late_ms)

    return [(Reasons, "of", of)]


@mutant
def new_limit_not_told() -> list[Patch]:
    """A workflow has more slots, and those who wait for one do not get them."""

    def changed(self: Runtime, workflow: Workflow) -> None:
        self.cron.watch(workflow)

    return [(Runtime, "_workflow_changed", changed)]
