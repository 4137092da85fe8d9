"""Definitions, remembered answers and kept events in Redis.

Key table: `pilotage.persistence.keys`; what is atomic is one script of
`pilotage.persistence.scripts`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

from pilotage.persistence import scripts, scripts_runs
from pilotage.persistence.keys import ALL_LETTER, Keys, digest, position, sort_key
from pilotage.persistence.port import (
    BoundReachedError,
    FencedError,
    IdempotencyRecord,
    Record,
    RecordPage,
    RevisionError,
    SlugTakenError,
)
from pilotage.persistence.redis_link import RedisLink
from pilotage.persistence.redis_runs import MAX_IDEMPOTENCY_RECORDS
from pilotage.persistence.redis_wire import Argument

MAX_BUFFERED_EVENTS: Final = 10_000
MAX_CLAIMED_EVENTS: Final = 10_000
_DELETE_TRIES: Final = 5


class RedisRecords:
    """The part of the store that has definitions, answers, events and secrets."""

    def __init__(self, link: RedisLink, keys: Keys) -> None:
        self._link = link
        self._keys = keys

    # --- idempotency -------------------------------------------------------------------------

    async def idempotency(self, project_id: str, key: str) -> bytes | None:
        found: bytes | None = await self._link.command("GET", self._keys.answer(project_id, key))
        return found

    async def remember(self, record: IdempotencyRecord, fence: int) -> bool:
        keys = [self._keys.fence, *self._answer_keys(record)]
        arguments: list[Argument] = [fence, *_answer_arguments(record)]
        letter = await self._link.write(scripts.REMEMBER, keys, arguments)
        _refuse_fenced(letter, fence)
        return bool(letter == b"o")

    def _answer_keys(self, record: IdempotencyRecord) -> tuple[str, str]:
        names = self._keys
        return names.answer(record.project_id, record.key), names.answers(record.project_id)

    # --- definitions -------------------------------------------------------------------------

    async def put_record(
        self,
        record: Record,
        fence: int,
        idempotency: IdempotencyRecord | None = None,
        beside: Record | None = None,
    ) -> None:
        keys = self._record_keys(record.kind, record.project_id, record.id)
        slug = record.slug
        arguments: list[Argument] = [
            fence,
            record.id,
            record.project_id,
            record.data,
            record.revision,
            sort_key(record.created_at_ms, ""),
            int(slug is not None),
            slug or "",
            int(beside is not None),
        ]
        if beside is not None:
            keys += self._beside_keys(beside)
            arguments += [beside.id, beside.project_id, beside.data]
            arguments.append(sort_key(beside.created_at_ms, ""))
        if idempotency is not None:
            keys += self._answer_keys(idempotency)
            arguments += _answer_arguments(idempotency)
        letter = await self._link.write(scripts.PUT_RECORD, keys, arguments)
        _refuse_fenced(letter, fence)
        if letter == b"s":
            raise SlugTakenError(record.kind, slug or "")
        if letter == b"r":
            raise RevisionError(
                f"{record.kind} {record.id} was changed or deleted meanwhile: read it again"
            )
        if letter == b"l":
            raise BoundReachedError(
                f"the project has {MAX_IDEMPOTENCY_RECORDS:,} idempotency records"
            )

    def _beside_keys(self, record: Record) -> list[str]:
        names, kind = self._keys, record.kind
        of_all, of_project = names.records(kind, None), names.records(kind, record.project_id)
        return [names.record(kind, record.id), of_all, of_project]

    def _record_keys(self, kind: str, project_id: str, record_id: str) -> list[str]:
        names = self._keys
        return [
            names.fence,
            names.record(kind, record_id),
            names.slugs(kind, project_id),
            names.records(kind, None),
            names.records(kind, project_id),
        ]

    async def get_record(self, kind: str, record_id: str) -> Record | None:
        found = await self._records(kind, [record_id])
        return found[0] if found else None

    async def _records(self, kind: str, record_ids: Sequence[str]) -> list[Record]:
        """Those that are there."""
        keys = [self._keys.record(kind, record_id) for record_id in record_ids]
        found: list[list[Any]] = await self._link.read(scripts.RECORDS, keys)
        return [
            Record(
                kind=kind,
                id=record_id,
                project_id=project.decode(),
                data=data,
                revision=int(revision),
                slug=None if slug is None else slug.decode(),
                created_at_ms=int(created, 16),
            )
            for record_id, (project, data, revision, slug, created) in zip(
                record_ids, found, strict=True
            )
            if project is not None
        ]

    async def find_slug(self, kind: str, project_id: str, slug: str) -> str | None:
        found: bytes | None = await self._link.command(
            "HGET", self._keys.slugs(kind, project_id), slug
        )
        return None if found is None else found.decode()

    async def list_records(
        self, kind: str, project_id: str | None, limit: int, after: tuple[int, str] | None
    ) -> RecordPage:
        upper = "" if after is None else sort_key(*after)
        last, found = await self._link.read(
            scripts_runs.PAGE,
            [self._keys.records(kind, project_id)],
            [limit, limit, "", upper, ALL_LETTER],
        )
        ids = [position(key.decode())[1] for key in found]
        rows = await self._records(kind, ids) if ids else []
        return RecordPage(rows=rows, next_after=position(last.decode()) if last else None)

    async def delete_record(self, kind: str, record_id: str, fence: int) -> bool:
        for _ in range(_DELETE_TRIES):
            record = await self.get_record(kind, record_id)
            project_id = "" if record is None else record.project_id
            keys = self._record_keys(kind, project_id, record_id)
            letter = await self._link.write(
                scripts.DELETE_RECORD, keys, [fence, record_id, project_id]
            )
            _refuse_fenced(letter, fence)
            if letter != b"m":
                return bool(letter == b"o")
        raise RevisionError(f"{kind} {record_id} changes all the time: try again")

    # --- events kept for a later reader --------------------------------------------------------

    async def buffer_event(
        self, project_id: str, event_key: str, event_id: str, data: bytes, ttl_secs: int, fence: int
    ) -> bool:
        keys = [self._keys.fence, *self._keys.events(project_id)]
        arguments: list[Argument] = [fence, MAX_BUFFERED_EVENTS, digest(event_key)]
        arguments += (event_id, data, ttl_secs * 1000)
        letter = await self._link.write(scripts.BUFFER_EVENT, keys, arguments)
        _refuse_fenced(letter, fence)
        return bool(letter == b"o")

    async def take_event(
        self, project_id: str, event_key: str, claimed_by: str, fence: int
    ) -> bytes | None:
        keys = [self._keys.fence, *self._keys.events(project_id)]
        arguments: list[Argument] = [fence, MAX_CLAIMED_EVENTS, digest(event_key), claimed_by]
        letter, *found = await self._link.write(scripts.TAKE_EVENT, keys, arguments)
        _refuse_fenced(letter, fence)
        data: bytes | None = found[0] if found else None
        return data

    # --- keys of the installation ----------------------------------------------------------------

    async def secret(self, name: str) -> bytes:
        key = self._keys.secret(name)
        found: bytes | None = await self._link.command("GET", key)  # a full store has it, too
        if found is not None:
            return found
        _, made = await self._link.commands(("SET", key, os.urandom(32), "NX"), ("GET", key))
        secret: bytes = made
        return secret


def _answer_arguments(record: IdempotencyRecord) -> list[Argument]:
    return [MAX_IDEMPOTENCY_RECORDS, record.data, digest(record.key), record.ttl_secs * 1000]


def _refuse_fenced(letter: bytes, fence: int) -> None:
    if letter == b"f":
        raise FencedError(f"fencing token {fence} is not the newest: another server has taken over")
