"""Runs in Redis: group commit, loading, lists, removal. Key table: `pilotage.persistence.keys`.

A batch is one script call (`scripts_runs.COMMIT`). Arguments of one write, in order, after a packed
header (`_HEADER`: positions in KEYS, numbers of arguments, flags):

    sequence it follows, `sequence fence status`, sort key, due time or +inf
    finished: the whole value, or only vitals when the stored blob stays
    active:   field, value of each changed field of the hash
    outbox: id, message of each new one; id of each done one
    history: first sequence number, items                     (if there are any)
    job runs: field, record of each
    time until which the run is kept                           (if given)
    idempotency: data, digest, TTL in ms                       (if given)

Its keys, from the header's first position: run; outbox (if finished or changed); history; job
runs; answer and answers of the project; one index a tag (at creation).
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pilotage.persistence import codec, scripts_runs
from pilotage.persistence.keys import (
    ALL_LETTER,
    STATUS_LETTER,
    TIME_DIGITS,
    Keys,
    digest,
    position,
    sort_key,
)
from pilotage.persistence.port import (
    FencedError,
    HistoryItem,
    Known,
    RunPage,
    RunQuery,
    RunRow,
    RunWrite,
    StoredRun,
    Verdict,
    nothing_known,
)
from pilotage.persistence.redis_link import RedisLink
from pilotage.persistence.redis_wire import Argument
from pilotage.runtime.status import RunStatus

_log = logging.getLogger("pilotage.store")

MAX_IDEMPOTENCY_RECORDS: Final = 100_000
MAX_JOB_RUNS: Final = 100
MAX_ENTRIES_READ: Final = 2_000
MAX_PAGE_BYTES: Final = 8 << 20

_LOAD_AT_ONCE: Final = 64
"""Runs a loading call: bounds how long the server is busy with one."""
_DELETE_AT_ONCE: Final = 100
_FINISHED_PREFIX: Final = 4096
"""Bytes of a finished run that a list reads first; nearly always the head is in them."""
_HEADER: Final = struct.Struct("<11I5B").pack
_VERDICTS: Final = {
    "o": Verdict.OK,
    "s": Verdict.STALE,
    "f": Verdict.FENCED,
    "e": Verdict.EXISTS,
    "l": Verdict.FULL,
}
_MAX_TIME_MS: Final = (1 << 4 * TIME_DIGITS) - 1
_STEP_FIELD: Final = tuple(f"s{i}" for i in range(5_000))


class Batch:
    """The keys and arguments of one commit."""

    def __init__(self, keys: Keys, fence: int) -> None:
        self._names = keys
        self._fence = fence
        self.keys: list[str] = [keys.fence, keys.active, keys.expire]
        self.arguments: list[Argument] = [fence, 0, MAX_IDEMPOTENCY_RECORDS, MAX_JOB_RUNS]
        self._shared: dict[tuple[str, str], int] = {}
        self._runs: set[str] = set()

    def add(self, write: RunWrite) -> None:
        """Append one write; positions are counted from 1, as Lua does."""
        if write.run_id in self._runs:
            raise ValueError(f"a batch has at most one write a run: {write.run_id}")
        self._runs.add(write.run_id)
        index, arguments = write.index, self.arguments
        first_index = self._index_position(index.project_id, index.workflow_id)
        first_key, start = len(self.keys) + 1, len(arguments)
        letter = STATUS_LETTER[index.status]
        state = f"{write.seq} {self._fence} {letter}"
        due = "+inf" if index.due_ms is None else index.due_ms
        key = f"{index.created_at_ms:012x}{write.run_id}"
        arguments += (b"", write.follows, state, key, due)
        self.keys.append(self._names.run(write.run_id))
        nfields = self._content(write, state)
        nadd, ndone = self._outbox(write)
        nhist = self._history(write) if write.history else 0
        njobs = self._job_runs(write) if write.job_runs else 0
        if index.keep_until_ms is not None:
            arguments.append(index.keep_until_ms)
        if write.idempotency is not None:
            self._idempotency(write)
        tags = index.tags if write.follows == 0 else ()
        for tag in tags:
            self.keys.append(self._names.tag_index(index.project_id, tag))
        arguments[start] = _HEADER(
            first_key, first_index, first_index + 1, first_index + 2,
            len(arguments) - start, nfields, nadd, ndone, nhist, njobs, len(tags),
            write.finished, write.blob is not None, write.head is not None,
            index.keep_until_ms is not None, write.idempotency is not None,
        )  # fmt: skip
        arguments[1] = len(self._runs)

    def _index_position(self, project_id: str, workflow_id: str) -> int:
        """Where the three keys shared by the runs of one workflow begin."""
        found = self._shared.get((project_id, workflow_id))
        if found is None:
            found = self._shared[project_id, workflow_id] = len(self.keys) + 1
            names = self._names
            self.keys += (
                names.index(project_id),
                names.workflow_index(project_id, workflow_id),
                names.busy(workflow_id),
            )
        return found

    def _content(self, write: RunWrite, state: str) -> int:
        arguments, vitals = self.arguments, write.vitals
        if write.finished:
            if write.blob is None:
                arguments.append(vitals)
            else:
                line = f"{state} {len(vitals)}\n".encode()
                arguments.append(b"".join((line, vitals, write.blob)))
            return 1
        start = len(arguments)
        arguments += ("h", vitals)
        if write.head is not None:
            arguments += ("r", write.head)
        for i, step in write.steps.items():
            arguments += (_STEP_FIELD[i] if i < len(_STEP_FIELD) else f"s{i}", step)
        return len(arguments) - start

    def _outbox(self, write: RunWrite) -> tuple[int, int]:
        added, done = write.outbox_add, write.outbox_done
        if added or done or write.finished:
            self.keys.append(self._names.outbox(write.run_id))
            for message in added.items():
                self.arguments += message
            self.arguments += done
        return 2 * len(added), len(done)

    def _history(self, write: RunWrite) -> int:
        items = write.history
        self.keys.append(self._names.history(write.run_id))
        self.arguments.append(items[0].seq)
        self.arguments += [item.data for item in items]
        return len(items)

    def _job_runs(self, write: RunWrite) -> int:
        self.keys.append(self._names.job_runs(write.run_id))
        for (step, attempt), data in write.job_runs.items():
            self.arguments += (f"{step}:{attempt}", data)
        return 2 * len(write.job_runs)

    def _idempotency(self, write: RunWrite) -> None:
        record = write.idempotency
        assert record is not None
        self.keys.append(self._names.answer(record.project_id, record.key))
        self.keys.append(self._names.answers(record.project_id))
        self.arguments += (record.data, digest(record.key), record.ttl_secs * 1000)


class RedisRuns:
    """The part of the store that has runs."""

    def __init__(self, link: RedisLink, keys: Keys) -> None:
        self._link = link
        self._keys = keys

    async def commit(self, batch: Sequence[RunWrite], fence: int) -> list[Verdict]:
        if not batch:
            return []
        call = Batch(self._keys, fence)
        for write in batch:
            call.add(write)
        letters: bytes = await self._link.write(scripts_runs.COMMIT, call.keys, call.arguments)
        return [_VERDICTS[letter] for letter in letters.decode()]

    # --- reading ------------------------------------------------------------------------------

    async def load_runs(self, run_ids: Sequence[str]) -> list[StoredRun | None]:
        loaded: list[StoredRun | None] = []
        for start in range(0, len(run_ids), _LOAD_AT_ONCE):
            some = run_ids[start : start + _LOAD_AT_ONCE]
            keys: list[str] = []
            for run_id in some:
                keys += (self._keys.run(run_id), self._keys.outbox(run_id))
            found = await self._link.read(scripts_runs.LOAD, keys)
            loaded += map(_stored, some, found[0::2], found[1::2])
        return loaded

    async def active_run_ids(self) -> list[str]:
        found: list[bytes] = await self._link.command("ZRANGE", self._keys.active, 0, -1)
        return [key.decode()[TIME_DIGITS:] for key in found]

    async def list_runs(self, query: RunQuery, known: Known = nothing_known) -> RunPage:
        lower, upper = _bounds(query)
        indexes = self._indexes(query)
        arguments: list[Argument] = [query.limit, MAX_ENTRIES_READ, lower, upper]
        arguments += [letter for _, letter in indexes]
        keys = [key for key, _ in indexes]
        last, found = await self._link.read(scripts_runs.PAGE, keys, arguments)
        run_ids = [key[TIME_DIGITS:].decode() for key in found]
        rows, read = await self._rows(run_ids, known)
        if read < len(found):
            last = found[read - 1]
        return RunPage(rows=rows, next_after=position(last.decode()) if last else None)

    def _indexes(self, query: RunQuery) -> list[tuple[str, str]]:
        """The indexes, each with its letter, that have exactly the runs wanted in common."""
        keys, project_id = self._keys, query.project_id
        letter = ALL_LETTER if query.status is None else STATUS_LETTER[query.status]
        found = [(keys.tag_index(project_id, tag), ALL_LETTER) for tag in dict.fromkeys(query.tags)]
        if query.workflow_id is not None:
            found.append((keys.workflow_index(project_id, query.workflow_id), letter))
        elif query.status is not None or not found:
            found.append((keys.index(project_id), letter))
        return found

    async def _rows(self, run_ids: Sequence[str], known: Known) -> tuple[list[RunRow], int]:
        """The rows of those runs that are there, and how many ids they are of."""
        left_out = known(run_ids)
        wanted = [run_id for run_id in run_ids if run_id not in left_out]
        parts_of = await self._parts(wanted) if wanted else {}
        if len(parts_of) < len(wanted):  # as much as one page may be
            run_ids = run_ids[: run_ids.index(wanted[len(parts_of)])]
        wanted_ids = set(wanted)
        rows: list[RunRow] = []
        for run_id in run_ids:
            if run_id not in wanted_ids:
                rows.append(RunRow(run_id=run_id, head=b"", vitals=b""))
                continue
            parts = parts_of[run_id]
            row = None
            if parts is not None:
                row = _row(run_id, parts) or await self._big_row(run_id)
            if row is not None:
                rows.append(row)
        return rows, len(run_ids)

    async def _parts(self, run_ids: Sequence[str]) -> dict[str, Any]:
        """What the server has of these runs, in order; not of the last ones if it is too much."""
        keys = [self._keys.run(run_id) for run_id in run_ids]
        found: list[Any] = await self._link.read(
            scripts_runs.ROWS, keys, [MAX_PAGE_BYTES, _FINISHED_PREFIX]
        )
        return dict(zip(run_ids, found, strict=False))

    async def _big_row(self, run_id: str) -> RunRow | None:
        """The row of a finished run whose head is larger than what lists read at first."""
        (run,) = await self.load_runs([run_id])
        if run is None:
            return None
        head = run.head
        if run.blob is not None:
            try:
                head = _head_of(run.blob)
            except codec.SnapshotError:
                return _damaged_row(run_id)
        assert head is not None
        return RunRow(run_id=run_id, head=head, vitals=run.vitals)

    async def count_runs(self, project_id: str) -> Mapping[RunStatus, int]:
        index = self._keys.index(project_id)
        counts = await self._link.commands(
            *(
                ("ZLEXCOUNT", index, f"[{letter}", f"({chr(ord(letter) + 1)}")
                for letter in STATUS_LETTER.values()
            )
        )
        return dict(zip(STATUS_LETTER, counts, strict=True))

    async def active_count(self, workflow_id: str) -> int:
        return int(await self._link.command("SCARD", self._keys.busy(workflow_id)))

    async def history(self, run_id: str, after: int, limit: int) -> list[HistoryItem]:
        if limit <= 0:
            return []
        found: list[bytes] = await self._link.command(
            "LRANGE", self._keys.history(run_id), after, after + limit - 1
        )
        return [HistoryItem(seq=after + i, data=data) for i, data in enumerate(found, 1)]

    async def job_runs(self, run_id: str) -> Mapping[tuple[int, int], bytes]:
        found: list[bytes] = await self._link.command("HGETALL", self._keys.job_runs(run_id))
        records: dict[tuple[int, int], bytes] = {}
        for field, data in zip(found[0::2], found[1::2], strict=True):
            step, colon, attempt = field.partition(b":")
            if colon:
                records[int(step), int(attempt)] = data
        return records

    async def job_run(self, run_id: str, step: int, attempt: int) -> bytes | None:
        found: bytes | None = await self._link.command(
            "HGET", self._keys.job_runs(run_id), f"{step}:{attempt}"
        )
        return found

    # --- removal ------------------------------------------------------------------------------

    async def expired_run_ids(self, now_ms: int, limit: int, skip: int = 0) -> list[str]:
        found: list[bytes] = await self._link.command(
            "ZRANGEBYSCORE", self._keys.expire, "-inf", now_ms, "LIMIT", skip, limit
        )
        return [key.decode()[TIME_DIGITS:] for key in found]

    async def delete_runs(self, run_ids: Sequence[str], fence: int) -> int:
        deleted = 0
        wanted = list(dict.fromkeys(run_ids))
        for start in range(0, max(len(wanted), 1), _DELETE_AT_ONCE):
            some = await self.load_runs(wanted[start : start + _DELETE_AT_ONCE])
            keys = [self._keys.fence, self._keys.active, self._keys.expire]
            arguments: list[Argument] = [fence]
            for run in some:
                if run is not None and run.blob is not None:
                    self._removal(run, run.blob, keys, arguments)
            count = int(await self._link.write(scripts_runs.DELETE_RUNS, keys, arguments))
            if count < 0:
                raise FencedError(f"fencing token {fence} is not the newest")
            deleted += count
        return deleted

    def _removal(
        self, run: StoredRun, blob: bytes, keys: list[str], arguments: list[Argument]
    ) -> None:
        try:
            head = codec.decode_head(_head_of(blob))
        except codec.SnapshotError as error:
            _log.warning("run %s is kept beyond its time: %s", run.run_id, error)
            return
        names = self._keys
        keys += (
            names.run(run.run_id),
            names.outbox(run.run_id),
            names.history(run.run_id),
            names.job_runs(run.run_id),
            names.index(head.project_id),
            names.workflow_index(head.project_id, head.workflow_id),
        )
        tags = {f"{name}:{value}" for name, value in head.tags.items()}
        keys += [names.tag_index(head.project_id, tag) for tag in tags]
        arguments += (len(tags), f"{run.seq} ", sort_key(head.created_at_ms, run.run_id))


def _bounds(query: RunQuery) -> tuple[str, str]:
    """Sort keys of the page: from the first on, up to but without the second ('' for no limit)."""
    lower = upper = ""
    if query.created_after_ms is not None:
        lower = f"{_within(query.created_after_ms + 1):012x}"
    if query.created_before_ms is not None:
        upper = f"{_within(query.created_before_ms):012x}"
    if query.after is not None:
        cursor = sort_key(_within(query.after[0]), query.after[1])
        upper = min(upper, cursor) if upper else cursor
    return lower, upper


def _within(time_ms: int) -> int:
    return max(0, min(time_ms, _MAX_TIME_MS))


def _stored(
    run_id: str, run: list[bytes] | bytes | None, messages: list[bytes]
) -> StoredRun | None:
    if run is None:
        return None
    outbox = {
        message_id.decode(): data
        for message_id, data in zip(messages[0::2], messages[1::2], strict=True)
    }
    try:
        if isinstance(run, bytes):
            seq, vitals, blob = _unpacked(run)
            return StoredRun(run_id=run_id, seq=seq, vitals=vitals, blob=blob, outbox=outbox)
        fields = dict(zip(run[0::2], run[1::2], strict=True))
        seq = int(fields.pop(b"q").split(b" ", 1)[0])
        head, vitals = fields.pop(b"r"), fields.pop(b"h")
        steps = {int(name[1:]): data for name, data in fields.items()}
    except (ValueError, KeyError):  # not even its parts can be told: no codec takes it
        return StoredRun(run_id=run_id, seq=0, vitals=b"", head=b"", outbox=outbox)
    return StoredRun(run_id=run_id, seq=seq, vitals=vitals, head=head, steps=steps, outbox=outbox)


def _unpacked(value: bytes) -> tuple[int, bytes, bytes]:
    """Sequence, vitals and blob (or what there is of it) of a finished run's value."""
    line_end = value.index(b"\n") + 1
    seq, _, _, length = value[:line_end].split(b" ")
    vitals_end = line_end + int(length)
    return int(seq), value[line_end:vitals_end], value[vitals_end:]


def _row(run_id: str, parts: list[bytes] | bytes) -> RunRow | None:
    """None: more of the run has to be read."""
    if not isinstance(parts, bytes):
        return RunRow(run_id=run_id, head=parts[0], vitals=parts[1])
    try:
        _, vitals, blob = _unpacked(parts)
        head = codec.finished_head(blob) if blob else None
    except (ValueError, codec.SnapshotError):
        return _damaged_row(run_id)
    return None if head is None else RunRow(run_id=run_id, head=head, vitals=vitals)


def _damaged_row(run_id: str) -> RunRow:
    """No codec takes it: whoever shows the row learns that it is damaged."""
    return RunRow(run_id=run_id, head=b"", vitals=b"")


def _head_of(blob: bytes) -> bytes:
    head = codec.finished_head(blob)
    if head is None:
        raise codec.SnapshotCorruptError("finished run", "its head is incomplete")
    return head
