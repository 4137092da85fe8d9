"""The runtime: everything put together in one process, started and stopped in order.

Start: store up -> fence raised -> active runs recovered -> ready. Stop: no new work, attempts in
progress get the grace, everything decided is flushed, the lease goes back, the embedded server is
shut down. A process that loses its fence stops moving runs at once (`fenced`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from pilotage.actors.attempt_jobs import AttemptJobs
from pilotage.actors.callbacks import Callbacks
from pilotage.actors.catalog import Catalog
from pilotage.actors.catalog_model import Workflow
from pilotage.actors.collector import without_collection
from pilotage.actors.creation import Creation, too_many
from pilotage.actors.cron_triggers import CronTriggers
from pilotage.actors.errors import NotFoundError, UnavailableError
from pilotage.actors.event_hub import EventHub
from pilotage.actors.executors.dispatch import Executors
from pilotage.actors.executors.http_executor import HttpExecutor, HttpSettings
from pilotage.actors.executors.python_executor import PythonExecutor
from pilotage.actors.executors.python_jobs import JobRegistry
from pilotage.actors.executors.tokens import RunTokens
from pilotage.actors.gateway import Gateway
from pilotage.actors.heartbeats import Heartbeats
from pilotage.actors.housekeeping import Housekeeping, Upkeep
from pilotage.actors.kernel import Clock, LoopDispatcher, SystemClock, Timers
from pilotage.actors.messages import Answer, QuarantinedError
from pilotage.actors.metrics import Metrics
from pilotage.actors.observed import observe
from pilotage.actors.ownership import confirm_owner, give_lease_back, take_store, why_fenced
from pilotage.actors.quarantine import Quarantine
from pilotage.actors.recover import recover
from pilotage.actors.retention import Retention
from pilotage.actors.services import Services, TimerKey
from pilotage.actors.slots import Slots
from pilotage.actors.store_room import StoreRoom
from pilotage.actors.supervisor import Supervisor
from pilotage.actors.writer import Writer
from pilotage.persistence.embedded import EmbeddedServer
from pilotage.persistence.port import FencedError, Store
from pilotage.persistence.redis_store import RedisStore
from pilotage.runtime.commands import EventReceived
from pilotage.runtime.errors import PilotageError
from pilotage.runtime.status import ExecutionMode, RunStatus
from pilotage.settings import Settings

logger = logging.getLogger(__name__)

QUIET_TURNS = 5
"""Turns of the loop without anything to do after which a stopping runtime is taken for flushed."""
READY_WAIT_SECS = 5.0
"""How long a trigger waits for the recovery to finish before it is refused."""
COUNTED = {"pilotage_late_results_total": "Results that came when their attempt was over already."}
"""What the actors count by name; shown from the start, as 0."""


class Runtime:
    """`store`: an own one instead of what the settings say (tests). Not reusable after `stop`."""

    def __init__(
        self,
        *,
        settings: Settings,
        registry: JobRegistry | None = None,
        store: Store | None = None,
        clock: Clock | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.settings = settings
        self.registry = registry or JobRegistry()
        self.clock: Clock = clock or SystemClock()
        self.metrics = metrics or Metrics()
        self.embedded: EmbeddedServer | None = None
        self.assembled: asyncio.Event = asyncio.Event()
        """The gateway is there and answers, most of it with 503 until all is recovered."""
        self.fenced: asyncio.Event = asyncio.Event()
        self.owner = f"{socket.gethostname()} pid {os.getpid()} {secrets.token_hex(4)}"
        self._counters = {
            name: self.metrics.counter(name, about) for name, about in COUNTED.items()
        }
        self._given_store = store
        self._fence = 0
        self._ready = asyncio.Event()
        self._stopping = False
        self._tasks: set[asyncio.Task[object]] = set()
        self.store: Store
        self.catalog: Catalog
        self.supervisor: Supervisor
        self.executors: Executors
        self.gateway: Gateway

    @property
    def ready(self) -> bool:
        """Whether work is taken: recovered, not stopping, the store answers, the fence is ours."""
        return self.not_ready is None

    @property
    def not_ready(self) -> str | None:
        """Why no work is taken."""
        if self._stopping:
            return "the server is stopping"
        if self.fenced.is_set():
            return "another server has taken over"
        if not self._ready.is_set():
            return "the server is still recovering its runs"
        if not self.writer.healthy:
            return f"the store is away: {self.writer.last_error}"
        if self.writer.full:
            return f"the store has no room for all that is to be written: {self.writer.last_error}"
        return None

    @property
    def degraded(self) -> str | None:
        """What is not taken on, and why; None: everything is."""
        return self.not_ready or (self.room.why if self.room.full else None)

    # --- start -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Raises what keeps it from starting: `StoreError`s, `EmbeddedServerError`."""
        try:
            await self._open_store()
            await self._put_together()
            self.assembled.set()
            self.writer.start()
            self.housekeeping.start()  # the lease must not run out while runs are recovered
            await self._recover()
            self.admission.open()
            await self.cron.start()
        except BaseException as error:
            await self._take_down()
            if self.fenced.is_set():
                raise FencedError("another server took over during the start") from error
            raise
        self._ready.set()

    async def _open_store(self) -> None:
        settings = self.settings
        if settings.shards != 1:
            raise PilotageError("PILOTAGE_SHARDS: only 1 is possible in this release")
        if self._given_store is not None:
            self.store = self._given_store
        elif settings.redis_url is not None:
            self.store = RedisStore(settings.redis_url, namespace=settings.namespace)
        else:
            await self._open_own_store()
        self._fence = await take_store(
            self.store,
            self.owner,
            lease_secs=settings.lease_secs,
            wait_secs=settings.store_wait_secs,
        )

    async def _open_own_store(self) -> None:
        """The embedded server, whose last owner is known to be gone."""
        settings = self.settings
        self.embedded = EmbeddedServer(
            settings.data_dir, fsync=settings.snapshot_fsync, binary=settings.server_binary
        )
        store = self.store = RedisStore(await self.embedded.start(), namespace=settings.namespace)
        await store.open()
        await store.forget_lease()

    async def _put_together(self) -> None:
        tokens = RunTokens(await self.store.secret("run-tokens"))
        self._make_base(tokens)
        self._make_actors()
        self._make_doors(tokens)

    def _make_base(self, tokens: RunTokens) -> None:
        """What run actors use."""
        settings, clock = self.settings, self.clock
        self.catalog = Catalog(
            self.store,
            clock=clock,
            fence=self._fence_token,
            python_jobs=self.registry,
            admin_key=settings.admin_key,
        )
        self.dispatcher = LoopDispatcher()
        self.timers: Timers[TimerKey] = Timers(clock, asyncio.get_running_loop())
        self.writer = Writer(self.store, self._fence_token, self._lost_fence)
        self.room = StoreRoom(self.store)
        self.slots = Slots(
            catalog=self.catalog,
            ask=self._ask,
            background=self._background,
            occupied=lambda job: self.executors.occupied(*job),
        )
        self.admission = self.slots.admission
        jobs = self._attempt_jobs = AttemptJobs(self.catalog, self.registry)
        self.executors = Executors(
            self.registry,
            jobs.look_up,
            PythonExecutor(vacated=self._job_vacated),
            {
                ExecutionMode.HTTP: HttpExecutor(
                    tokens,
                    clock,
                    HttpSettings(allow_private_endpoints=settings.allow_private_endpoints),
                )
            },
            at_hand=jobs.at_hand,
            clock=clock,
        )
        self.writer.at_once = self._at_once
        self.services = Services(
            clock=clock,
            dispatcher=self.dispatcher,
            timers=self.timers,
            writer=self.writer,
            admission=self.admission,
            executors=self.executors,
            retention_secs={
                RunStatus.COMPLETED: settings.retention_completed_secs,
                RunStatus.FAILED: settings.retention_failed_secs,
                RunStatus.CANCELED: settings.retention_canceled_secs,
                RunStatus.TIMED_OUT: settings.retention_timed_out_secs,
            },
            count=self._count,
        )

    def _make_actors(self) -> None:
        clock = self.clock
        self.supervisor = Supervisor(
            self.store, self.services, self.catalog.graph, self.slots.run_limit
        )
        self.supervisor.idle.passivate_after_secs = self.settings.passivate_after_secs
        self.hub = EventHub(self.store, clock, self._fence_token, self._deliver_event, self.room)
        self.creation = Creation(
            catalog=self.catalog,
            supervisor=self.supervisor,
            services=self.services,
            accepting=self._accepting,
            room=self.room,
            max_active_runs=self.settings.max_active_runs,
        )
        self.services.directory = self.supervisor
        self.services.hub = self.hub
        self.services.heartbeats = Heartbeats(
            directory=self.supervisor,
            published=self.supervisor.published,
            clock=clock,
            timers=self.timers,
        )
        self.services.fence = self._fence_token
        self.services.confirm_owner = lambda: confirm_owner(self.store, self._fence)
        self.services.start_child = self.creation.child
        observe(self.metrics, self)

    def _make_doors(self, tokens: RunTokens) -> None:
        """What starts runs by itself, what looks after the store, and what others come in by."""
        clock = self.clock
        self.cron = CronTriggers(
            store=self.store,
            catalog=self.catalog,
            creation=self.creation,
            clock=clock,
            timers=self.timers,
            fence=self._fence_token,
            is_open=lambda: self.ready,
        )
        self.catalog.listeners.workflow = self._workflow_changed
        self.catalog.listeners.workflow_deleted = self._workflow_deleted
        self.catalog.listeners.job_limit = self._job_limit
        retention = Retention(
            self.store, self.catalog, self.supervisor, self.services, self._fence_token
        )
        self.housekeeping = Housekeeping(
            store=self.store,
            owner=self.owner,
            fence=self._fence_token,
            lease_secs=self.settings.lease_secs,
            lost_fence=self._lost_fence,
            embedded=self.embedded,
            writer=self.writer,
            upkeep=Upkeep(retention, self.room),
        )
        self.gateway = Gateway(
            store=self.store,
            catalog=self.catalog,
            supervisor=self.supervisor,
            creation=self.creation,
            callbacks=Callbacks(
                supervisor=self.supervisor,
                catalog=self.catalog,
                tokens=tokens,
                clock=clock,
                heartbeats=self.services.heartbeats,
            ),
            quarantine=Quarantine(
                store=self.store,
                supervisor=self.supervisor,
                services=self.services,
                fence=self._fence_token,
            ),
            services=self.services,
            health=self,
        )

    async def _recover(self) -> None:
        with without_collection():
            slots = self.slots
            count = await recover(
                self.store, self.supervisor, self.services, slots.run_limit, slots.job_limit
            )
        if count:
            logger.info("%d active runs recovered", count)

    # --- stop ------------------------------------------------------------------------------------

    async def stop(self, grace_secs: float | None = None) -> None:
        """Let attempts in progress finish for the grace, flush, and leave everything in order."""
        self._stopping = True
        if self.embedded is not None:
            self.embedded.wake()  # a suspended one could take nothing of what is to be flushed
        grace = self.settings.grace_secs if grace_secs is None else grace_secs
        self.cron.close()
        await self.executors.aclose(grace)
        if not self.fenced.is_set() and self.writer.healthy:
            try:
                async with asyncio.timeout(max(5.0, grace)):
                    await self._flushed()
            except TimeoutError:
                logger.warning("not everything could be flushed; the store has the state before")
        await self._take_down()

    async def _flushed(self) -> None:
        """Wait until what was reported has been decided and what was decided is stored."""
        quiet = 0
        while quiet < QUIET_TURNS:
            await asyncio.sleep(0)
            stats = self.dispatcher.stats()
            if stats.ready or stats.remote or self.writer.busy:
                quiet = 0
                await self.writer.flushed()
            else:
                quiet += 1

    async def _take_down(self) -> None:
        """Whatever of it fails or is given up, the store and its directory are not kept."""
        try:
            await self._end_actors()
        finally:
            await self._let_store_go()

    async def _end_actors(self) -> None:
        if hasattr(self, "housekeeping"):
            await self.housekeeping.close()
        if hasattr(self, "supervisor"):
            self.catalog.close()
            await self.supervisor.close()
            self.timers.close()
            await self.writer.close()
            await self.executors.aclose(0)
            await self.dispatcher.close()
        for task in list(self._tasks):
            task.cancel()

    async def _let_store_go(self) -> None:
        try:
            if hasattr(self, "store"):
                if self._fence and not self.fenced.is_set():
                    await give_lease_back(self.store, self.owner, self._fence)
                await self.store.close()
        finally:
            if self.embedded is not None:
                await self.embedded.stop()

    # --- what the parts ask of each other ---------------------------------------------------------

    def _count(self, name: str) -> None:
        self._counters[name].inc()

    def _fence_token(self) -> int:
        return self._fence

    def _lost_fence(self) -> None:
        if not self.fenced.is_set():
            logger.error("another server has taken over this store: no run is moved here any more")
            self.fenced.set()
            self._background(self._halt())

    async def why_fenced(self) -> str:
        """What became of the fence, as far as the store tells."""
        return await why_fenced(self.store, self._fence)

    async def _halt(self) -> None:
        """The runs are somebody else's: nothing goes out, attempts in progress are told to stop."""
        self.catalog.close()
        await self.supervisor.close()
        self.cron.close()
        self.timers.close()
        await self.executors.aclose(0)

    async def _accepting(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(READY_WAIT_SECS):
                await self._ready.wait()
        why = self.not_ready
        if why is not None:
            raise UnavailableError(why, 5 if self._stopping or self.fenced.is_set() else 1)
        self.room.refuse_if_full()
        if self.supervisor.active >= self.settings.max_active_runs:
            raise too_many(self.supervisor.active, self.settings.max_active_runs)

    def _at_once(self, action: Callable[[], object]) -> None:
        """Inline jobs that the action starts are called, and actors that hear of it get a turn."""
        self.dispatcher.at_once(lambda: self.executors.at_once(action))

    async def _deliver_event(self, run_id: str, command: EventReceived) -> Answer | None:
        try:
            return await self.supervisor.command(run_id, command)
        except (NotFoundError, QuarantinedError):
            return None

    async def _ask(self, run_id: str, message: object) -> Any:
        return await self.supervisor.ask(run_id, message)

    def _workflow_changed(self, workflow: Workflow) -> None:
        self.cron.watch(workflow)
        self.admission.set_run_limit(workflow.id, workflow.spec.max_concurrent_runs)

    def _workflow_deleted(self, workflow_id: str) -> None:
        self.cron.forget(workflow_id)
        self.admission.set_run_limit(workflow_id, 0)

    def _job_vacated(self, project_id: str, ref: str) -> None:
        self.admission.job_vacated((project_id, ref))

    def _job_limit(self, project_id: str, ref: str, limit: int) -> None:
        self.admission.set_job_limit((project_id, ref), limit)
        self._attempt_jobs.changed(project_id, ref)

    def _background(self, work: Awaitable[object]) -> None:
        async def run() -> None:
            try:
                await work
            except Exception:
                logger.exception("something in the background failed")

        task: asyncio.Task[object] = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
