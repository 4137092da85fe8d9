"""What a run does to the world: its effects, after the state that demands them is stored.

Timers, slots, subscriptions and attempts are handed on at once. What goes to other runs (creating
children, messages of the outbox) is done in order by one task a run, again and again until it is
acknowledged; the store keeps the messages until then.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import ref

from pykka import ActorDeadError

from pilotage.actors.errors import ApplicationError, NotFoundError, UnavailableError
from pilotage.actors.executors.port import (
    Accepted,
    Attempt,
    Completed,
    Failed,
    Logged,
    Progressed,
    Report,
    Reporter,
)
from pilotage.actors.kernel import MailboxFullError
from pilotage.actors.messages import AttemptNote, Delivered, QuarantinedError, Release
from pilotage.actors.services import RUN_TIMER, Services
from pilotage.persistence.port import StoreError
from pilotage.runtime.backoff import policy_of
from pilotage.runtime.commands import (
    AdmitRun,
    AttemptCompleted,
    AttemptFailed,
    CancelRun,
    ChildEnded,
    Command,
    HoldRun,
    ReopenChild,
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
from pilotage.runtime.errors import TemplateError
from pilotage.runtime.ids import job_run_id
from pilotage.runtime.recovery import start_of_child
from pilotage.runtime.state import RunState, delay_ms
from pilotage.runtime.status import RunStatus, StepStatus, StepType, WaitingFor
from pilotage.runtime.tracing import traceparent

if TYPE_CHECKING:
    from pilotage.actors.run_actor import RunActor

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECS = 0.1
MAX_PAUSE_SECS = 30.0
NEXT_MS_SECS = 0.002
ADMIT = AdmitRun()
RELEASE = Release()
_NOT_NOW = (
    UnavailableError,
    QuarantinedError,  # it may be released
    StoreError,
    ActorDeadError,
    MailboxFullError,
    TimeoutError,
)


class Outside:
    """The effects of one run. Everything on the loop; `close` when its actor ends."""

    __slots__ = ("_actor", "_queue", "_services", "_task")

    def __init__(self, services: Services, actor: RunActor) -> None:
        self._services = services
        self._actor = ref(actor)  # which owns this: the other way round neither would be freed
        self._queue: deque[tuple[str | None, Effect, bool]] | None = None  # most runs never need it
        self._task: asyncio.Task[None] | None = None

    def close(self) -> None:
        """What was not delivered is in the store, and is delivered after the next start."""
        if self._task is not None:
            self._task.cancel()

    @property
    def idle(self) -> bool:
        """Whether nothing is on its way to others."""
        return not self._queue

    @property
    def at_rest(self) -> bool:
        """Whether nothing here would be missed."""
        return not self._queue and (self._task is None or self._task.done())

    def _owner(self) -> RunActor:
        actor = self._actor()
        assert actor is not None  # nobody else calls, and the task below keeps it
        return actor

    @property
    def _run_id(self) -> str:
        return self._owner().actor_urn

    @property
    def _state(self) -> RunState:
        state = self._owner().published
        assert state is not None  # effects come after the first stored state
        return state

    def do_all(self, effects: Iterable[Effect], outbox: Mapping[str, Effect]) -> None:
        """Do the effects in order; `outbox` names the messages among them."""
        ids = {id(message): key for key, message in outbox.items()} if outbox else {}
        for effect in effects:
            at_once = self._AT_ONCE.get(type(effect))
            if at_once is not None:
                at_once(self, effect)
            else:
                self._later(ids.get(id(effect)), effect)

    def deliver_all(self, outbox: Mapping[str, Effect]) -> None:
        """What the store has kept: whether it was delivered before nobody knows."""
        for message_id, message in sorted(outbox.items(), key=_in_order):
            self._later(message_id, message, again=True)

    def hold_slots(self, state: RunState, *, others_go: bool) -> dict[int, int]:
        """The slots that the state says are held; with `others_go` the run has no others, but for
        those that were passed on to it while it was away: what it asked for stands. An attempt
        whose slot others have by now (it was quarantined) queues for it first: step -> attempt of
        those. One that its server works on has its slot still, unless its time was up.
        """
        held_back: dict[int, int] = {}
        admission, head = self._services.admission, state.head
        if state.status in (RunStatus.RUNNING, RunStatus.PAUSED) and not head.slotless:
            admission.hold_run_slot(head.workflow_id, head.id)
        elif others_go and not _is_queued(state, self._services.clock.now_ms()):
            admission.release_run(head.workflow_id, head.id)
        for i in limited_steps(state):
            job = (head.project_id, state.graph.steps[i].job_id or "")
            if state.masks.running >> i & 1:
                step = state.step(i)
                if others_go and admission.lapsed(head.id, i):
                    self._services.directory.notify(head.id, _lapsed(i, step.attempt))
                elif not step.accepted and (
                    admission.wants_job_slot(job, head.id, i)
                    or (others_go and not admission.has_job_slot(job, head.id, i))
                ):
                    held_back[i] = step.attempt
                    since_ms = step.ready_since_ms or 0
                    admission.request_step(job, head.id, i, since_ms, again=True)
                else:
                    admission.hold_job_slot(job, head.id, i)
            elif others_go and not state.masks.requested >> i & 1:
                admission.release_step(job, head.id, i)
        return held_back

    # --- at once -----------------------------------------------------------------------------

    def _start_attempt(self, effect: StartAttempt) -> None:
        state, i = self._state, effect.step
        head, spec = state.head, state.graph.steps[i]
        run_id, step = head.id, state.step(i)
        if step.status is not StepStatus.RUNNING or step.attempt != effect.attempt:
            return  # taken back by a later transition of the same write
        name = job_run_id(run_id, i, effect.attempt)
        attempt = Attempt(
            project_id=head.project_id,
            run_id=run_id,
            step=i,
            step_ref=spec.step_ref,
            attempt=effect.attempt,
            job=effect.job,
            job_run_id=name,
            input=effect.input,
            timeout_secs=effect.timeout_secs,
            output_transform=spec.output_transform,
            traceparent=traceparent(run_id, head.trace, name),
        )
        self._services.executors.start(attempt, self._reporter(run_id, i, effect.attempt))

    def _reporter(self, run_id: str, step: int, attempt: int) -> Reporter:
        directory, run_timers = self._services.directory, self._services.run_timers

        def report(what: Report) -> None:
            if isinstance(what, Accepted):
                directory.notify(run_id, run_timers.accepted(run_id, step, attempt, what))
            else:
                directory.notify(run_id, _as_message(step, attempt, what))

        return report

    def _stop_attempt(self, effect: StopAttempt) -> None:
        executors, key = self._services.executors, (self._run_id, effect.step, effect.attempt)
        if not effect.reported or executors.why_held(*key) is not None:
            executors.stop(*key, effect.timed_out)

    def _request_slot(self, effect: RequestSlot) -> None:
        job = (self._state.head.project_id, effect.job)
        self._services.admission.request_step(
            job, self._run_id, effect.step, effect.since_ms, again=effect.again
        )

    def _release_slot(self, effect: ReleaseSlot) -> None:
        job = (self._state.head.project_id, effect.job)
        self._services.admission.release_step(job, self._run_id, effect.step)

    def _release_run_slot(self, _: ReleaseRunSlot) -> None:
        head = self._state.head
        if self._state.status.is_terminal:
            self._services.admission.release_run(head.workflow_id, head.id)

    def _queue_run(self, effect: QueueRun) -> None:
        head = self._state.head
        if self._state.status is not RunStatus.PENDING:
            return
        if head.slotless:
            if not effect.held:
                self._services.directory.notify(head.id, ADMIT)
        else:
            self._services.admission.queue_run(
                head.workflow_id, head.id, effect.since_ms, held=effect.held, again=effect.again
            )

    def _schedule_timer(self, effect: ScheduleTimer) -> None:
        self._services.run_timers.arm(self._run_id, effect)

    def _cancel_timer(self, effect: CancelTimer) -> None:
        step = RUN_TIMER if effect.step is None else effect.step
        self._services.timers.cancel((self._run_id, step))

    def _park(self, effect: ParkEvent) -> None:
        state, i = self._state, effect.step
        since_ms = state.step(i).started_at_ms or 0
        self._services.hub.park(
            state.head.project_id, effect.event_key, state.id, i, effect.attempt, since_ms
        )
        self._later(None, effect)

    def _unpark(self, effect: UnparkEvent) -> None:
        project = self._state.head.project_id
        self._services.hub.unpark(project, effect.event_key, self._run_id, effect.step)

    _AT_ONCE: ClassVar[dict[type[Effect], Callable[[Outside, Any], None]]] = {
        StartAttempt: _start_attempt,
        StopAttempt: _stop_attempt,
        RequestSlot: _request_slot,
        ReleaseSlot: _release_slot,
        ReleaseRunSlot: _release_run_slot,
        QueueRun: _queue_run,
        ScheduleTimer: _schedule_timer,
        CancelTimer: _cancel_timer,
        ParkEvent: _park,
        UnparkEvent: _unpark,
    }

    # --- in order, until acknowledged ------------------------------------------------------------

    def _later(self, message_id: str | None, effect: Effect, *, again: bool = False) -> None:
        if self._queue is None:
            self._queue = deque()
        self._queue.append((message_id, effect, again))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(
                self._work(self._owner()), name=f"outside {self._run_id}"
            )

    async def _work(self, actor: RunActor) -> None:
        """`actor`: kept until the work is done, or was stopped."""
        queue = self._queue
        while queue:
            message_id, effect, again = queue[0]
            await self._insist(effect, message_id, again=again)
            queue.popleft()
            if message_id is not None:
                self._services.directory.notify(self._run_id, Delivered(message_id=message_id))
        self._services.directory.notify(actor.actor_urn, RELEASE)

    async def _insist(self, effect: Effect, message_id: str | None, *, again: bool) -> None:
        """Do it, again and again while the receiver cannot take it. `again`: it may be done."""
        pause = FIRST_PAUSE_SECS
        while True:
            try:
                await self._deliver(effect, message_id, again=again)
            except _NOT_NOW as error:
                logger.debug("run %s: %s not delivered yet: %s", self._run_id, effect, error)
            except ApplicationError as error:
                logger.warning("run %s: %s is refused: %s", self._run_id, effect, error)
                return
            except Exception:
                logger.exception("run %s: %s could not be delivered", self._run_id, effect)
            else:
                return
            again = True
            await asyncio.sleep(pause)
            pause = min(pause * 2, MAX_PAUSE_SECS)

    async def _deliver(self, effect: Effect, message_id: str | None, *, again: bool) -> None:
        if isinstance(effect, StartChild):
            await self._start_child(effect)
        elif isinstance(effect, TellChild):
            await self._tell_child(effect)
        elif isinstance(effect, TellParent):
            await self._tell_parent(effect)
        elif isinstance(effect, ParkEvent):
            await self._take_early(effect)
        elif isinstance(effect, EmitEvent):
            await self._emit(effect, message_id, again=again)
        else:
            raise TypeError(f"no way to do {type(effect).__name__}")

    async def _take_early(self, effect: ParkEvent) -> None:
        state = self._state
        step = state.step(effect.step)
        if step.wait is WaitingFor.EVENT and step.attempt == effect.attempt:
            await self._services.hub.take_early(
                state.head.project_id, effect.event_key, state.id, effect.step, effect.attempt
            )

    async def _start_child(self, effect: StartChild) -> None:
        step = self._state.step(effect.step)
        if step.status is not StepStatus.RUNNING or step.child_run_id != effect.child_run_id:
            return  # it was taken back meanwhile
        try:
            await self._services.start_child(self._state, effect)
        except UnavailableError:
            raise
        except ApplicationError as error:
            self._child_refused(effect.step, effect.attempt, effect.child_run_id, error)

    def _child_refused(self, step: int, attempt: int, child_run_id: str, why: object) -> None:
        self._services.directory.notify(
            self._run_id,
            ChildEnded(
                step=step,
                attempt=attempt,
                child_run_id=child_run_id,
                status=RunStatus.FAILED,
                error=f"sub-workflow could not be started: {why}",
            ),
        )

    async def _tell_child(self, effect: TellChild) -> None:
        actor = f"parent run {self._run_id}"
        command: Command
        if effect.what == "cancel":
            command = CancelRun(actor=actor)
        elif effect.what == "reopen":
            command = ReopenChild(actor=actor, parent_attempt=effect.parent_attempt)
        else:
            command = HoldRun(actor=actor, held=effect.what == "pause")
        try:
            await self._services.directory.command(effect.child_run_id, command)
        except NotFoundError:
            if effect.what == "reopen":  # it never came to be, or was removed: make it now
                await self._make_child(effect)

    async def _make_child(self, effect: TellChild) -> None:
        now = self._services.clock.now_ms()
        try:
            start = start_of_child(self._state, effect.step, now)
        except TemplateError as error:
            self._child_refused(effect.step, effect.parent_attempt, effect.child_run_id, error)
        else:
            await self._start_child(start)

    async def _tell_parent(self, effect: TellParent) -> None:
        command = ChildEnded(
            step=effect.step,
            attempt=effect.attempt,
            child_run_id=self._run_id,
            status=effect.status,
            output=effect.output,
            error=effect.error,
        )
        await self._services.directory.command(effect.parent_run_id, command)

    async def _emit(self, effect: EmitEvent, message_id: str | None, *, again: bool) -> None:
        """The first time to all who wait; after that only to those who waited when it was sent:
        a step that parks once it has been delivered parks in a later millisecond.
        """
        if effect.at_ms == self._services.clock.now_ms():
            await asyncio.sleep(NEXT_MS_SECS)
        await self._services.hub.send(
            self._state.head.project_id,
            effect.event_key,
            effect.payload,
            event_id=f"{self._run_id}/{message_id}",
            actor=f"run {self._run_id}",
            buffer_secs=0,
            now_ms=self._services.clock.now_ms(),
            parked_by_ms=effect.at_ms if again else None,
        )


def _is_queued(state: RunState, now: int) -> bool:
    """Whether it has a place in its workflow's queue, or the slot it waited for."""
    waits = state.status is RunStatus.PENDING and not state.vitals.held
    return waits and delay_ms(state.head, state.vitals, now) is None


def limited_steps(state: RunState) -> list[int]:
    """The steps that need a slot of their job."""
    policies = state.head.policies
    if not any(policy.limited for policy in policies.values()):
        return []
    return [
        i
        for i, spec in enumerate(state.graph.steps)
        if spec.step_type is StepType.JOB and policy_of(spec, policies).limited
    ]


def _lapsed(step: int, attempt: int) -> AttemptFailed:
    error = "timed out: its time was up while the run was quarantined"
    return AttemptFailed(step=step, attempt=attempt, error=error, error_class="timeout")


def _as_message(step: int, attempt: int, what: Completed | Failed | Progressed | Logged) -> object:
    if isinstance(what, Completed):
        return AttemptCompleted(step=step, attempt=attempt, output=what.output)
    if isinstance(what, Failed):
        return AttemptFailed(
            step=step,
            attempt=attempt,
            error=what.error,
            error_class=what.error_class,
            final=what.final,
            retry_after_secs=what.retry_after_secs,
        )
    return AttemptNote(step=step, attempt=attempt, note=what)


def _in_order(item: tuple[str, Effect]) -> tuple[int, int]:
    seq, _, n = item[0].partition(".")
    return int(seq), int(n)
