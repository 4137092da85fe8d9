"""Changes that the store does not answer: what is in memory becomes what is stored.

The request was lost, was carried out and its answer lost, or is carried out when the sender has
given up already.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import msgspec
import pytest

from pilotage.actors import catalog_doubts
from pilotage.actors.errors import ConflictError, NotFoundError, UnavailableError
from pilotage.actors.principal import ADMIN
from pilotage.persistence.port import StoreUnavailableError
from pilotage.runtime.validation import parse_job
from tests.support.waiting import wait_until
from tests.unit.catalog.conftest import CountingStore, Kit

FATES = ["lost", "unanswered", "late"]


class LosingStore(CountingStore):
    """Its next change goes unanswered, in one of three ways."""

    fate = ""
    late: Coroutine[Any, Any, Any] | None = None

    async def put_record(self, *args: Any, **kwargs: Any) -> None:
        await self._change(super().put_record(*args, **kwargs))

    async def delete_record(self, *args: Any, **kwargs: Any) -> bool:
        deleted: bool = await self._change(super().delete_record(*args, **kwargs))
        return deleted

    async def _change(self, request: Coroutine[Any, Any, Any]) -> Any:
        fate, self.fate = self.fate, ""
        if not fate:
            return await request
        if fate == "unanswered":
            await request
        elif fate == "late":
            self.late = request
        else:
            request.close()
        raise StoreUnavailableError("no answer")

    async def arrive(self) -> None:
        """What is late is carried out now, after somebody has looked."""
        if self.late is not None:
            seen = self.reads
            await wait_until(lambda: self.reads > seen + 2, "it was looked for")
            await self.late


class Told:
    """What the listeners of a catalog go by."""

    def __init__(self, kit: Kit) -> None:
        self.workflows: dict[str, Any] = {}
        self.limits: dict[str, int] = {}
        listeners = kit.catalog.listeners
        listeners.workflow = lambda workflow: self.workflows.update({workflow.id: workflow})
        listeners.workflow_deleted = lambda workflow_id: self.workflows.pop(workflow_id, None)
        listeners.job_limit = lambda _, ref, limit: self.limits.update({ref: limit})


@pytest.fixture
async def kit(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kit]:
    monkeypatch.setattr(catalog_doubts, "LOOKS_SECS", (0.005,) * 20)
    kit = Kit(store=LosingStore)
    await kit.open()
    yield kit
    kit.catalog.close()
    await kit.store.close()


def store_of(kit: Kit, fate: str) -> LosingStore:
    assert isinstance(kit.store, LosingStore)
    kit.store.fate = fate
    return kit.store


async def settled(kit: Kit) -> None:
    catalog = kit.catalog
    every = (catalog._workflows.doubts, catalog._jobs.doubts, catalog.keys.doubts)
    await wait_until(lambda: not any(every), "what became of it is known")


@pytest.mark.parametrize("fate", FATES)
async def test_a_job_that_was_changed(kit: Kit, fate: str) -> None:
    told, job = Told(kit), await kit.job(max_concurrency=1)
    store = store_of(kit, fate)
    with pytest.raises(UnavailableError):
        await kit.catalog.update_job(
            job, parse_job({"slug": "k", "endpoint_url": "http://host/x", "max_concurrency": 5})
        )
    await store.arrive()
    await settled(kit)
    changed = fate != "lost"
    assert told.limits[job.id] == (5 if changed else 1)
    assert told.limits["j"] == (0 if changed else 1)
    assert told.limits["k"] == (5 if changed else 0)
    assert (await kit.catalog.job("p", job.id)).spec.max_concurrency == (5 if changed else 1)
    with pytest.raises(NotFoundError):
        await kit.catalog.job("p", "j" if changed else "k")
    assert (await kit.catalog.job("p", "k" if changed else "j")).id == job.id


@pytest.mark.parametrize("fate", FATES)
async def test_a_job_that_was_deleted(kit: Kit, fate: str) -> None:
    told, job = Told(kit), await kit.job(max_concurrency=2)
    store = store_of(kit, fate)
    with pytest.raises(UnavailableError):
        await kit.catalog.delete_job(job)
    await store.arrive()
    await settled(kit)
    assert told.limits == dict.fromkeys(("j", job.id), 2 if fate == "lost" else 0)


@pytest.mark.parametrize("fate", FATES)
async def test_a_workflow_that_was_made(kit: Kit, fate: str) -> None:
    await kit.job()
    told, store = Told(kit), store_of(kit, fate)
    with pytest.raises(UnavailableError):
        await kit.workflow(max_concurrent_runs=3)
    await store.arrive()
    await settled(kit)
    if fate == "lost":
        assert not told.workflows
        with pytest.raises(NotFoundError):
            await kit.catalog.workflow("p", "w")
        return
    (found,) = told.workflows.values()
    assert found.spec.max_concurrent_runs == 3
    assert await kit.catalog.workflow("p", "w") == found
    with pytest.raises(ConflictError):
        await kit.workflow()


@pytest.mark.parametrize("fate", FATES)
async def test_a_workflow_that_was_disabled(kit: Kit, fate: str) -> None:
    await kit.job()
    told, flow = Told(kit), await kit.workflow()
    store = store_of(kit, fate)
    with pytest.raises(UnavailableError):
        await kit.patch(flow, enabled=False)
    for _ in range(5):  # what is read meanwhile does not stay in memory
        await kit.catalog.workflow("p", "w")
    await store.arrive()
    await settled(kit)
    assert told.workflows[flow.id].enabled is (fate == "lost")
    assert (await kit.catalog.workflow("p", "w")).enabled is (fate == "lost")


@pytest.mark.parametrize("fate", FATES)
async def test_a_workflow_that_was_deleted(kit: Kit, fate: str) -> None:
    await kit.job()
    told, flow = Told(kit), await kit.workflow()
    store = store_of(kit, "")
    await kit.catalog.deleted.note(flow, kit.fence)  # the deletion itself is what is lost
    store.fate = fate
    with pytest.raises(UnavailableError):
        await kit.catalog.delete_workflow(flow)
    await store.arrive()
    await settled(kit)
    assert (flow.id in told.workflows) is (fate == "lost")


@pytest.mark.parametrize("fate", FATES)
async def test_a_key_whose_revocation_was_not_answered_is_refused_until_it_is_known_to_be_good(
    kit: Kit, fate: str
) -> None:
    keys = kit.catalog.keys
    key, secret = await keys.create(name="ci", project_id="p", scopes=["runs:read"], by=ADMIN)
    store = store_of(kit, fate)
    with pytest.raises(UnavailableError):
        await keys.revoke(key.id, ADMIN)
    assert await keys.authenticate(secret) is None
    seen = store.reads
    await wait_until(lambda: store.reads > seen, "it was looked for")
    assert await keys.authenticate(secret) is None
    await store.arrive()
    await settled(kit)
    assert (await keys.authenticate(secret) is not None) is (fate == "lost")
    if fate == "lost":
        await keys.revoke(key.id, ADMIN)
    with pytest.raises(NotFoundError):
        await keys.revoke(key.id, ADMIN)
    assert await keys.authenticate(secret) is None


async def test_a_key_in_doubt_can_be_revoked_again(kit: Kit) -> None:
    keys = kit.catalog.keys
    key, secret = await keys.create(name="ci", project_id="p", scopes=["runs:read"], by=ADMIN)
    store_of(kit, "lost")
    with pytest.raises(UnavailableError):
        await keys.revoke(key.id, ADMIN)
    await keys.revoke(key.id, ADMIN)
    await settled(kit)
    assert await keys.authenticate(secret) is None


@pytest.mark.parametrize("fate", FATES)
async def test_a_key_that_was_made_is_there_to_be_revoked(kit: Kit, fate: str) -> None:
    keys = kit.catalog.keys
    await keys.load()
    store = store_of(kit, fate)
    with pytest.raises(UnavailableError):
        await keys.create(name="ci", project_id="p", scopes=["runs:read"], by=ADMIN)
    await store.arrive()
    await settled(kit)
    found, _ = await keys.visible_to(ADMIN, None, 10, None)
    assert [key.name for key in found] == ([] if fate == "lost" else ["ci"])
    for key in found:
        await keys.revoke(key.id, ADMIN)


async def test_a_change_that_nobody_waited_for_is_looked_up_too(kit: Kit) -> None:
    """The request that made it was given up on, and the store has it."""
    told, job = Told(kit), await kit.job(max_concurrency=1)
    put, reached, go = kit.store.put_record, asyncio.Event(), asyncio.Event()

    async def slow(*args: Any, **kwargs: Any) -> None:
        await put(*args, **kwargs)
        reached.set()
        await go.wait()

    kit.store.put_record = slow  # type: ignore[method-assign]
    body = {"slug": "j", "endpoint_url": "http://host/x", "max_concurrency": 5}
    changing = asyncio.create_task(kit.catalog.update_job(job, parse_job(body)))
    await reached.wait()
    changing.cancel()
    await wait_until(lambda: told.limits[job.id] == 5, "the new limit is known")


async def test_what_the_store_refuses_is_known_at_once(kit: Kit) -> None:
    job = await kit.job()
    await kit.catalog.update_job(job, parse_job({"slug": "j", "endpoint_url": "http://host/y"}))
    with pytest.raises(ConflictError):
        await kit.catalog.update_job(job, parse_job({"slug": "j", "endpoint_url": "http://h/z"}))
    assert not kit.catalog._jobs.doubts


async def test_it_is_looked_up_when_the_store_is_back(kit: Kit) -> None:
    told, job = Told(kit), await kit.job(max_concurrency=1)
    store = store_of(kit, "unanswered")
    body = {"slug": "j", "endpoint_url": "http://host/x", "max_concurrency": 5}
    with pytest.raises(UnavailableError):
        await kit.catalog.update_job(job, parse_job(body))
    store.away = True
    seen = store.reads
    await wait_until(lambda: store.reads > seen + 1, "it has tried in vain")
    assert told.limits[job.id] == 1
    store.away = False
    await wait_until(lambda: told.limits[job.id] == 5, "the new limit is known")


async def test_too_many_changes_in_doubt_are_refused(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_doubts, "MAX_DOUBTS", 1)
    jobs = [await kit.job(slug) for slug in ("j", "k")]
    store_of(kit, "lost")
    with pytest.raises(UnavailableError):
        await kit.catalog.delete_job(jobs[0])
    with pytest.raises(UnavailableError, match="has not answered 1 changes"):
        await kit.catalog.delete_job(jobs[1])
    await settled(kit)
    await kit.catalog.delete_job(jobs[1])


async def test_a_damaged_definition_ends_the_doubt(kit: Kit) -> None:
    job = await kit.job()
    store = store_of(kit, "lost")
    with pytest.raises(UnavailableError):
        await kit.catalog.delete_job(job)
    record = store.server.records["job", job.id]
    damaged = msgspec.structs.replace(record, data=record.data[:-1])
    store.server.records["job", job.id] = damaged
    await settled(kit)


async def test_a_stopped_catalog_looks_for_nothing(kit: Kit) -> None:
    jobs = [await kit.job(slug) for slug in ("j", "k")]
    store_of(kit, "lost")
    with pytest.raises(UnavailableError):
        await kit.catalog.delete_job(jobs[0])
    kit.catalog.close()
    store_of(kit, "lost")
    with pytest.raises(UnavailableError):
        await kit.catalog.delete_job(jobs[1])
    assert not kit.catalog._jobs.doubts
