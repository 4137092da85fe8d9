"""Making runs: from a trigger, a parent, an older run, or a fire time."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable

import msgspec

from pilotage.actors.catalog import Catalog
from pilotage.actors.catalog_model import Workflow
from pilotage.actors.errors import ConflictError, NotFoundError, UnavailableError
from pilotage.actors.idempotency import Idempotency
from pilotage.actors.kernel import Clock
from pilotage.actors.messages import AlreadyExistsError, Remember
from pilotage.actors.services import Services
from pilotage.actors.store_room import StoreRoom
from pilotage.actors.supervisor import Supervisor
from pilotage.runtime.commands import CreateRun
from pilotage.runtime.effects import StartChild
from pilotage.runtime.graph import StepGraph
from pilotage.runtime.ids import RANDOM_BITS, make_run_id
from pilotage.runtime.machine import Transition, create as create_transition
from pilotage.runtime.rerun import replay_of, retry_of
from pilotage.runtime.rules import Rejection
from pilotage.runtime.state import RunHead, RunState
from pilotage.runtime.status import RunStatus
from pilotage.runtime.tracing import trace_of
from pilotage.runtime.validation import ParsedTrigger

DELETED_VERSION = "its workflow was deleted; create it again to run it"
CHILDREN_FACTOR = 2
SPREAD_BITS = 8
"""By how much ids of the same millisecond may differ: two servers hardly make the same."""


class Creation:
    """`accepting` raises `UnavailableError` while no new run may be taken on."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        supervisor: Supervisor,
        services: Services,
        accepting: Callable[[], Awaitable[None]],
        room: StoreRoom,
        max_active_runs: int,
    ) -> None:
        self._catalog = catalog
        self._supervisor = supervisor
        self._services = services
        self._accepting = accepting
        self._room = room
        self._most_with_children = CHILDREN_FACTOR * max_active_runs
        self._last_id = (0, 0)

    @property
    def _clock(self) -> Clock:
        return self._services.clock

    def mint_run_id(self) -> str:
        """Ids rise in the order they are made, also within a millisecond: queues are in order."""
        now = self._clock.now_ms()
        last_ms, last_bits = self._last_id
        bits = last_bits + 1 + secrets.randbits(SPREAD_BITS)
        if now > last_ms:
            bits = secrets.randbits(RANDOM_BITS - 1)  # the upper half is for who comes after
        elif bits >> RANDOM_BITS:
            now, bits = last_ms + 1, secrets.randbits(RANDOM_BITS - 1)
        else:
            now = last_ms
        self._last_id = now, bits
        return make_run_id(now, bits)

    async def trigger(
        self,
        workflow: Workflow,
        trigger: ParsedTrigger,
        *,
        actor: str,
        idempotency: Idempotency | None = None,
        run_id: str | None = None,
    ) -> RunState:
        """Start a run of the workflow's newest version. `run_id`: a derived one (cron), which may
        have been made before: `AlreadyExistsError`. The store would take the first write of another
        run of that id for the same sent again.
        """
        await self._accepting()
        if run_id is not None and await self._supervisor.state(run_id) is not None:
            raise AlreadyExistsError(run_id)
        if not workflow.enabled:
            raise ConflictError(
                f'workflow "{workflow.slug}" is disabled; enable it with PATCH {{"enabled": true}}'
            )
        graph = await self._catalog.graph(workflow.version_id)
        now = self._clock.now_ms()
        delay_ms = round((trigger.delay_secs or 0) * 1000)
        payload = msgspec.json.encode(trigger.payload) if trigger.has_payload else None
        head = await self._head(
            workflow,
            run_id or self.mint_run_id(),
            payload=payload,
            tags=dict(trigger.tags),
            triggered_by=trigger.triggered_by,
            created_by=actor,
            delay_until_ms=now + delay_ms if delay_ms else None,
            trace=trigger.trace,
        )
        disabled = tuple(sorted(graph.index[ref] for ref in trigger.disabled))
        command = CreateRun(actor=actor, head=head, disabled=disabled)
        async with self._catalog.uses.making(workflow.id, workflow.slug):
            with self._room.run(len(payload or b"")):
                return await self._create(graph, command, _limit(workflow), idempotency)

    async def _head(
        self,
        workflow: Workflow,
        run_id: str,
        *,
        payload: bytes | None,
        triggered_by: str,
        created_by: str | None,
        tags: dict[str, str] | None = None,
        delay_until_ms: int | None = None,
        trace: str | None = None,
    ) -> RunHead:
        spec = workflow.spec
        return RunHead(
            id=run_id,
            project_id=workflow.project_id,
            workflow_id=workflow.id,
            workflow_slug=workflow.slug,
            version=workflow.version,
            version_id=workflow.version_id,
            created_at_ms=self._clock.now_ms(),
            payload=payload,
            tags=tags or {},
            triggered_by=triggered_by,
            created_by=created_by,
            max_parallel_steps=spec.max_parallel_steps,
            timeout_secs=spec.timeout_secs,
            delay_until_ms=delay_until_ms,
            policies=self._supervisor.loader.heads.policies(
                workflow.version_id, await self._catalog.policies(workflow.project_id, spec)
            ),
            trace=trace,
        )

    async def _create(
        self,
        graph: StepGraph,
        command: CreateRun,
        limit: int,
        idempotency: Idempotency | None = None,
    ) -> RunState:
        head = command.head
        if not head.slotless:
            self._services.admission.know_run_limit(head.workflow_id, limit)
        message: object = command
        if idempotency is not None:
            record = idempotency.record(status=201, reference=head.id)
            message = Remember(command=command, record=lambda _: record, key=idempotency.place)
        answer = await self._supervisor.create(graph, message, command)
        return answer.state

    async def child(self, parent: RunState, effect: StartChild) -> None:
        """Create the child run of a step if it is absent (runs.md §7). One that was made before
        reports by itself, one that is over has what it had to report in its outbox.
        """
        supervisor, child_run_id = self._supervisor, effect.child_run_id
        supervisor.refuse_half_made(child_run_id)
        made = supervisor.published(child_run_id)
        if made is None and not supervisor.knows(child_run_id):
            made = await supervisor.state(child_run_id)
            if made is None and effect.lost:
                raise ConflictError(effect.lost)
            if made is None:
                return await self._make_child(parent, effect)
        return _expect_child(made, parent, effect)

    async def _make_child(self, parent: RunState, effect: StartChild) -> None:
        self._refuse_bomb()
        workflow = await self._enabled(parent.head.project_id, effect.workflow)
        graph = await self._catalog.graph(workflow.version_id)
        ancestors = (*parent.head.ancestor_workflows, parent.head.workflow_id)
        base = await self._head(
            workflow,
            effect.child_run_id,
            payload=effect.payload,
            triggered_by="sub_workflow",
            created_by=parent.head.created_by,
            trace=trace_of(parent.id, parent.head.trace),
        )
        head = msgspec.structs.replace(
            base,
            parent_run_id=parent.id,
            parent_step=effect.step,
            depth=parent.head.depth + 1,
            ancestor_workflows=ancestors,
            slotless=workflow.id in ancestors,
        )
        command = CreateRun(
            actor=f"parent run {parent.id}",
            head=head,
            parent_attempt=effect.attempt,
            held=parent.status is RunStatus.PAUSED,
        )
        async with self._catalog.uses.making(workflow.id, workflow.slug):
            await self._create(graph, command, _limit(workflow))

    def _refuse_bomb(self) -> None:
        """Children are taken on beyond the bound of triggers, so that parents come to their end;
        but a workflow that multiplies by its children must come to one too.
        """
        active = self._supervisor.active
        if active >= self._most_with_children:
            raise ConflictError(
                f"{active} runs are active; at most {self._most_with_children} may be, children"
                f" included ({CHILDREN_FACTOR} times PILOTAGE_MAX_ACTIVE_RUNS)"
            )

    async def _enabled(self, project_id: str, name: str) -> Workflow:
        workflow = await self._catalog.workflow(project_id, name)
        if not workflow.enabled:
            raise ConflictError(f'workflow "{workflow.slug}" is disabled')
        return workflow

    async def again(
        self,
        state: RunState,
        *,
        actor: str,
        replay_completed: bool,
        idempotency: Idempotency | None = None,
    ) -> RunState:
        """A new run from a terminal one: a retry, or a replay of a completed run."""
        await self._accepting()
        command = self._again_command(state, actor, replay_completed=replay_completed)
        limit = await self._current_limit(state.head.workflow_id)
        with self._room.run(len(command.head.payload or b"")):
            return await self._create(state.graph, command, limit, idempotency)

    def preview_again(self, state: RunState, *, actor: str) -> Transition:
        """What `again` would create, computed by the machine, changing nothing."""
        command = self._again_command(state, actor, replay_completed=False)
        free = self._services.admission.run_slot_free(state.head.workflow_id)
        command = msgspec.structs.replace(command, slot=free)
        return create_transition(state.graph, command, self._clock.now_ms())

    def _again_command(self, state: RunState, actor: str, *, replay_completed: bool) -> CreateRun:
        now, run_id = self._clock.now_ms(), self.mint_run_id()
        if replay_completed and state.status is RunStatus.COMPLETED:
            return replay_of(state, run_id=run_id, now=now, actor=actor, slot=True)
        made = retry_of(state, run_id=run_id, now=now, actor=actor, slot=True)
        if isinstance(made, Rejection):
            raise ConflictError(made.message)
        return made

    async def _current_limit(self, workflow_id: str) -> int:
        try:
            return _limit(await self._catalog.workflow_by_id(workflow_id))
        except NotFoundError:
            return 0


def _expect_child(found: RunState | None, parent: RunState, effect: StartChild) -> None:
    """`ConflictError` if the run under the child's id is somebody else's: it would never answer."""
    if found is not None and (found.head.parent_run_id, found.head.parent_step) != (
        parent.id,
        effect.step,
    ):
        raise ConflictError(f'run "{found.id}" exists and is not a child of this step')


def _limit(workflow: Workflow) -> int:
    return workflow.spec.max_concurrent_runs


def too_many(active: int, limit: int) -> UnavailableError:
    return UnavailableError(
        f"{active} runs are active; at most {limit} may be (PILOTAGE_MAX_ACTIVE_RUNS)", 5
    )
