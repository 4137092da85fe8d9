"""The jobs of attempts: looked up anew, and a change is noticed however it falls in between."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pilotage.actors.attempt_jobs import AttemptJobs
from pilotage.actors.executors.port import JobHeldError
from pilotage.runtime.definition import JobSpec
from pilotage.runtime.validation import parse_job
from tests.unit.catalog.conftest import Kit

BODY = {"slug": "j", "endpoint_url": "http://host/x"}


async def test_a_job_that_is_enabled_while_it_is_looked_up_is_not_waited_for(kit: Kit) -> None:
    """The answer that it is disabled comes when it is enabled already: no further change comes."""
    jobs = AttemptJobs(kit.catalog, kit.registry)
    kit.catalog.listeners.job_limit = lambda project, ref, _: jobs.changed(project, ref)
    job = await kit.job(enabled=False)
    kit.catalog._jobs._forget(job.id)
    get, read, go_on = kit.store.get_record, asyncio.Event(), asyncio.Event()

    async def slow(kind: str, record_id: str) -> Any:
        found = await get(kind, record_id)
        read.set()
        await go_on.wait()
        return found

    kit.store.get_record = slow  # type: ignore[method-assign]
    looking = asyncio.create_task(jobs.look_up("p", job.id))
    await read.wait()
    await kit.catalog.update_job(job, parse_job(BODY))
    go_on.set()
    assert isinstance(await looking, JobSpec)


async def test_who_waits_for_a_disabled_job_hears_of_each_change(kit: Kit) -> None:
    jobs = AttemptJobs(kit.catalog, kit.registry)
    kit.catalog.listeners.job_limit = lambda project, ref, _: jobs.changed(project, ref)
    job = await kit.job(enabled=False)
    with pytest.raises(JobHeldError, match='"j" is disabled') as first:
        await jobs.look_up("p", "j")
    with pytest.raises(JobHeldError) as second:
        await jobs.look_up("p", "j")
    assert first.value.change is second.value.change
    job = await kit.catalog.update_job(job, parse_job({**BODY, "enabled": False, "name": "n"}))
    assert first.value.change.done()
    with pytest.raises(JobHeldError) as third:
        await jobs.look_up("p", "j")
    await kit.catalog.update_job(job, parse_job(BODY))
    assert third.value.change.done()
    assert isinstance(await jobs.look_up("p", "j"), JobSpec)
