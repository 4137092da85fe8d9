"""`SimStore`: the in-memory store behind a network that delays, loses and repeats.

A request travels, is applied, and its answer travels back. The journey belongs to the network, not
to the process that sent it: what a process had sent before it was killed still arrives. `Faults`
decides about each request; the `Ledger` sees everything that was applied.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextvars import Context
from enum import Enum
from random import Random
from typing import Any, Protocol, TypeVar

import msgspec

from pilotage.persistence.memory import MemoryServer, MemoryStore
from pilotage.persistence.port import RunWrite, StoreUnavailableError, Verdict
from tests.simulation.loop import Process, SimLoop

T = TypeVar("T")


class Fate(Enum):
    """What becomes of one request."""

    GOOD = "good"
    REFUSED = "refused"
    """Answered with an error at once, not applied."""
    LOST = "lost"
    """Never arrives; the sender gives up after a while."""
    UNANSWERED = "unanswered"
    """Applied, and the answer is lost."""
    LATE = "late"
    """The sender gives up, and then it is applied."""
    KILLED_BEFORE = "killed before"
    """The sender dies when it has sent it, and it never arrives."""
    KILLED_ARRIVED = "killed, arrived"
    """The sender dies when it has sent it, and it is applied all the same."""
    KILLED_AFTER = "killed after"
    """Applied; the sender dies before it hears of it."""
    KILLED_TOLD = "killed, told"
    """Applied; the sender dies as soon as it has the answer, in the middle of its effects."""


_APPLIED = frozenset(
    {Fate.GOOD, Fate.UNANSWERED, Fate.LATE, Fate.KILLED_ARRIVED, Fate.KILLED_AFTER,
     Fate.KILLED_TOLD}
)  # fmt: skip


class FaultRates(msgspec.Struct, frozen=True, kw_only=True):
    """Probabilities for each request, and the network's latency in seconds."""

    fates: Mapping[Fate, float] = {}
    latency_secs: float = 0.001
    slow_share: float = 0.0
    slow_secs: float = 0.5


class Watcher(Protocol):
    """Sees what happens at the store."""

    def crash(self, process: Process, why: str) -> None: ...

    def before_commit(self, process: Process, writes: Sequence[RunWrite], fence: int) -> None: ...

    def after_commit(
        self, process: Process, writes: Sequence[RunWrite], fence: int, verdicts: list[Verdict]
    ) -> None: ...

    def deleted(self, run_ids: Sequence[str]) -> None: ...

    def note(self, *parts: object) -> None: ...

    def fail(self, error: BaseException | str) -> None: ...


class Network:
    """Between all processes and the store. `away`: nothing gets through; `cut`: names of processes
    from which nothing gets through.
    """

    def __init__(self, loop: SimLoop, rnd: Random, rates: FaultRates) -> None:
        self.loop = loop
        self.rates = rates
        self.away = False
        self.cut: set[str] = set()
        self.stormy = False
        self.sent: dict[tuple[str, int], RunWrite] = {}
        """(run, fence) -> the newest write that was sent and not refused."""
        self._rnd = rnd

    def reaches(self, process: Process) -> bool:
        return not self.away and process.name not in self.cut

    def fate(self, process: Process, name: str) -> Fate:
        if not self.reaches(process):
            return Fate.REFUSED if self._rnd.random() < 0.7 else Fate.LOST
        if not self.stormy:
            return Fate.GOOD
        draw = self._rnd.random()
        for fate, share in self.rates.fates.items():
            draw -= share
            if draw < 0:
                reading = fate in {Fate.LATE, Fate.KILLED_ARRIVED} and name != "commit"
                return Fate.LOST if reading else fate
        return Fate.GOOD

    def latency(self) -> float:
        rates = self.rates
        if rates.slow_share and self.stormy and self._rnd.random() < rates.slow_share:
            return self._rnd.random() * rates.slow_secs
        return rates.latency_secs * (0.2 + self._rnd.random())

    def gives_up_after(self) -> float:
        return 0.05 + self._rnd.random()


class SimStore(MemoryStore):
    """One process's connection to the `MemoryServer` that all share.

    Every method that is not written here travels too: see the end of the module.
    """

    def __init__(
        self, server: MemoryServer, network: Network, process: Process, watcher: Watcher
    ) -> None:
        super().__init__(server)
        self._network = network
        self._process = process
        self._watcher = watcher

    async def _ask(self, name: str, request: Coroutine[Any, Any, T]) -> T:
        """Send the request on its way and wait for its answer. It is applied in one go."""
        network, process = self._network, self._process
        loop = network.loop
        if not process.alive:  # it is dead and does not know it: nothing leaves it any more
            request.close()
            await loop.create_future()
        fate = network.fate(process, name)
        answer: asyncio.Future[T] = loop.create_future()
        if fate is not Fate.GOOD:
            self._watcher.note("fate", process.name, name, fate.value)
        out = network.latency()
        if fate is Fate.LATE:
            out += 1.0 + network.gives_up_after()
        if fate in _APPLIED:
            loop.call_later(out, self._arrive, request, answer, fate, context=_OUTSIDE)
        else:
            request.close()
        if fate in {Fate.KILLED_BEFORE, Fate.KILLED_ARRIVED}:
            self._watcher.crash(process, f"{fate.value} {name}")
            await loop.create_future()
        if fate is Fate.REFUSED:
            loop.call_later(out, _fail, answer, "refused", context=_OUTSIDE)
        elif fate in {Fate.LOST, Fate.UNANSWERED, Fate.LATE}:
            wait = network.gives_up_after()
            loop.call_later(wait, _fail, answer, "no answer", context=_OUTSIDE)
        return await answer

    def _arrive(
        self, request: Coroutine[Any, Any, T], answer: asyncio.Future[T], fate: Fate
    ) -> None:
        network, process = self._network, self._process
        error: Exception | None = None
        result: Any = None
        try:
            request.send(None)
        except StopIteration as done:
            result = done.value
        except Exception as raised:  # noqa: BLE001  the answer of the store
            error = raised
        else:
            raise AssertionError("a request of the store in memory waits for something")
        if fate is Fate.KILLED_AFTER:
            self._watcher.crash(process, "killed after")
        if fate in {Fate.GOOD, Fate.KILLED_TOLD, Fate.KILLED_AFTER} and process.alive:
            back = network.latency()
            network.loop.call_later(back, _tell, answer, result, error, context=_OUTSIDE)
            if fate is Fate.KILLED_TOLD:
                # what the answer leads to runs in the next turns of the loop
                network.loop.call_later(
                    back + 1e-9, self._watcher.crash, process, "killed, told", context=_OUTSIDE
                )

    # --- everything that travels -----------------------------------------------------------------

    async def ping(self) -> None:
        if not (self._network.reaches(self._process) and self._process.alive):
            raise StoreUnavailableError("away")

    async def acquire(self, owner: str, lease_secs: float) -> int:
        await self._ask("acquire", super().ping())
        fence = await super().acquire(owner, lease_secs)
        self._watcher.note("fence", self._process.name, fence)
        return fence

    async def commit(self, batch: Sequence[RunWrite], fence: int) -> list[Verdict]:
        self._same_if_again(batch, fence)
        return await self._ask("commit", self._watched_commit(tuple(batch), fence))

    async def delete_runs(self, run_ids: Sequence[str], fence: int) -> int:
        return await self._ask("delete_runs", self._watched_delete(tuple(run_ids), fence))

    async def _watched_delete(self, run_ids: Sequence[str], fence: int) -> int:
        there = [run_id for run_id in run_ids if run_id in self.server.runs]
        count = await super().delete_runs(run_ids, fence)
        self._watcher.deleted([run_id for run_id in there if run_id not in self.server.runs])
        return count

    def _same_if_again(self, batch: Sequence[RunWrite], fence: int) -> None:
        """A write of a sequence that was sent before is taken for that, should it arrive first: so
        it has to be the same. Nobody may start anew who has a write on its way. A run is made if
        there is none, by whoever comes first.
        """
        for write in batch:
            before = self._network.sent.get((write.run_id, fence)) if write.follows else None
            if before is not None and before.seq == write.seq and before != write:
                self._watcher.fail(
                    f"run {write.run_id}: write {write.seq} is sent again, and is another one"
                )
            self._network.sent[write.run_id, fence] = write

    async def _watched_commit(self, batch: Sequence[RunWrite], fence: int) -> list[Verdict]:
        self._watcher.before_commit(self._process, batch, fence)
        verdicts = await super().commit(batch, fence)
        for write, verdict in zip(batch, verdicts, strict=True):
            if verdict is not Verdict.OK:
                self._network.sent.pop((write.run_id, fence), None)
        self._watcher.after_commit(self._process, batch, fence, verdicts)
        return verdicts


def _travelling(name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
    at_the_store = getattr(MemoryStore, name)

    async def ask(self: SimStore, *args: Any, **kwargs: Any) -> Any:
        return await self._ask(name, at_the_store(self, *args, **kwargs))

    return ask


for _name, _method in inspect.getmembers(MemoryStore, inspect.iscoroutinefunction):
    if not _name.startswith("_") and _name not in {"open", "close", *vars(SimStore)}:
        setattr(SimStore, _name, _travelling(_name))


def _fail(answer: asyncio.Future[Any], why: str) -> None:
    if not answer.done():
        answer.set_exception(StoreUnavailableError(why))


def _tell(answer: asyncio.Future[Any], result: object, error: Exception | None) -> None:
    if answer.done():
        return
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)
        answer.exception()  # who asked may be gone


_OUTSIDE = Context()
