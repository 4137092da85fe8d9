"""`pilotage doctor --deep`: whether everything in the store is readable and in its place.

It reads the whole store, a little at a time, beside a server that may go on working, and changes
nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from pilotage.actors.api_keys import KIND as KEY_KIND, ApiKey
from pilotage.actors.catalog_deleted import KIND as DELETED_KIND, Deleted
from pilotage.actors.catalog_model import Job, Workflow, WorkflowVersion
from pilotage.actors.cron_triggers import Decided
from pilotage.actors.event_hub import KeptEvent
from pilotage.actors.idempotency import recall
from pilotage.actors.job_runs import JobRunRecord
from pilotage.persistence import codec
from pilotage.persistence.embedded import EmbeddedServer
from pilotage.persistence.redis_check import Beside, Report, check_store
from pilotage.persistence.redis_store import RedisStore
from pilotage.runtime.history import HistoryEntry
from pilotage.settings import Settings

RECORDS: dict[str, Callable[[bytes], object]] = {
    "workflow": partial(codec.decode_definition, as_type=Workflow),
    "version": partial(codec.decode_definition, as_type=WorkflowVersion),
    "job": partial(codec.decode_definition, as_type=Job),
    "cron": partial(codec.decode_definition, as_type=Decided),
    KEY_KIND: partial(codec.decode_record, as_type=ApiKey),
    DELETED_KIND: partial(codec.decode_record, as_type=Deleted),
}
BESIDE = Beside(
    history=partial(codec.decode_history, as_type=HistoryEntry),
    job_run=partial(codec.decode_record, as_type=JobRunRecord),
    answer=recall,
    event=partial(codec.decode_record, as_type=KeptEvent),
)


def look(settings: Settings) -> Report:
    """Raises `StoreError`s; the embedded store is there only while its server runs."""
    url = settings.redis_url or EmbeddedServer(settings.data_dir).url
    return asyncio.run(_look(RedisStore(url, namespace=settings.namespace)))


async def _look(store: RedisStore) -> Report:
    try:
        await store.open()
        return await check_store(store, RECORDS, BESIDE)
    finally:
        await store.close()
