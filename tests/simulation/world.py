"""`play(seed)`: one seed from its first callback to the checks at its end."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import Context
from random import Random
from typing import Any, Literal

import msgspec

from pilotage.actors.catalog_model import Job, Workflow, WorkflowVersion
from pilotage.actors.gateway import Gateway
from pilotage.actors.job_runs import JobRunRecord
from pilotage.persistence import codec
from pilotage.persistence.memory import MemoryServer
from pilotage.persistence.port import RunWrite, Verdict
from pilotage.runtime.graph import StepGraph
from tests.simulation import calm, ended
from tests.simulation.clients import Clients
from tests.simulation.deliveries import unreliable
from tests.simulation.disasters import disasters
from tests.simulation.ledger import AttemptKey, Ledger, Limits, ViolationError
from tests.simulation.loop import Process, SimLoop
from tests.simulation.outside import Jobs
from tests.simulation.patches import patched
from tests.simulation.plan import Plan, plan_of
from tests.simulation.servers import Server, Servers
from tests.simulation.store import Network
from tests.simulation.workflows import random_jobs, random_workflow

PROJECT = "p"
QUIET_SECS = 2.0
"""How long after the last fault everything that can move by itself must have moved."""


class Result(msgspec.Struct, frozen=True):
    """What became of a seed. `trace` is the hash of everything that was noted."""

    seed: int
    violations: list[str]
    trace: str
    virtual_secs: float
    callbacks: int
    counts: dict[str, int]
    lines: list[str] = []


class World:
    """Everything of one seed. The parts report to it: what they note is the trace."""

    def __init__(self, seed: int, plan: Plan, *, keep_lines: bool) -> None:
        self.seed = seed
        self.plan = plan
        self.loop = SimLoop()
        self.violations: list[str] = []
        self.lines: list[str] = []
        self.over = False
        self.counts: dict[str, int] = {}
        self._keep_lines = keep_lines
        self._hash = hashlib.blake2b(digest_size=16)
        self._graphs: dict[str, StepGraph] = {}
        self.limits = Limits({}, {})
        self.ledger = Ledger(self._graph_of, self.limits, plan.retention_secs * 1000)
        self.network = Network(self.loop, self.random("network"), plan.rates)
        self.store = MemoryServer(random_bytes=self.random("store").randbytes)
        self.jobs = Jobs(self, self.random("jobs"), plan.habits)
        self.servers = Servers(
            self.loop,
            self.store,
            self.network,
            self,
            plan=plan,
            rnd=self.random("servers"),
        )
        self.store.clock_ms = self.servers.clock.now_ms
        self.unsure_limits: set[str] = set()
        """Workflows and jobs with a change that may have been stored and was not acknowledged."""
        self.schedule = ("", 0)
        """The workflow with a schedule, and since when it has it."""
        self._seqs: dict[str, tuple[int, int]] = {}
        self._outside: list[asyncio.Task[Any]] = []

    @property
    def scheduled(self) -> str:
        """The slug of the workflow with a schedule."""
        return f"w{self.plan.workflows - 1}"

    def slots_of(self, kind: Literal["workflow", "job"], record_id: str) -> int:
        """How many there are by the definition that is stored now; 0: no limit."""
        stored = self.store.records.get((kind, record_id))
        if stored is None:
            return 0  # it was deleted
        data = stored.data
        if kind == "workflow":
            return codec.decode_definition(data, Workflow).spec.max_concurrent_runs
        return codec.decode_definition(data, Job).spec.max_concurrency or 0

    def random(self, name: str) -> Random:
        """Each part draws its own: what one part does more does not move the others."""
        return Random(f"{self.seed}/{name}")

    # --- what the parts report -------------------------------------------------------------------

    def note(self, *parts: object) -> None:
        line = f"{self.loop.now:.6f} {' '.join(map(str, parts))}"
        self.counts[str(parts[0])] = self.counts.get(str(parts[0]), 0) + 1
        self._hash.update(line.encode())
        if self._keep_lines:
            self.lines.append(line)

    def fail(self, error: BaseException | str) -> None:
        """A violation: nothing after the first one means anything."""
        if self.over:
            return
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        self.note("VIOLATION", text)
        self.violations.append(f"at {self.loop.now:.3f} s: {text}")
        self.loop.stop()

    @contextmanager
    def watching(self) -> Generator[None]:
        """The product may swallow what is raised inside it; a violation is kept all the same."""
        try:
            yield
        except ViolationError as error:
            self.fail(error)
            raise

    def crash(self, process: Process, why: str) -> None:
        if self.network.stormy:
            self.servers.crash(process, why)

    def is_removed(self, run_id: str) -> bool:
        return run_id in self.ledger.removed

    def stored_result(self, key: AttemptKey) -> bytes | None:
        run_id, i, attempt = key
        record = self.store.runs[run_id].job_runs[i, attempt]
        return codec.decode_record(record, JobRunRecord).result

    def known_as_running(self, process: Process, key: AttemptKey) -> None:
        self.servers.known_as_running(process, key)

    async def request(self, work: Callable[[Gateway], Awaitable[object]]) -> Any:
        return await self.servers.request(work)

    def spawn_outside(self, work: Awaitable[object]) -> None:
        async def watched() -> None:
            try:
                await work
            except Exception as error:
                self.fail(error)
                raise

        self._outside.append(self.loop.create_task(watched(), context=_NO_PROCESS.copy()))

    # --- the store -----------------------------------------------------------------------------

    def _graph_of(self, version_id: str) -> StepGraph:
        graph = self._graphs.get(version_id)
        if graph is None:
            data = self.store.records["version", version_id].data
            graph = StepGraph(codec.decode_definition(data, WorkflowVersion).spec)
            self._graphs[version_id] = graph
        return graph

    def deleted(self, run_ids: Sequence[str]) -> None:
        with self.watching():
            for run_id in run_ids:
                self.note("deleted", run_id)
                late = self.servers.clock.now_ms() + (60_000 if self.plan.jumps else 0)
                self.ledger.deleted(run_id, late)

    def before_commit(self, process: Process, writes: Sequence[RunWrite], fence: int) -> None:
        runs = self.store.runs
        self._seqs = {
            write.run_id: (run.seq, run.fence)
            for write in writes
            if (run := runs.get(write.run_id)) is not None
        }

    def after_commit(
        self, process: Process, writes: Sequence[RunWrite], fence: int, verdicts: list[Verdict]
    ) -> None:
        with self.watching():
            self.ledger.fence = max(self.ledger.fence, self.store.fence)
            for write, verdict in zip(writes, verdicts, strict=True):
                again = self._seqs.get(write.run_id) == (write.seq, fence)
                self.note("commit", process.name, write.run_id, write.seq, verdict.value, again)
                if verdict is Verdict.OK and not again:
                    shadow = self.ledger.applied(write, fence)
                    if isinstance(process, Server):  # dead or alive when its write arrives
                        self.ledger.note_set_apart(
                            process.runtime.supervisor.quarantined.keys(), fence
                        )
                    if process.alive and isinstance(process, Server):
                        calm.same_as_memory(process.runtime, shadow)
            # a clock that is set moves the ends of attempts whose runs do not hear of it
            now_ms = math.inf if self.plan.jumps else self.servers.clock.now_ms()
            self.ledger.limits_hold(now_ms)

    # --- the story -------------------------------------------------------------------------------

    async def story(self) -> None:
        keeper = self.loop.create_task(self.servers.keep_up())
        await self._define()
        clients = Clients(self, self.random("clients"))
        self.network.stormy = True
        self.note("storm")
        trouble = self.loop.create_task(disasters(self, self.random("disasters")))
        clients.begin(self.plan)
        await trouble
        self.network.stormy = self.network.away = False
        self.network.cut.clear()
        self.jobs.calm = True
        self.note("calm")
        await self._settled()
        await clients.done()
        await clients.mend()
        await asyncio.sleep(QUIET_SECS)
        await calm.nothing_stands_still(self)
        await clients.widen()
        await calm.nothing_stands_still(self)
        await clients.finish()
        await asyncio.sleep(QUIET_SECS)
        await ended.all_is_over(self, clients)
        keeper.cancel()
        await self._stop()

    async def _define(self) -> None:
        """Jobs and workflows are made before the storm."""
        rnd = self.random("workflows")
        while self.servers.current is None or not self.servers.current.up:
            await asyncio.sleep(0.1)
        for raw in random_jobs(rnd):

            async def make_job(gateway: Gateway, raw: dict[str, Any] = raw) -> object:
                from pilotage.runtime.validation_jobs import parse_job

                return await gateway.catalog.create_job(parse_job(raw), project_id=PROJECT)

            job = await self.request(make_job)
            self.limits.jobs[job.id] = job.spec.max_concurrency or 0
        for number in range(self.plan.workflows):
            raw = random_workflow(rnd, self.plan, number)

            async def make(gateway: Gateway, raw: dict[str, Any] = raw) -> object:
                parsed = await gateway.catalog.parse_workflow(PROJECT, raw)
                return await gateway.catalog.create_workflow(
                    parsed, project_id=PROJECT, created_by="simulation"
                )

            workflow = await self.request(make)
            self.limits.runs[workflow.id] = workflow.spec.max_concurrent_runs
            if workflow.spec.cron is not None:
                self.schedule = workflow.id, workflow.updated_at_ms

    async def _settled(self) -> None:
        """One server is up and every other one has ended, as each must by itself."""
        for server in self.servers.all:
            if server.frozen:
                server.thaw()
        until = self.loop.now + 12 * self.plan.lease_secs
        while self.loop.now < until:
            await asyncio.sleep(0.25)
            current = self.servers.current
            others = [s for s in self.servers.all if s.alive and s is not current]
            up = current is not None and current.alive and current.up and current.runtime.ready
            if up and not others and self.servers.one_owner:
                return
        raise ViolationError("no single server is up, long after the last fault")

    async def _stop(self) -> None:
        """An orderly stop comes to its end."""
        server = self.servers.current
        assert server is not None
        await self.servers.stop(server)
        until = self.loop.now + 30
        while server.alive:
            await asyncio.sleep(0.1)
            if self.loop.now > until:
                raise ViolationError("the server does not stop")


_NO_PROCESS = Context()


_EXPECTED = ("another server has taken over", "Planted", "its actor failed")
_REMOVED = ("the store has another version of",)


class _Errors(logging.Handler):
    """What the product logs as an error is one: nothing here is unexpected to it."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self._world = world
        # a run may be removed between a command and its write, or the repeat of a write
        short = world.plan.retention_secs < 60
        self._expected = (*_EXPECTED, *(_REMOVED if short else ()))

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += f" ({record.exc_info[1]!r})"
        if not any(expected in text for expected in self._expected):
            self._world.fail(f"logged: {text}")


def play(seed: int, *, keep_lines: bool = False, plan: Plan | None = None) -> Result:
    """Play a seed. It never raises: what went wrong stands in the result."""
    world = World(seed, plan or plan_of(seed), keep_lines=keep_lines)
    loop = world.loop
    logger = logging.getLogger("pilotage")
    errors = _Errors(world)
    logger.addHandler(errors)
    propagate, logger.propagate = logger.propagate, False
    try:
        deliver = unreliable(world, world.random("deliveries"))
        with patched(
            loop,
            world.random("product"),
            world.jobs,
            plan=world.plan,
            deliver=deliver,
        ):
            main = loop.create_task(world.story())
            try:
                loop.run_until_complete(main)
            except Exception as error:  # noqa: BLE001  the loop's that it was stopped included
                if not world.violations:
                    world.fail(error)
            if loop.failures and not world.violations:
                world.fail(loop.failures[0])
            world.over = True
            loop.bury()
    finally:
        logger.removeHandler(errors)
        logger.propagate = propagate
    return Result(
        seed,
        world.violations,
        world._hash.hexdigest(),
        loop.now,
        loop.callbacks,
        world.counts,
        world.lines,
    )
