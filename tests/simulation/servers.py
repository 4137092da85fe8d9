"""The servers of the world: started, killed, frozen, stopped, and started again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Protocol

from pilotage.actors.gateway import Gateway
from pilotage.actors.runtime import Runtime
from pilotage.persistence.memory import MemoryServer
from pilotage.runtime.errors import PilotageError
from pilotage.runtime.state import RunState
from pilotage.runtime.status import StepStatus
from pilotage.settings import Settings
from tests.simulation.ledger import AttemptKey, ViolationError
from tests.simulation.loop import Process, SimLoop
from tests.simulation.plan import Plan
from tests.simulation.store import Network, SimStore, Watcher

REQUEST_SECS = 20.0
"""A client waits so long for an answer."""


class WorldClock:
    """Both clocks of the machine; `offset_ms` is by how much the wall clock was set."""

    def __init__(self, loop: SimLoop, start_ms: int) -> None:
        self._loop = loop
        self._start_ms = start_ms
        self.offset_ms = 0

    def now_ms(self) -> int:
        return self._start_ms + int(self._loop.now * 1000 + 1e-6) + self.offset_ms

    def monotonic(self) -> float:
        return self._loop.now


class Watched(Watcher, Protocol):
    """What the servers report to."""

    def fail(self, error: BaseException | str) -> None: ...


class Server(Process):
    """One process with a runtime. `up`: it is ready."""

    def __init__(self, loop: SimLoop, name: str) -> None:
        super().__init__(loop, name)
        self.runtime: Runtime
        self.up = False
        self.stopping = False
        self.requests: dict[asyncio.Future[object], None] = {}  # in order

    @property
    def listens(self) -> bool:
        """Whether it takes requests: from when it is put together on, before runs are recovered."""
        runtime = getattr(self, "runtime", None)
        return self.alive and not self.stopping and hasattr(runtime, "gateway")


class Servers:
    """`current` is the one that clients reach; there may be frozen ones besides."""

    def __init__(
        self,
        loop: SimLoop,
        store: MemoryServer,
        network: Network,
        world: Watched,
        *,
        plan: Plan,
        rnd: Random,
    ) -> None:
        self._loop = loop
        self._store = store
        self._network = network
        self._world = world
        self._rnd = rnd
        kept = plan.retention_secs
        self._settings = Settings(
            data_dir=Path("/nowhere"),
            lease_secs=plan.lease_secs,
            grace_secs=1,
            passivate_after_secs=plan.passivate_secs,
            retention_completed_secs=kept,
            retention_failed_secs=kept,
            retention_canceled_secs=kept,
            retention_timed_out_secs=kept,
        )
        self.all: list[Server] = []
        self.current: Server | None = None
        self.clock = WorldClock(loop, plan.start_ms)

    # --- lives ---------------------------------------------------------------------------------

    async def keep_up(self) -> None:
        """Whatever becomes of a server, there is another one soon."""
        while True:
            await asyncio.sleep(0.05 + self._rnd.random() * 0.3)
            if self.current is None or not self.current.alive:
                serving = [s for s in self.all if self._serves(s)]
                if serving:  # it was frozen for less than its lease and goes on
                    self.current = serving[-1]
                else:
                    self.start()

    def _serves(self, server: Server) -> bool:
        reached = server.up and server.alive and not server.frozen
        return reached and self._network.reaches(server)

    def start(self, *, rival: bool = False) -> None:
        """A rival is not the one that clients reach, as long as that one is there."""
        server = Server(self._loop, f"p{len(self.all)}")
        self.all.append(server)
        if not rival:
            self.current = server
        self._world.note("start", server.name)
        server.begin(self._life(server))

    async def _life(self, server: Server) -> None:
        """What the command `serve` does: start, serve, stop when the fence is lost."""
        store = SimStore(self._store, self._network, server, self._world)
        server.runtime = Runtime(settings=self._settings, store=store, clock=self.clock)
        try:
            await server.runtime.start()
        except PilotageError as error:
            self._world.note("no start", server.name, type(error).__name__)
            self.end(server)
            return
        except BaseException as error:
            self._world.fail(error)
            raise
        server.up = True
        self._world.note("up", server.name)
        await server.runtime.fenced.wait()
        self._world.note("fenced", server.name)
        await self._stop(server)

    async def stop(self, server: Server) -> None:
        """An orderly stop, as by SIGTERM."""
        self._world.note("stop", server.name)
        if server.up:
            server.begin(self._stop(server))

    async def _stop(self, server: Server) -> None:
        server.up, server.stopping = False, True
        try:
            await server.runtime.stop()
        except BaseException as error:
            self._world.fail(error)
            raise
        self._world.note("stopped", server.name)
        self.end(server)

    def crash(self, process: Process, why: str) -> None:
        if process.alive:
            self._world.note("crash", process.name, why)
            self.end(process)

    def end(self, process: Process) -> None:
        process.die()
        if isinstance(process, Server):
            for request in list(process.requests):
                _lose(request)

    @staticmethod
    def known_as_running(process: Process, key: AttemptKey) -> None:
        """What the store has acknowledged to the process demands the attempt."""
        assert isinstance(process, Server)
        run_id, i, attempt = key
        state = process.runtime.supervisor.published(run_id)
        if state is None:
            return  # its actor is being started again, the look-up of its job goes on meanwhile
        step = state.step(i)
        if step.status is not StepStatus.RUNNING or step.attempt != attempt:
            raise ViolationError(
                f"attempt {key} is dispatched; its step is {step.status} at {step.attempt}"
            )

    def published(self, run_id: str) -> RunState | None:
        """What the server that clients reach knows to be stored of a run in its memory."""
        server = self.current
        if server is None or not server.listens:
            return None
        return server.runtime.supervisor.published(run_id)

    @property
    def quarantined(self) -> set[str]:
        """The runs that the server that clients reach has set aside."""
        server = self.current
        if server is None or not server.listens:
            return set()
        return set(server.runtime.supervisor.quarantined)

    @property
    def one_owner(self) -> bool:
        """Whether the server that clients reach is the one that owns the store."""
        server = self.current
        return server is not None and server.up and server.runtime._fence == self._store.fence

    # --- requests --------------------------------------------------------------------------------

    async def request(self, work: Callable[[Gateway], Awaitable[object]]) -> object:
        """What `work` answers, done in the current server. `ConnectionError` if it is not there or
        goes away meanwhile, or does not answer: what was asked may have been done.
        """
        server = self.current
        if server is None or not server.listens:
            raise ConnectionError("refused")
        answer: asyncio.Future[object] = self._loop.create_future()
        server.requests[answer] = None
        server.begin(self._serve(server, work, answer))
        late = self._loop.call_later(REQUEST_SECS, _lose, answer)
        try:
            return await answer
        finally:
            late.cancel()
            server.requests.pop(answer, None)

    @staticmethod
    async def _serve(
        server: Server,
        work: Callable[[Gateway], Awaitable[object]],
        answer: asyncio.Future[object],
    ) -> None:
        try:
            result = await work(server.runtime.gateway)
        except PilotageError as error:
            if not answer.done():
                answer.set_exception(error)
        else:
            if not answer.done():
                answer.set_result(result)


def _lose(request: asyncio.Future[object]) -> None:
    if not request.done():
        request.set_exception(ConnectionError("the connection was lost"))
