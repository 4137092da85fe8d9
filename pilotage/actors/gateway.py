"""The gateway: the one door to the runs, for HTTP and for Python code in the process.

Every method is a coroutine on the actors' loop, checks that the caller may see the run, asks the
run's actor with a deadline and turns refusals into `pilotage.actors.errors`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from pilotage.actors.admission import QueuePlace
from pilotage.actors.answers import BulkItem, each, previewed, raise_rejection, rejected
from pilotage.actors.callbacks import Callbacks
from pilotage.actors.catalog import Catalog
from pilotage.actors.catalog_model import Workflow
from pilotage.actors.catalog_records import catalog_errors
from pilotage.actors.creation import Creation
from pilotage.actors.errors import (
    NotFoundError,
)
from pilotage.actors.event_hub import EventPlan, EventReceipt
from pilotage.actors.idempotency import Idempotency, recall
from pilotage.actors.messages import Answer, Remember
from pilotage.actors.principal import Principal
from pilotage.actors.quarantine import Quarantine
from pilotage.actors.reasons import notes_about
from pilotage.actors.run_reader import RunReader
from pilotage.actors.services import Services
from pilotage.actors.supervisor import Supervisor
from pilotage.persistence.port import IdempotencyRecord, Store
from pilotage.runtime.commands import (
    ApproveStep,
    CancelRun,
    Command,
    ForceCompleteStep,
    PauseRun,
    PinRun,
    RejectStep,
    ReplaySubtree,
    ResumeRun,
    RetryStep,
    SkipStep,
)
from pilotage.runtime.insight_reasons import Note
from pilotage.runtime.preview import Preview, preview
from pilotage.runtime.replies import ResetSteps
from pilotage.runtime.rules import Rejection
from pilotage.runtime.state import RunState
from pilotage.runtime.validation import ParsedTrigger
from pilotage.runtime.views import RunView

PATIENCE_SECS = 1.0
"""For how long a store that is away is waited for."""
Body = Callable[[RunState], bytes | None]
"""The answer's body, made from the state that the command led to."""


class Health(Protocol):
    """Whether the runtime takes work."""

    @property
    def ready(self) -> bool: ...

    @property
    def degraded(self) -> str | None: ...


class Gateway(RunReader):
    """Made by `pilotage.actors.runtime.Runtime`."""

    def __init__(
        self,
        *,
        store: Store,
        catalog: Catalog,
        supervisor: Supervisor,
        creation: Creation,
        callbacks: Callbacks,
        quarantine: Quarantine,
        services: Services,
        health: Health,
    ) -> None:
        super().__init__(store, supervisor, services.executors.why_held)
        self.catalog = catalog
        self.callbacks = callbacks
        self._creation = creation
        self._quarantine = quarantine
        self._services = services
        self._health = health

    @property
    def ready(self) -> bool:
        return self._health.ready

    @property
    def degraded(self) -> str | None:
        """What is not taken on although it is ready, and why."""
        return self._health.degraded

    @property
    def store_away(self) -> str | None:
        """Why nothing can be stored, for longer than a moment: what is shorter is waited for."""
        writer = self._services.writer
        if writer.healthy or time.monotonic() - writer.away_since < PATIENCE_SECS:
            return None
        return writer.last_error

    # --- starting ----------------------------------------------------------------------------

    async def trigger(
        self,
        workflow: Workflow,
        trigger: ParsedTrigger,
        *,
        actor: str,
        idempotency: Idempotency | None = None,
    ) -> RunView:
        state = await self._creation.trigger(
            workflow, trigger, actor=actor, idempotency=idempotency
        )
        return self.view(state)

    async def retry_run(
        self,
        run_id: str,
        principal: Principal,
        *,
        dry_run: bool = False,
        idempotency: Idempotency | None = None,
    ) -> RunView | Preview:
        state = await self.get_run(run_id, principal)
        if dry_run:
            return preview(self._creation.preview_again(state, actor=principal.name))
        made = await self._creation.again(
            state, actor=principal.name, replay_completed=False, idempotency=idempotency
        )
        return self.view(made)

    # --- commands about a run ----------------------------------------------------------------
    # With `idempotency` the record is stored in the same write as what the command changes: status
    # 200, the run's id as reference, and the body that `body` makes of the state, if it is given.

    async def cancel(
        self,
        run_id: str,
        principal: Principal,
        reason: str | None,
        *,
        idempotency: Idempotency | None = None,
        body: Body | None = None,
    ) -> RunState:
        command = CancelRun(actor=principal.name, reason=reason)
        return await self._run_command(run_id, principal, command, idempotency, body)

    async def pause(
        self,
        run_id: str,
        principal: Principal,
        *,
        idempotency: Idempotency | None = None,
        body: Body | None = None,
    ) -> RunState:
        command = PauseRun(actor=principal.name)
        return await self._run_command(run_id, principal, command, idempotency, body)

    async def resume(
        self,
        run_id: str,
        principal: Principal,
        *,
        idempotency: Idempotency | None = None,
        body: Body | None = None,
    ) -> RunState:
        command = ResumeRun(actor=principal.name)
        return await self._run_command(run_id, principal, command, idempotency, body)

    async def pin(
        self,
        run_id: str,
        principal: Principal,
        *,
        pinned: bool,
        idempotency: Idempotency | None = None,
        body: Body | None = None,
    ) -> RunState:
        command = PinRun(actor=principal.name, pinned=pinned)
        return await self._run_command(run_id, principal, command, idempotency, body)

    async def _run_command(
        self,
        run_id: str,
        principal: Principal,
        command: Command,
        idempotency: Idempotency | None = None,
        body: Body | None = None,
    ) -> RunState:
        await self.get_run(run_id, principal)
        return (await self._commanded(run_id, command, idempotency, body)).state

    async def _commanded(
        self,
        run_id: str,
        command: Command,
        idempotency: Idempotency | None = None,
        body: Body | None = None,
    ) -> Answer:
        message: object = command
        if idempotency is not None:
            record = idempotency.recorder(body)
            message = Remember(command=command, record=record, key=idempotency.place)
        answer: Answer = await self._supervisor.ask(run_id, message)
        raise_rejection(answer.result)
        return answer

    # --- commands about a step -----------------------------------------------------------------

    async def approve(
        self,
        run_id: str,
        step_ref: str,
        principal: Principal,
        comment: str | None,
        caller: str,
        *,
        idempotency: Idempotency | None = None,
        body: Body | None = None,
    ) -> RunState:
        """`caller`: the principal's name, or who the admin key speaks for."""
        i = await self._step(run_id, step_ref, principal)
        command = ApproveStep(actor=caller, step=i, comment=comment)
        return await self._run_command(run_id, principal, command, idempotency, body)

    async def reject(
        self,
        run_id: str,
        step_ref: str,
        principal: Principal,
        reason: str | None,
        caller: str,
        *,
        idempotency: Idempotency | None = None,
        body: Body | None = None,
    ) -> RunState:
        i = await self._step(run_id, step_ref, principal)
        command = RejectStep(actor=caller, step=i, reason=reason)
        return await self._run_command(run_id, principal, command, idempotency, body)

    async def skip(
        self,
        run_id: str,
        step_ref: str,
        principal: Principal,
        reason: str | None,
        *,
        dry_run: bool = False,
        idempotency: Idempotency | None = None,
        body: Body | None = None,
    ) -> RunState | Preview:
        i = await self._step(run_id, step_ref, principal)
        command = SkipStep(actor=principal.name, step=i, reason=reason)
        if dry_run:
            return await self._preview(run_id, command)
        return await self._run_command(run_id, principal, command, idempotency, body)

    async def force_complete(
        self,
        run_id: str,
        step_ref: str,
        principal: Principal,
        result: bytes | None,
        *,
        dry_run: bool = False,
        idempotency: Idempotency | None = None,
        body: Body | None = None,
    ) -> RunState | Preview:
        i = await self._step(run_id, step_ref, principal)
        command = ForceCompleteStep(actor=principal.name, step=i, result=result)
        if dry_run:
            return await self._preview(run_id, command)
        return await self._run_command(run_id, principal, command, idempotency, body)

    async def retry_step(
        self,
        run_id: str,
        step_ref: str,
        principal: Principal,
        *,
        dry_run: bool = False,
        idempotency: Idempotency | None = None,
        body: Body | None = None,
    ) -> RunState | Preview:
        i = await self._step(run_id, step_ref, principal)
        command = RetryStep(actor=principal.name, step=i)
        if dry_run:
            return await self._preview(run_id, command)
        return await self._run_command(run_id, principal, command, idempotency, body)

    async def replay_subtree(
        self,
        run_id: str,
        step_ref: str,
        principal: Principal,
        *,
        dry_run: bool = False,
        idempotency: Idempotency | None = None,
        body: Body | None = None,
    ) -> int | Preview:
        """How many steps were reset."""
        i = await self._step(run_id, step_ref, principal)
        command = ReplaySubtree(actor=principal.name, step=i)
        if dry_run:
            return await self._preview(run_id, command)
        answer = await self._commanded(run_id, command, idempotency, body)
        assert isinstance(answer.result, ResetSteps)  # what the machine answers to a replay
        return answer.result.count

    async def _preview(self, run_id: str, command: Command) -> Preview:
        outcome = await self._supervisor.dry_run(run_id, command)
        if isinstance(outcome, Rejection):
            raise rejected(outcome)
        return previewed(outcome)

    async def _step(self, run_id: str, step_ref: str, principal: Principal) -> int:
        state = await self.get_run(run_id, principal)
        i = state.graph.index.get(step_ref)
        if i is None:
            raise NotFoundError(f'run "{run_id}" has no step "{step_ref}"')
        return i

    async def place(
        self, run_id: str, principal: Principal, step_ref: str | None = None
    ) -> QueuePlace | None:
        """Where the run stands in its workflow's queue, or the step in its job's; None: nowhere."""
        if step_ref is None:
            state = await self.get_run(run_id, principal)
            return self._services.admission.run_place(state.head.workflow_id, run_id)
        i = await self._step(run_id, step_ref, principal)
        state = await self.get_run(run_id, principal)
        job = (state.head.project_id, state.graph.steps[i].job_id or "")
        return self._services.admission.step_place(job, run_id, i)

    def notes(self, state: RunState) -> dict[int | None, Note]:
        """What is known beyond the state of why steps do not move, by step (None: the run)."""
        return notes_about(state, self._services, self.catalog)

    # --- many runs -----------------------------------------------------------------------------

    async def bulk_cancel(
        self,
        run_ids: Sequence[str],
        principal: Principal,
        *,
        dry_run: bool = False,
        idempotency: Idempotency | None = None,
    ) -> list[BulkItem]:
        """Each as `cancel`, in the order given, duplicates once.

        With `idempotency` each run is canceled once: a repeat leaves alone what was reopened since.
        """

        async def one(run_id: str) -> BulkItem:
            if dry_run:
                await self.get_run(run_id, principal)
                outcome = await self._supervisor.dry_run(run_id, CancelRun(actor=principal.name))
                if isinstance(outcome, Rejection):
                    raise rejected(outcome)
                return BulkItem(workflow_run_id=run_id, status="canceled")
            item = None if idempotency is None else idempotency.item(run_id)
            if item is None or await self._remembered(item) is None:
                await self.cancel(run_id, principal, None, idempotency=item)
            return BulkItem(workflow_run_id=run_id, status="canceled")

        return await each(run_ids, one)

    async def bulk_replay(
        self,
        run_ids: Sequence[str],
        principal: Principal,
        *,
        dry_run: bool = False,
        idempotency: Idempotency | None = None,
    ) -> list[BulkItem]:
        """Failed, timed out and canceled runs as `retry_run`, completed ones from the beginning.

        With `idempotency` each run is replayed once: a repeat gives the run that was made for it.
        """

        async def one(run_id: str) -> BulkItem:
            state = await self.get_run(run_id, principal)
            if dry_run:
                if not state.status.is_terminal:
                    self._creation.preview_again(state, actor=principal.name)  # refuses, says why
                return BulkItem(workflow_run_id=run_id, status="replayed")
            item = None if idempotency is None else idempotency.item(run_id)
            known = None if item is None else await self._remembered(item)
            if known is not None:
                return BulkItem(
                    workflow_run_id=run_id, status="replayed", new_workflow_run_id=known
                )
            made = await self._creation.again(
                state, actor=principal.name, replay_completed=True, idempotency=item
            )
            return BulkItem(workflow_run_id=run_id, status="replayed", new_workflow_run_id=made.id)

        return await each(run_ids, one)

    async def first_answer(self, idempotency: Idempotency) -> bytes | None:
        """What is stored of it; `UnavailableError` while nobody knows whether it will be."""
        self._supervisor.unresolved.refuse(*idempotency.place)
        return await self.store.idempotency(*idempotency.place)

    async def remember(self, record: IdempotencyRecord) -> bool:
        return await self.store.remember(record, self._services.fence())

    async def _remembered(self, idempotency: Idempotency) -> str | None:
        """The id of what was made for this key."""
        data = await self._stored(lambda: self.first_answer(idempotency))
        with catalog_errors("idempotency record"):
            return None if data is None else recall(data).reference

    # --- events --------------------------------------------------------------------------------

    async def send_event(
        self,
        project_id: str,
        event_key: str,
        payload: bytes | None,
        buffer_secs: int,
        *,
        actor: str,
        plan: EventPlan | None = None,
        again: bool = False,
    ) -> EventReceipt:
        """By the `plan`, if one was made; `again`: it may have been carried out before."""
        do = plan or await self.plan_event(project_id, event_key, buffer_secs)
        send = self._services.hub.carry_out
        return await self._stored(
            lambda: send(project_id, event_key, payload, do, actor=actor, again=again)
        )

    async def plan_event(self, project_id: str, event_key: str, buffer_secs: int) -> EventPlan:
        """Who is to have it, once everybody who waits is known."""
        await self._supervisor.wait_open()
        event_id, now = self._creation.mint_run_id(), self._services.clock.now_ms()
        return self._services.hub.plan(
            project_id, event_key, event_id=event_id, buffer_secs=buffer_secs, now_ms=now
        )

    # --- callbacks of remote jobs -----------------------------------------------------------------

    def callback_check(self, job_run_id: str, token: str) -> None:
        self.callbacks.check(job_run_id, token)

    async def callback_complete(self, job_run_id: str, token: str, output: bytes | None) -> None:
        await self.callbacks.complete(job_run_id, token, output)

    async def callback_fail(self, job_run_id: str, token: str, error: str, *, final: bool) -> None:
        await self.callbacks.fail(job_run_id, token, error, final=final)

    async def callback_heartbeat(self, job_run_id: str, token: str) -> None:
        await self.callbacks.heartbeat(job_run_id, token)

    async def callback_progress(
        self, job_run_id: str, token: str, percent: float, message: str | None
    ) -> None:
        await self.callbacks.progress(job_run_id, token, percent, message)

    async def callback_log(
        self, job_run_id: str, token: str, level: str, message: str, data: bytes | None
    ) -> None:
        await self.callbacks.log(job_run_id, token, level, message, data)

    # --- quarantine ------------------------------------------------------------------------------

    @property
    def quarantined(self) -> Mapping[str, str]:
        """Run id -> why."""
        return self._quarantine.runs

    async def release_quarantined(self, run_id: str, principal: Principal) -> None:
        """Load the run again. `NotFoundError` if it is not quarantined, or not to be seen."""
        await self._quarantined_run(run_id, principal)
        await self._quarantine.release(run_id)

    async def discard_quarantined(self, run_id: str, principal: Principal) -> None:
        """End the run as canceled; remove it if it cannot be read."""
        await self._quarantined_run(run_id, principal)
        await self._quarantine.discard(run_id, principal.name)

    async def _quarantined_run(self, run_id: str, principal: Principal) -> None:
        if not principal.is_admin:
            await self.belongs_to(run_id, principal)
