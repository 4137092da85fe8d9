"""The supervisor: the directory of run actors. It spawns, restarts, quarantines and lets go.

Each run in memory has one entry; everything addressed to a run goes through it, so there is never
a second actor for a run. A run that is not in memory is loaded from the store when a command
concerns it, and leaves again when it is finished. An active run that nobody moves loses its actor
and, after long, its place in memory (`IdleRuns`); whatever concerns it brings it back. An actor
that fails is started again from its snapshot; one that fails too often is quarantined: it keeps
its last stored status and takes no commands. All on the actors' loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from pykka import ActorDeadError

from pilotage.actors.entries import Entry, in_bounded_time, is_quarantined
from pilotage.actors.errors import NotFoundError, UnavailableError
from pilotage.actors.idle_runs import IdleRuns
from pilotage.actors.kernel import (
    LoopRef,
    MailboxFullError,
    RestartIntensity,
    Terminated,
    watch,
)
from pilotage.actors.loading import GraphOf, Loaded, Loader, Records, outbox_of
from pilotage.actors.messages import (
    AlreadyExistsError,
    Answer,
    AttemptNote,
    DryRun,
    Outcome,
    QuarantinedError,
    Release,
    Remember,
    Resume,
)
from pilotage.actors.run_actor import RunActor
from pilotage.actors.run_timers import RunTimers
from pilotage.actors.services import Services
from pilotage.actors.set_apart import SetApart, withdraw
from pilotage.actors.unresolved import Unresolved
from pilotage.persistence.port import Store, StoredRun, StoreError, StoreUnavailableError
from pilotage.runtime.commands import AttemptCompleted, AttemptFailed, Command, CreateRun
from pilotage.runtime.effects import Effect
from pilotage.runtime.graph import StepGraph
from pilotage.runtime.machine import blank_run
from pilotage.runtime.state import RunState, unpacked

logger = logging.getLogger(__name__)

ASK_TIMEOUT_SECS = 10.0
"""How long a caller waits for a run; a command that is late may still be carried out."""
OPEN_WAIT_SECS = 5.0
"""How long a caller waits for the recovery at the start."""
MAX_RESTARTS, RESTART_WINDOW_SECS = 5, 60.0
NOTIFY_RETRY_SECS = 0.05
MAX_NOTES = 1_000
"""Messages in a mailbox beyond which progress and log lines are dropped."""

RunLimit = Callable[[str], Awaitable[int]]


class Supervisor:
    """`graph_of(version_id)` gives the shared step graph of a workflow version, `run_limit` the
    `max_concurrent_runs` of a workflow.
    """

    def __init__(
        self, store: Store, services: Services, graph_of: GraphOf, run_limit: RunLimit
    ) -> None:
        self._store = store
        self._services = services
        self._run_limit = run_limit
        self.loader = Loader(store, graph_of)
        self.idle = IdleRuns()
        self.run_timers = services.run_timers = RunTimers(services, self.published)
        self._entries: dict[str, Entry] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._opened = asyncio.Event()
        self._closing = False
        self._next_look: asyncio.Handle | None = None
        self.set_apart = SetApart(services)
        self.unresolved = Unresolved()
        self.quarantined = self.set_apart.runs
        self._when_ended = self._terminated  # bound once, not once for each run

    def open(self) -> None:
        """Every active run has been told to go on: commands are taken from now on."""
        self._opened.set()

    # --- reading -----------------------------------------------------------------------------

    def __len__(self) -> int:
        """How many runs are in memory."""
        return len(self._entries) + len(self.idle)

    @property
    def active(self) -> int:
        """How many runs are active, wherever they are; one that is about to leave counts, too."""
        return len(self) + len(self.idle.away)

    def published(self, run_id: str) -> RunState | None:
        """The newest stored state of a run in memory; None if it is not there."""
        entry = self._entries.get(run_id)
        if entry is None:
            return self.idle.state(run_id)
        return None if entry.actor is None else entry.actor.published

    async def state(self, run_id: str) -> RunState | None:
        """The newest stored state, of memory or store; reading never wakes a run."""
        state = self.published(run_id)
        if state is not None:
            return state
        stored = (await self._store.load_runs([run_id]))[0]
        return None if stored is None else await self.loader.decode(stored)

    async def decode(self, stored: StoredRun) -> RunState:
        """The state of what the store has; raises what the codec or the catalog raises."""
        return await self.loader.decode(stored)

    # --- commands ----------------------------------------------------------------------------

    async def command(self, run_id: str, command: Command) -> Answer:
        answer: Answer = await self.ask(run_id, command)
        return answer

    async def dry_run(self, run_id: str, command: Command) -> Outcome:
        outcome: Outcome = await self.ask(run_id, DryRun(command=command))
        return outcome

    async def ask(self, run_id: str, message: object) -> Any:
        """Ask the run's actor, loading the run if need be.

        Raises `NotFoundError`, `QuarantinedError`, `UnavailableError`.
        """
        self._refuse_if_away()
        await self.wait_open()
        with in_bounded_time():
            async with asyncio.timeout(ASK_TIMEOUT_SECS):
                answer = await self._ask(run_id, message)
                if isinstance(answer, Answer) and answer.by_memory:
                    await self._services.confirm_owner()
                return answer

    def _refuse_if_away(self) -> None:
        """While the store is away nothing new is taken on: what cannot be stored piles up."""
        self._refuse_if_closing()
        writer = self._services.writer
        if not writer.healthy:
            raise UnavailableError(f"the store is away: {writer.last_error}")

    def _refuse_if_closing(self) -> None:
        if self._closing:
            raise UnavailableError("the server is stopping", 5)

    async def wait_open(self) -> None:
        """Until every active run has been taken in; `UnavailableError` if that lasts."""
        if not self._opened.is_set():
            try:
                async with asyncio.timeout(OPEN_WAIT_SECS):
                    await self._opened.wait()
            except TimeoutError:
                raise UnavailableError("the server is still recovering its runs") from None
        self._refuse_if_closing()

    async def _ask(self, run_id: str, message: object) -> Any:
        while True:
            entry = self._entries.get(run_id) or self._unfold(run_id) or self._load_soon(run_id)
            if entry.ref is None:
                await entry.is_ready()
                continue
            try:
                answer = await self._sent(entry.ref, message)
            except (ActorDeadError, AlreadyExistsError):
                self._refuse_if_closing()
                await asyncio.sleep(0)  # its end is being noted; then it is loaded again
            else:
                self._release_if_done(run_id, entry)
                return answer

    def _sent(self, ref: LoopRef[RunActor], message: object) -> Awaitable[Any]:
        """The reply, which may come after the asker has gone."""
        reply = ref.ask(message, block=False)
        if isinstance(message, Remember):
            self.unresolved.watch(message.key, reply)
        return reply

    def notify(self, run_id: str, message: object) -> None:
        """Tell the run something that happened; it is kept while the run is not ready for it.

        A run that is neither in memory nor passivated is over: for it the message is too late.
        """
        entry = self._entries.get(run_id)
        if entry is None and not isinstance(message, Release):
            entry = self._woken(run_id, message)
        if entry is None:
            if isinstance(message, AttemptCompleted | AttemptFailed):
                self._services.count("pilotage_late_results_total")
        elif isinstance(message, Release):
            if entry.actor is not None and not entry.actor.releasing:
                entry.actor.releasing = True  # one is enough, and one too many is a dead letter
                self._tell(run_id, entry.actor.actor_ref, message)
        elif entry.ref is not None:
            self._tell(run_id, entry.ref, message)
        elif not isinstance(message, AttemptNote):
            self._keep(run_id, entry, message)

    def _woken(self, run_id: str, message: object) -> Entry | None:
        """The entry of an idle run that something happened to."""
        entry = self._unfold(run_id)
        if entry is not None or self._closing or isinstance(message, AttemptNote):
            return entry
        return self._load_soon(run_id) if run_id in self.idle.away else None

    def _keep(self, run_id: str, entry: Entry, message: object) -> None:
        if entry.waiting is None:
            entry.waiting = []
        if len(entry.waiting) < RunActor.mailbox_capacity:
            entry.waiting.append(message)
        else:
            self._notify_later(run_id, message)

    def _tell(self, run_id: str, ref: LoopRef[RunActor], message: object) -> None:
        if isinstance(message, AttemptNote) and ref.cell.depth() >= MAX_NOTES:
            return
        try:
            ref.tell(message)
        except (MailboxFullError, ActorDeadError):
            self._notify_later(run_id, message)

    def _notify_later(self, run_id: str, message: object) -> None:
        if not self._closing:
            loop = asyncio.get_running_loop()
            loop.call_later(NOTIFY_RETRY_SECS, self.notify, run_id, message)

    # --- coming and going ----------------------------------------------------------------------

    def knows(self, run_id: str) -> bool:
        """Whether the run is active, wherever it is, or known to be not readable."""
        return (
            run_id in self._entries
            or self.idle.state(run_id) is not None
            or run_id in self.idle.away
            or run_id in self.quarantined
        )

    def refuse_half_made(self, run_id: str) -> None:
        """`UnavailableError` while the run is being made: it may not come to be."""
        entry = self._entries.get(run_id)
        if entry is not None and entry.actor is not None and entry.actor.published is None:
            raise UnavailableError(f'the run "{run_id}" is being made')

    async def create(self, graph: StepGraph, message: object, create: CreateRun) -> Answer:
        """Make a run. `AlreadyExistsError` if there is one of that id."""
        self._refuse_if_away()
        run_id = create.head.id
        self.refuse_half_made(run_id)
        if self.knows(run_id):
            raise AlreadyExistsError(run_id)
        entry = self._entries[run_id] = Entry()
        blank = blank_run(create.head, graph)
        ref = self._spawn(entry, self._actor(run_id, blank, {}, stored=False))
        with in_bounded_time():
            try:
                async with asyncio.timeout(ASK_TIMEOUT_SECS):
                    answer: Answer = await self._sent(ref, message)
                    return answer
            except ActorDeadError:
                raise UnavailableError("the run could not be stored") from None

    def _actor(
        self, run_id: str, state: RunState, outbox: dict[str, Effect], *, stored: bool = True
    ) -> RunActor:
        actor = RunActor(self._services.dispatcher, run_id, self._services, state, stored=stored)
        actor.restore_outbox(outbox)
        return actor

    def _spawn(self, entry: Entry, actor: RunActor, first: object = None) -> LoopRef[RunActor]:
        """`first`: what the actor is told before anything that has waited."""
        entry.actor = actor
        watch(actor.actor_ref, self._when_ended)
        ref = entry.ref = actor.launch()
        waiting = entry.over()
        run_id = actor.actor_urn
        if first is not None:
            self._tell(run_id, ref, first)
        for message in waiting:
            self._tell(run_id, ref, message)
        if self._next_look is None:
            self._look_later()
        return ref

    def _load_soon(self, run_id: str) -> Entry:
        self._refuse_if_closing()
        if run_id in self.quarantined:
            raise is_quarantined(run_id, self.quarantined[run_id])
        entry = self._entries[run_id] = Entry()
        entry.hold()
        if run_id in self.idle.away:
            self.idle.away.discard(run_id)
            entry.away = True
        self._spawn_task(self._load(run_id, entry))  # not the asker's: others may wait for it too
        return entry

    async def _load(self, run_id: str, entry: Entry) -> None:
        try:
            loaded = await self._read(run_id)
        except QuarantinedError as error:
            entry.away = False
            self._forget(run_id, entry, error)
        except Exception as error:  # noqa: BLE001  everybody who waits for the run gets it
            if entry.waiting is not None:
                entry.refuse(error)
                await self._restart(run_id, entry, NOTIFY_RETRY_SECS, None)
            else:
                self._forget(run_id, entry, error)
        else:
            self._loaded(run_id, entry, loaded)
            self._release_if_done(run_id, entry)

    def _loaded(self, run_id: str, entry: Entry, loaded: Loaded | None) -> None:
        was_away, entry.away = entry.away, False
        if loaded is None:
            self._forget(run_id, entry, NotFoundError(f'unknown workflow run "{run_id}"'))
            return
        state, outbox, records = loaded
        self.set_apart.come_back(run_id)  # in case somebody met it while it could not be read
        actor = self._actor(run_id, state, outbox)
        if was_away:
            actor.take_up(records)  # what else it has outside is there still
        elif outbox or not state.status.is_terminal:
            self._spawn(entry, actor, Resume(records=records, again=True))
            return
        self._spawn(entry, actor)

    def _unfold(self, run_id: str) -> Entry | None:
        """The run has an actor again, if it was folded."""
        folded = self.idle.take(run_id)
        if folded is None:
            return None
        entry = self._entries[run_id] = Entry()
        actor = self._actor(run_id, unpacked(folded.state), {})
        if folded.records is not None:
            actor.records = folded.records
        self._spawn(entry, actor)
        return entry

    async def _read(self, run_id: str) -> Loaded | None:
        """The run as it is stored. One that cannot be read is quarantined."""
        try:
            loaded = await self.loader.load(run_id)
        except (StoreUnavailableError, UnavailableError):
            raise
        except Exception as error:  # noqa: BLE001  whatever is wrong with it
            self.quarantine_unreadable(run_id, error)
            raise is_quarantined(run_id, self.quarantined[run_id]) from None
        if loaded is not None:
            workflow_id, admission = loaded[0].head.workflow_id, self._services.admission
            if not admission.knows_run_limit(workflow_id):
                admission.know_run_limit(workflow_id, await self._run_limit(workflow_id))
        return loaded

    def adopt(self, state: RunState, outbox: Mapping[str, bytes]) -> None:
        """Take in a run that was loaded at the start; `resume` lets it act."""
        if state.id not in self._entries and not self._closing:
            entry = self._entries[state.id] = Entry()
            self._spawn(entry, self._actor(state.id, state, outbox_of(outbox)))

    def resume(self, run_id: str, records: Records) -> None:
        self.notify(run_id, Resume(records=records))

    def wake(self, run_id: str) -> None:
        """Load a run that has something to do and is not in memory, as soon as that can be."""
        if run_id not in self._entries and self._unfold(run_id) is None:
            self._load_soon(run_id).waiting = []  # as if something had happened to it

    def _release_if_done(self, run_id: str, entry: Entry) -> None:
        """A finished run was loaded for one message or none: it leaves memory again."""
        state = None if entry.actor is None else entry.actor.published
        if state is not None and state.status.is_terminal and not entry.asking:
            self.notify(run_id, Release())

    def _terminated(self, end: Terminated) -> None:
        run_id, reason = end.urn, end.reason
        entry = self._entries.get(run_id)
        if entry is None or entry.ref is not end.ref:
            return
        state = None if entry.actor is None else entry.actor.published
        entry.hold()
        if reason is None or self._closing or state is None:
            self._forget(run_id, entry)  # it is done, or was never stored
            return
        if entry.intensity is None:
            entry.intensity = RestartIntensity(MAX_RESTARTS, RESTART_WINDOW_SECS)
        delay = entry.intensity.next_delay(self._services.clock.monotonic())
        if delay is None:
            self.set_apart.add(run_id, reason)
            self.set_apart.withdraw(state)
            self._forget(run_id, entry)
        else:
            logger.warning("run %s is started again from its stored state", run_id)
            self._spawn_task(self._restart(run_id, entry, delay, state))

    def _forget(self, run_id: str, entry: Entry, error: Exception | None = None) -> None:
        if self._entries.get(run_id) is entry:
            del self._entries[run_id]
            if entry.away:  # the store could not be asked; it is there still
                self.idle.away.add(run_id)
        for message in entry.over(error):
            self.notify(run_id, message)

    # --- leaving for a while ---------------------------------------------------------------------

    def _look_later(self) -> None:
        if not self._closing:
            loop = asyncio.get_running_loop()
            self._next_look = loop.call_later(
                self.idle.look_secs, lambda: self._spawn_task(self._look())
            )

    async def _look(self) -> None:
        """Fold who was not moved since the look before, passivate who has been folded for long."""
        try:
            if self._opened.is_set():  # before, runs are taken in
                await self.put_aside()
        finally:
            self._next_look = None
            if self._entries or self.idle.ageing:
                self._look_later()

    async def put_aside(self) -> None:
        await self.idle.put_aside(self._entries, self._services.clock)

    async def _restart(
        self, run_id: str, entry: Entry, delay: float, last: RunState | None
    ) -> None:
        """One-for-one: the run starts again from its snapshot; the store may be away for long."""
        pause = max(delay, 0.01)
        while True:
            await asyncio.sleep(pause)
            try:
                loaded = await self._read(run_id)
            except (StoreError, UnavailableError) as error:
                logger.debug("run %s cannot be loaded yet: %s", run_id, error)
                pause = min(pause * 2, 5.0)
            except QuarantinedError as error:
                entry.away = False
                if last is not None:
                    self.set_apart.withdraw(last)
                self._forget(run_id, entry, error)
                return
            else:
                if loaded is None:  # it was finished, and removed before it could be reopened
                    if last is not None:
                        withdraw(self._services, last)
                    self._services.admission.forget_run(run_id)
                    self._forget(run_id, entry)
                else:
                    self._loaded(run_id, entry, loaded)
                    self._release_if_done(run_id, entry)
                return

    def quarantine_unreadable(self, run_id: str, error: BaseException) -> None:
        """A run that cannot be loaded. One that lives is written by its actor, and nobody else."""
        if self.published(run_id) is None and self.set_apart.add(run_id, error):
            self.idle.away.discard(run_id)
            self.set_apart.leave(run_id)

    def _spawn_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Nothing goes out any more, and whoever still waits is told so."""
        self._closing = True
        self._opened.set()
        self.run_timers.close()
        if self._next_look is not None:
            self._next_look.cancel()
        self.set_apart.close()
        for task in list(self._tasks):
            task.cancel()
        for entry in list(self._entries.values()):
            if entry.actor is not None:
                entry.actor.abandon()
            entry.over(UnavailableError("the server is stopping", 5))
        await asyncio.sleep(0)
