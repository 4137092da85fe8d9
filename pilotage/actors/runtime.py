"""The runtime: everything put together in one process, started and stopped in order.

Start: store up -> fence raised -> active runs recovered -> ready. Stop: no new work, attempts in
progress get the grace, everything decided is flushed, the lease goes back, the embedded server is
shut down. A process that loses its fence stops moving runs at once (`fenced`).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable

from pilotage.actors.admission import Admission, JobKey
from pilotage.actors.callbacks import Callbacks
from pilotage.actors.catalog import Catalog
from pilotage.actors.catalog_model import Job, Workflow
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
from pilotage.actors.housekeeping import Housekeeping
from pilotage.actors.kernel import Clock, LoopDispatcher, SystemClock, Timers
from pilotage.actors.messages import Answer
from pilotage.actors.metrics import Counter, Metrics
from pilotage.actors.recover import recover
from pilotage.actors.services import Services, TimerKey
from pilotage.actors.supervisor import Supervisor
from pilotage.actors.writer import Writer
from pilotage.persistence.embedded import EmbeddedServer
from pilotage.persistence.port import Store
from pilotage.persistence.redis_store import RedisStore
from pilotage.runtime.commands import AdmitRun, EventReceived, SlotGranted
from pilotage.runtime.definition import JobSpec
from pilotage.runtime.errors import PilotageError
from pilotage.runtime.replies import Done, Reply, SlotTaken
from pilotage.runtime.rules import Rejection
from pilotage.runtime.status import ExecutionMode, RunStatus
from pilotage.settings import Settings

logger = logging.getLogger(__name__)

READY_WAIT_SECS = 5.0
"""How long a trigger waits for the recovery to finish before it is refused."""


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
        self.fenced: asyncio.Event = asyncio.Event()
        self.owner = f"{socket.gethostname()} pid {os.getpid()} {secrets.token_hex(4)}"
        self._counters: dict[str, Counter] = {}
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
        return (
            self._ready.is_set()
            and not self._stopping
            and not self.fenced.is_set()
            and self.writer.healthy
        )

    # --- start -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Raises what keeps it from starting: `StoreError`s, `EmbeddedServerError`."""
        try:
            await self._open_store()
            await self._put_together()
            self.writer.start()
            await self._recover()
        except BaseException:
            await self._take_down()
            raise
        self.admission.open()
        self._ready.set()
        await self.cron.start()
        self.housekeeping.start()

    async def _open_store(self) -> None:
        settings = self.settings
        if settings.shards != 1:
            raise PilotageError("PILOTAGE_SHARDS: only 1 is possible in this release")
        if self._given_store is not None:
            self.store = self._given_store
            await self.store.open()
            self._fence = await self.store.acquire(self.owner, settings.lease_secs)
            return
        url = settings.redis_url
        if url is None:
            self.embedded = EmbeddedServer(
                settings.data_dir, fsync=settings.snapshot_fsync, binary=settings.server_binary
            )
            url = await self.embedded.start()
        store = RedisStore(url, namespace=settings.namespace)
        self.store = store
        await store.open()
        if self.embedded is not None:
            await store.forget_lease()
        self._fence = await store.acquire(self.owner, settings.lease_secs)

    async def _put_together(self) -> None:
        loop = asyncio.get_running_loop()
        settings, clock = self.settings, self.clock
        self.catalog = Catalog(
            self.store,
            clock=clock,
            fence=self._fence_token,
            python_jobs=self.registry,
            admin_key=settings.admin_key,
        )
        self.dispatcher = LoopDispatcher()
        self.timers: Timers[TimerKey] = Timers(clock, loop)
        self.writer = Writer(self.store, self._fence_token, self._lost_fence)
        self.admission = Admission(
            admit=self._admit, grant=self._grant, limit_of=self._look_up_limit
        )
        tokens = RunTokens(await self.store.secret("run-tokens"))
        self.executors = Executors(
            self.registry,
            self._job_spec,
            PythonExecutor(),
            {
                ExecutionMode.HTTP: HttpExecutor(
                    tokens,
                    clock,
                    HttpSettings(allow_private_endpoints=settings.allow_private_endpoints),
                )
            },
        )
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
        self.supervisor = Supervisor(self.store, self.services, self.catalog.graph)
        self.hub = EventHub(self.store, self._fence_token, self._deliver_event)
        self.creation = Creation(
            catalog=self.catalog,
            supervisor=self.supervisor,
            services=self.services,
            accepting=self._accepting,
        )
        self.services.directory = self.supervisor
        self.services.hub = self.hub
        self.services.start_child = self.creation.child
        self.cron = CronTriggers(
            store=self.store,
            catalog=self.catalog,
            creation=self.creation,
            clock=clock,
            timers=self.timers,
            is_open=lambda: self.ready,
        )
        self.catalog.listeners.workflow = self._workflow_changed
        self.catalog.listeners.workflow_deleted = self.cron.forget
        self.catalog.listeners.job = self._job_changed
        self.housekeeping = Housekeeping(
            store=self.store,
            clock=clock,
            owner=self.owner,
            fence=self._fence_token,
            lease_secs=settings.lease_secs,
            lost_fence=self._lost_fence,
            embedded=self.embedded,
        )
        self.gateway = Gateway(
            store=self.store,
            catalog=self.catalog,
            supervisor=self.supervisor,
            creation=self.creation,
            hub=self.hub,
            callbacks=Callbacks(
                supervisor=self.supervisor,
                catalog=self.catalog,
                tokens=tokens,
                clock=clock,
                timers=self.timers,
            ),
            clock=clock,
            health=self,
        )

    async def _recover(self) -> None:
        gc.disable()
        try:
            count = await recover(self.store, self.supervisor, self.services, self._run_limit)
        finally:
            gc.collect()
            gc.freeze()
            gc.enable()
        if count:
            logger.info("%d active runs recovered", count)

    # --- stop ------------------------------------------------------------------------------------

    async def stop(self, grace_secs: float | None = None) -> None:
        """Let attempts in progress finish for the grace, flush, and leave everything in order."""
        self._stopping = True
        grace = self.settings.grace_secs if grace_secs is None else grace_secs
        self.cron.close()
        await self.executors.aclose(grace)
        if not self.fenced.is_set() and self.writer.healthy:
            try:
                async with asyncio.timeout(max(5.0, grace)):
                    await self.writer.flushed()
            except TimeoutError:
                logger.warning("not everything could be flushed; the store has the state before")
        await self._take_down()

    async def _take_down(self) -> None:
        if hasattr(self, "housekeeping"):
            await self.housekeeping.close()
        if hasattr(self, "supervisor"):
            self.timers.close()
            await self.supervisor.close()
            await self.writer.close()
            await self.executors.aclose(0)
            await self.dispatcher.close()
        for task in list(self._tasks):
            task.cancel()
        if hasattr(self, "store"):
            if self._fence and not self.fenced.is_set():
                try:
                    async with asyncio.timeout(2):
                        await self.store.release(self.owner, self._fence)
                except (PilotageError, TimeoutError):
                    logger.info("the lease was not given back; it runs out by itself")
            await self.store.close()
        if self.embedded is not None:
            await self.embedded.stop()

    # --- what the parts ask of each other -----------------------------------------------------------

    def _count(self, name: str) -> None:
        if name not in self._counters:
            self._counters[name] = self.metrics.counter(name, name.replace("_", " "))
        self._counters[name].inc()

    def _fence_token(self) -> int:
        return self._fence

    def _lost_fence(self) -> None:
        if not self.fenced.is_set():
            logger.error("another server has taken over this store: no run is moved here any more")
            self.fenced.set()

    def _accepting(self) -> None:
        if self._stopping:
            raise UnavailableError("the server is stopping", 5)
        if self.fenced.is_set():
            raise UnavailableError("another server has taken over", 5)
        if not self._ready.is_set():
            raise UnavailableError("the server is still recovering its runs", 1)
        if not self.writer.healthy:
            raise UnavailableError(f"the store is away: {self.writer.last_error}", 1)
        if len(self.supervisor) >= self.settings.max_active_runs:
            raise too_many(len(self.supervisor), self.settings.max_active_runs)

    async def _job_spec(self, project_id: str, ref: str) -> JobSpec:
        job = await self.catalog.job_for_attempt(project_id, ref)
        if not job.enabled:
            raise NotFoundError(f'job "{job.slug}" is disabled')
        return job.spec

    async def _deliver_event(self, run_id: str, command: EventReceived) -> Reply | None:
        try:
            answer = await self.supervisor.command(run_id, command)
        except NotFoundError:
            return None
        return None if isinstance(answer.result, Rejection) else answer.result

    def _admit(self, run_id: str) -> None:
        self._background(self._admitted(run_id))

    async def _admitted(self, run_id: str) -> None:
        answer = await self._insist(run_id, lambda: self.supervisor.command(run_id, AdmitRun()))
        if answer is None:
            return
        if not (isinstance(answer.result, Done) and answer.result.changed):
            head = answer.state.head
            if answer.state.status not in (RunStatus.RUNNING, RunStatus.PAUSED):
                self.admission.release_run(head.workflow_id, run_id)

    def _grant(self, run_id: str, step: int) -> None:
        self._background(self._granted(run_id, step))

    async def _granted(self, run_id: str, step: int) -> None:
        answer = await self._insist(
            run_id, lambda: self.supervisor.command(run_id, SlotGranted(step=step))
        )
        if answer is not None and answer.result == SlotTaken(taken=False):
            spec = answer.state.graph.steps[step]
            job = (answer.state.head.project_id, spec.job_id or "")
            self.admission.return_grant(job, run_id, step)

    async def _insist(self, run_id: str, ask: Callable[[], Awaitable[Answer]]) -> Answer | None:
        """The answer of a run that must have it; None if the run is gone."""
        pause = 0.05
        while True:
            try:
                return await ask()
            except UnavailableError:
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)
            except PilotageError as error:
                logger.warning("run %s takes no slot: %s", run_id, error)
                return None

    def _look_up_limit(self, job: JobKey) -> None:
        self._background(self._limit_looked_up(job))

    async def _limit_looked_up(self, job: JobKey) -> None:
        try:
            found = await self.catalog.job_for_attempt(*job)
            limit = found.spec.max_concurrency or 0
        except NotFoundError:
            limit = 0  # its attempts fail with a clear error
        except UnavailableError:
            await asyncio.sleep(0.2)
            self._look_up_limit(job)
            return
        self.admission.set_job_limit(job, limit)

    async def _run_limit(self, workflow_id: str) -> int:
        try:
            workflow = await self.catalog.workflow_by_id(workflow_id)
        except NotFoundError:
            return 0
        return workflow.spec.max_concurrent_runs

    def _workflow_changed(self, workflow: Workflow) -> None:
        self.cron.watch(workflow)
        self.admission.set_run_limit(workflow.id, workflow.spec.max_concurrent_runs)

    def _job_changed(self, job: Job) -> None:
        for ref in (job.id, job.slug):  # steps may name it either way
            self.admission.set_job_limit((job.project_id, ref), job.spec.max_concurrency or 0)

    def _background(self, work: Awaitable[object]) -> None:
        async def run() -> None:
            await work

        task: asyncio.Task[object] = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
