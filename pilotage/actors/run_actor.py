"""The run actor: one per active run. It owns the run's state and moves it by messages.

A command is decided at once (`pilotage.runtime.machine.step`) on the working state and joins the
present batch; the writer takes the batch as one write. From then until the store has answered the
actor takes no message. Only when the write is durable does it answer, publish the new state to
readers, and let the effects happen. A refused write ends the actor: its memory is not the truth.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from pilotage.actors.attempt_records import AttemptRecords
from pilotage.actors.kernel import LoopActor, LoopDispatcher
from pilotage.actors.messages import (
    AlreadyExistsError,
    Answer,
    AttemptNote,
    Delivered,
    DryRun,
    Release,
    Remember,
    Resume,
)
from pilotage.actors.outside import Outside
from pilotage.actors.run_write import Batch, run_write, touched
from pilotage.actors.services import Services
from pilotage.persistence.port import FencedError, IdempotencyRecord, RunWrite, StoreError, Verdict
from pilotage.runtime.commands import (
    Command,
    ForceCompleteStep,
    ReopenChild,
    ReplaySubtree,
    RetryStep,
    SkipStep,
)
from pilotage.runtime.effects import Effect, StartAttempt
from pilotage.runtime.machine import Transition, step
from pilotage.runtime.recovery import attempts_in_progress, recovery_effects
from pilotage.runtime.replies import Late, Reply
from pilotage.runtime.rules import Rejection
from pilotage.runtime.state import RunState
from pilotage.runtime.status import RunStatus

logger = logging.getLogger(__name__)

REOPENING = (SkipStep, ForceCompleteStep, RetryStep, ReplaySubtree, ReopenChild)
"""Commands that may take a terminal run back to work: they need a slot of the workflow."""
MAX_UNSAVED_ACKNOWLEDGEMENTS = 64


class RunActor(LoopActor):
    """`stored` None: the run is about to be created and `state` is blank.

    `published` is the state readers see: the newest the store has acknowledged.
    """

    mailbox_capacity = 1_000

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
        self._batch: Batch | None = None
        self._in_flight: Batch | None = None
        self._outbox: dict[str, Effect] = {}
        self._acknowledged: list[str] = []
        self._sending: list[str] = []
        self._records = AttemptRecords()
        self._outside = Outside(services, self)

    # --- messages ----------------------------------------------------------------------------

    def on_receive(self, message: Any) -> Any:
        if isinstance(message, Command):
            return self._command(message, None)
        if isinstance(message, Remember):
            return self._command(message.command, message.record)
        if isinstance(message, Delivered):
            return self._delivered(message)
        if isinstance(message, AttemptNote):
            return self._note(message)
        if isinstance(message, DryRun):
            command, _ = self._with_slot(message.command, dry=True)
            return step(self._working, command, self._now())
        if isinstance(message, Resume):
            return self._resume()
        if isinstance(message, Release):
            if self._is_done():
                self.stop()
            return None
        raise TypeError(f"a run is not told {type(message).__name__}")

    def _now(self) -> int:
        return self._services.clock.now_ms()

    def _command(self, command: Command, record: IdempotencyRecord | None) -> Answer | None:
        before = self._working
        command, took_slot = self._with_slot(command)
        result = step(before, command, self._now())
        after = before if isinstance(result, Rejection) else result.state
        if took_slot and after.status.is_terminal:
            self._services.admission.release_run(after.head.workflow_id, after.id)
        if isinstance(result, Rejection):
            return self._answer(result)
        if not result.events and record is None:
            if isinstance(result.reply, Late):
                self._services.count("pilotage_late_results_total")
            self._do(result.effects)
            return self._answer(result.reply)
        batch = self._dirty()
        if result.events:
            batch.add(before, result)
            self._working = result.state
            self._keep_records(batch, result)
        else:
            self._working = touched(before)
        batch.idempotency = record or batch.idempotency
        batch.replies.append((self.defer_reply(), result.reply))
        return None

    def _answer(self, result: Reply | Rejection) -> Answer | None:
        """Answer now, or with the batch that the result may rest on."""
        if self._batch is None and self.published is not None:
            return Answer(result=result, state=self.published)
        self._dirty().replies.append((self.defer_reply(), result))
        return None

    def _dirty(self) -> Batch:
        """The present batch; the writer is told about a new one."""
        if self._batch is None:
            self._batch = Batch()
            self._services.writer.submit(self)
        return self._batch

    def _do(self, effects: tuple[Effect, ...]) -> None:
        """Effects of a transition that changed nothing: now, or with the batch before them."""
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

    def _note(self, message: AttemptNote) -> None:
        changed: dict[tuple[int, int], Any] = {}
        kept = self._records.note(message.step, message.attempt, message.note, self._now(), changed)
        if kept:
            self._dirty().job_runs.update(changed)
            self._working = touched(self._working)

    def _delivered(self, message: Delivered) -> None:
        if self._outbox.pop(message.message_id, None) is None:
            return
        self._acknowledged.append(message.message_id)
        if self.status.is_terminal or len(self._acknowledged) >= MAX_UNSAVED_ACKNOWLEDGEMENTS:
            self._dirty()
            self._working = touched(self._working)

    # --- slots of the workflow -----------------------------------------------------------------

    @property
    def status(self) -> RunStatus:
        return self._working.status

    def _with_slot(self, command: Command, *, dry: bool = False) -> tuple[Command, bool]:
        """A command that may reopen the run is told whether a slot is free; and whether one was
        taken for it, which goes back if the run is not reopened.
        """
        head = self._working.head
        if not (isinstance(command, REOPENING) and self.status.is_terminal) or head.slotless:
            return command, False
        admission = self._services.admission
        if dry:
            free = admission.run_slot_free(head.workflow_id)
        else:
            free = admission.take_run_slot(head.workflow_id, head.id)
        return msgspec.structs.replace(command, slot=free), free and not dry

    # --- writing -------------------------------------------------------------------------------

    def collect(self) -> RunWrite:
        """Called by the writer: the batch goes out, and no message is taken until it is stored."""
        batch = self._batch
        assert batch is not None  # only a dirty run is submitted
        self._in_flight, self._batch = batch, None
        self._sending, self._acknowledged = self._acknowledged, []
        self.pause()
        return run_write(
            stored=self.published,
            state=self._working,
            batch=batch,
            outbox_done=self._sending,
            keep_secs=self._services.retention_secs.get(self.status, 0),
        )

    def stored(self, verdict: Verdict) -> None:
        """Called by the writer with the store's answer."""
        batch = self._in_flight
        assert batch is not None  # answers come for what was collected
        self._in_flight = None
        if verdict is not Verdict.OK:
            self._refused(batch, verdict)
            return
        self.published = self._working
        self._sending = []
        self._outbox.update(batch.outbox)
        self._outside.do_all(batch.effects, batch.outbox)
        for reply, result in batch.replies:
            reply.answer(Answer(result=result, state=self._working))
        self.resume()
        if self._is_done():
            self._services.directory.notify(self.actor_urn, Release())

    def _refused(self, batch: Batch, verdict: Verdict) -> None:
        error: Exception
        if verdict is Verdict.EXISTS:
            error = AlreadyExistsError(self.actor_urn)
        elif verdict is Verdict.FENCED:
            error = FencedError("a newer owner has taken over; this process moves no run any more")
        elif verdict is Verdict.FULL:
            error = StoreError("the project has remembered as many idempotency keys as it may")
        else:
            error = StoreError(f"the store has another version of run {self.actor_urn}")
        for reply, _ in batch.replies:
            reply.fail(error)
        self.actor_ref.kill(error)

    def _is_done(self) -> bool:
        """Nothing is left that this actor would have to do."""
        return (
            self.published is not None
            and self.status.is_terminal
            and self._batch is None
            and self._in_flight is None
            and not self._outbox
        )

    # --- after a restart -------------------------------------------------------------------------

    def restore_outbox(self, outbox: dict[str, Effect]) -> None:
        self._outbox.update(outbox)

    def _resume(self) -> None:
        effects = recovery_effects(self._working, self._now())
        for attempt in attempts_in_progress(self._working):
            self._records.begin(attempt, self._now())
        self._outside.do_all(effects, {})
        self._outside.deliver_all(self._outbox)
        if self._is_done():
            self.stop()

    def on_stop(self) -> None:
        self._outside.close()

    def on_failure(self, *_: object) -> None:
        logger.error("run %s: its actor failed and is started again", self.actor_urn)
        self._outside.close()
