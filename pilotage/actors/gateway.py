"""The gateway: the one door to the runs, for HTTP and for Python code in the process.

Every method is a coroutine on the actors' loop, checks that the caller may see the run, asks the
run's actor with a deadline and turns refusals into `pilotage.actors.errors`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

import msgspec

from pilotage.actors.callbacks import Callbacks
from pilotage.actors.catalog import Catalog
from pilotage.actors.catalog_model import Workflow
from pilotage.actors.creation import Creation
from pilotage.actors.errors import (
    ApplicationError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from pilotage.actors.event_hub import EventHub, EventReceipt
from pilotage.actors.idempotency import Idempotency
from pilotage.actors.job_runs import JobRunRecord, JobRunView, job_run_view
from pilotage.actors.kernel import Clock
from pilotage.actors.principal import Principal
from pilotage.actors.supervisor import Supervisor
from pilotage.persistence import codec
from pilotage.persistence.port import RunQuery, Store, StoreUnavailableError
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
from pilotage.runtime.history import HistoryEntry
from pilotage.runtime.ids import is_run_id, locate
from pilotage.runtime.machine import Transition
from pilotage.runtime.preview import Preview, preview
from pilotage.runtime.replies import ResetSteps
from pilotage.runtime.rules import Rejection, RejectionCode
from pilotage.runtime.state import RunState
from pilotage.runtime.validation import ParsedTrigger
from pilotage.runtime.views import RunView, StepView, run_view, step_views

T = TypeVar("T")


class BulkItem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one run of a bulk command: `canceled`, `replayed` or `failed`."""

    workflow_run_id: str
    status: str
    new_workflow_run_id: str | None = None
    error: str | None = None


class Health(Protocol):
    """Whether the runtime takes work."""

    @property
    def ready(self) -> bool: ...


class Gateway:
    """Made by `pilotage.actors.runtime.Runtime`."""

    def __init__(
        self,
        *,
        store: Store,
        catalog: Catalog,
        supervisor: Supervisor,
        creation: Creation,
        hub: EventHub,
        callbacks: Callbacks,
        clock: Clock,
        health: Health,
    ) -> None:
        self.store = store
        self.catalog = catalog
        self.callbacks = callbacks
        self._supervisor = supervisor
        self._creation = creation
        self._hub = hub
        self._clock = clock
        self._health = health

    @property
    def ready(self) -> bool:
        return self._health.ready

    # --- reading -----------------------------------------------------------------------------

    async def get_run(self, run_id: str, principal: Principal) -> RunState:
        """The newest stored state; `NotFoundError` for what the caller may not see."""
        state = self._supervisor.published(run_id)
        if state is None and is_run_id(run_id):
            try:
                state = await self._supervisor.state(run_id)
            except StoreUnavailableError as error:
                raise UnavailableError(f"the store is away: {error}") from None
        if state is None or not principal.sees(state.head.project_id):
            raise _unknown_run(run_id)
        return state

    async def get_run_view(self, run_id: str, principal: Principal) -> RunView:
        return self.view(await self.get_run(run_id, principal))

    def view(self, state: RunState) -> RunView:
        quarantined = state.id in self._supervisor.quarantined
        return run_view(state.head, state.vitals, quarantined=quarantined)

    async def list_runs(self, query: RunQuery) -> tuple[list[RunView], tuple[int, str] | None]:
        """A page of runs, newest first, and where the next one starts."""
        page = await self._stored(lambda: self.store.list_runs(query))
        quarantined = self._supervisor.quarantined
        views = [
            run_view(
                codec.decode_head(row.head),
                codec.decode_vitals(row.vitals),
                quarantined=row.run_id in quarantined,
            )
            for row in page.rows
        ]
        return views, page.next_after

    async def steps(self, run_id: str, principal: Principal) -> list[StepView]:
        return step_views(await self.get_run(run_id, principal))

    async def history(
        self, run_id: str, principal: Principal, after: int, limit: int
    ) -> list[bytes]:
        """Items after sequence `after`, oldest first, each as JSON text."""
        state = await self.get_run(run_id, principal)
        items = await self._stored(lambda: self.store.history(state.id, after, limit))
        return [
            msgspec.json.encode(codec.decode_history(item.data, HistoryEntry)) for item in items
        ]

    async def job_runs(self, run_id: str, principal: Principal) -> list[JobRunView]:
        """All attempts of all steps, by step in definition order, then by attempt."""
        state = await self.get_run(run_id, principal)
        found = await self._stored(lambda: self.store.job_runs(state.id))
        return [
            job_run_view(
                state.head, state.graph, i, n, codec.decode_record(found[i, n], JobRunRecord)
            )
            for i, n in sorted(found)
        ]

    async def job_run(self, job_run_id: str, principal: Principal) -> JobRunView:
        where = locate(job_run_id)
        if where is None or where.step is None or where.attempt == 0:
            raise NotFoundError(f'unknown job run "{job_run_id}"')
        step, attempt = where.step, where.attempt
        try:
            state = await self.get_run(where.run_id, principal)
        except NotFoundError:
            raise NotFoundError(f'unknown job run "{job_run_id}"') from None
        data = await self._stored(lambda: self.store.job_run(state.id, step, attempt))
        if data is None:
            raise NotFoundError(f'unknown job run "{job_run_id}"')
        record = codec.decode_record(data, JobRunRecord)
        return job_run_view(state.head, state.graph, step, attempt, record)

    async def _stored(self, read: Callable[[], Awaitable[T]]) -> T:
        try:
            return await read()
        except StoreUnavailableError as error:
            raise UnavailableError(f"the store is away: {error}") from None

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

    async def cancel(self, run_id: str, principal: Principal, reason: str | None) -> RunState:
        return await self._run_command(
            run_id, principal, CancelRun(actor=principal.name, reason=reason)
        )

    async def pause(self, run_id: str, principal: Principal) -> RunState:
        return await self._run_command(run_id, principal, PauseRun(actor=principal.name))

    async def resume(self, run_id: str, principal: Principal) -> RunState:
        return await self._run_command(run_id, principal, ResumeRun(actor=principal.name))

    async def pin(self, run_id: str, principal: Principal, *, pinned: bool) -> RunState:
        return await self._run_command(
            run_id, principal, PinRun(actor=principal.name, pinned=pinned)
        )

    async def _run_command(self, run_id: str, principal: Principal, command: Command) -> RunState:
        await self.get_run(run_id, principal)
        answer = await self._supervisor.command(run_id, command)
        _raise_rejection(answer.result)
        return answer.state

    # --- commands about a step -----------------------------------------------------------------

    async def approve(
        self, run_id: str, step_ref: str, principal: Principal, comment: str | None, caller: str
    ) -> RunState:
        """`caller`: the principal's name, or who the admin key speaks for."""
        i = await self._step(run_id, step_ref, principal)
        return await self._run_command(
            run_id, principal, ApproveStep(actor=caller, step=i, comment=comment)
        )

    async def reject(
        self, run_id: str, step_ref: str, principal: Principal, reason: str | None, caller: str
    ) -> RunState:
        i = await self._step(run_id, step_ref, principal)
        return await self._run_command(
            run_id, principal, RejectStep(actor=caller, step=i, reason=reason)
        )

    async def skip(
        self,
        run_id: str,
        step_ref: str,
        principal: Principal,
        reason: str | None,
        *,
        dry_run: bool = False,
    ) -> RunState | Preview:
        i = await self._step(run_id, step_ref, principal)
        command = SkipStep(actor=principal.name, step=i, reason=reason)
        return await self._repair(run_id, principal, command, dry_run=dry_run)

    async def force_complete(
        self,
        run_id: str,
        step_ref: str,
        principal: Principal,
        result: bytes | None,
        *,
        dry_run: bool = False,
    ) -> RunState | Preview:
        i = await self._step(run_id, step_ref, principal)
        command = ForceCompleteStep(actor=principal.name, step=i, result=result)
        return await self._repair(run_id, principal, command, dry_run=dry_run)

    async def retry_step(
        self, run_id: str, step_ref: str, principal: Principal, *, dry_run: bool = False
    ) -> RunState | Preview:
        i = await self._step(run_id, step_ref, principal)
        command = RetryStep(actor=principal.name, step=i)
        return await self._repair(run_id, principal, command, dry_run=dry_run)

    async def replay_subtree(
        self, run_id: str, step_ref: str, principal: Principal, *, dry_run: bool = False
    ) -> int | Preview:
        """How many steps were reset."""
        i = await self._step(run_id, step_ref, principal)
        command = ReplaySubtree(actor=principal.name, step=i)
        if dry_run:
            return await self._preview(run_id, command)
        answer = await self._supervisor.command(run_id, command)
        reply = _raise_rejection(answer.result)
        assert isinstance(reply, ResetSteps)  # what the machine answers to a replay
        return reply.count

    async def _repair(
        self, run_id: str, principal: Principal, command: Command, *, dry_run: bool
    ) -> RunState | Preview:
        if dry_run:
            return await self._preview(run_id, command)
        return await self._run_command(run_id, principal, command)

    async def _preview(self, run_id: str, command: Command) -> Preview:
        outcome = await self._supervisor.dry_run(run_id, command)
        if isinstance(outcome, Rejection):
            raise rejected(outcome)
        return _preview(outcome)

    async def _step(self, run_id: str, step_ref: str, principal: Principal) -> int:
        state = await self.get_run(run_id, principal)
        i = state.graph.index.get(step_ref)
        if i is None:
            raise NotFoundError(f'run "{run_id}" has no step "{step_ref}"')
        return i

    # --- many runs -----------------------------------------------------------------------------

    async def bulk_cancel(
        self, run_ids: Sequence[str], principal: Principal, *, dry_run: bool = False
    ) -> list[BulkItem]:
        """Each as `cancel`, in the order given, duplicates once."""

        async def one(run_id: str) -> BulkItem:
            if dry_run:
                await self.get_run(run_id, principal)
                outcome = await self._supervisor.dry_run(run_id, CancelRun(actor=principal.name))
                if isinstance(outcome, Rejection):
                    raise rejected(outcome)
            else:
                await self.cancel(run_id, principal, None)
            return BulkItem(workflow_run_id=run_id, status="canceled")

        return await _each(run_ids, one)

    async def bulk_replay(
        self, run_ids: Sequence[str], principal: Principal, *, dry_run: bool = False
    ) -> list[BulkItem]:
        """Failed, timed out and canceled runs as `retry_run`, completed ones from the beginning."""

        async def one(run_id: str) -> BulkItem:
            state = await self.get_run(run_id, principal)
            if dry_run:
                if not state.status.is_terminal:
                    self._creation.preview_again(state, actor=principal.name)  # refuses, says why
                return BulkItem(workflow_run_id=run_id, status="replayed")
            made = await self._creation.again(state, actor=principal.name, replay_completed=True)
            return BulkItem(workflow_run_id=run_id, status="replayed", new_workflow_run_id=made.id)

        return await _each(run_ids, one)

    # --- events --------------------------------------------------------------------------------

    async def send_event(
        self,
        project_id: str,
        event_key: str,
        payload: bytes | None,
        buffer_secs: int,
        *,
        actor: str,
    ) -> EventReceipt:
        try:
            return await self._hub.send(
                project_id,
                event_key,
                payload,
                event_id=self._creation.mint_run_id(),
                actor=actor,
                buffer_secs=buffer_secs,
                now_ms=self._clock.now_ms(),
            )
        except StoreUnavailableError as error:
            raise UnavailableError(f"the store is away: {error}") from None

    # --- callbacks of remote jobs -----------------------------------------------------------------

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
    def quarantined(self) -> dict[str, str]:
        """Run id -> why."""
        return self._supervisor.quarantined


async def _each(
    run_ids: Sequence[str], one: Callable[[str], Awaitable[BulkItem]]
) -> list[BulkItem]:
    """Each run once, side by side, failures as items of their own."""

    async def safely(run_id: str) -> BulkItem:
        try:
            return await one(run_id)
        except ApplicationError as error:
            return BulkItem(workflow_run_id=run_id, status="failed", error=error.message)

    return list(await asyncio.gather(*map(safely, dict.fromkeys(run_ids))))


def _preview(transition: Transition) -> Preview:
    reply = transition.reply
    return preview(transition, reply.count if isinstance(reply, ResetSteps) else None)


def rejected(rejection: Rejection) -> ApplicationError:
    """The error that stands for a refusal of the machine."""
    if rejection.code is RejectionCode.FORBIDDEN:
        return ForbiddenError(rejection.message)
    if rejection.code is RejectionCode.INVALID:
        return InvalidError("the request is not valid", [rejection.message])
    return ConflictError(rejection.message)


def _raise_rejection(result: T | Rejection) -> T:
    if isinstance(result, Rejection):
        raise rejected(result)
    return result


def _unknown_run(run_id: str) -> NotFoundError:
    return NotFoundError(f'unknown workflow run "{run_id}"')
