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
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from contextlib import contextmanager
from typing import Any

from pykka import ActorDeadError

from pilotage.actors.errors import NotFoundError, UnavailableError
from pilotage.actors.job_runs import JobRunRecord
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
    AttemptNote,
    DryRun,
    Outcome,
    QuarantinedError,
    Release,
    Resume,
)
from pilotage.actors.outside import withdraw
from pilotage.actors.run_actor import RunActor
from pilotage.actors.services import Services
from pilotage.persistence import codec
from pilotage.persistence.port import (
    FencedError,
    Store,
    StoredRun,
    StoreError,
    StoreUnavailableError,
)
from pilotage.runtime.commands import AttemptCompleted, AttemptFailed, Command, CreateRun
from pilotage.runtime.effects import Effect
from pilotage.runtime.graph import StepGraph, bits
from pilotage.runtime.machine import blank_run
from pilotage.runtime.state import RunState, blank_chunks, chunked, rebuild
from pilotage.runtime.status import StepType

logger = logging.getLogger(__name__)

ASK_TIMEOUT_SECS = 10.0
"""How long a caller waits for a run; a command that is late may still be carried out."""
OPEN_WAIT_SECS = 5.0
"""How long a caller waits for the recovery at the start."""
MAX_RESTARTS, RESTART_WINDOW_SECS = 5, 60.0
NOTIFY_RETRY_SECS = 0.05
SINGLE_RECORDS = 8
MAX_NOTES = 1_000
"""Messages in a mailbox beyond which progress and log lines are dropped."""

GraphOf = Callable[[str], Awaitable[StepGraph]]
RunLimit = Callable[[str], Awaitable[int]]


class Entry:
    """One run in memory. `ref` is None while it is being loaded or waits for its restart; what
    comes meanwhile is in `waiting`. `ready` is done when that is over.
    """

    __slots__ = ("actor", "intensity", "ready", "ref", "waiting")

    def __init__(self) -> None:
        self.ref: LoopRef[RunActor] | None = None
        self.actor: RunActor | None = None
        self.ready: asyncio.Future[None] | None = None
        self.intensity: RestartIntensity | None = None
        self.waiting: list[object] | None = None

    def hold(self) -> None:
        self.ref = self.actor = None
        if self.ready is None:
            self.ready = asyncio.get_running_loop().create_future()

    def over(self, error: Exception | None = None) -> list[object]:
        """The wait is over; what had waited."""
        ready, self.ready = self.ready, None
        if ready is not None and not ready.done():
            if error is None:
                ready.set_result(None)
            else:
                ready.set_exception(error)
                ready.exception()  # nobody may be waiting
        waiting, self.waiting = self.waiting or [], None
        return waiting


class Supervisor:
    """`graph_of(version_id)` gives the shared step graph of a workflow version, `run_limit` the
    `max_concurrent_runs` of a workflow.
    """

    def __init__(
        self, store: Store, services: Services, graph_of: GraphOf, run_limit: RunLimit
    ) -> None:
        self._store = store
        self._services = services
        self._graph_of = graph_of
        self._run_limit = run_limit
        self._entries: dict[str, Entry] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._opened = asyncio.Event()
        self._closing = False
        self.quarantined: dict[str, str] = {}
        self._when_ended = self._terminated  # bound once, not once for each run

    def open(self) -> None:
        """Every active run is in memory: commands are taken from now on."""
        self._opened.set()

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

        Raises `NotFoundError`, `QuarantinedError`, `UnavailableError`.
        """
        self._refuse_if_away()
        await self._wait_open()
        with _in_bounded_time():
            async with asyncio.timeout(ASK_TIMEOUT_SECS):
                return await self._ask(run_id, message)

    def _refuse_if_away(self) -> None:
        """While the store is away nothing new is taken on: what cannot be stored piles up."""
        if self._closing:
            raise UnavailableError("the server is stopping", 5)
        writer = self._services.writer
        if not writer.healthy:
            raise UnavailableError(f"the store is away: {writer.last_error}")

    async def _wait_open(self) -> None:
        if not self._opened.is_set():
            try:
                async with asyncio.timeout(OPEN_WAIT_SECS):
                    await self._opened.wait()
            except TimeoutError:
                raise UnavailableError("the server is still recovering its runs") from None

    async def _ask(self, run_id: str, message: object) -> Any:
        while True:
            entry = self._entries.get(run_id) or self._load_soon(run_id)
            if entry.ref is None:
                assert entry.ready is not None  # `hold` made it
                await asyncio.shield(entry.ready)
                continue
            try:
                answer = await entry.ref.ask(message, block=False)
            except (ActorDeadError, AlreadyExistsError):
                if self._closing:
                    raise UnavailableError("the server is stopping", 5) from None
                await asyncio.sleep(0)  # its end is being noted; then it is loaded again
            else:
                self._release_if_done(run_id, entry)
                return answer

    def notify(self, run_id: str, message: object) -> None:
        """Tell the run something that happened; it is kept while the run is not ready for it.

        Every active run is in memory: for one that is not, the message is too late.
        """
        entry = self._entries.get(run_id)
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
            if entry.waiting is None:
                entry.waiting = []
            entry.waiting.append(message)

    def _tell(self, run_id: str, ref: LoopRef[RunActor], message: object) -> None:
        if isinstance(message, AttemptNote) and ref.cell.depth() >= MAX_NOTES:
            return
        try:
            ref.tell(message)
        except (MailboxFullError, ActorDeadError):
            if not self._closing:
                loop = asyncio.get_running_loop()
                loop.call_later(NOTIFY_RETRY_SECS, self.notify, run_id, message)

    # --- coming and going ----------------------------------------------------------------------

    def knows(self, run_id: str) -> bool:
        """Whether the run is in memory, or is known to be in the store and not readable."""
        return run_id in self._entries or run_id in self.quarantined

    async def create(self, graph: StepGraph, message: object, create: CreateRun) -> Answer:
        """Make a run. `AlreadyExistsError` if there is one of that id."""
        self._refuse_if_away()
        run_id = create.head.id
        if self.knows(run_id):
            raise AlreadyExistsError(run_id)
        entry = self._entries[run_id] = Entry()
        ref = self._spawn(entry, run_id, blank_run(create.head, graph), {}, stored=False)
        with _in_bounded_time():
            try:
                async with asyncio.timeout(ASK_TIMEOUT_SECS):
                    answer: Answer = await ref.ask(message, block=False)
                    return answer
            except ActorDeadError:
                raise UnavailableError("the run could not be stored") from None

    def _spawn(
        self,
        entry: Entry,
        run_id: str,
        state: RunState,
        outbox: dict[str, Effect],
        *,
        stored: bool,
        first: object = None,
    ) -> LoopRef[RunActor]:
        """`first`: what the actor is told before anything that has waited."""
        actor = RunActor(self._services.dispatcher, run_id, self._services, state, stored=stored)
        actor.restore_outbox(outbox)
        entry.actor = actor
        watch(actor.actor_ref, self._when_ended)
        ref = entry.ref = actor.launch()
        waiting = entry.over()
        if first is not None:
            self._tell(run_id, ref, first)
        for message in waiting:
            self._tell(run_id, ref, message)
        return ref

    def _load_soon(self, run_id: str) -> Entry:
        if self._closing:
            raise UnavailableError("the server is stopping", 5)
        if run_id in self.quarantined:
            raise _quarantined(run_id, self.quarantined[run_id])
        entry = self._entries[run_id] = Entry()
        entry.hold()
        self._spawn_task(self._load(run_id, entry))  # not the asker's: others may wait for it too
        return entry

    async def _load(self, run_id: str, entry: Entry) -> None:
        try:
            loaded = await self._read(run_id)
        except Exception as error:  # noqa: BLE001  everybody who waits for the run gets it
            self._forget(run_id, entry, error)
            return
        if loaded is None:
            self._forget(run_id, entry, NotFoundError(f'unknown workflow run "{run_id}"'))
        else:
            self._spawn_loaded(run_id, entry, loaded)

    def _spawn_loaded(self, run_id: str, entry: Entry, loaded: Loaded) -> None:
        state, outbox, records = loaded
        active = outbox or not state.status.is_terminal
        first = Resume(records=records, again=True) if active else None
        self._spawn(entry, run_id, state, outbox, stored=True, first=first)

    async def _read(self, run_id: str) -> Loaded | None:
        """The run as it is stored. One that cannot be read is quarantined."""
        stored = (await self._store.load_runs([run_id]))[0]
        if stored is None:
            return None
        try:
            state = await self.decode(stored)
            outbox = _outbox(stored.outbox)
        except (StoreUnavailableError, UnavailableError):
            raise
        except Exception as error:  # noqa: BLE001  whatever is wrong with it
            self.quarantine_unreadable(run_id, error)
            raise _quarantined(run_id, self.quarantined[run_id]) from None
        workflow_id, admission = state.head.workflow_id, self._services.admission
        if not admission.knows_run_limit(workflow_id):
            admission.know_run_limit(workflow_id, await self._run_limit(workflow_id))
        return state, outbox, await open_records(self._store, state)

    def adopt(self, state: RunState, outbox: Mapping[str, bytes]) -> None:
        """Take in a run that was loaded at the start; `resume` lets it act."""
        if state.id not in self._entries and not self._closing:
            entry = self._entries[state.id] = Entry()
            self._spawn(entry, state.id, state, _outbox(outbox), stored=True)

    def resume(self, run_id: str, records: Records) -> None:
        self.notify(run_id, Resume(records=records))

    def wake(self, run_id: str) -> None:
        """Load a run that has something to do and is not in memory."""
        if run_id not in self._entries:
            self._load_soon(run_id)

    def _release_if_done(self, run_id: str, entry: Entry) -> None:
        """A finished run was loaded for one message: it leaves memory again."""
        state = None if entry.actor is None else entry.actor.published
        if state is not None and state.status.is_terminal:
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
            self._quarantine(run_id, entry, state, reason)
        else:
            logger.warning("run %s is started again from its stored state", run_id)
            self._spawn_task(self._restart(run_id, entry, delay, state))

    def _forget(self, run_id: str, entry: Entry, error: Exception | None = None) -> None:
        if self._entries.get(run_id) is entry:
            del self._entries[run_id]
        for message in entry.over(error):
            self.notify(run_id, message)

    def _quarantine(
        self, run_id: str, entry: Entry, state: RunState, reason: BaseException
    ) -> None:
        """It keeps its status and its workflow's slot until an operator decides about it."""
        self.quarantine_unreadable(run_id, reason)
        withdraw(self._services, state)
        self._forget(run_id, entry)

    async def _restart(self, run_id: str, entry: Entry, delay: float, last: RunState) -> None:
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
                self._forget(run_id, entry, error)
                return
            else:
                if loaded is None:  # it was finished, and removed before it could be reopened
                    withdraw(self._services, last)
                    self._services.admission.forget_run(run_id)
                    self._forget(run_id, entry)
                else:
                    self._spawn_loaded(run_id, entry, loaded)
                    self._release_if_done(run_id, entry)
                return

    def quarantine_unreadable(self, run_id: str, error: BaseException) -> None:
        """A run that cannot be loaded or fails again and again; it never takes others with it."""
        text = f"{type(error).__name__}: {error}"
        if self.quarantined.get(run_id) != text:  # a damaged one is met at each reading
            logger.error("run %s is quarantined: %s", run_id, text)
        self.quarantined[run_id] = text

    def _spawn_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Nothing goes out any more, and whoever still waits is told so."""
        self._closing = True
        self._opened.set()
        for task in list(self._tasks):
            task.cancel()
        for entry in list(self._entries.values()):
            if entry.actor is not None:
                entry.actor.abandon()
            entry.over(UnavailableError("the server is stopping", 5))
        await asyncio.sleep(0)


Records = Mapping[tuple[int, int], JobRunRecord]
Loaded = tuple[RunState, dict[str, Effect], Records]


async def open_records(store: Store, state: RunState) -> Records:
    """The stored job runs of the attempts in progress: what they logged so far is kept."""
    wanted = [
        (i, state.step(i).attempt)
        for i in bits(state.masks.running)
        if state.graph.steps[i].step_type is StepType.JOB
    ]
    if not wanted or state.status.is_terminal:
        return {}
    if len(wanted) > SINGLE_RECORDS:
        found: Mapping[tuple[int, int], bytes | None] = await store.job_runs(state.id)
    else:
        found = {key: await store.job_run(state.id, *key) for key in wanted}
    records: dict[tuple[int, int], JobRunRecord] = {}
    for key in wanted:
        data = found.get(key)
        if data is not None:
            try:
                records[key] = codec.decode_record(data, JobRunRecord)
            except codec.SnapshotError as error:  # what was logged is lost, the run is not
                logger.error("run %s, attempt %s: %s", state.id, key, error)  # noqa: TRY400
    return records


@contextmanager
def _in_bounded_time() -> Generator[None]:
    """What goes wrong on the way to an actor, as the one thing a caller can do about it."""
    try:
        yield
    except TimeoutError:
        raise UnavailableError(
            "the run did not answer in time; the command may still be carried out, look at"
            " the run before sending it again"
        ) from None
    except MailboxFullError:
        raise UnavailableError("the run has too many messages waiting") from None
    except FencedError as error:
        raise UnavailableError(str(error), 5) from None
    except StoreError as error:
        raise UnavailableError(f"the store is away: {error}") from None


def _quarantined(run_id: str, reason: str) -> QuarantinedError:
    return QuarantinedError(
        f'run "{run_id}" is quarantined and takes no commands: {reason}; release it to load it'
        " again, or discard it"
    )


def _outbox(stored: Mapping[str, bytes]) -> dict[str, Effect]:
    return {key: codec.decode_message(data) for key, data in stored.items()}
