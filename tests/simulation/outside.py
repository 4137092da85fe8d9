"""The outside of a server: jobs that answer on time, late, twice, wrongly, or never.

`SimExecutor` stands where the HTTP executor stands; `Jobs` are the services it would call, which
go on whatever becomes of the server. Remote jobs (202) report through the callback API.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from random import Random
from typing import Protocol

import msgspec

from pilotage.actors.errors import ApplicationError, UnavailableError
from pilotage.actors.executors.port import (
    Accepted,
    Attempt,
    AttemptKey,
    Completed,
    Failed,
    ModeReporter,
    Progressed,
    Report,
)
from pilotage.actors.executors.tokens import RunTokens
from pilotage.actors.gateway import Gateway
from pilotage.actors.kernel import Clock
from pilotage.persistence.port import StoreUnavailableError
from pilotage.runtime.definition import JobSpec
from pilotage.runtime.errors import PilotageError
from tests.simulation.ledger import Ledger, Output, ViolationError
from tests.simulation.loop import PROCESS, Process, SimLoop

_ENCODE = msgspec.json.Encoder().encode


class Habits(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of what jobs do; the rest answers well. `accept` is of what remains."""

    fail: float = 0.1
    fail_for_good: float = 0.03
    never: float = 0.05
    accept: float = 0.2
    twice: float = 0.3
    slow_secs: float = 2.0
    crash_at_dispatch: float = 0.0


class Server(Protocol):
    """What the outside reaches of the servers."""

    loop: SimLoop
    ledger: Ledger

    def known_as_running(self, process: Process, key: AttemptKey) -> None:
        """Whether the newest state that the store has acknowledged to the process demands it."""
        ...

    def is_removed(self, run_id: str) -> bool:
        """Whether the run is over and its time, too."""
        ...

    def stored_result(self, key: AttemptKey) -> bytes | None:
        """What the store has as the result of an attempt."""
        ...

    def crash(self, process: Process, why: str) -> None: ...

    def watching(self) -> AbstractContextManager[None]:
        """Keeps the violation that is raised in it, whoever swallows it then."""
        ...

    async def request(self, work: Callable[[Gateway], Awaitable[object]]) -> object:
        """A request to the server that answers now; `ConnectionError` if none does."""
        ...

    def note(self, *parts: object) -> None: ...

    def spawn_outside(self, work: Awaitable[object]) -> None: ...


class Jobs:
    """All services. `deliveries` counts the orders, `by` numbers them."""

    def __init__(self, server: Server, rnd: Random, habits: Habits) -> None:
        self.server = server
        self.habits = habits
        self.calm = False
        self.deliveries: Counter[AttemptKey] = Counter()
        self._rnd = rnd
        self._serial = 0

    def order(self, attempt: Attempt) -> tuple[float, Report | None, int]:
        """What the service does about an order: when it answers, with what (None: never), and how
        often a remote job reports afterwards.
        """
        self.deliveries[attempt.key] += 1
        rnd, habits = self._rnd, self.habits
        delay = 0.001 + rnd.random() ** 3 * habits.slow_secs
        draw = rnd.random()
        for share, report in (
            (habits.fail, Failed("try again", "http_500")),
            (habits.fail_for_good, Failed("no", "http_400", final=True)),
            (habits.fail / 4, Failed("busy", "http_503", retry_after_secs=rnd.random() * 3)),
        ):
            draw -= share
            if draw < 0:
                return delay, report, 0
        if draw < habits.never and not self.calm:
            return delay, None, 0
        if rnd.random() < habits.accept:
            return min(delay, 0.1), Accepted(), 1 + (rnd.random() < habits.twice)
        return delay, Completed(self._output(attempt)), 0

    def _output(self, attempt: Attempt) -> bytes:
        self._serial += 1
        by = f"{attempt.idempotency_key}#{self._serial}"
        return _ENCODE(Output(v=self._rnd.randrange(3), by=by))

    def take_on(self, attempt: Attempt, token: str, times: int) -> None:
        """A remote job has said 202: it reports later, perhaps too late, perhaps never."""
        rnd = self._rnd
        fate = rnd.random()
        output = self._output(attempt)
        if fate < 0.1 and not self.calm:
            return
        for _ in range(times):
            delay = rnd.random() ** 2 * 2 * self.habits.slow_secs
            work = self._report(attempt, token, delay, output, fails=fate > 0.85)
            self.server.spawn_outside(work)

    async def _report(
        self, attempt: Attempt, token: str, delay: float, output: bytes, *, fails: bool
    ) -> None:
        rnd = self._rnd
        loop = self.server.loop
        if rnd.random() < 0.3:
            delay = await self._beat(attempt, token, delay)
        await _sleep(loop, delay)
        for _ in range(12):
            try:
                if fails:
                    await self.server.request(
                        lambda g: g.callback_fail(attempt.job_run_id, token, "no", final=False)
                    )
                else:
                    await self.server.request(
                        lambda g: g.callback_complete(attempt.job_run_id, token, output)
                    )
                    self._told(attempt, output)
            except ConnectionError:
                await _sleep(loop, 0.3 + rnd.random())
            except (UnavailableError, StoreUnavailableError):  # 503, both of them
                await _sleep(loop, 0.3 + rnd.random())
            except ApplicationError as error:
                self.server.note("callback", attempt.idempotency_key, type(error).__name__)
                return
            else:
                return

    async def _beat(self, attempt: Attempt, token: str, delay: float) -> float:
        """Some heartbeats and progress on the way; how much of the delay is left."""
        rnd = self._rnd
        while delay > 0.5 and rnd.random() < 0.8:
            await _sleep(self.server.loop, 0.5)
            delay -= 0.5
            try:
                await self.server.request(lambda g: g.callback_heartbeat(attempt.job_run_id, token))
                await self.server.request(
                    lambda g: g.callback_progress(attempt.job_run_id, token, 50.0, None)
                )
            except (ConnectionError, PilotageError):
                continue
        return delay

    def _told(self, attempt: Attempt, output: bytes) -> None:
        """The server has said that it has the result: then it is stored, as long as its run is."""
        if self.server.is_removed(attempt.run_id):
            return
        by = msgspec.json.decode(output, type=Output).by
        stored = self.server.stored_result(attempt.key)
        if stored is None or msgspec.json.decode(stored, type=Output).by != by:
            raise ViolationError(f"the result {by} is acknowledged; stored is {stored!r}")


class SimExecutor:
    """A `ModeExecutor`: hands orders to the `Jobs` of the world and reports what they answer."""

    world: Jobs

    def __init__(self, tokens: RunTokens, clock: Clock, settings: object = None) -> None:
        process = PROCESS.get()
        assert process is not None  # a runtime is made inside a process
        self._process = process
        self._tokens = tokens
        self._clock = clock
        self.in_progress: dict[AttemptKey, int] = {}
        self.began: dict[AttemptKey, tuple[float, float, float]] = {}
        """When first and last, by the clock that never jumps, and how many seconds it has."""
        self._serial = 0

    @property
    def active(self) -> int:
        return len(self.in_progress)

    def start(self, attempt: Attempt, job: JobSpec, report: ModeReporter) -> None:
        process, jobs = self._process, self.world
        if not process.alive:
            return
        server, key = jobs.server, attempt.key
        server.note("dispatch", process.name, attempt.idempotency_key)
        with server.watching():
            server.ledger.may_be_dispatched(key)
            server.known_as_running(process, key)
            if key in self.in_progress:
                raise ViolationError(f"attempt {key} is started twice by the same process")
        self._serial += 1
        self.in_progress[key] = self._serial
        now = server.loop.now
        self.began[key] = self.began.get(key, (now,))[0], now, attempt.timeout_secs
        delay, answer, times = jobs.order(attempt)
        if isinstance(answer, Accepted):
            token = self._tokens.sign(
                attempt.job_run_id, self._clock.now_ms(), attempt.timeout_secs
            )
            jobs.take_on(attempt, token, times)
        if answer is None:  # the connection is given up some time after the attempt's timeout
            delay, answer = attempt.timeout_secs + 5.0, Failed("no answer", "timeout")
        process.call_later(delay, self._answered, key, self._serial, answer, report)
        if jobs._rnd.random() < jobs.habits.crash_at_dispatch and not jobs.calm:
            server.crash(process, "at a dispatch")

    def _answered(self, key: AttemptKey, serial: int, answer: Report, report: ModeReporter) -> None:
        if self.in_progress.get(key) == serial:
            if isinstance(answer, Completed) and serial % 3 == 0:
                report(Progressed(99.0))
            del self.in_progress[key]
            report(answer)

    def stop(self, key: AttemptKey, *, timed_out: bool) -> None:
        del timed_out
        self.in_progress.pop(key, None)

    def why_held(self, key: AttemptKey) -> str | None:
        del key
        return None

    def held_until_ms(self, key: AttemptKey) -> int | None:
        del key
        return None

    async def aclose(self) -> None:
        self.in_progress.clear()


async def _sleep(loop: SimLoop, secs: float) -> None:
    done = loop.create_future()
    loop.call_later(secs, done.set_result, None)
    await done
