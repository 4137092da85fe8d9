"""The store in memory, for tests and simulation: same promises, nothing survives the process.

`MemoryServer` is what a Redis server would be: it outlives the stores that use it, so that a
takeover by a second store can be played. All of it is deterministic when the clock and the source
of random bytes are given. Belongs to one event loop; a call runs without yielding, so each is
atomic.

`before_commit` sees each batch before and `after_commit` after it has been applied; an exception
from the first is a refused write, from the second a lost reply.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from pilotage.persistence.memory_parts import MemoryEvent, MemoryRun
from pilotage.persistence.port import (
    BoundReachedError,
    FencedError,
    HistoryItem,
    IdempotencyRecord,
    Known,
    LeaseHeldError,
    MemoryUse,
    Record,
    RecordPage,
    RevisionError,
    RunIndex,
    RunPage,
    RunQuery,
    RunRow,
    RunWrite,
    SlugTakenError,
    StoredRun,
    StoreUnavailableError,
    Verdict,
    nothing_known,
)
from pilotage.runtime.status import RunStatus

MAX_IDEMPOTENCY_RECORDS: Final = 100_000
MAX_BUFFERED_EVENTS: Final = 10_000
MAX_CLAIMED_EVENTS: Final = 10_000
_POLL_SECS: Final = 0.02

Hook = Callable[[Sequence[RunWrite]], None]


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class MemoryServer:
    """The contents of a store, shared by the `MemoryStore`s that are given it."""

    def __init__(
        self,
        *,
        clock_ms: Callable[[], int] = _wall_clock_ms,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.clock_ms = clock_ms
        self.random_bytes = random_bytes
        self.fence = 0
        self.memory_use: MemoryUse | None = None
        self.lease: tuple[str, int, int] | None = None
        """Owner, fencing token, Unix milliseconds at which it runs out."""
        self.runs: dict[str, MemoryRun] = {}
        self.answers: dict[str, dict[str, tuple[bytes, int]]] = {}
        self.records: dict[tuple[str, str], Record] = {}
        self.slugs: dict[tuple[str, str, str], str] = {}
        self.events: dict[str, dict[str, list[MemoryEvent]]] = {}
        self.claims: dict[tuple[str, str, str], MemoryEvent] = {}
        self.secrets: dict[str, bytes] = {}

    def live_lease(self) -> tuple[str, int, int] | None:
        if self.lease is not None and self.lease[2] <= self.clock_ms():
            self.lease = None
        return self.lease

    def has_room(self, record: IdempotencyRecord) -> bool:
        answers, now = self.answers.setdefault(record.project_id, {}), self.clock_ms()
        for key in [k for k, (_, expires) in answers.items() if expires <= now]:
            del answers[key]
        return record.key in answers or len(answers) < MAX_IDEMPOTENCY_RECORDS

    def claim(self, claim: tuple[str, str, str], event: MemoryEvent) -> None:
        self.claims[claim] = event
        mine = [(c.expires_at_ms, k) for k, c in self.claims.items() if k[0] == claim[0]]
        if len(mine) > MAX_CLAIMED_EVENTS:
            del self.claims[min(mine)[1]]

    def remember(self, record: IdempotencyRecord) -> None:
        expires = self.clock_ms() + record.ttl_secs * 1000
        self.answers.setdefault(record.project_id, {})[record.key] = record.data, expires


class MemoryStore:
    """`pilotage.persistence.port.Store` over a `MemoryServer`."""

    def __init__(
        self,
        server: MemoryServer | None = None,
        *,
        before_commit: Hook | None = None,
        after_commit: Hook | None = None,
    ) -> None:
        self.server = server or MemoryServer()
        self.before_commit = before_commit
        self.after_commit = after_commit
        self._open = False

    async def open(self) -> None:
        self._open = True

    async def close(self) -> None:
        self._open = False

    async def ping(self) -> None:
        self._content()

    async def memory_use(self) -> MemoryUse | None:
        self._content()
        return self.server.memory_use

    def _content(self, fence: int | None = None) -> MemoryServer:
        """The server, if it may be used; with `fence`, if that is the newest token."""
        if not self._open:
            raise StoreUnavailableError("the store is not open")
        if fence is not None and fence != self.server.fence:
            raise FencedError(f"fencing token {fence} is not the newest ({self.server.fence})")
        return self.server

    # --- ownership ---------------------------------------------------------------------------

    async def acquire(self, owner: str, lease_secs: float) -> int:
        server = self._content()
        found = server.live_lease()
        while (lease := server.live_lease()) is not None:
            if lease != found:
                raise LeaseHeldError(lease[0])
            await asyncio.sleep(_POLL_SECS)
            server = self._content()
        server.fence += 1
        server.lease = owner, server.fence, server.clock_ms() + int(lease_secs * 1000)
        return server.fence

    async def renew(self, owner: str, fence: int, lease_secs: float) -> None:
        server = self._content(fence)
        lease = server.live_lease()
        if lease is not None and lease[:2] != (owner, fence):
            raise FencedError(f"the lease belongs to {lease[0]}")
        server.lease = owner, fence, server.clock_ms() + int(lease_secs * 1000)

    async def release(self, owner: str, fence: int) -> None:
        server = self._content()
        lease = server.live_lease()
        if lease is not None and lease[:2] == (owner, fence):
            server.lease = None

    async def fence(self) -> int:
        return self._content().fence

    # --- runs --------------------------------------------------------------------------------

    async def commit(self, batch: Sequence[RunWrite], fence: int) -> list[Verdict]:
        server = self._content()
        if len({write.run_id for write in batch}) != len(batch):
            raise ValueError("a batch has at most one write a run")
        if self.before_commit is not None:
            self.before_commit(batch)
        verdicts = [self._commit_one(server, write, fence) for write in batch]
        if self.after_commit is not None:
            self.after_commit(batch)
        return verdicts

    def _commit_one(self, server: MemoryServer, write: RunWrite, fence: int) -> Verdict:
        verdict = self._verdict(server, write, fence)
        if verdict is not None:
            return verdict
        run = server.runs.get(write.run_id)
        if run is None:
            run = server.runs[write.run_id] = MemoryRun(write, fence)
        run.apply(write, fence)
        if write.idempotency is not None:
            server.remember(write.idempotency)
        return Verdict.OK

    @staticmethod
    def _verdict(server: MemoryServer, write: RunWrite, fence: int) -> Verdict | None:
        """Why the write is not to be applied; None: apply it."""
        if fence != server.fence:
            return Verdict.FENCED
        run = server.runs.get(write.run_id)
        if run is not None and (run.seq, run.fence) == (write.seq, fence):
            return Verdict.OK
        if run is None:
            new = MemoryRun(write, fence)
            if write.follows != 0 or write.head is None or not new.fits(write):
                return Verdict.STALE
        elif write.follows == 0:
            return Verdict.EXISTS
        elif write.follows != run.seq or not run.fits(write):
            return Verdict.STALE
        if write.idempotency is not None and not server.has_room(write.idempotency):
            return Verdict.FULL
        return None

    async def load_runs(self, run_ids: Sequence[str]) -> list[StoredRun | None]:
        runs = self._content().runs
        return [self._stored(run_id, runs.get(run_id)) for run_id in run_ids]

    @staticmethod
    def _stored(run_id: str, run: MemoryRun | None) -> StoredRun | None:
        if run is None:
            return None
        return StoredRun(
            run_id=run_id,
            seq=run.seq,
            vitals=run.vitals,
            head=run.head if run.blob is None else None,
            steps=dict(run.steps),
            blob=run.blob,
            outbox=dict(run.outbox),
        )

    async def active_run_ids(self) -> list[str]:
        def due(item: tuple[str, MemoryRun]) -> tuple[float, int, str]:
            index = item[1].index
            due_ms = float("inf") if index.due_ms is None else index.due_ms
            return due_ms, index.created_at_ms, item[0]

        active = (item for item in self._content().runs.items() if item[1].active)
        return [run_id for run_id, _ in sorted(active, key=due)]

    async def list_runs(self, query: RunQuery, known: Known = nothing_known) -> RunPage:
        found = [
            ((run.index.created_at_ms, run_id), run)
            for run_id, run in self._content().runs.items()
            if _matches(query, run.index)
        ]
        found.sort(key=lambda item: item[0], reverse=True)
        if query.after is not None:
            found = [item for item in found if item[0] < query.after]
        page = [(run_id, run) for (_, run_id), run in found[: query.limit]]
        left_out = known([run_id for run_id, _ in page])
        rows = [
            RunRow(run_id=run_id, head=b"", vitals=b"")
            if run_id in left_out
            else RunRow(run_id=run_id, head=run.head, vitals=run.vitals)
            for run_id, run in page
        ]
        more = len(found) > query.limit
        return RunPage(rows=rows, next_after=found[query.limit - 1][0] if more else None)

    async def count_runs(self, project_id: str) -> Mapping[RunStatus, int]:
        counts = dict.fromkeys(RunStatus, 0)
        for run in self._content().runs.values():
            if run.index.project_id == project_id:
                counts[run.index.status] += 1
        return counts

    async def active_count(self, workflow_id: str) -> int:
        runs = self._content().runs.values()
        return sum(run.blob is None and run.index.workflow_id == workflow_id for run in runs)

    async def history(self, run_id: str, after: int, limit: int) -> list[HistoryItem]:
        run = self._content().runs.get(run_id)
        return run.history[after : after + limit] if run is not None else []

    async def job_runs(self, run_id: str) -> Mapping[tuple[int, int], bytes]:
        run = self._content().runs.get(run_id)
        return dict(run.job_runs) if run is not None else {}

    async def job_run(self, run_id: str, step: int, attempt: int) -> bytes | None:
        run = self._content().runs.get(run_id)
        return run.job_runs.get((step, attempt)) if run is not None else None

    async def expired_run_ids(self, now_ms: int, limit: int, skip: int = 0) -> list[str]:
        kept = [
            (run.index.keep_until_ms, run.index.created_at_ms, run_id)
            for run_id, run in self._content().runs.items()
            if run.blob is not None and run.index.keep_until_ms is not None
        ]
        expired = [run_id for until, _, run_id in sorted(kept) if until <= now_ms]
        return expired[skip : skip + limit]

    async def delete_runs(self, run_ids: Sequence[str], fence: int) -> int:
        runs, deleted = self._content(fence).runs, 0
        for run_id in dict.fromkeys(run_ids):
            run = runs.get(run_id)
            if run is not None and not run.active and run.index.keep_until_ms is not None:
                del runs[run_id]
                deleted += 1
        return deleted

    async def purge_runs(self, run_ids: Sequence[str], fence: int) -> int:
        runs = self._content(fence).runs
        return sum(runs.pop(run_id, None) is not None for run_id in dict.fromkeys(run_ids))

    # --- idempotency -------------------------------------------------------------------------

    async def idempotency(self, project_id: str, key: str) -> bytes | None:
        server = self._content()
        found = server.answers.get(project_id, {}).get(key)
        return found[0] if found is not None and found[1] > server.clock_ms() else None

    async def remember(self, record: IdempotencyRecord, fence: int) -> bool:
        server = self._content(fence)
        if not server.has_room(record):
            return False
        server.remember(record)
        return True

    # --- definitions -------------------------------------------------------------------------

    async def put_record(
        self,
        record: Record,
        fence: int,
        idempotency: IdempotencyRecord | None = None,
        beside: Record | None = None,
    ) -> None:
        server = self._content(fence)
        stored = server.records.get((record.kind, record.id))
        if stored == record:
            return
        if record.revision != (1 if stored is None else stored.revision + 1):
            raise RevisionError(_changed(record))
        if stored is not None and stored.project_id != record.project_id:
            raise RevisionError(_changed(record))
        slug = record.kind, record.project_id, record.slug or ""
        if record.slug is not None and server.slugs.get(slug, record.id) != record.id:
            raise SlugTakenError(record.kind, record.slug)
        if idempotency is not None:
            if not server.has_room(idempotency):
                raise BoundReachedError("the project has 100,000 idempotency records")
            server.remember(idempotency)
        if stored is not None and stored.slug is not None:
            del server.slugs[stored.kind, stored.project_id, stored.slug]
        if record.slug is not None:
            server.slugs[slug] = record.id
        server.records[record.kind, record.id] = record
        if beside is not None:
            server.records[beside.kind, beside.id] = beside

    async def get_record(self, kind: str, record_id: str) -> Record | None:
        return self._content().records.get((kind, record_id))

    async def find_slug(self, kind: str, project_id: str, slug: str) -> str | None:
        return self._content().slugs.get((kind, project_id, slug))

    async def list_records(
        self, kind: str, project_id: str | None, limit: int, after: tuple[int, str] | None
    ) -> RecordPage:
        found = [
            record
            for record in self._content().records.values()
            if record.kind == kind and project_id in {None, record.project_id}
        ]
        found.sort(key=_position, reverse=True)
        if after is not None:
            found = [record for record in found if _position(record) < after]
        rows = found[:limit]
        return RecordPage(rows=rows, next_after=_position(rows[-1]) if len(found) > limit else None)

    async def delete_record(self, kind: str, record_id: str, fence: int) -> bool:
        server = self._content(fence)
        record = server.records.pop((kind, record_id), None)
        if record is not None and record.slug is not None:
            del server.slugs[kind, record.project_id, record.slug]
        return record is not None

    # --- events kept for a later reader --------------------------------------------------------

    async def buffer_event(
        self, project_id: str, event_key: str, event_id: str, data: bytes, ttl_secs: int, fence: int
    ) -> bool:
        server = self._content(fence)
        now = server.clock_ms()
        queues = server.events.setdefault(project_id, {})
        for key in list(queues):
            queues[key] = [event for event in queues[key] if event.expires_at_ms > now]
            if not queues[key]:
                del queues[key]
        claimed = (c for k, c in server.claims.items() if k[:2] == (project_id, event_key))
        known: Iterable[MemoryEvent] = [*queues.get(event_key, ()), *claimed]
        if any(event.event_id == event_id and event.expires_at_ms > now for event in known):
            return True
        if sum(map(len, queues.values())) >= MAX_BUFFERED_EVENTS:
            return False
        event = MemoryEvent(event_id, data, now + ttl_secs * 1000)
        queues.setdefault(event_key, []).append(event)
        return True

    async def take_event(
        self, project_id: str, event_key: str, claimed_by: str, fence: int
    ) -> bytes | None:
        server = self._content(fence)
        now = server.clock_ms()
        for key in [k for k, event in server.claims.items() if event.expires_at_ms <= now]:
            del server.claims[key]
        claim = project_id, event_key, claimed_by
        if claim in server.claims:
            return server.claims[claim].data
        queue = server.events.get(project_id, {}).get(event_key, [])
        while queue:
            event = queue.pop(0)
            if event.expires_at_ms > now:
                server.claim(claim, event)
                return event.data
        return None

    # --- keys of the installation ----------------------------------------------------------------

    async def secret(self, name: str) -> bytes:
        server = self._content()
        if name not in server.secrets:
            server.secrets[name] = server.random_bytes(32)
        return server.secrets[name]


def _matches(query: RunQuery, index: RunIndex) -> bool:
    created = index.created_at_ms
    return (
        index.project_id == query.project_id
        and query.status in {None, index.status}
        and query.workflow_id in {None, index.workflow_id}
        and set(query.tags) <= set(index.tags)
        and (query.created_after_ms is None or created > query.created_after_ms)
        and (query.created_before_ms is None or created < query.created_before_ms)
    )


def _position(record: Record) -> tuple[int, str]:
    return record.created_at_ms, record.id


def _changed(record: Record) -> str:
    return f"{record.kind} {record.id} was changed or deleted meanwhile: read it again"
