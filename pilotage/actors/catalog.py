"""The catalog: workflows, their versions, jobs and API keys of all projects.

What a run needs of a definition (graph, policies, the job of an attempt) is answered from memory
most of the time. Every change is stored before it is answered and before it is seen by others.

Changes of one project's definitions happen one after the other, so that a job is not deleted while
a workflow that uses it is being made.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from typing import Any, Protocol, TypeVar
from zlib import crc32

import msgspec

from pilotage.actors.api_keys import ApiKeys
from pilotage.actors.catalog_deleted import DeletedWorkflows
from pilotage.actors.catalog_doubts import Doubt
from pilotage.actors.catalog_graphs import GraphCache
from pilotage.actors.catalog_listeners import Listeners
from pilotage.actors.catalog_lookup import Known, at_hand, each, find, look_up, references, unknown
from pilotage.actors.catalog_model import (
    Job,
    Workflow,
    WorkflowVersion,
    same_spec,
)
from pilotage.actors.catalog_records import (
    Filed,
    Filing,
    Position,
    Shelf,
    catalog_errors,
    new_id,
)
from pilotage.actors.errors import ConflictError, InvalidError, NotFoundError
from pilotage.actors.idempotency import Idempotency
from pilotage.actors.kernel.clock import Clock
from pilotage.actors.workflow_uses import WorkflowUses
from pilotage.persistence import codec
from pilotage.persistence.port import IdempotencyRecord, Record, Store
from pilotage.runtime.definition import JobPolicy, JobSpec, WorkflowSpec
from pilotage.runtime.graph import StepGraph
from pilotage.runtime.status import ExecutionMode
from pilotage.runtime.validation import (
    ParsedJob,
    ParsedWorkflow,
    parse_workflow,
    parse_workflow_patch,
)

_LOCKS = 64
D = TypeVar("D", bound=Filed)


class RegisteredJob(Protocol):
    """A Python function that is registered as a job."""

    @property
    def spec(self) -> JobSpec: ...


class PythonJobs(Protocol):
    """The registered Python functions; asked anew each time, so it may grow."""

    def get(self, name: str, /) -> RegisteredJob | None: ...


def _filing(kind: str, type_: type[D]) -> Filing[D]:
    decode = partial(codec.decode_definition, as_type=type_)
    return Filing(kind=kind, encode=codec.encode_definition, decode=decode)  # type: ignore[arg-type]


class Catalog:
    """`fence` gives the fencing token of this process.

    All methods run on the actors' loop and may raise `UnavailableError` when the store is away.
    """

    def __init__(
        self,
        store: Store,
        *,
        clock: Clock,
        fence: Callable[[], int],
        python_jobs: PythonJobs,
        admin_key: str | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._python_jobs = python_jobs
        self._workflows = Shelf(store, _filing("workflow", Workflow), fence, self._look_at_workflow)
        self._versions = Shelf(store, _filing("version", WorkflowVersion), fence)
        self._jobs = Shelf(store, _filing("job", Job), fence, self._look_at_job)
        self.deleted = DeletedWorkflows(store, self._workflows, self._versions)
        self._fence = fence
        self._graphs = GraphCache()
        self._locks = tuple(asyncio.Lock() for _ in range(_LOCKS))
        self.listeners = Listeners()
        self.uses = WorkflowUses()
        self.keys = ApiKeys(store, clock=clock, fence=fence, admin_key=admin_key)

    # --- workflows -------------------------------------------------------------------------

    async def workflow(
        self, project_id: str | None, id_or_slug: str, *, of_any: bool = False
    ) -> Workflow:
        """A project's workflow; without a project, or `of_any`, whosever id it is."""
        return await look_up(self._workflows, "workflow", project_id, id_or_slug, of_any=of_any)

    async def workflow_by_id(self, workflow_id: str) -> Workflow:
        found = await self._workflows.get(workflow_id)
        if found is None:
            raise unknown("workflow", workflow_id)
        return found

    async def create_workflow(
        self,
        parsed: ParsedWorkflow,
        *,
        project_id: str,
        created_by: str,
        idempotency: Idempotency | None = None,
        body: Callable[[Workflow], bytes] | None = None,
    ) -> Workflow:
        """Version 1 of a new workflow; `ConflictError` if the slug is taken.

        `body` makes the answer that is remembered with `idempotency`.
        """
        async with self._changing(project_id):
            await self._refuse_taken(self._workflows, "workflow", project_id, parsed.slug)
            now = self._clock.now_ms()
            workflow = Workflow(
                id=new_id(now),
                project_id=project_id,
                name=parsed.name,
                slug=parsed.slug,
                description=parsed.description,
                tags=dict(parsed.tags),
                enabled=parsed.enabled,
                version=1,
                version_id=_version_id(now),
                spec=parsed.spec,
                created_by=created_by,
                created_at_ms=now,
                updated_at_ms=now,
            )
            version = await self._new_version(workflow, created_by)
            made = _made(idempotency, workflow, body)
            await self._put_workflow(workflow, version, made)
            return workflow

    async def update_workflow(
        self, workflow: Workflow, parsed: ParsedWorkflow, *, updated_by: str
    ) -> Workflow:
        """What `parsed` says, as the next version if it runs differently.

        `ConflictError` when `workflow` is not the newest state or the slug is taken.
        """
        async with self._changing(workflow.project_id):
            now = max(self._clock.now_ms(), workflow.updated_at_ms + 1)
            changed = not same_spec(workflow.spec, parsed.spec)
            new = msgspec.structs.replace(
                workflow,
                name=parsed.name,
                slug=parsed.slug,
                description=parsed.description,
                tags=dict(parsed.tags),
                enabled=parsed.enabled,
                version=workflow.version + changed,
                version_id=_version_id(now) if changed else workflow.version_id,
                spec=parsed.spec if changed else workflow.spec,
                updated_at_ms=now,
                revision=workflow.revision + 1,
            )
            version = await self._new_version(new, updated_by) if changed else None
            if new.enabled and not workflow.enabled:  # meanwhile its jobs might have been deleted
                await self._require_jobs(new)
            await self._put_workflow(new, version)
            return new

    async def delete_workflow(self, workflow: Workflow) -> None:
        """Gone for new runs; its versions stay as long as there are runs that refer to them."""
        async with self._changing(workflow.project_id), self.uses.deleting(workflow.id):
            with catalog_errors("workflow"):
                active = await self._store.active_count(workflow.id)
            if active:
                raise ConflictError(
                    f'workflow "{workflow.slug}" has {active} active runs; '
                    "cancel them or wait for their end, then delete it"
                )
            await self.deleted.note(workflow, self._fence())
            project_id, slug = workflow.project_id, workflow.slug
            if not await self._workflows.delete(workflow.id, project_id, slug):
                raise unknown("workflow", workflow.id)
            self.listeners.workflow_deleted(workflow.id)

    async def list_workflows(
        self, project_id: str | None, limit: int, after: Position | None = None
    ) -> tuple[list[Workflow], Position | None]:
        return await self._workflows.page(project_id, limit, after)

    async def all_workflows(self) -> AsyncIterator[Workflow]:
        """Every workflow of every project (for cron), a page at a time."""
        async for workflow in each(self._workflows, None):
            yield workflow

    # --- versions --------------------------------------------------------------------------

    async def versions(
        self, workflow: Workflow, limit: int, after: Position | None = None
    ) -> tuple[list[WorkflowVersion], Position | None]:
        """Newest first."""
        return await self._versions.page(workflow.id, limit, after)

    async def spec_version(self, version_id: str) -> WorkflowVersion:
        found = await self._versions.get(version_id)
        if found is None:
            raise unknown("workflow version", version_id)
        return found

    async def graph(self, version_id: str) -> StepGraph:
        """The graph of a version: one object, shared by all that use it at the same time."""
        known = self._graphs.get(version_id)
        if known is not None:
            return known
        return self._graphs.build(version_id, (await self.spec_version(version_id)).spec)

    # --- jobs ------------------------------------------------------------------------------

    async def job(self, project_id: str | None, id_or_slug: str, *, of_any: bool = False) -> Job:
        """A project's stored job; without a project, or `of_any`, whosever id it is."""
        return await look_up(self._jobs, "job", project_id, id_or_slug, of_any=of_any)

    def job_at_hand(self, project_id: str, ref: str) -> Job | None:
        """The stored job that `job_for_attempt` would find without asking the store."""
        return at_hand(self._jobs, project_id, ref)

    async def job_for_attempt(self, project_id: str, ref: str) -> Job:
        """What a step's `job_id` means: the project's job, else a registered Python function."""
        stored = await find(self._jobs, project_id, ref)
        if stored is not None:
            return stored
        registered = self._python_jobs.get(ref)
        if registered is None:
            raise NotFoundError(f'job "{ref}" does not exist; create it or register it')
        spec = registered.spec
        if spec.execution_mode is not ExecutionMode.PYTHON:
            spec = msgspec.structs.replace(spec, execution_mode=ExecutionMode.PYTHON)
        return Job(
            id=ref,
            project_id=project_id,
            name=ref,
            slug=ref,
            spec=spec,
            created_at_ms=0,
            updated_at_ms=0,
        )

    async def policies(self, project_id: str, spec: WorkflowSpec) -> dict[str, JobPolicy]:
        """The policy of every job that `spec` refers to; unknown jobs are left out."""
        policies: dict[str, JobPolicy] = {}
        for ref in dict.fromkeys(s.job_id for s in spec.steps if s.job_id is not None):
            try:
                job = await self.job_for_attempt(project_id, ref)
            except NotFoundError:
                continue
            policies[ref] = job.spec.policy()
        return policies

    async def create_job(
        self,
        parsed: ParsedJob,
        *,
        project_id: str,
        idempotency: Idempotency | None = None,
        body: Callable[[Job], bytes] | None = None,
    ) -> Job:
        async with self._changing(project_id):
            await self._refuse_taken(self._jobs, "job", project_id, parsed.slug)
            now = self._clock.now_ms()
            job = Job(
                id=new_id(now),
                project_id=project_id,
                name=parsed.name,
                slug=parsed.slug,
                spec=parsed.spec,
                tags=dict(parsed.tags),
                enabled=parsed.enabled,
                created_at_ms=now,
                updated_at_ms=now,
            )
            made = _made(idempotency, job, body)
            await self._jobs.put(job, project_id, slug=job.slug, idempotency=made)
            self._tell_limits(job)
            return job

    async def update_job(self, job: Job, parsed: ParsedJob) -> Job:
        async with self._changing(job.project_id):
            new = msgspec.structs.replace(
                job,
                name=parsed.name,
                slug=parsed.slug,
                spec=parsed.spec,
                tags=dict(parsed.tags),
                enabled=parsed.enabled,
                updated_at_ms=max(self._clock.now_ms(), job.updated_at_ms + 1),
                revision=job.revision + 1,
            )
            await self._jobs.put(
                new, job.project_id, slug=new.slug, old_slug=job.slug, revision=new.revision
            )
            if new.slug != job.slug:
                self._tell_limit_without(job.project_id, job.slug)
            self._tell_limits(new)
            return new

    async def delete_job(self, job: Job) -> None:
        """`ConflictError` while an enabled workflow uses it."""
        async with self._changing(job.project_id):
            await self._refuse_used(job)
            if not await self._jobs.delete(job.id, job.project_id, job.slug):
                raise unknown("job", job.id)
            for ref in (job.id, job.slug):
                self._tell_limit_without(job.project_id, ref)

    async def list_jobs(
        self, project_id: str | None, limit: int, after: Position | None = None
    ) -> tuple[list[Job], Position | None]:
        return await self._jobs.page(project_id, limit, after)

    # --- for definitions that are being checked ----------------------------------------------

    async def parse_workflow(self, project_id: str, raw: Any) -> ParsedWorkflow:
        """The checked workflow; `DefinitionError` has every problem, unknown jobs included."""
        return parse_workflow(raw, resolve=await self._resolver(project_id, raw))

    async def parse_patch(self, workflow: Workflow, raw: Any) -> ParsedWorkflow:
        """The workflow with the fields of `raw` replaced, checked."""
        resolver = await self._resolver(workflow.project_id, raw)
        return parse_workflow_patch(raw, workflow, resolve=resolver)

    async def _resolver(self, project_id: str, raw: Any) -> Known:
        """Everything that the steps of `raw` may refer to, looked up beforehand."""
        return Known(
            jobs=await self._known_jobs(project_id, references(raw, "job_id")),
            workflows={
                ref: found.id
                for ref in references(raw, "sub_workflow_id")
                if (found := await find(self._workflows, project_id, ref)) is not None
            },
        )

    async def _known_jobs(self, project_id: str, refs: Iterable[str]) -> dict[str, str]:
        """What to store for each of `refs` that is a job: its id, or a function's name."""
        known: dict[str, str] = {}
        for ref in refs:
            found = await find(self._jobs, project_id, ref)
            if found is not None:
                known[ref] = found.id
            elif self._python_jobs.get(ref) is not None:
                known[ref] = ref
        return known

    # --- who goes by what is stored ---------------------------------------------------------------

    def close(self) -> None:
        """Nobody is told of anything any more."""
        for doubts in (self._workflows.doubts, self._jobs.doubts, self.keys.doubts):
            if doubts is not None:
                doubts.close()

    def _tell_limits(self, job: Job) -> None:
        for ref in (job.id, job.slug):  # steps may name it either way
            self.listeners.job_limit(job.project_id, ref, job.spec.max_concurrency or 0)

    def _tell_limit_without(self, project_id: str, ref: str) -> None:
        """There is no stored job of that name any more; there may be a function."""
        registered = self._python_jobs.get(ref)
        limit = 0 if registered is None else registered.spec.max_concurrency or 0
        self.listeners.job_limit(project_id, ref, limit)

    async def _look_at_workflow(self, doubt: Doubt) -> object:
        async with self._changing(doubt.partition):
            found = await self._workflows.get(doubt.item_id)
            if found is None and doubt.told is not None:
                self.listeners.workflow_deleted(doubt.item_id)
            elif found is not None and found != doubt.told:
                self.listeners.workflow(found)
        return found

    async def _look_at_job(self, doubt: Doubt) -> object:
        found: dict[str, tuple[int, bool]] = {}
        async with self._changing(doubt.partition):
            for ref in (doubt.item_id, *doubt.slugs):
                try:
                    job = await self.job_for_attempt(doubt.partition, ref)
                except NotFoundError:
                    found[ref] = 0, False
                else:
                    found[ref] = job.spec.max_concurrency or 0, job.enabled
            if found != doubt.told:
                for ref, (limit, _) in found.items():
                    self.listeners.job_limit(doubt.partition, ref, limit)
        return found

    # --- inner parts ---------------------------------------------------------------------------

    def _changing(self, project_id: str) -> asyncio.Lock:
        return self._locks[crc32(project_id.encode()) % _LOCKS]

    async def _new_version(self, workflow: Workflow, by: str) -> Record:
        """Stored together with the workflow that names it."""
        await self._require_jobs(workflow)
        version = WorkflowVersion(
            id=workflow.version_id,
            workflow_id=workflow.id,
            project_id=workflow.project_id,
            version=workflow.version,
            spec=workflow.spec,
            created_by=by,
            created_at_ms=workflow.updated_at_ms,
        )
        return self._versions.record(version, workflow.id)

    async def _put_workflow(
        self,
        workflow: Workflow,
        version: Record | None,
        idempotency: IdempotencyRecord | None = None,
    ) -> None:
        await self._workflows.put(
            workflow,
            workflow.project_id,
            slug=workflow.slug,
            revision=workflow.revision,
            idempotency=idempotency,
            beside=version,
        )
        self.listeners.workflow(workflow)

    async def _require_jobs(self, workflow: Workflow) -> None:
        """The references were checked before; a job may have been deleted meanwhile."""
        refs = [(i, s.job_id) for i, s in enumerate(workflow.spec.steps) if s.job_id is not None]
        known = await self._known_jobs(workflow.project_id, dict.fromkeys(r for _, r in refs))
        gone = [f'steps[{i}].job_id: unknown job "{r}"' for i, r in refs if r not in known]
        if gone:
            raise InvalidError("the workflow is not valid", gone)

    @staticmethod
    async def _refuse_taken(shelf: Shelf[D], what: str, project_id: str, slug: str) -> None:
        """Early, so that the common mistake writes nothing; the store has the last word."""
        if await shelf.find(project_id, slug) is not None:
            raise ConflictError(
                f'there is a {what} with slug "{slug}" in this project already; '
                "choose another slug or change that one"
            )

    async def _refuse_used(self, job: Job) -> None:
        refs = {job.id, job.slug}
        users = [
            w.slug
            async for w in each(self._workflows, job.project_id)
            if w.enabled and any(s.job_id in refs for s in w.spec.steps)
        ]
        if users:
            shown = ", ".join(f'"{slug}"' for slug in users[:5])
            more = f" and {len(users) - 5} more" if len(users) > 5 else ""
            raise ConflictError(
                f'job "{job.slug}" is used by the enabled workflows {shown}{more}; '
                "change or disable them first"
            )


def _version_id(now_ms: int) -> str:
    return "ver_" + new_id(now_ms).replace("-", "")


def _made(
    idempotency: Idempotency | None, item: D, body: Callable[[D], bytes] | None
) -> IdempotencyRecord | None:
    if idempotency is None:
        return None
    kept = None if body is None else body(item)
    return idempotency.record(status=201, reference=item.id, body=kept)
