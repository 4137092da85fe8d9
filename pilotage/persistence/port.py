"""The store port: what the actors need of a store, and what every store promises.

Promises (the contract suite in tests/contract/store runs against every implementation):

1. `commit` writes each `RunWrite` of a batch completely or not at all: the run's record, its
   steps, indexes, history, job runs, outbox and idempotency record move together.
2. A write carries the fencing token of its writer; a token that is not the newest is refused.
3. A write names the sequence it follows. Anything else than that sequence is `STALE`, except that
   the sequence of the write itself, under the same fence, is `OK`: a resend after a lost reply.
4. One refused write does not touch the others of its batch.
5. What is answered is durable to the degree the store is configured for.

Everything is bytes here: `pilotage.persistence.codec` turns runs and records into them.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

import msgspec

from pilotage.runtime.errors import PilotageError
from pilotage.runtime.status import RunStatus


class StoreError(PilotageError):
    """Root of what a store may raise."""


class StoreUnavailableError(StoreError):
    """The store is away, loading or refuses writes for now; whether a write was applied may be
    unknown. Try again: writes are absolute and repeating them is harmless.
    """


class StoreLoadingError(StoreUnavailableError):
    """It is loading its data and will be there. `loaded`: bytes so far; None: it does not tell."""

    def __init__(self, message: str, loaded: int | None = None) -> None:
        super().__init__(message)
        self.loaded = loaded


class StoreFullError(StoreUnavailableError):
    """It has no memory for this write; one that only ends runs, or removes them, it may take."""


class FencedError(StoreError):
    """A newer owner has raised the fence: this process must stop moving runs."""


class LeaseHeldError(StoreError):
    """Another process holds the lease and renews it. `holder` names it."""

    def __init__(self, holder: str) -> None:
        super().__init__(f"another server owns this store and namespace: {holder}")
        self.holder = holder


class UnsuitableStoreError(StoreError):
    """Not a server this can be kept in (wrong kind, version, eviction policy, read-only)."""


class NewerStoreError(StoreError):
    """A newer release has owned the store: what it wrote cannot be read by this one."""


class BoundReachedError(StoreError):
    """A project has as many of something as it may have; nothing was written. Try later."""


class Verdict(StrEnum):
    """What became of one write of a batch."""

    OK = "ok"
    STALE = "stale"
    FENCED = "fenced"
    EXISTS = "exists"
    """The write was to create the run and a run of that id is there already."""
    FULL = "full"
    """The write carries an idempotency record and the project has 100,000 of them already."""


class HistoryItem(msgspec.Struct, frozen=True, kw_only=True):
    """One encoded item of a run's history; sequence numbers start at 1 and have no gaps."""

    seq: int
    data: bytes


class IdempotencyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`key` is scoped by the caller (project, method, path); `data` is small; `ttl_secs` > 0."""

    project_id: str
    key: str
    data: bytes
    ttl_secs: int = 86_400


class RunIndex(msgspec.Struct, frozen=True, kw_only=True):
    """What lists are served from. The indexes hold each run once per index, newest first.

    `tags` are `key:value` strings. `status` is the run's new status; the store moves the run
    between the status indexes by itself. `due_ms`: the earliest timer of an active run, for
    recovery in the order of due times (None: nothing due). `keep_until_ms`: when a finished run
    may be removed (None: never, it is pinned or still active); see `expired_run_ids`.
    """

    project_id: str
    workflow_id: str
    created_at_ms: int
    status: RunStatus
    tags: tuple[str, ...] = ()
    due_ms: int | None = None
    parent_run_id: str | None = None
    keep_until_ms: int | None = None


class RunWrite(msgspec.Struct, frozen=True, kw_only=True):
    """The newest state of one run, as absolute values. A batch has at most one write a run.

    follows      sequence the stored run must have (0: it must not exist)
    seq          sequence after the write
    head         immutable part; given exactly when follows == 0
    vitals       the header
    steps        step index -> encoded step, only those that changed since `follows`
    history      items to append, in order
    job_runs     (step, attempt) -> encoded execution record
    outbox_add   message id -> encoded message; outbox_done: ids acknowledged meanwhile
    finished     the run is terminal: `blob` (made by `codec.encode_finished`) replaces head and
                 steps in one compact value. None keeps the blob of a run that was finished before
                 (outbox acknowledged, pinned; the newest vitals are always `vitals`). A later
                 write (reopen) comes with `head` and all steps again and `finished` False.

    A write whose history has a gap to the stored one, or that lacks the `blob` or `head` it needs,
    is `STALE`: it was not made from what is stored.
    """

    run_id: str
    follows: int
    seq: int
    index: RunIndex
    vitals: bytes
    head: bytes | None = None
    steps: Mapping[int, bytes] = {}
    history: Sequence[HistoryItem] = ()
    job_runs: Mapping[tuple[int, int], bytes] = {}
    outbox_add: Mapping[str, bytes] = {}
    outbox_done: Sequence[str] = ()
    idempotency: IdempotencyRecord | None = None
    finished: bool = False
    blob: bytes | None = None


class StoredRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run as stored: either `blob` (finished) or head, vitals and the steps ever written."""

    run_id: str
    seq: int
    vitals: bytes
    head: bytes | None = None
    steps: Mapping[int, bytes] = {}
    blob: bytes | None = None
    outbox: Mapping[str, bytes] = {}


class RunRow(msgspec.Struct, frozen=True, kw_only=True):
    """What a list shows of a run: no steps, no outputs. `head` as given at creation; both parts
    are empty for a run that the asker knows, and for one that is damaged.
    """

    run_id: str
    head: bytes
    vitals: bytes


Known = Callable[[Sequence[str]], Container[str]]
"""Which of the runs with these ids the asker has. Asked once a page, with all of them."""


def nothing_known(_: Sequence[str]) -> Container[str]:
    return ()


class RunQuery(msgspec.Struct, frozen=True, kw_only=True):
    """A page of runs, newest first by (created_at, id). Filters combine.

    `after`: (created_at_ms, id) of the last row of the page before. `created_after_ms` and
    `created_before_ms` are exclusive.
    """

    project_id: str
    limit: int
    after: tuple[int, str] | None = None
    status: RunStatus | None = None
    workflow_id: str | None = None
    tags: tuple[str, ...] = ()
    created_after_ms: int | None = None
    created_before_ms: int | None = None


class RunPage(msgspec.Struct, frozen=True, kw_only=True):
    """`next_after` is None at the end; a page may be short or empty and still have one."""

    rows: Sequence[RunRow]
    next_after: tuple[int, str] | None


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A definition: workflow, job, version, API key. `revision` guards against lost updates."""

    kind: str
    project_id: str
    id: str
    data: bytes
    revision: int = 1
    slug: str | None = None
    created_at_ms: int = 0


class SlugTakenError(StoreError):
    def __init__(self, kind: str, slug: str) -> None:
        super().__init__(f'a {kind} with slug "{slug}" exists already')
        self.slug = slug


class RevisionError(StoreError):
    """The record was changed or deleted meanwhile: read it again."""


class RecordPage(msgspec.Struct, frozen=True, kw_only=True):
    rows: Sequence[Record]
    next_after: tuple[int, str] | None


class MemoryUse(NamedTuple):
    """Bytes that a store uses, and may use."""

    used: int
    limit: int


class Store(Protocol):
    """One namespace of a store. All methods may raise `StoreUnavailableError`."""

    async def open(self) -> None:
        """Connect and check the server; `UnsuitableStoreError` says what is wrong with it."""
        ...

    async def close(self) -> None: ...

    async def ping(self) -> None: ...

    async def memory_use(self) -> MemoryUse | None:
        """How much of the memory that it may use the store uses; None: it has no bound."""
        ...

    # --- ownership ---------------------------------------------------------------------------

    async def acquire(self, owner: str, lease_secs: float) -> int:
        """Take the lease and raise the fence; the new token. `LeaseHeldError` if it is held,
        `NewerStoreError` if a newer release has owned the store: then nothing was changed.
        """
        ...

    async def renew(self, owner: str, fence: int, lease_secs: float) -> None:
        """Keep the lease; `FencedError` if another owner has it."""
        ...

    async def release(self, owner: str, fence: int) -> None:
        """Give the lease back (clean shutdown); a lease that is not ours is left alone."""
        ...

    async def fence(self) -> int: ...

    # --- runs --------------------------------------------------------------------------------

    async def commit(self, batch: Sequence[RunWrite], fence: int) -> list[Verdict]:
        """Write the batch; one verdict per write, in order."""
        ...

    async def load_runs(self, run_ids: Sequence[str]) -> list[StoredRun | None]:
        """In order; None: there is none of that id. A run whose parts cannot even be told apart
        comes with empty ones, which the codec refuses; it does not keep the others from coming.
        """
        ...

    async def active_run_ids(self) -> list[str]:
        """Every run that is not terminal or still has outbox messages; earliest due first."""
        ...

    async def list_runs(self, query: RunQuery, known: Known = nothing_known) -> RunPage:
        """A single filter, and workflow with status, cost O(page). Other combinations read at most
        2,000 index entries; a page is also cut short at 8 MiB of rows. Rows of runs that are
        `known` (asked once for each run of the page) come without their parts, which saves
        reading them.
        """
        ...

    async def count_runs(self, project_id: str) -> Mapping[RunStatus, int]: ...

    async def active_count(self, workflow_id: str) -> int:
        """How many active runs (pending, running, paused) a workflow has."""
        ...

    async def history(self, run_id: str, after: int, limit: int) -> list[HistoryItem]:
        """Items with seq > after, oldest first."""
        ...

    async def job_runs(self, run_id: str) -> Mapping[tuple[int, int], bytes]:
        """(step, attempt) -> record, of all attempts of all steps."""
        ...

    async def job_run(self, run_id: str, step: int, attempt: int) -> bytes | None: ...

    async def expired_run_ids(self, now_ms: int, limit: int, skip: int = 0) -> list[str]:
        """Finished runs whose `keep_until_ms` has passed, longest first, without the first
        `skip`.
        """
        ...

    async def delete_runs(self, run_ids: Sequence[str], fence: int) -> int:
        """Remove finished runs with everything they have; how many there were. Active runs, runs
        with outbox messages and runs that are to be kept for good are left alone.
        """
        ...

    async def purge_runs(self, run_ids: Sequence[str], fence: int) -> int:
        """Remove runs whatever state they are in, readable or not, with everything they have and
        from every index; how many there were. Costs a look at every index there is.
        """
        ...

    # --- idempotency -------------------------------------------------------------------------

    async def idempotency(self, project_id: str, key: str) -> bytes | None: ...

    async def remember(self, record: IdempotencyRecord, fence: int) -> bool:
        """Store an answer on its own; False when the project's bound (100,000) is reached."""
        ...

    # --- definitions -------------------------------------------------------------------------

    async def put_record(
        self,
        record: Record,
        fence: int,
        idempotency: IdempotencyRecord | None = None,
        beside: Record | None = None,
    ) -> None:
        """Create (revision 1) or replace (revision = stored + 1), together with its slug.

        `beside` is a new record without a slug that `record` refers to: both are there or neither.
        Repeating a put that was applied is harmless. Raises `SlugTakenError`, `RevisionError`,
        `FencedError`, and `BoundReachedError` for the idempotency record.
        """
        ...

    async def get_record(self, kind: str, record_id: str) -> Record | None: ...

    async def find_slug(self, kind: str, project_id: str, slug: str) -> str | None:
        """The id of the record with that slug."""
        ...

    async def list_records(
        self, kind: str, project_id: str | None, limit: int, after: tuple[int, str] | None
    ) -> RecordPage:
        """Newest first by (created_at, id); `project_id` None: of all projects."""
        ...

    async def delete_record(self, kind: str, record_id: str, fence: int) -> bool: ...

    # --- events kept for a later reader --------------------------------------------------------

    async def buffer_event(
        self, project_id: str, event_key: str, event_id: str, data: bytes, ttl_secs: int, fence: int
    ) -> bool:
        """Keep an event nobody waits for; False when the project's bound (10,000) is reached."""
        ...

    async def take_event(
        self, project_id: str, event_key: str, claimed_by: str, fence: int
    ) -> bytes | None:
        """The oldest kept event of the key, removed. The same `claimed_by` gets the same event
        again within the event's time to live: a taker that crashed before it stored its own
        state asks again and loses nothing.
        """
        ...

    # --- keys of the installation ----------------------------------------------------------------

    async def secret(self, name: str) -> bytes:
        """32 random bytes made at the first call and the same ever after (token signing)."""
        ...
