"""The one door to all executors: finds the job of an attempt and who does it.

Registered Python functions are found first; every other job is looked up, at each attempt anew, so
that a changed address or secret takes effect at once. What cannot be looked up because the store
is away waits and is looked up again, and so do attempts of a job that is disabled: no attempt is
burnt by that.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pilotage.actors.errors import NotFoundError, UnavailableError
from pilotage.actors.executors.invoke import failure_of
from pilotage.actors.executors.port import (
    Accepted,
    Attempt,
    AttemptKey,
    Begun,
    Completed,
    Failed,
    JobHeldError,
    ModeExecutor,
    ModeReport,
    Reporter,
)
from pilotage.actors.executors.python_executor import PythonExecutor
from pilotage.actors.executors.python_jobs import JobRegistry, PythonJob
from pilotage.actors.kernel.clock import Clock, SystemClock
from pilotage.runtime.definition import JobSpec
from pilotage.runtime.status import ExecutionMode

MAX_IN_FLIGHT = 10_000
"""Attempts that are handed to executors at the same time; the others wait in order."""

Resolve = Callable[[str, str], Awaitable[JobSpec | PythonJob]]
"""(project id, job reference) -> the job; raises `NotFoundError` or `UnavailableError`."""
AtHand = Callable[[str, str], JobSpec | PythonJob | None]
"""The same without waiting; None: it has to be looked up."""

_OVER = (Completed, Failed, Accepted)


class _Entry:
    """An attempt in progress, from its start to its last report. Its executor reports here.

    Its time is measured by the clock that never jumps; `since` says when it began. `late`: it had
    been held back before.
    """

    __slots__ = (
        "attempt", "executor", "key", "late", "lookup", "owner", "parked", "report", "since",
    )  # fmt: skip

    def __init__(self, owner: Executors, attempt: Attempt, report: Reporter) -> None:
        self.owner = owner
        self.attempt = attempt
        self.key: AttemptKey = attempt.key
        self.report = report
        self.late = False
        self.begin()
        self.executor: ModeExecutor[Any] | None = None
        self.lookup: asyncio.Task[None] | None = None
        self.parked: str | None = None  # why its job is not done at present

    def begin(self) -> None:
        """Its time begins now."""
        self.since = self.owner.clock.monotonic()

    def deliver(self, report: ModeReport) -> None:
        if isinstance(report, Begun):
            self.owner.begun(self)
            return
        if isinstance(report, _OVER):
            self.owner.over(self)
            if isinstance(report, Accepted):
                report = Accepted(self.times_out_ms)
        self.report(report)

    @property
    def times_out_ms(self) -> int | None:
        """When its time is up, if it was begun late."""
        if not self.late:
            return None
        clock = self.owner.clock
        left_secs = self.since + self.attempt.timeout_secs - clock.monotonic()
        return clock.now_ms() + round(left_secs * 1000)


class Executors:
    """Made and used on the actors' loop. See `port.Executor` for what it guarantees.

    `others`: who does the jobs of each execution mode but Python.
    """

    def __init__(
        self,
        registry: JobRegistry,
        resolve: Resolve,
        python: PythonExecutor,
        others: Mapping[ExecutionMode, ModeExecutor[JobSpec]],
        *,
        at_hand: AtHand | None = None,
        max_in_flight: int = MAX_IN_FLIGHT,
        clock: Clock | None = None,
    ) -> None:
        self._registry = registry
        self._resolve = resolve
        self._at_hand = at_hand
        self._python = python
        self._others = dict(others)
        self._max_in_flight = max_in_flight
        self.clock: Clock = clock or SystemClock()
        self._loop = asyncio.get_running_loop()
        self._entries: dict[AttemptKey, _Entry] = {}
        self._waiting: OrderedDict[AttemptKey, _Entry] = OrderedDict()
        self._lookups: set[asyncio.Task[None]] = set()
        self._parked = 0
        """Attempts of disabled jobs: they are in nobody's hands."""
        self._closing = False
        self._idle: asyncio.Future[None] | None = None

    @property
    def active(self) -> int:
        """Attempts in the hands of executors and those waiting for that."""
        return len(self._entries) + len(self._waiting)

    @property
    def waiting(self) -> int:
        """Attempts beyond `max_in_flight`."""
        return len(self._waiting)

    def start(self, attempt: Attempt, report: Reporter) -> None:
        """Without effect once `aclose` was called: such attempts are dispatched after a restart."""
        if self._closing:
            return
        key = attempt.key
        known = self._entries.get(key) or self._waiting.get(key)
        if known is not None:
            known.report = report
            return
        entry = _Entry(self, attempt, report)
        if self._is_full:
            self._waiting[key] = entry
        else:
            self._begin(entry)

    @property
    def _is_full(self) -> bool:
        return len(self._entries) - self._parked >= self._max_in_flight

    def stop(
        self,
        run_id: str,
        step: int,
        attempt: int,
        timed_out: bool = False,  # noqa: FBT001, FBT002 - the last of the effect's fields
    ) -> None:
        key = (run_id, step, attempt)
        if self._waiting.pop(key, None) is not None:
            return
        entry = self._entries.get(key)
        if entry is None:
            return
        if entry.lookup is not None:
            entry.lookup.cancel()
        if entry.executor is not None:
            entry.executor.stop(key, timed_out=timed_out)
        self.over(entry)

    def at_once(self, action: Callable[[], object]) -> None:
        """Do `action`; the inline jobs that it starts are called before this returns."""
        self._python.at_once(action)

    @property
    def abandoned_threads(self) -> int:
        """Threads that still run stopped attempts of any job."""
        return self._python.abandoned_threads

    def occupied(self, project_id: str, job: str) -> int:
        """Threads that still run stopped attempts of the job: each holds one of its slots."""
        return self._python.occupied(project_id, job)

    def held_back(self, job: str) -> str | None:
        """Why no attempt of this Python job is begun at present."""
        found = self._registry.get(job)
        return None if found is None else self._python.held_back(job)

    def why_held(self, run_id: str, step: int, attempt: int) -> str | None:
        """Why this attempt, though dispatched, has not begun; None if nothing holds it back."""
        key = (run_id, step, attempt)
        if key in self._waiting:
            return f"{self._max_in_flight} attempts are in progress; this one waits for its turn"
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.lookup is not None:
            return entry.parked or "its job is being looked up in the store"
        return None if entry.executor is None else entry.executor.why_held(key)

    def held_until_ms(self, run_id: str, step: int, attempt: int) -> int | None:
        """When that ends, if it is known."""
        entry = self._entries.get((run_id, step, attempt))
        executor = None if entry is None else entry.executor
        return None if executor is None else executor.held_until_ms((run_id, step, attempt))

    def times_out_ms(self, run_id: str, step: int, attempt: int) -> int | None:
        """When the time of an attempt that is or was held back is up: at the earliest, as long as
        it is held back. None for all others.
        """
        key = (run_id, step, attempt)
        entry = self._entries.get(key) or self._waiting.get(key)
        if entry is None:
            return None
        if self.why_held(run_id, step, attempt) is not None:
            self.begun(entry)  # not yet: this is the earliest that it may be
        return entry.times_out_ms

    async def aclose(self, grace_secs: float) -> None:
        """Attempts in progress may end within the grace; the rest is handed back: no report, and
        so they are dispatched again, under the same number, when the server is next started.

        May be called again meanwhile, with a shorter grace, which then holds for both.
        """
        self._closing = True
        self._waiting.clear()
        for entry in [entry for entry in self._entries.values() if entry.parked is not None]:
            self.stop(*entry.key)  # nobody waits for those
        if self._entries and grace_secs > 0:
            self._idle = self._loop.create_future()
            await asyncio.wait((self._idle,), timeout=grace_secs)
        for run_id, step, attempt in tuple(self._entries):
            self.stop(run_id, step, attempt)
        if self._lookups:
            await asyncio.wait(tuple(self._lookups))
        await self._python.aclose()
        for executor in self._others.values():
            await executor.aclose()

    # --- from start to end ------------------------------------------------------------------------

    def over(self, entry: _Entry) -> None:
        """The attempt needs its executor no more. Called by entries."""
        if self._entries.pop(entry.key, None) is None:
            return
        self._let_in()
        if self._idle is not None and not self._entries and not self._idle.done():
            self._idle.set_result(None)

    def _let_in(self) -> None:
        while self._waiting and not self._is_full:
            entry = self._waiting.popitem(last=False)[1]
            self.begun(entry)
            self._begin(entry)

    def begun(self, entry: _Entry) -> None:
        """It has been held back until now. Called by entries."""
        entry.late = True
        entry.begin()

    def _begin(self, entry: _Entry) -> None:
        self._entries[entry.key] = entry
        job = self._registry.get(entry.attempt.job) or self._found_at_hand(entry.attempt)
        if job is not None:
            self._hand_over(entry, job)
        else:
            entry.lookup = self._loop.create_task(self._look_up(entry), name="job look-up")
            self._lookups.add(entry.lookup)
            entry.lookup.add_done_callback(self._lookups.discard)

    def _found_at_hand(self, attempt: Attempt) -> JobSpec | PythonJob | None:
        """What can be handed over now; a job that nobody here does fails later, not from within."""
        if self._at_hand is None:
            return None
        job = self._at_hand(attempt.project_id, attempt.job)
        return job if isinstance(job, PythonJob) or self._executor_for(job) is not None else None

    def _executor_for(self, job: JobSpec | None) -> ModeExecutor[JobSpec] | None:
        return None if job is None else self._others.get(job.execution_mode)

    async def _look_up(self, entry: _Entry) -> None:
        found = await self._found(entry)
        entry.lookup = None
        if isinstance(found, Failed):
            entry.deliver(found)
        else:
            self._hand_over(entry, found)

    def _hand_over(self, entry: _Entry, job: JobSpec | PythonJob) -> None:
        if isinstance(job, PythonJob):
            entry.executor = self._python
            self._python.start(entry.attempt, job, entry.deliver)
            return
        executor = self._executor_for(job)
        if executor is None:
            entry.deliver(_nobody_for(entry.attempt.job, job.execution_mode))
            return
        entry.executor = executor
        executor.start(entry.attempt, job, entry.deliver)

    async def _found(self, entry: _Entry) -> JobSpec | PythonJob | Failed:
        attempt = entry.attempt
        while True:
            try:
                return await self._resolve(attempt.project_id, attempt.job)
            except NotFoundError as error:  # it says what to do
                return Failed(f"{error}, and retry the step", "unknown_job", final=True)
            except UnavailableError as error:
                await asyncio.sleep(error.retry_after_secs)
                self.begun(entry)
            except JobHeldError as held:
                await self._park(entry, held)
            except Exception as error:  # noqa: BLE001 - the attempt must come to an end in any case
                failed = failure_of(error)
                return Failed(f"the job cannot be looked up: {failed.error}", failed.error_class)

    async def _park(self, entry: _Entry, held: JobHeldError) -> None:
        entry.parked = held.why
        self._parked += 1
        self._let_in()
        try:
            await asyncio.shield(held.change)
        finally:
            self._parked -= 1
            entry.parked = None
        self.begun(entry)


def _nobody_for(job: str, mode: ExecutionMode) -> Failed:
    if mode is ExecutionMode.PYTHON:
        error = (
            f"job {job!r} is a Python job, but no function is registered under this name; "
            "start the server with the app that has it"
        )
    else:
        error = f"job {job!r} has execution mode {mode.value!r}, which this server does not do"
    return Failed(error, "no_executor", final=True)
