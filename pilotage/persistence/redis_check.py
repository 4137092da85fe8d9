"""Whether a store is whole: every run and record readable, every index in step with the records.

Only reads, in small steps, beside a server that goes on working. What moves meanwhile can look
wrong for a moment, so whatever is found is looked at a second time before it is told.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

import msgspec

from pilotage.persistence import codec, scripts_runs
from pilotage.persistence.keys import STATUS_LETTER, TIME_DIGITS, sort_key
from pilotage.persistence.port import StoredRun
from pilotage.persistence.redis_repair import literal
from pilotage.persistence.redis_store import RedisStore
from pilotage.runtime.state import RunHead, RunVitals

MAX_TOLD: Final = 100
_AT_ONCE: Final = 64
_PAGE: Final = 200
_OF_A_RUN: Final = ("run", "out", "hist", "jobs")

Decode = Callable[[bytes], object]
Decoders = Mapping[str, Decode]


class Beside(msgspec.Struct, frozen=True, kw_only=True):
    """How the values that are no records and no part of a run are read."""

    history: Decode
    job_run: Decode
    answer: Decode
    event: Decode


class Report(msgspec.Struct, kw_only=True):
    """`problems` are the first ones; `found` is how many there are."""

    runs: int = 0
    records: int = 0
    found: int = 0
    problems: list[str] = []

    def add(self, problems: list[str]) -> None:
        self.found += len(problems)
        self.problems += problems[: max(0, MAX_TOLD - len(self.problems))]


async def check_store(store: RedisStore, decoders: Decoders, beside: Beside) -> Report:
    """`decoders`: how the records of each kind are read; they raise what the codec raises."""
    report = Report()
    await _check_runs(store, report)
    await _check_histories(store, beside.history, report)
    await _check_job_runs(store, beside.job_run, report)
    await _check_answers(store, beside.answer, report)
    await _check_events(store, beside.event, report)
    await _check_indexes(store, report)
    for kind, decode in decoders.items():
        await _check_records(store, kind, decode, report)
    return report


async def _check_runs(store: RedisStore, report: Report) -> None:
    """Every run, and that what belongs to a run has one."""
    for kind in _OF_A_RUN:
        async for ids in _ids(store, kind):
            if kind == "run":
                report.runs += len(ids)
            problems = await _problems_of(store, ids, kind)
            if problems:
                report.add(await _problems_of(store, ids, kind))


async def _ids(store: RedisStore, kind: str) -> AsyncIterator[list[str]]:
    prefix = f"{store.keys.prefix}{kind}:"
    async for names in store.names(literal(prefix) + "*"):
        ids = [name[len(prefix) :] for name in names]
        for start in range(0, len(ids), _AT_ONCE):
            yield ids[start : start + _AT_ONCE]


async def _problems_of(store: RedisStore, ids: list[str], kind: str) -> list[str]:
    problems: list[str] = []
    for run_id, stored in zip(ids, await store.load_runs(ids), strict=True):
        if kind != "run":
            if stored is None and await _exists(store, f"{store.keys.prefix}{kind}:{run_id}"):
                problems.append(f"{kind}:{run_id} belongs to no run")
        elif stored is not None:
            problems += [f"run {run_id}: {problem}" for problem in await _of_run(store, stored)]
    return problems


async def _of_run(store: RedisStore, stored: StoredRun) -> list[str]:
    try:
        head, vitals = _parts(stored)
    except codec.SnapshotError as error:
        return [str(error)]
    names = store.keys
    keys = [
        names.index(head.project_id),
        names.workflow_index(head.project_id, head.workflow_id),
        names.busy(head.workflow_id),
        names.active,
        names.expire,
        *(names.tag_index(head.project_id, f"{k}:{v}") for k, v in head.tags.items()),
    ]
    place = sort_key(head.created_at_ms, stored.run_id)
    letter = STATUS_LETTER[vitals.status]
    found = await store.link.read(scripts_runs.PLACES, keys, [place, letter, stored.run_id])
    listed, of_workflow, busy, active, expires, *tagged = map(bool, found)
    ended = vitals.status.is_terminal
    wrong = {
        "is not in the list of its project, or with another status": not listed,
        "is not in the list of its workflow, or with another status": not of_workflow,
        "is not counted as active": not ended and not busy,
        "is counted as active and has ended": ended and busy,
        "would not be recovered": (not ended or bool(stored.outbox)) and not active,
        "is taken for active and has ended": ended and not stored.outbox and active,
        "has no end of its retention": ended and not vitals.pinned and not expires,
        "would be removed although it is to be kept": (not ended or vitals.pinned) and expires,
        "is not in the list of a tag": not all(tagged),
    }
    return [problem for problem, holds in wrong.items() if holds]


def _parts(stored: StoredRun) -> tuple[RunHead, RunVitals]:
    """Head and vitals, after everything has been decoded."""
    for message in stored.outbox.values():
        codec.decode_message(message)
    vitals = codec.decode_vitals(stored.vitals)
    if stored.blob is not None:
        return codec.decode_finished(stored.blob).head, vitals
    for step in stored.steps.values():
        codec.decode_step(step)
    return codec.decode_head(stored.head or b""), vitals


async def _check_histories(store: RedisStore, decode: Decode, report: Report) -> None:
    async for ids in _ids(store, "hist"):
        for run_id in ids:
            after = 0
            while items := await store.history(run_id, after, _PAGE):
                after = items[-1].seq
                for item in items:
                    _look(report, f"run {run_id}, history item {item.seq}", decode, item.data)


async def _check_job_runs(store: RedisStore, decode: Decode, report: Report) -> None:
    async for ids in _ids(store, "jobs"):
        for run_id in ids:
            for (step, attempt), data in (await store.job_runs(run_id)).items():
                _look(report, f"run {run_id}, step {step}, attempt {attempt}", decode, data)


async def _check_answers(store: RedisStore, decode: Decode, report: Report) -> None:
    prefix = f"{store.keys.prefix}idem:"
    async for names in store.names(literal(prefix) + "*"):
        for name in names:
            data = await store.link.command("GET", name)
            if data is not None:
                _look(report, f"remembered answer {name.removeprefix(prefix)}", decode, data)


async def _check_events(store: RedisStore, decode: Decode, report: Report) -> None:
    prefix = f"{store.keys.prefix}ev:"
    async for names in store.names(literal(prefix) + "*"):
        for name in names:
            cursor = b"0"
            while True:
                cursor, found = await store.link.command(
                    "HSCAN", name, cursor, "MATCH", "e*", "COUNT", _PAGE
                )
                for data in found[1::2]:
                    _look(report, f"an event kept for {name.removeprefix(prefix)}", decode, data)
                if cursor == b"0":
                    break


def _look(report: Report, what: str, decode: Decode, data: bytes) -> None:
    try:
        decode(data)
    except codec.SnapshotError as error:
        report.add([f"{what}: {error}"])


async def _check_indexes(store: RedisStore, report: Report) -> None:
    """Every entry of an index has its run."""
    async for names in store.index_names():
        for name in names:
            if not name.startswith(store.keys.busy("")):
                await _check_index(store, name, TIME_DIGITS + 1, report)
    for name in (store.keys.active, store.keys.expire):
        await _check_index(store, name, TIME_DIGITS, report)


async def _check_index(store: RedisStore, name: str, before: int, report: Report) -> None:
    pending: list[str] = []
    async for member in store.members(name):
        pending.append(member)
        if len(pending) == _PAGE:
            report.add(await _orphans(store, name, pending, before))
            pending = []
    report.add(await _orphans(store, name, pending, before))


async def _orphans(store: RedisStore, name: str, members: list[str], before: int) -> list[str]:
    for _ in range(2):
        if not members:
            return []
        keys = [name, *(store.keys.run(member[before:]) for member in members)]
        found: list[Any] = await store.link.read(scripts_runs.ORPHANS, keys, members)
        members = [member.decode() for member in found]
    shown = name.removeprefix(store.keys.prefix)
    return [f"{shown} names run {member[before:]}, which is not there" for member in members]


async def _check_records(
    store: RedisStore, kind: str, decode: Callable[[bytes], object], report: Report
) -> None:
    after: tuple[int, str] | None = None
    while True:
        page = await store.list_records(kind, None, _PAGE, after)
        for record in page.rows:
            report.records += 1
            _look(report, f"{kind} {record.id}", decode, record.data)
        after = page.next_after
        if after is None:
            return


async def _exists(store: RedisStore, name: str) -> bool:
    return bool(await store.link.command("EXISTS", name))
