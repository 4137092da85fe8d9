"""The run actor: one per active run. It owns the run's state and moves it by messages.

A command is decided at once (`pilotage.runtime.machine.step`) on the working state and joins the
present batch; the writer takes the batch as one write. From then until the store has answered the
actor takes no message. Only when the write is durable does it answer, publish the new state to
readers, and let the effects happen. A refused write ends the actor: its memory is not the truth.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable
from types import TracebackType
from typing import Any, ClassVar

import msgspec

from pilotage.actors.attempt_records import AttemptRecords
from pilotage.actors.errors import UnavailableError
from pilotage.actors.job_runs import JobRunRecord
from pilotage.actors.kernel import DeferredReply, LoopActor, LoopDispatcher
from pilotage.actors.loading import Records
from pilotage.actors.messages import (
    AlreadyExistsError,
    Answer,
    AttemptNote,
    Delivered,
    DryRun,
    Granted,
    MakeRecord,
    Outcome,
    Release,
    Remember,
    Resume,
)
from pilotage.actors.outside import Outside
from pilotage.actors.run_write import Batch, run_write, touched
from pilotage.actors.services import Services
from pilotage.persistence.port import FencedError, RunWrite, StoreError, Verdict
from pilotage.runtime.commands import (
    AdmitRun,
    Command,
    CreateRun,
    ForceCompleteStep,
    ReopenChild,
    ReplaySubtree,
    RetryStep,
    SkipStep,
    SlotGranted,
)
from pilotage.runtime.effects import Effect, ScheduleTimer, StartAttempt
from pilotage.runtime.machine import Transition, step
from pilotage.runtime.recovery import (
    attempts_in_progress,
    moved_timeouts,
    recovery_effects,
    undeliverable,
)
from pilotage.runtime.replies import Done, Late, Reply, SlotTaken
from pilotage.runtime.rules import Rejection
from pilotage.runtime.state import RunState
from pilotage.runtime.status import RunStatus, StepStatus

logger = logging.getLogger(__name__)
TOO_MANY_KEYS = "the project has remembered as many idempotency keys as it may; they last a day"

REOPENING = (SkipStep, ForceCompleteStep, RetryStep, ReplaySubtree, ReopenChild)
"""Commands that may take a terminal run back to work: they need a slot of the workflow."""


class RunActor(LoopActor):
    """`stored` False: the run is about to be created and `state` is blank.

    `published` is the state readers see: the newest the store has acknowledged.
    """

    __slots__ = (
        "_acknowledged", "_batch", "_dead", "_held_back", "_in_flight", "_outbox", "_outside",
        "_postponed", "_records", "_services", "_working", "moved", "published", "releasing",
    )  # fmt: skip

    mailbox_capacity = 30_000  # each of 10,000 steps may report, time out and be granted at once

    def __init__(
        self,
        dispatcher: LoopDispatcher,
        urn: str,
        services: Services,
        state: RunState,
        *,
        stored: bool,
    ) -> None:
        super().__init__(dispatcher, urn)
        self._services = services
        self._working = state
        self.published: RunState | None = state if stored else None
        self.moved = True  # since somebody last looked
        self._batch: Batch | None = None
        self._in_flight: Batch | None = None
        self._dead = False
        self.releasing = False
        # None while there is nothing: most runs are idle, and an empty dict or list is 60 bytes
        self._outbox: dict[str, Effect] | None = None
        self._acknowledged: list[str] | None = None
        self._postponed: list[tuple[Remember, DeferredReply]] | None = None
        self._held_back: dict[int, int] | None = None
        self._records = AttemptRecords()
        self._outside = Outside(services, self)

    # --- messages ----------------------------------------------------------------------------

    def on_receive(self, message: object) -> Any:
        if isinstance(message, Command):
            return self._command(message)
        receive = self._RECEIVE.get(type(message))
        if receive is None:
            raise TypeError(f"a run is not told {type(message).__name__}")
        return receive(self, message)

    def _now(self) -> int:
        return self._services.clock.now_ms()

    def _remember(self, message: Remember) -> Answer | None:
        if self._batch is not None and self._batch.remember is not None:
            if self._postponed is None:
                self._postponed = []
            self._postponed.append((message, self.defer_reply()))  # one record a write
            return None
        return self._command(message.command, message.record)

    def _command(
        self,
        command: Command,
        remember: MakeRecord | None = None,
        reply: DeferredReply | None = None,
    ) -> Answer | None:
        """`reply`: who is answered, if that is not the sender of the present message."""
        if isinstance(command, AdmitRun) and not self._is_admitted:
            return self._answer(Done(changed=False), reply)
        before = self._working
        command, took_slot = self._with_slot(command)
        result = step(before, command, self._now())
        after = before if isinstance(result, Rejection) else result.state
        if took_slot and after.status.is_terminal:
            self._services.admission.release_run(after.head.workflow_id, after.id)
        if isinstance(result, Rejection):
            return self._answer(result, reply)
        if isinstance(result.reply, Late):
            self._services.count("pilotage_late_results_total")
        if not result.events and remember is None:
            self._do(result.effects)
            return self._answer(result.reply, reply)
        batch = self._dirty()
        reply = reply or self._asker()
        if result.events:
            batch.add(before, result)
            self._working = result.state
            self._keep_records(batch, result)
        else:
            self._working = touched(before)
            batch.effects.extend(result.effects)
        if remember is not None:
            batch.remember, batch.remembering = remember, reply
        if reply is not None:
            batch.replies.append((reply, result.reply))
        return None

    def _asker(self) -> DeferredReply | None:
        """Who is answered once it is stored; nobody, if the present message was told."""
        envelope = self.cell.current
        return None if envelope is None or envelope.reply_to is None else self.defer_reply()

    def _answer(self, result: Reply | Rejection, reply: DeferredReply | None) -> Answer | None:
        """Answer now, or with the batch that the result may rest on."""
        if self._batch is None and self.published is not None:
            answer = Answer(result=result, state=self.published)
            if reply is None:
                return answer
            reply.answer(answer)
        elif (reply := reply or self._asker()) is not None:
            self._dirty().replies.append((reply, result))
        return None

    def _dirty(self) -> Batch:
        """The present batch; the writer is told about a new one."""
        if self._batch is None:
            self._batch = Batch()
            self._services.writer.submit(self)
        return self._batch

    def _do(self, effects: Iterable[Effect]) -> None:
        """Effects of a transition that changed nothing: now, or with the batch before them."""
        if self._dead:
            return
        if self._batch is not None:
            self._batch.effects.extend(effects)
        else:
            self._outside.do_all(effects, {})

    def _keep_records(self, batch: Batch, result: Transition) -> None:
        self._records.follow(result.events, batch.job_runs)
        for effect in result.effects:
            if isinstance(effect, StartAttempt):
                record = self._records.begin(effect, self._now())
                batch.job_runs[effect.step, effect.attempt] = record

    def _dry_run(self, message: DryRun) -> Outcome:
        command, _ = self._with_slot(message.command, dry=True)
        return step(self._working, command, self._now())

    def _granted(self, message: Granted) -> Answer | None:
        """Only a slot that is still the step's own is taken: not one that went back and may be
        somebody else's by now, nor one that goes back when the present batch is stored.
        """
        i, admission = message.step, self._services.admission
        if (self._batch is not None and self._batch.gives_back(i)) or not admission.holds_job_slot(
            message.job, self.actor_urn, i, message.passed
        ):
            return self._answer(SlotTaken(taken=False), None)
        answer = self._command(SlotGranted(step=i, since_ms=message.passed.since_ms))
        if self._held_back:
            self._let_go(self._held_back, i)
        return answer

    def _note(self, message: AttemptNote) -> None:
        changed: dict[tuple[int, int], JobRunRecord] = {}
        kept = self._records.note(message.step, message.attempt, message.note, self._now(), changed)
        if kept:
            batch = self._dirty()
            batch.job_runs.update(changed)
            if (reply := self._asker()) is not None:
                batch.replies.append((reply, Done()))
            self._working = touched(self._working)

    def _delivered(self, message: Delivered) -> None:
        """At once: a message that stays in the store is sent again after a restart, when it may
        no longer be meant.
        """
        if self._outbox is not None and self._outbox.pop(message.message_id, None) is not None:
            self._outbox = self._outbox or None
            if self._acknowledged is None:
                self._acknowledged = []
            self._acknowledged.append(message.message_id)
            self._dirty()
            self._working = touched(self._working)

    def _release(self, message: Release) -> None:
        """At once: behind other mail the stop might meet a run that was reopened. Who asks is
        answered with ActorDeadError and asks again, of a new actor; what else may wait is late.
        """
        del message
        self.releasing = False
        if self._is_done():
            self._stop()

    # --- slots of the workflow -----------------------------------------------------------------

    @property
    def status(self) -> RunStatus:
        return self._working.status

    @property
    def _is_admitted(self) -> bool:
        """Whether the slot it is told of is still its own: one that was passed on to it before it
        ended went back with its end, and if it was reopened it has its turn to come.
        """
        head = self._working.head
        return head.slotless or self._services.admission.holds_run_slot(head.workflow_id, head.id)

    def _with_slot(self, command: Command, *, dry: bool = False) -> tuple[Command, bool]:
        """A command that starts or may reopen the run is told whether a slot is free; and whether
        one was taken for it, which goes back if the run does not run.
        """
        head, admission = self._working.head, self._services.admission
        if head.slotless:
            return command, False
        if isinstance(command, CreateRun):
            if command.held or head.delay_until_ms is not None:
                return msgspec.structs.replace(command, slot=False), False
        elif not (isinstance(command, REOPENING) and self.status.is_terminal):
            return command, False
        had = admission.holds_run_slot(head.workflow_id, head.id)
        if dry:
            free = had or admission.run_slot_free(head.workflow_id)
        else:
            free = admission.take_run_slot(head.workflow_id, head.id)
        return msgspec.structs.replace(command, slot=free), free and not had and not dry

    # --- writing -------------------------------------------------------------------------------

    def collect(self) -> RunWrite | None:
        """Called by the writer: the batch goes out, and no message is taken until it is stored."""
        batch = self._batch
        if self._dead or batch is None:
            return None
        self._in_flight, self._batch = batch, None
        self.pause()
        return run_write(
            stored=self.published,
            state=self._working,
            batch=batch,
            outbox_done=self._acknowledged or [],
            keep_secs=self._services.retention_secs.get(self.status, 0),
        )

    def stored(self, verdict: Verdict) -> None:
        """Called by the writer with the store's answer."""
        batch = self._in_flight
        if self._dead or batch is None:
            return
        self._in_flight = None
        if verdict is not Verdict.OK:
            self._refused(batch, verdict)
            return
        self.published = self._working
        self.moved = True
        self._acknowledged = None
        if batch.outbox:
            self.restore_outbox(batch.outbox)
        self._outside.do_all(batch.effects, batch.outbox)
        if batch.forgotten and batch.remembering is not None:
            batch.remembering.fail(UnavailableError(f"it was done, but {TOO_MANY_KEYS}", 60))
        for reply, result in batch.replies:
            reply.answer(Answer(result=result, state=self._working))
        self.resume()
        self._take_postponed()
        if self._is_done():
            self._services.directory.notify(self.actor_urn, Release())

    def _take_postponed(self) -> None:
        while self._postponed and (self._batch is None or self._batch.remember is None):
            message, reply = self._postponed.pop(0)
            self._command(message.command, message.record, reply)
        self._postponed = self._postponed or None

    def failed(self, error: Exception) -> None:
        """Called by the writer: this run's write cannot be made or taken."""
        if not self._dead:
            self.actor_ref.kill(error)

    def no_room(self, error: Exception) -> None:
        """Called by the writer: the store has no room for a run that was to be made."""
        batch, self._in_flight = self._in_flight, None
        if not self._dead and batch is not None:
            self._end(batch, UnavailableError(f"the run could not be stored: {error}", 10))

    def _refused(self, batch: Batch, verdict: Verdict) -> None:
        if verdict is Verdict.EXISTS:
            self._end(batch, AlreadyExistsError(self.actor_urn))
        elif verdict is Verdict.FENCED:
            self._end(batch, FencedError("a newer owner has taken over; no run is moved here"))
        elif verdict is Verdict.FULL and self.published is None:
            self._end(batch, UnavailableError(TOO_MANY_KEYS, 60))
        elif verdict is Verdict.FULL:
            self._write_without_record(batch)
        else:  # askers get ActorDeadError and ask again, of the actor that starts from the store
            self.actor_ref.kill(StoreError(f"the store has another version of {self.actor_urn}"))

    def _end(self, batch: Batch, error: Exception) -> None:
        """Nothing of this run is to be done here, and nothing is wrong with it."""
        self._leave()
        for reply, _ in batch.replies:
            reply.fail(error)
        self.cell.close()

    def _write_without_record(self, batch: Batch) -> None:
        """Other transitions of the run must not suffer from a project's idempotency keys."""
        batch.remember = None
        batch.forgotten = True
        self._batch = batch
        self._services.writer.submit(self)

    def _is_done(self) -> bool:
        """Nothing is left that this actor would have to do."""
        return (
            self.published is not None
            and self.status.is_terminal
            and self._batch is None
            and self._in_flight is None
            and not self._outbox
            and self._outside.idle
        )

    # --- after a restart -------------------------------------------------------------------------

    def restore_outbox(self, outbox: dict[str, Effect]) -> None:
        if outbox and self._outbox is None:
            self._outbox = {}
        if self._outbox is not None:
            self._outbox.update(outbox)

    @property
    def at_rest(self) -> bool:
        """Whether this actor could be made again of what it has published and of its `records`."""
        return (
            self.published is self._working
            and not self.status.is_terminal
            and self._batch is None
            and self._in_flight is None
            and not self._outbox
            and not self._postponed
            and not self._holds_back
            and self._outside.at_rest
        )

    @property
    def records(self) -> AttemptRecords:
        """Those of the attempts in progress; set before the actor is launched."""
        return self._records

    @records.setter
    def records(self, records: AttemptRecords) -> None:
        self._records = records

    def take_up(self, records: Records) -> list[StartAttempt]:
        """Go on with the stored records of the attempts in progress, which are these."""
        attempts = attempts_in_progress(self._working)
        for attempt in attempts:
            kept = records.get((attempt.step, attempt.attempt))
            self._records.begin(attempt, self._now(), kept)
        return attempts

    def _resume(self, message: Resume) -> None:
        if self._dead:
            return
        state = self._working
        held_back = self._outside.hold_slots(state, others_go=message.again)
        self._held_back = held_back or None
        for attempt in self.take_up(message.records):
            kept = message.records.get((attempt.step, attempt.attempt))
            secs = None if kept is None else kept.heartbeat_secs
            if secs is not None and state.step(attempt.step).accepted:
                # one that is dispatched again announces them again
                self._services.heartbeats.expect(state.id, attempt.step, attempt.attempt, secs)
        moved = self._services.run_timers.not_stored(state)
        left = {*held_back, *self._services.run_timers.measured(state)}
        self._do(e for e in recovery_effects(state, self._now()) if not _of_step(e, left))
        self._outside.deliver_all(self._outbox or {})
        for told in (*undeliverable(state), *moved_timeouts(state, self._now()), *moved):
            self._command(told)
        if self._is_done():
            self._release(Release())

    @property
    def _holds_back(self) -> bool:
        """Whether an attempt waits for a slot that it had before: only this actor knows that."""
        held_back = self._held_back or {}
        return any(self._is_in_progress(i, attempt) for i, attempt in held_back.items())

    def _is_in_progress(self, i: int, attempt: int) -> bool:
        step = self._working.step(i)
        return step.status is StepStatus.RUNNING and step.attempt == attempt

    def _let_go(self, held_back: dict[int, int], i: int) -> None:
        """The attempt that was held back has its slot again, if it was not given up meanwhile."""
        attempt = held_back.pop(i, None)
        if attempt is not None and self._is_in_progress(i, attempt):
            effects = recovery_effects(self._working, self._now())
            self._do([e for e in effects if _of_step(e, (i,))])

    # --- the end ---------------------------------------------------------------------------------

    def abandon(self) -> None:
        """The process ends or has lost its runs: nothing goes out any more."""
        self._dead = True
        self._outside.close()

    def _leave(self) -> None:
        self.abandon()
        head, stored = self._working.head, self.published
        if not head.slotless and (stored is None or stored.status.is_terminal):
            self._services.admission.release_run(head.workflow_id, head.id)

    def on_stop(self) -> None:
        self.abandon()

    def on_failure(
        self,
        exception_type: type[BaseException] | None,
        exception_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        del exception_type, exception_value, traceback  # logged with the actor
        logger.error("run %s: its actor failed", self.actor_urn)
        self._leave()

    _RECEIVE: ClassVar[dict[type[Any], Callable[[RunActor, Any], Any]]] = {
        Remember: _remember,
        Delivered: _delivered,
        AttemptNote: _note,
        DryRun: _dry_run,
        Granted: _granted,
        Resume: _resume,
        Release: _release,
    }


def _of_step(effect: Effect, steps: Container[int | None]) -> bool:
    """Whether it starts or times an attempt of one of these steps."""
    return isinstance(effect, StartAttempt | ScheduleTimer) and effect.step in steps
