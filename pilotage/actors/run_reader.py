"""Reading runs: newest stored state, lists, history, job runs. Reading never wakes a run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Generator, Sequence
from contextlib import contextmanager
from functools import lru_cache
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
from pilotage.runtime.status import JobRunStatus
from pilotage.runtime.views import RunView, StepView, run_view, step_views

T = TypeVar("T")
_encode = msgspec.json.Encoder().encode

MAX_PAYLOADS = 4 << 20
"""Bytes of payloads that one page shows of runs in memory; the store bounds what it reads."""
VIEWS_KEPT = 4_096
MAX_PAYLOAD_KEPT = 1_024
"""A view holds on to its payload: what is kept is bounded by both."""


ROWS_KEPT = 1_024
MAX_ROW_KEPT = 2_048
"""Finished runs are shown from what the store has of them; rows of this size are decoded once."""


class ShownRun:
    """A run as it is shown, and the same as JSON; made of `vitals`."""

    __slots__ = ("json", "view", "vitals")

    def __init__(self, vitals: RunVitals, view: RunView) -> None:
        self.vitals = vitals
        self.view = view
        self.json = msgspec.Raw(_encode(view))


class RunReader:
    """What of a run is in memory is read there, everything else in the store. `why_held` says why
    an attempt (run id, step, number) that was dispatched has not begun.
    """

    def __init__(
        self, store: Store, supervisor: Supervisor, why_held: Callable[[str, int, int], str | None]
    ) -> None:
        self.store = store
        self._supervisor = supervisor
        self._why_held = why_held
        self._kept: dict[str, ShownRun] = {}

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
        return self.shown(state).view

    def shown(self, state: RunState) -> ShownRun:
        """The same again while the run has not moved: lists and clients that poll."""
        head, vitals = state.head, state.vitals
        quarantined = self._supervisor.quarantined
        kept = self._kept.get(head.id)
        if kept is not None and kept.vitals is vitals and not quarantined:
            return kept
        view = run_view(head, vitals, quarantined=head.id in quarantined)
        shown = ShownRun(vitals, view)
        if not view.quarantined and len(head.payload or b"") <= MAX_PAYLOAD_KEPT:
            if len(self._kept) >= VIEWS_KEPT:
                self._kept.clear()
            self._kept[head.id] = shown
        return shown

    async def list_runs(self, query: RunQuery) -> tuple[list[RunView], tuple[int, str] | None]:
        """A page of runs, newest first, and where the next one starts."""
        runs, next_after = await self.shown_page(query)
        return [run.view for run in runs], next_after

    async def shown_page(self, query: RunQuery) -> tuple[list[ShownRun], tuple[int, str] | None]:
        """As `list_runs`, encoded; of runs that have not moved nothing is encoded again."""
        here = _InMemory(self, self._supervisor)
        page = await self._stored(lambda: self.store.list_runs(query, here.known))
        quarantined = self._supervisor.quarantined
        runs: list[ShownRun] = []
        for row in page.rows:
            shown = here.shown.get(row.run_id)
            if shown is not None:
                runs.append(shown)
                continue
            large = len(row.head) + len(row.vitals) > MAX_ROW_KEPT
            show = _shown_row if large else _shown_row_again
            try:
                runs.append(show(row.head, row.vitals, row.run_id in quarantined))
            except codec.SnapshotError as error:  # it must not take the whole page with it
                self._supervisor.quarantine_unreadable(row.run_id, error)
        return runs, page.next_after

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
            return [self._job_run(state, i, n, found[i, n]) for i, n in sorted(found)]

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
            return self._job_run(state, step, attempt, data)

    def _job_run(self, state: RunState, step: int, attempt: int, data: bytes) -> JobRunView:
        record = codec.decode_record(data, JobRunRecord)
        queued = (
            record.status is JobRunStatus.EXECUTING
            and self._why_held(state.id, step, attempt) is not None
        )
        return job_run_view(state.head, state.graph, step, attempt, record, queued=queued)

    async def _stored(self, read: Callable[[], Awaitable[T]]) -> T:
        try:
            return await read()
        except StoreUnavailableError as error:
            raise UnavailableError(f"the store is away: {error}") from None


class _InMemory:
    """The runs of one page that need not be read, as they are when the page is made."""

    def __init__(self, reader: RunReader, supervisor: Supervisor) -> None:
        self._reader = reader
        self._published = supervisor.published
        self.shown: dict[str, ShownRun] = {}

    def known(self, run_ids: Sequence[str]) -> Container[str]:
        payload_bytes, published, show = 0, self._published, self._reader.shown
        for run_id in run_ids:
            state = published(run_id)
            if state is not None:
                self.shown[run_id] = show(state)
                payload_bytes += len(state.head.payload or b"")
                if payload_bytes > MAX_PAYLOADS:
                    break
        return self.shown


@contextmanager
def _readable(run_id: str) -> Generator[None]:
    """What is stored beside a run and is damaged: the run itself is not."""
    try:
        yield
    except codec.SnapshotError as error:
        raise ConflictError(f'a part of run "{run_id}" cannot be read: {error}') from None


def _shown_row(head: bytes, vitals: bytes, quarantined: bool) -> ShownRun:  # noqa: FBT001
    """What a row says: the same bytes say the same."""
    seen = codec.decode_vitals(vitals)
    return ShownRun(seen, run_view(codec.decode_head(head), seen, quarantined=quarantined))


_shown_row_again = lru_cache(maxsize=ROWS_KEPT)(_shown_row)


def _unknown_run(run_id: str) -> NotFoundError:
    return NotFoundError(f'unknown workflow run "{run_id}"')
