from __future__ import annotations

import asyncio
import gc

import msgspec
import pytest

from pilotage.actors.catalog_graphs import GraphCache
from pilotage.actors.catalog_model import Workflow
from pilotage.actors.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from pilotage.actors.idempotency import Idempotency, recall
from pilotage.persistence.memory import MemoryServer
from pilotage.persistence.port import RunIndex, RunWrite
from pilotage.runtime.definition import StepSpec, WorkflowSpec
from pilotage.runtime.errors import DefinitionError
from pilotage.runtime.status import ExecutionMode, RunStatus
from pilotage.runtime.validation import parse_job_patch
from tests.unit.catalog.conftest import Kit


def chain(length: int) -> WorkflowSpec:
    return WorkflowSpec(steps=tuple(StepSpec(step_ref=f"s{i}", job_id="j") for i in range(length)))


async def test_a_workflow_is_found_by_id_and_by_slug_in_its_project(kit: Kit) -> None:
    await kit.job()
    made = await kit.workflow()
    for name in (made.id, "w"):
        assert await kit.catalog.workflow("p", name) == made
    assert await kit.catalog.workflow(None, made.id) == made
    for project, name in (("q", made.id), ("q", "w"), ("p", "nobody")):
        with pytest.raises(NotFoundError):
            await kit.catalog.workflow(project, name)
    with pytest.raises(InvalidError, match="slug"):
        await kit.catalog.workflow(None, "w")


async def test_definitions_survive_a_new_process(kit: Kit) -> None:
    job = await kit.job(signing_secret="x", tags={"a": "b"})
    made = await kit.workflow(
        steps=[
            {"step_ref": "a", "job_id": "j", "payload": {"n": 1.5, "t": "{{ payload.x }}"}},
            {"step_ref": "b", "step_type": "approval", "depends_on": ["a"],
             "condition": {"type": "eq", "left": "{{ steps.a.status }}", "right": "completed"}},
        ],
        cron="5 4 * * *", cron_timezone="Europe/Berlin",
    )  # fmt: skip
    reborn = Kit(kit.store.server)
    await reborn.store.open()
    assert await reborn.catalog.workflow("p", "w") == made
    assert await reborn.catalog.job("p", "j") == job
    assert (await reborn.catalog.spec_version(made.version_id)).spec == made.spec


async def test_a_slug_is_taken_once_a_project(kit: Kit) -> None:
    await kit.job()
    await kit.workflow()
    with pytest.raises(ConflictError, match='slug "w"'):
        await kit.workflow()
    with pytest.raises(ConflictError, match='slug "j"'):
        await kit.job()
    await kit.job(project="q")
    await kit.workflow(project="q")


async def test_of_two_creations_at_the_same_time_one_wins(kit: Kit) -> None:
    await kit.job()
    made = await asyncio.gather(*(kit.workflow() for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(m, Workflow) for m in made) == 1
    assert sum(isinstance(m, ConflictError) for m in made) == 4


async def test_only_a_change_of_what_runs_makes_a_version(kit: Kit) -> None:
    await kit.job()
    made = await kit.workflow()
    renamed = await kit.patch(made, name="other", tags={"a": "b"}, enabled=False, description="d")
    assert (renamed.version, renamed.version_id) == (1, made.version_id)
    assert renamed.revision == 2
    changed = await kit.patch(renamed, max_parallel_steps=3)
    assert changed.version == 2
    assert changed.version_id != made.version_id
    same = await kit.patch(changed, max_parallel_steps=3)
    assert same.version == 2
    page, _ = await kit.catalog.versions(changed, 10)
    assert [v.version for v in page] == [2, 1]
    old = await kit.catalog.spec_version(made.version_id)
    assert old.spec == made.spec


async def test_a_change_made_from_an_old_state_is_refused(kit: Kit) -> None:
    await kit.job()
    made = await kit.workflow()
    newest = await kit.patch(made, max_parallel_steps=3)
    with pytest.raises(ConflictError, match="read it again"):
        await kit.patch(made, max_parallel_steps=4)
    assert await kit.catalog.workflow("p", "w") == newest
    page, _ = await kit.catalog.versions(newest, 10)
    assert [v.version for v in page] == [2, 1]


async def test_a_renamed_slug_frees_the_old_one(kit: Kit) -> None:
    await kit.job()
    made = await kit.workflow()
    await kit.patch(made, slug="v")
    with pytest.raises(NotFoundError):
        await kit.catalog.workflow("p", "w")
    assert (await kit.catalog.workflow("p", "v")).id == made.id
    await kit.workflow()


async def test_a_workflow_with_active_runs_is_not_deleted(kit: Kit) -> None:
    await kit.job()
    made = await kit.workflow()
    write = RunWrite(
        run_id="019a3f5c-8f80-7c3a-8b1d-000012340000",
        follows=0,
        seq=1,
        head=b"h",
        vitals=b"v",
        index=RunIndex(
            project_id="p", workflow_id=made.id, created_at_ms=1, status=RunStatus.RUNNING
        ),
    )
    await kit.store.commit([write], kit.fence)
    with pytest.raises(ConflictError, match="1 active run"):
        await kit.catalog.delete_workflow(made)
    over = msgspec.structs.replace(
        write,
        follows=1,
        seq=2,
        head=None,
        finished=True,
        blob=b"b",
        index=msgspec.structs.replace(write.index, status=RunStatus.COMPLETED),
    )
    await kit.store.commit([over], kit.fence)
    await kit.catalog.delete_workflow(made)
    with pytest.raises(NotFoundError):
        await kit.catalog.workflow("p", made.id)
    # finished runs still need the version
    assert (await kit.catalog.graph(made.version_id)).size == 1
    with pytest.raises(NotFoundError):
        await kit.catalog.delete_workflow(made)


async def test_a_job_is_at_hand_once_it_was_looked_up_and_only_in_its_project(kit: Kit) -> None:
    job = await kit.job()
    assert kit.catalog.job_at_hand("p", job.id) == job
    reborn = Kit(kit.store.server)
    await reborn.store.open()
    catalog = reborn.catalog
    assert [catalog.job_at_hand("p", name) for name in (job.id, "j")] == [None, None]
    assert await catalog.job_for_attempt("p", "j") == job
    assert [catalog.job_at_hand("p", name) for name in (job.id, "j")] == [job, job]
    assert [catalog.job_at_hand("q", name) for name in (job.id, "j")] == [None, None]


async def test_what_is_at_hand_follows_the_changes_of_a_job(kit: Kit) -> None:
    job = await kit.job()
    await kit.catalog.job("p", "j")
    changed = await kit.catalog.update_job(job, parse_job_patch({"max_attempts": 9}, job))
    await kit.catalog.job("p", "j")
    assert [kit.catalog.job_at_hand("p", name) for name in (job.id, "j")] == [changed, changed]
    await kit.catalog.delete_job(changed)
    assert [kit.catalog.job_at_hand("p", name) for name in (job.id, "j")] == [None, None]


async def test_a_job_in_use_is_not_deleted(kit: Kit) -> None:
    job = await kit.job()
    workflow = await kit.workflow()
    with pytest.raises(ConflictError, match='"w"'):
        await kit.catalog.delete_job(job)
    await kit.patch(workflow, enabled=False)
    await kit.catalog.delete_job(job)
    with pytest.raises(NotFoundError, match="does not exist"):
        await kit.catalog.job_for_attempt("p", job.id)


async def test_a_job_deleted_meanwhile_is_noticed(kit: Kit) -> None:
    job = await kit.job()
    parsed = await kit.catalog.parse_workflow(
        "p", {"slug": "w", "steps": [{"step_ref": "a", "job_id": "j"}]}
    )
    await kit.catalog.delete_job(job)
    with pytest.raises(InvalidError) as refused:
        await kit.catalog.create_workflow(parsed, project_id="p", created_by="me")
    assert refused.value.details[0].startswith("steps[0].job_id: unknown job")


async def test_references_are_looked_up_in_the_project(kit: Kit) -> None:
    job = await kit.job()
    child = await kit.workflow("child")
    parsed = await kit.catalog.parse_workflow(
        "p",
        {
            "slug": "w",
            "steps": [
                {"step_ref": "a", "job_id": "j"},
                {"step_ref": "b", "job_id": job.id},
                {"step_ref": "c", "step_type": "sub_workflow", "sub_workflow_id": "child"},
            ],
        },
    )
    assert [s.job_id for s in parsed.spec.steps] == [job.id, job.id, None]
    assert parsed.spec.steps[2].sub_workflow_id == child.id
    with pytest.raises(DefinitionError) as refused:
        await kit.catalog.parse_workflow(
            "q", {"slug": "w", "steps": [{"step_ref": "a", "job_id": job.id}]}
        )
    assert "unknown job" in refused.value.problems[0]


@pytest.mark.parametrize("raw", [None, [], "x", {"steps": 5}, {"steps": [1, {"job_id": 5}]}])
async def test_a_definition_of_any_shape_is_refused_in_words(kit: Kit, raw: object) -> None:
    with pytest.raises(DefinitionError):
        await kit.catalog.parse_workflow("p", raw)


async def test_registered_functions_are_jobs(kit: Kit) -> None:
    async def charge(data: dict[str, object]) -> None: ...

    kit.registry.register(charge, name="charge", max_attempts=7, max_concurrency=2)
    workflow = await kit.workflow(job="charge")
    policies = await kit.catalog.policies("p", workflow.spec)
    assert policies["charge"].max_attempts == 7
    assert policies["charge"].limited
    job = await kit.catalog.job_for_attempt("p", "charge")
    assert job.spec.execution_mode is ExecutionMode.PYTHON
    # a job of the project goes before a function of the same name
    own = await kit.job("charge")
    assert await kit.catalog.job_for_attempt("p", "charge") == own
    # looking a function up again and again asks the store nothing
    await kit.catalog.job_for_attempt("q", "charge")
    before = kit.store.reads
    await kit.catalog.job_for_attempt("q", "charge")
    assert kit.store.reads == before


async def test_policies_leave_out_what_is_unknown(kit: Kit) -> None:
    job = await kit.job(max_attempts=9)
    spec = WorkflowSpec(
        steps=(StepSpec(step_ref="a", job_id=job.id), StepSpec(step_ref="b", job_id="gone"))
    )
    assert {k: p.max_attempts for k, p in (await kit.catalog.policies("p", spec)).items()} == {
        job.id: 9
    }


async def test_what_was_read_once_is_answered_from_memory(kit: Kit) -> None:
    job = await kit.job()
    made = await kit.workflow()
    reborn = Kit(kit.store.server)
    await reborn.store.open()
    for _ in range(3):
        await reborn.catalog.workflow("p", "w")
        await reborn.catalog.job("p", job.id)
        await reborn.catalog.graph(made.version_id)
    assert reborn.store.reads <= 5
    assert await reborn.catalog.graph(made.version_id) is await reborn.catalog.graph(
        made.version_id
    )


async def test_a_read_that_overlaps_a_write_does_not_bring_the_old_state_back(kit: Kit) -> None:
    await kit.job()
    made = await kit.workflow()
    reborn = Kit(kit.store.server)
    await reborn.store.open()
    reborn.fence = kit.fence
    entered, go_on = asyncio.Event(), asyncio.Event()
    get_record = reborn.store.get_record

    async def slow(kind: str, record_id: str) -> object:
        record = await get_record(kind, record_id)
        entered.set()
        await go_on.wait()
        return record

    reborn.store.get_record = slow  # type: ignore[method-assign]
    reading = asyncio.create_task(reborn.catalog.workflow_by_id(made.id))
    await entered.wait()
    new = await reborn.patch(made, name="new")
    go_on.set()
    await reading
    assert await reborn.catalog.workflow_by_id(made.id) == new


async def test_a_store_that_is_away_is_unavailable_and_nothing_half_done_is_seen(
    kit: Kit,
) -> None:
    await kit.job()
    made = await kit.workflow()
    kit.store.away = True
    with pytest.raises(UnavailableError):
        await kit.patch(made, name="new")
    kit.store.away = False
    assert (await kit.catalog.workflow("p", "w")).name == "w"


async def test_a_process_that_lost_its_fence_writes_nothing(kit: Kit) -> None:
    await kit.job()
    kit.fence -= 1
    with pytest.raises(UnavailableError, match="taken over"):
        await kit.job("k")


async def test_an_idempotency_record_is_stored_with_the_definition(kit: Kit) -> None:
    await kit.job()
    parsed = await kit.catalog.parse_workflow(
        "p", {"slug": "w", "steps": [{"step_ref": "a", "job_id": "j"}]}
    )
    made = await kit.catalog.create_workflow(
        parsed,
        project_id="p",
        created_by="me",
        idempotency=Idempotency(key="POST /v1/workflows k", request_hash="h", project_id="p"),
    )
    data = await kit.store.idempotency("p", "POST /v1/workflows k")
    assert data is not None
    known = recall(data)
    assert (known.reference, known.status, known.request_hash) == (made.id, 201, "h")


async def test_a_job_is_changed_in_place(kit: Kit) -> None:
    job = await kit.job()
    parsed = parse_job_patch({"max_attempts": 8}, job)
    new = await kit.catalog.update_job(job, parsed)
    assert (new.revision, new.spec.max_attempts, new.id) == (2, 8, job.id)
    with pytest.raises(ConflictError, match="read it again"):
        await kit.catalog.update_job(job, parse_job_patch({"max_attempts": 9}, job))


async def test_lists_are_paged_newest_first(kit: Kit) -> None:
    for n in range(5):
        kit.clock.ms += n % 2  # some share a millisecond
        await kit.job(f"j{n}")
    await kit.job("other", project="q")
    seen: list[str] = []
    after = None
    while True:
        page, after = await kit.catalog.list_jobs("p", 2, after)
        seen += [j.id for j in page]
        if after is None:
            break
    assert len(seen) == len(set(seen)) == 5
    everything, _ = await kit.catalog.list_jobs(None, 100)
    assert len(everything) == 6
    assert [j async for j in kit.catalog.all_workflows()] == []


def test_graphs_are_kept_within_bounds_and_shared_while_in_use() -> None:
    cache = GraphCache(max_graphs=2, max_steps=10)
    held = cache.build("a", chain(4))
    assert cache.build("a", chain(4)) is held
    cache.build("b", chain(4))
    cache.build("c", chain(4))
    cache.build("d", chain(4))
    gc.collect()
    assert cache.get("b") is None  # nobody holds it
    assert cache.get("a") is held  # somebody does
    big = cache.build("big", chain(50))
    assert cache.get("big") is big


async def test_a_deleted_store_gives_nothing() -> None:
    kit = Kit(MemoryServer())
    await kit.open()
    with pytest.raises(NotFoundError):
        await kit.catalog.graph("ver_x")
    with pytest.raises(NotFoundError):
        await kit.catalog.workflow_by_id("x")
