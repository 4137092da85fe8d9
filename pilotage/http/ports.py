"""What HTTP needs of the gateway and of the settings, for the type checkers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from pilotage.actors.catalog import Catalog
from pilotage.actors.catalog_model import Workflow
from pilotage.actors.event_hub import EventPlan, EventReceipt
from pilotage.actors.idempotency import Idempotency
from pilotage.actors.job_runs import JobRunView
from pilotage.actors.principal import Principal
from pilotage.actors.run_reader import ShownRun
from pilotage.persistence.port import IdempotencyRecord, RunQuery, Store
from pilotage.runtime.insight_reasons import Note
from pilotage.runtime.preview import Preview
from pilotage.runtime.state import RunState
from pilotage.runtime.validation import ParsedTrigger
from pilotage.runtime.views import RunView, StepView

Body = Callable[[RunState], bytes | None]
"""The answer's body, made of the state that a command led to."""


class HttpSettings(Protocol):
    """The settings that matter here."""

    @property
    def admin_key(self) -> str | None: ...
    @property
    def rate_limit(self) -> int: ...
    @property
    def auth_failure_limit(self) -> int: ...
    @property
    def metrics_public(self) -> bool: ...
    @property
    def docs(self) -> bool: ...


class BulkItem(Protocol):
    """What became of one run of a bulk command."""

    @property
    def workflow_run_id(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def new_workflow_run_id(self) -> str | None: ...
    @property
    def error(self) -> str | None: ...


class GatewayPort(Protocol):
    """The door to the runs. All methods raise `pilotage.actors.errors`."""

    @property
    def catalog(self) -> Catalog: ...
    @property
    def store(self) -> Store: ...
    @property
    def ready(self) -> bool: ...
    @property
    def degraded(self) -> str | None: ...
    @property
    def store_away(self) -> str | None: ...

    async def first_answer(self, idempotency: Idempotency) -> bytes | None: ...

    async def remember(self, record: IdempotencyRecord) -> bool: ...

    async def trigger(
        self,
        workflow: Workflow,
        trigger: ParsedTrigger,
        *,
        actor: str,
        idempotency: Idempotency | None = None,
    ) -> RunView: ...
    async def get_run(self, run_id: str, principal: Principal) -> RunState: ...
    async def get_run_view(self, run_id: str, principal: Principal) -> RunView: ...
    async def shown_page(
        self, query: RunQuery
    ) -> tuple[Sequence[ShownRun], tuple[int, str] | None]: ...
    async def steps(self, run_id: str, principal: Principal) -> Sequence[StepView]: ...
    async def cancel(self, run_id: str, principal: Principal, reason: str | None) -> RunState: ...
    async def pause(
        self,
        run_id: str,
        principal: Principal,
        *,
        idempotency: Idempotency | None = None,
        body: Body | None = None,
    ) -> RunState: ...
    async def resume(
        self,
        run_id: str,
        principal: Principal,
        *,
        idempotency: Idempotency | None = None,
        body: Body | None = None,
    ) -> RunState: ...
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
    ) -> RunState: ...
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
    ) -> RunState: ...
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
    ) -> RunState | Preview: ...
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
    ) -> RunState | Preview: ...
    async def retry_step(
        self,
        run_id: str,
        step_ref: str,
        principal: Principal,
        *,
        dry_run: bool = False,
        idempotency: Idempotency | None = None,
        body: Body | None = None,
    ) -> RunState | Preview: ...
    async def replay_subtree(
        self,
        run_id: str,
        step_ref: str,
        principal: Principal,
        *,
        dry_run: bool = False,
        idempotency: Idempotency | None = None,
        body: Body | None = None,
    ) -> int | Preview: ...
    async def retry_run(
        self,
        run_id: str,
        principal: Principal,
        *,
        dry_run: bool = False,
        idempotency: Idempotency | None = None,
    ) -> RunView | Preview: ...
    async def bulk_cancel(
        self,
        run_ids: Sequence[str],
        principal: Principal,
        *,
        dry_run: bool = False,
        idempotency: Idempotency | None = None,
    ) -> Sequence[BulkItem]: ...
    async def bulk_replay(
        self,
        run_ids: Sequence[str],
        principal: Principal,
        *,
        dry_run: bool = False,
        idempotency: Idempotency | None = None,
    ) -> Sequence[BulkItem]: ...
    async def pin(
        self,
        run_id: str,
        principal: Principal,
        *,
        pinned: bool,
        idempotency: Idempotency | None = None,
        body: Body | None = None,
    ) -> RunState: ...
    def notes(self, state: RunState) -> Mapping[int | None, Note]: ...
    @property
    def quarantined(self) -> Mapping[str, str]: ...
    async def release_quarantined(self, run_id: str, principal: Principal) -> None: ...
    async def discard_quarantined(self, run_id: str, principal: Principal) -> None: ...
    async def history(
        self, run_id: str, principal: Principal, after: int, limit: int
    ) -> Sequence[bytes]: ...
    async def job_runs(self, run_id: str, principal: Principal) -> Sequence[JobRunView]: ...
    async def job_run(self, job_run_id: str, principal: Principal) -> JobRunView: ...
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
    ) -> EventReceipt: ...
    async def plan_event(self, project_id: str, event_key: str, buffer_secs: int) -> EventPlan: ...
    def callback_check(self, job_run_id: str, token: str) -> None: ...
    async def callback_complete(
        self, job_run_id: str, token: str, output: bytes | None
    ) -> None: ...
    async def callback_fail(
        self, job_run_id: str, token: str, error: str, *, final: bool
    ) -> None: ...
    async def callback_heartbeat(self, job_run_id: str, token: str) -> None: ...
    async def callback_progress(
        self, job_run_id: str, token: str, percent: float, message: str | None
    ) -> None: ...
    async def callback_log(
        self, job_run_id: str, token: str, level: str, message: str, data: bytes | None
    ) -> None: ...
