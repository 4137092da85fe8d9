"""The supervisor: the directory of run actors. It spawns, restarts, quarantines and lets go.

Each run in memory has one entry; everything addressed to a run goes through it, so there is never
a second actor for a run. A run that is not in memory is loaded from the store when a command
concerns it, and leaves again when it is finished. An actor that fails is started again from its
snapshot; one that fails too often is quarantined: it keeps its last stored status and takes no
commands. All on the actors' loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pykka import ActorDeadError

from pilotage.actors.errors import ConflictError, NotFoundError, UnavailableError
from pilotage.actors.kernel import (
    LoopRef,
    MailboxFullError,
    RestartIntensity,
    Terminated,
    watch,
)
from pilotage.actors.messages import (
    AlreadyExistsError,
    Answer,
    DryRun,
    Outcome,
    Release,
    Resume,
)
from pilotage.actors.run_actor import RunActor
from pilotage.actors.services import Services
from pilotage.persistence import codec
from pilotage.persistence.port import FencedError, Store, StoredRun, StoreUnavailableError
from pilotage.runtime.commands import Command, CreateRun
from pilotage.runtime.effects import Effect
from pilotage.runtime.graph import StepGraph
from pilotage.runtime.machine import blank_run
from pilotage.runtime.state import RunState, blank_chunks, chunked, rebuild

logger = logging.getLogger(__name__)

ASK_TIMEOUT_SECS = 20.0
"""How long a caller waits for a run; a command that is late may still be carried out."""
MAX_RESTARTS, RESTART_WINDOW_SECS = 5, 60.0
NOTIFY_RETRY_SECS = 0.05

GraphOf = Callable[[str], Awaitable[StepGraph]]


class Entry:
    """One run in memory. `actor` is None while it is being loaded or waits for its restart."""

    __slots__ = ("actor", "intensity", "ready", "ref", "waiting")

    def __init__(self) -> None:
        self.ref: LoopRef[RunActor] | None = None
        self.actor: RunActor | None = None
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.intensity: RestartIntensity | None = None
        self.waiting: list[object] = []


class Supervisor:
    """`graph_of(version_id)` gives the shared step graph of a workflow version."""

    def __init__(self, store: Store, services: Services, graph_of: GraphOf) -> None:
        self._store = store
        self._services = services
        self._graph_of = graph_of
        self._entries: dict[str, Entry] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False
        self.quarantined: dict[str, str] = {}

    # --- reading -----------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._entries)

    def published(self, run_id: str) -> RunState | None:
        """The newest stored state of a run in memory; None if it is not there."""
        entry = self._entries.get(run_id)
        if entry is None or entry.actor is None:
            return None
        return entry.actor.published

    async def state(self, run_id: str) -> RunState | None:
        """The newest stored state, of memory or store; reading never wakes a run."""
        state = self.published(run_id)
        if state is not None:
            return state
        stored = (await self._store.load_runs([run_id]))[0]
        return None if stored is None else await self.decode(stored)

    async def decode(self, stored: StoredRun) -> RunState:
        """The state of what the store has; raises what the codec or the catalog raises."""
        vitals = codec.decode_vitals(stored.vitals)
        if stored.blob is not None:
            finished = codec.decode_finished(stored.blob)
            graph = await self._graph_of(finished.head.version_id)
            return rebuild(finished.head, graph, vitals, finished.chunks)
        assert stored.head is not None  # a run is stored with one of the two
        head = codec.decode_head(stored.head)
        graph = await self._graph_of(head.version_id)
        if not stored.steps:
            return rebuild(head, graph, vitals, blank_chunks(graph.size))
        steps = [s for chunk in blank_chunks(graph.size) for s in chunk]
        for i, data in stored.steps.items():
            steps[i] = codec.decode_step(data)
        return rebuild(head, graph, vitals, chunked(steps))

    # --- commands ----------------------------------------------------------------------------

    async def command(self, run_id: str, command: Command) -> Answer:
        answer: Answer = await self.ask(run_id, command)
        return answer

    async def dry_run(self, run_id: str, command: Command) -> Outcome:
        outcome: Outcome = await self.ask(run_id, DryRun(command=command))
        return outcome

    async def ask(self, run_id: str, message: object) -> Any:
        """Ask the run's actor, loading the run if need be.

        Raises `NotFoundError`, `ConflictError` (quarantined), `UnavailableError`.
        """
        try:
            async with asyncio.timeout(ASK_TIMEOUT_SECS):
                return await self._ask(run_id, message)
        except TimeoutError:
            raise UnavailableError(
                "the run did not answer in time; the command may still be carried out, look at"
                " the run before sending it again"
            ) from None
        except MailboxFullError:
            raise UnavailableError("the run has too many messages waiting") from None
        except StoreUnavailableError as error:
            raise UnavailableError(f"the store is away: {error}") from None
        except FencedError as error:
            raise UnavailableError(str(error)) from None

    async def _ask(self, run_id: str, message: object) -> Any:
        while True:
            entry = self._entries.get(run_id)
            if entry is None:
                entry = await self._load(run_id)
            if entry.ref is None:
                await asyncio.shield(entry.ready)
                continue
            try:
                answer = await entry.ref.ask(message, block=False)
                self._release_if_done(run_id, entry)
                return answer
            except ActorDeadError:
                if self._closing:
                    raise UnavailableError("the server is stopping") from None
                await asyncio.sleep(0)  # its end is being noted; then it is loaded again

    def notify(self, run_id: str, message: object) -> None:
        """Tell the run something that happened; it is kept while the run is not ready for it."""
        entry = self._entries.get(run_id)
        if entry is None:
            self._spawn_task(self._notify_late(run_id, message))
        elif entry.ref is None:
            entry.waiting.append(message)
        else:
            self._tell(run_id, entry.ref, message)

    def _tell(self, run_id: str, ref: LoopRef[RunActor], message: object) -> None:
        try:
            ref.tell(message)
        except MailboxFullError:
            loop = asyncio.get_running_loop()
            loop.call_later(NOTIFY_RETRY_SECS, self.notify, run_id, message)
        except ActorDeadError:
            loop = asyncio.get_running_loop()
            if not self._closing:
                loop.call_soon(self.notify, run_id, message)

    async def _notify_late(self, run_id: str, message: object) -> None:
        """For a run that has left memory: a late result, which is counted, or a stray timer."""
        try:
            await self.ask(run_id, message)
        except (NotFoundError, ConflictError):
            return
        except UnavailableError as error:
            logger.warning("run %s could not be told %s: %s", run_id, message, error)

    # --- coming and going ----------------------------------------------------------------------

    async def create(self, graph: StepGraph, message: object, create: CreateRun) -> Answer:
        """Make a run. `AlreadyExistsError` if the store has one of that id."""
        run_id = create.head.id
        if run_id in self._entries:
            raise AlreadyExistsError(run_id)
        entry = self._entries[run_id] = Entry()
        self._spawn(entry, run_id, blank_run(create.head, graph), {}, stored=False)
        try:
            async with asyncio.timeout(ASK_TIMEOUT_SECS):
                assert entry.ref is not None  # just spawned
                answer: Answer = await entry.ref.ask(message, block=False)
                return answer
        except TimeoutError:
            raise UnavailableError(
                "the store did not answer in time; the run may still be created"
            ) from None
        except ActorDeadError:
            raise UnavailableError("the run could not be stored") from None
        except (StoreUnavailableError, FencedError) as error:
            raise UnavailableError(str(error)) from None

    def _spawn(
        self,
        entry: Entry,
        run_id: str,
        state: RunState,
        outbox: dict[str, Effect],
        *,
        stored: bool,
    ) -> None:
        actor = RunActor(self._services.dispatcher, run_id, self._services, state, stored=stored)
        actor.restore_outbox(outbox)
        entry.actor = actor
        ref: LoopRef[RunActor] = actor.actor_ref
        watch(ref, self._terminated)
        entry.ref = actor.launch()
        waiting, entry.waiting = entry.waiting, []
        if not entry.ready.done():
            entry.ready.set_result(None)
        for message in waiting:
            self._tell(run_id, entry.ref, message)

    async def _load(self, run_id: str) -> Entry:
        if self._closing:
            raise UnavailableError("the server is stopping")
        if run_id in self.quarantined:
            raise _quarantined(run_id, self.quarantined[run_id])
        entry = self._entries[run_id] = Entry()
        try:
            stored = (await self._store.load_runs([run_id]))[0]
            if stored is None:
                raise NotFoundError(f'unknown workflow run "{run_id}"')
            state = await self.decode(stored)
        except BaseException as error:
            del self._entries[run_id]
            entry.ready.set_exception(error)
            entry.ready.exception()  # nobody may be waiting
            raise
        self._spawn(entry, run_id, state, _outbox(stored.outbox), stored=True)
        return entry

    def adopt(self, state: RunState, outbox: Mapping[str, bytes]) -> None:
        """Take in a run that was loaded at the start; `resume` lets it act."""
        if state.id not in self._entries:
            entry = self._entries[state.id] = Entry()
            self._spawn(entry, state.id, state, _outbox(outbox), stored=True)

    def resume(self, run_id: str) -> None:
        self.notify(run_id, Resume())

    def _release_if_done(self, run_id: str, entry: Entry) -> None:
        """A finished run was loaded for one message: it leaves memory again."""
        state = None if entry.actor is None else entry.actor.published
        if state is not None and state.status.is_terminal:
            self.notify(run_id, Release())

    def _terminated(self, end: Terminated) -> None:
        run_id = end.urn
        entry = self._entries.get(run_id)
        if entry is None or entry.ref is not end.ref:
            return
        actor, entry.ref, entry.actor = entry.actor, None, None
        reason = end.reason
        if reason is None or self._closing or isinstance(reason, AlreadyExistsError | FencedError):
            self._forget(run_id, entry)
            return
        if actor is None or actor.published is None:
            self._forget(run_id, entry)  # it was never stored: there is nothing to restart
            return
        entry.ready = asyncio.get_running_loop().create_future()
        if entry.intensity is None:
            entry.intensity = RestartIntensity(MAX_RESTARTS, RESTART_WINDOW_SECS)
        delay = entry.intensity.next_delay(self._services.clock.monotonic())
        if delay is None:
            self._quarantine(run_id, entry, reason)
        else:
            self._spawn_task(self._restart(run_id, entry, delay))

    def _forget(self, run_id: str, entry: Entry) -> None:
        del self._entries[run_id]
        waiting, entry.waiting = entry.waiting, []
        if not entry.ready.done():
            entry.ready.set_result(None)
        for message in waiting:
            self.notify(run_id, message)

    def _quarantine(self, run_id: str, entry: Entry, reason: BaseException) -> None:
        text = f"{type(reason).__name__}: {reason}"
        logger.error("run %s is quarantined: %s", run_id, text)
        self.quarantined[run_id] = text
        del self._entries[run_id]
        if not entry.ready.done():
            entry.ready.set_result(None)

    async def _restart(self, run_id: str, entry: Entry, delay: float) -> None:
        """One-for-one: the run starts again from its snapshot; the store may be away for long."""
        pause = max(delay, 0.01)
        while True:
            await asyncio.sleep(pause)
            try:
                stored = (await self._store.load_runs([run_id]))[0]
                state = None if stored is None else await self.decode(stored)
            except StoreUnavailableError:
                pause = min(pause * 2, 5.0)
                continue
            except Exception as error:
                self._quarantine(run_id, entry, error)
                return
            break
        if stored is None or state is None:
            self._forget(run_id, entry)
            return
        self._spawn(entry, run_id, state, _outbox(stored.outbox), stored=True)
        self.resume(run_id)

    def release_quarantined(self, run_id: str) -> None:
        """Let a quarantined run be loaded again."""
        if self.quarantined.pop(run_id, None) is None:
            raise NotFoundError(f'no run "{run_id}" is quarantined')

    def quarantine_unreadable(self, run_id: str, error: Exception) -> None:
        """A run that cannot be loaded at the start; it never takes others with it."""
        text = f"{type(error).__name__}: {error}"
        logger.error("run %s is quarantined: %s", run_id, text)
        self.quarantined[run_id] = text

    def _spawn_task(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Stop all run actors; nothing is written any more."""
        self._closing = True
        for task in list(self._tasks):
            task.cancel()
        refs = [e.ref for e in self._entries.values() if e.ref is not None]
        for ref in refs:
            ref.kill(ActorDeadError("the server is stopping"))
        await asyncio.sleep(0)


def _quarantined(run_id: str, reason: str) -> ConflictError:
    return ConflictError(
        f'run "{run_id}" is quarantined and takes no commands: {reason}; release it to load it'
        " again"
    )


def _outbox(stored: Mapping[str, bytes]) -> dict[str, Effect]:
    return {key: codec.decode_message(data) for key, data in stored.items()}
