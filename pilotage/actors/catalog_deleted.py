"""Versions of deleted workflows: they go once no kept run is of that workflow.

A deletion is noted before it is made, so that none is forgotten; a note without a deletion goes by
itself. Nothing is scanned: the notes are the list of what is left to look at.
"""

from __future__ import annotations

import msgspec

from pilotage.actors.catalog_model import Workflow, WorkflowVersion
from pilotage.actors.catalog_records import Position, Shelf, catalog_errors
from pilotage.persistence import codec
from pilotage.persistence.port import Record, RunQuery, Store

KIND = "deleted_workflow"
NOTES_AT_ONCE = 100
_VERSIONS_AT_ONCE = 100


class Deleted(msgspec.Struct, frozen=True, kw_only=True):
    """What is noted; who and where stands in the record itself."""

    slug: str


class DeletedWorkflows:
    """The notes of one installation."""

    def __init__(
        self, store: Store, workflows: Shelf[Workflow], versions: Shelf[WorkflowVersion]
    ) -> None:
        self._store = store
        self._workflows = workflows
        self._versions = versions
        self._after: Position | None = None
        self._seen_empty: set[str] = set()

    async def note(self, workflow: Workflow, fence: int) -> None:
        record = Record(
            kind=KIND,
            project_id=workflow.project_id,
            id=workflow.id,
            data=codec.encode_record(Deleted(slug=workflow.slug)),
            created_at_ms=workflow.created_at_ms,
        )
        with catalog_errors("workflow"):
            if await self._store.get_record(KIND, workflow.id) is None:
                await self._store.put_record(record, fence)

    async def sweep(self, fence: int) -> int:
        """Look at some notes, the next ones at the next call; how many workflows are gone for good.

        A workflow without runs is gone when it has none the next time either: a run that is being
        made from one that has just been removed is there by then.
        """
        gone = 0
        with catalog_errors("workflow"):
            page = await self._store.list_records(KIND, None, NOTES_AT_ONCE, self._after)
            self._after = page.next_after
            for note in page.rows:
                if await self._store.get_record("workflow", note.id) is not None:
                    await self._store.delete_record(KIND, note.id, fence)
                elif await self._has_runs(note):
                    self._seen_empty.discard(note.id)
                elif note.id not in self._seen_empty:
                    self._seen_empty.add(note.id)
                else:
                    await self._remove(note, fence)
                    gone += 1
        return gone

    async def _has_runs(self, note: Record) -> bool:
        query = RunQuery(project_id=note.project_id, workflow_id=note.id, limit=1)
        page = await self._store.list_runs(query)
        return bool(page.rows) or page.next_after is not None

    async def _remove(self, note: Record, fence: int) -> None:
        while True:
            page = await self._store.list_records("version", note.id, _VERSIONS_AT_ONCE, None)
            for version in page.rows:
                await self._versions.delete(version.id)
            if page.next_after is None:
                break
        await self._store.delete_record(KIND, note.id, fence)
        self._seen_empty.discard(note.id)
