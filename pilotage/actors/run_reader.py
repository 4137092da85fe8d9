"""Reading runs: newest stored state, lists, history, job runs. Reading never wakes a run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import TypeVar

import msgspec

from pilotage.actors.damaged import readable_head
from pilotage.actors.errors import ConflictError, NotFoundError, UnavailableError
from pilotage.actors.job_runs import JobRunRecord, JobRunView, job_run_view
from pilotage.actors.principal import Principal
from pilotage.actors.supervisor import Supervisor
from pilotage.persistence import codec
from pilotage.persistence.port import RunQuery, Store, StoreUnavailableError
from pilotage.runtime.history import HistoryEntry
from pilotage.runtime.ids import is_run_id, locate
from pilotage.runtime.state import RunState, RunVitals
from pilotage.runtime.views import RunView, StepView, run_view, step_views

T = TypeVar("T")

MAX_PAYLOADS = 4 << 20
"""Bytes of payloads that one page shows of runs in memory; the store bounds what it reads."""
VIEWS_KEPT = 4_096
MAX_PAYLOAD_KEPT = 1_024
"""A view holds on to its payload: what is kept is bounded by both."""


class RunReader:
    """What of a run is in memory is read there, everything else in the store."""

    def __init__(self, store: Store, supervisor: Supervisor) -> None:
        self.store = store
        self._supervisor = supervisor
        self._views: dict[str, tuple[RunVitals, RunView]] = {}

    async def get_run(self, run_id: str, principal: Principal) -> RunState:
        """The newest stored state; `NotFoundError` for what the caller may not see."""
        state = self._supervisor.published(run_id)
        if state is None and is_run_id(run_id):
            state = await self._stored_state(run_id, principal)
        if state is None or not principal.sees(state.head.project_id):
            raise _unknown_run(run_id)
        return state

    async def _stored_state(self, run_id: str, principal: Principal) -> RunState | None:
        try:
            return await self._supervisor.state(run_id)
        except StoreUnavailableError as error:
            raise UnavailableError(f"the store is away: {error}") from None
        except codec.SnapshotError as error:
            self._supervisor.quarantine_unreadable(run_id, error)
            await self.belongs_to(run_id, principal)
            raise ConflictError(f'run "{run_id}" cannot be read: {error}') from None

    async def belongs_to(self, run_id: str, principal: Principal) -> None:
        """`NotFoundError` unless the caller may see the run, which may be damaged: then its head
        has to say whose it is. Who sees everything sees also what nobody can be named for.
        """
        state = self._supervisor.published(run_id)
        head = None if state is None else state.head
        if head is None and not principal.is_admin:
            (stored,) = await self._stored(lambda: self.store.load_runs([run_id]))
            head = None if stored is None else readable_head(stored)
        if not principal.is_admin and (head is None or not principal.sees(head.project_id)):
            raise _unknown_run(run_id)

    async def get_run_view(self, run_id: str, principal: Principal) -> RunView:
        return self.view(await self.get_run(run_id, principal))

    def view(self, state: RunState) -> RunView:
        """The same view again while the run has not moved: lists and clients that poll."""
        kept = self._views.get(state.id)
        if kept is not None and kept[0] is state.vitals and not self._supervisor.quarantined:
            return kept[1]
        head, vitals = state.head, state.vitals
        if state.id in self._supervisor.quarantined:
            return run_view(head, vitals, quarantined=True)
        view = run_view(head, vitals)
        if head.payload is None or len(head.payload) <= MAX_PAYLOAD_KEPT:
            if len(self._views) >= VIEWS_KEPT:
                self._views.clear()
            self._views[state.id] = vitals, view
        return view

    async def list_runs(self, query: RunQuery) -> tuple[list[RunView], tuple[int, str] | None]:
        """A page of runs, newest first, and where the next one starts."""
        here = _InMemory(self._supervisor)
        page = await self._stored(lambda: self.store.list_runs(query, here.has))
        quarantined = self._supervisor.quarantined
        views: list[RunView] = []
        for row in page.rows:
            state = here.states.get(row.run_id)
            if state is not None:
                views.append(self.view(state))
                continue
            try:
                head, vitals = codec.decode_head(row.head), codec.decode_vitals(row.vitals)
            except codec.SnapshotError as error:  # it must not take the whole page with it
                self._supervisor.quarantine_unreadable(row.run_id, error)
            else:
                views.append(run_view(head, vitals, quarantined=row.run_id in quarantined))
        return views, page.next_after

    async def steps(self, run_id: str, principal: Principal) -> list[StepView]:
        return step_views(await self.get_run(run_id, principal))

    async def history(
        self, run_id: str, principal: Principal, after: int, limit: int
    ) -> list[bytes]:
        """Items after sequence `after`, oldest first, each as JSON text."""
        state = await self.get_run(run_id, principal)
        items = await self._stored(lambda: self.store.history(state.id, after, limit))
        with _readable(run_id):
            return [
                msgspec.json.encode(codec.decode_history(item.data, HistoryEntry)) for item in items
            ]

    async def job_runs(self, run_id: str, principal: Principal) -> list[JobRunView]:
        """All attempts of all steps, by step in definition order, then by attempt."""
        state = await self.get_run(run_id, principal)
        found = await self._stored(lambda: self.store.job_runs(state.id))
        with _readable(run_id):
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
        with _readable(where.run_id):
            record = codec.decode_record(data, JobRunRecord)
        return job_run_view(state.head, state.graph, step, attempt, record)

    async def _stored(self, read: Callable[[], Awaitable[T]]) -> T:
        try:
            return await read()
        except StoreUnavailableError as error:
            raise UnavailableError(f"the store is away: {error}") from None


class _InMemory:
    """The runs of one page that need not be read, as they are when the page is made."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._published = supervisor.published
        self._payload_bytes = 0
        self.states: dict[str, RunState] = {}

    def has(self, run_id: str) -> bool:
        state = self._published(run_id)
        if state is None or self._payload_bytes > MAX_PAYLOADS:
            return False
        self._payload_bytes += len(state.head.payload or b"")
        self.states[run_id] = state
        return True


@contextmanager
def _readable(run_id: str) -> Generator[None]:
    """What is stored beside a run and is damaged: the run itself is not."""
    try:
        yield
    except codec.SnapshotError as error:
        raise ConflictError(f'a part of run "{run_id}" cannot be read: {error}') from None


def _unknown_run(run_id: str) -> NotFoundError:
    return NotFoundError(f'unknown workflow run "{run_id}"')
