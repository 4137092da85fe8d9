"""The one door: who does an attempt, and that each comes to exactly one end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pilotage.actors.errors import NotFoundError, UnavailableError
from pilotage.actors.executors.dispatch import Executors
from pilotage.actors.executors.port import (
    Accepted,
    Attempt,
    AttemptKey,
    Begun,
    Completed,
    Executor,
    Logged,
    ModeExecutor,
    ModeReporter,
)
from pilotage.actors.executors.python_executor import PythonExecutor
from pilotage.actors.executors.python_jobs import JobRegistry, PythonJob
from pilotage.runtime.definition import JobSpec
from pilotage.runtime.status import ExecutionMode
from tests.integration.executors.recorder import Recorder, attempt
from tests.support.clock import START_MS, FakeClock
from tests.support.waiting import wait_until

WEB_JOB = JobSpec(endpoint_url="http://example.org/")


class Hands:
    """A mode executor whose attempts end when the test says so."""

    def __init__(self) -> None:
        self.started: dict[AttemptKey, ModeReporter] = {}
        self.held: set[AttemptKey] = set()
        self.stopped: list[tuple[AttemptKey, bool]] = []
        self.closed = False

    def start(self, attempt: Attempt, job: JobSpec, report: ModeReporter) -> None:
        assert job is WEB_JOB
        self.started[attempt.key] = report

    def stop(self, key: AttemptKey, *, timed_out: bool) -> None:
        self.stopped.append((key, timed_out))

    def why_held(self, key: AttemptKey) -> str | None:
        return f"held: {key[0]}" if key in self.held else None

    def held_until_ms(self, key: AttemptKey) -> int | None:
        return START_MS + 500 if key in self.held else None

    async def aclose(self) -> None:
        self.closed = True


class Bench:
    """The door with a registry, a store of one web job, and hands for it."""

    def __init__(self, max_in_flight: int = 3) -> None:
        self.registry = JobRegistry()
        self.hands = Hands()
        self.lookups: list[tuple[str, str]] = []
        self.answers: list[Any] = []
        self.at_hand: dict[tuple[str, str], JobSpec | PythonJob] = {}
        others: dict[ExecutionMode, ModeExecutor[JobSpec]] = {ExecutionMode.HTTP: self.hands}
        self.clock = FakeClock()
        self.executors = Executors(
            self.registry,
            self.resolve,
            PythonExecutor(),
            others,
            at_hand=lambda project_id, job: self.at_hand.get((project_id, job)),
            max_in_flight=max_in_flight,
            clock=self.clock,
        )
        self.port: Executor = self.executors

    async def resolve(self, project_id: str, job: str) -> JobSpec | PythonJob:
        self.lookups.append((project_id, job))
        answer = self.answers.pop(0) if self.answers else WEB_JOB
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, asyncio.Event):
            await answer.wait()
            return WEB_JOB
        assert isinstance(answer, (JobSpec, PythonJob))
        return answer

    def begin(self, job: str = "web", **fields: Any) -> tuple[Attempt, Recorder]:
        order, recorder = attempt(job, **fields), Recorder()
        self.port.start(order, recorder)
        assert not recorder.reports, "a report from within start"
        return order, recorder

    async def handed(self, job: str = "web") -> tuple[Attempt, Recorder]:
        """An attempt that its executor has."""
        order, recorder = self.begin(job)
        await wait_until(lambda: order.key in self.hands.started, "the executor has it")
        return order, recorder


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.executors.aclose(0)


async def test_a_registered_function_runs_without_any_look_up(bench: Bench) -> None:
    def tiny() -> int:
        return 1

    bench.registry.register(tiny, inline=True)
    _, recorder = bench.begin("tiny")
    assert await recorder.output() == b"1"
    assert not bench.lookups
    assert bench.executors.active == 0


async def test_another_job_is_looked_up_in_its_project(bench: Bench) -> None:
    order, recorder = await bench.handed()
    assert bench.lookups == [("p", "web")]
    bench.hands.started[order.key](Completed(b"2"))
    assert await recorder.output() == b"2"
    assert bench.executors.active == 0


async def test_a_look_up_may_find_a_python_job(bench: Bench) -> None:
    bench.answers = [JobRegistry().register(lambda: 3, name="elsewhere")]
    _, recorder = bench.begin("a-slug")
    assert await recorder.output() == b"3"


async def test_what_is_at_hand_is_begun_at_once(bench: Bench) -> None:
    bench.at_hand = {
        ("p", "web"): WEB_JOB,
        ("p", "a-slug"): JobRegistry().register(lambda: 3, name="elsewhere"),
    }
    order, _ = bench.begin()
    assert order.key in bench.hands.started
    _, recorder = bench.begin("a-slug")
    assert await recorder.output() == b"3"
    assert not bench.lookups


async def test_a_job_at_hand_that_nobody_does_fails_like_any_other(bench: Bench) -> None:
    nobodys = JobSpec(execution_mode=ExecutionMode.PYTHON)
    bench.at_hand, bench.answers = {("p", "web"): nobodys}, [nobodys]
    _, recorder = bench.begin()
    failed = await recorder.failed()
    assert failed.error_class == "no_executor"


async def test_an_unknown_job_is_final(bench: Bench) -> None:
    bench.answers = [NotFoundError('job "gone" does not exist; create it')]
    failed = await bench.begin("gone")[1].failed()
    assert (failed.final, failed.error_class) == (True, "unknown_job")
    assert failed.error == 'job "gone" does not exist; create it, and retry the step'


async def test_a_store_that_is_away_burns_no_attempt(bench: Bench) -> None:
    bench.answers = [UnavailableError("away", retry_after_secs=0)] * 3
    order, recorder = bench.begin()
    assert bench.executors.why_held(*order.key) == "its job is being looked up in the store"
    await wait_until(lambda: order.key in bench.hands.started, "the executor has it")
    assert len(bench.lookups) == 4
    assert not recorder.reports


async def test_a_look_up_that_breaks_is_retryable(bench: Bench) -> None:
    bench.answers = [KeyError("bug")]
    failed = await bench.begin()[1].failed()
    assert not failed.final
    assert failed.error.startswith("the job cannot be looked up: KeyError")


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        (ExecutionMode.PYTHON, "no function is registered under this name"),
        (ExecutionMode.QUEUE, "'queue', which this server does not do"),
    ],
)
async def test_a_job_that_nobody_here_does_is_final(
    bench: Bench, mode: ExecutionMode, text: str
) -> None:
    bench.answers = [JobSpec(execution_mode=mode)]
    failed = await bench.begin()[1].failed()
    assert failed.final
    assert text in failed.error


async def test_accepted_is_the_executors_last_word(bench: Bench) -> None:
    order, recorder = await bench.handed()
    bench.hands.started[order.key](Accepted())
    assert await recorder.over() == Accepted()
    assert bench.executors.active == 0
    bench.port.stop(*order.key)
    assert not bench.hands.stopped


async def test_stop_reaches_the_executor_once(bench: Bench) -> None:
    order, recorder = await bench.handed()
    bench.port.stop(*order.key, timed_out=True)
    bench.port.stop(*order.key, timed_out=True)
    assert bench.hands.stopped == [(order.key, True)]
    assert recorder.reports == []
    assert bench.executors.active == 0


async def test_stop_during_the_look_up_starts_nothing(bench: Bench) -> None:
    answer = asyncio.Event()
    bench.answers = [answer]
    order, recorder = bench.begin()
    await wait_until(lambda: bool(bench.lookups), "the look-up has begun")
    bench.port.stop(*order.key)
    answer.set()
    await bench.handed()
    assert order.key not in bench.hands.started
    assert recorder.reports == []


async def test_starting_again_what_is_in_progress_moves_its_reports(bench: Bench) -> None:
    order, first = await bench.handed()
    second = Recorder()
    bench.port.start(order, second)
    assert len(bench.lookups) == 1
    bench.hands.started[order.key](Logged("info", "x"))
    bench.hands.started[order.key](Completed())
    assert second.reports == [Logged("info", "x"), Completed()]
    assert first.reports == []


async def test_beyond_the_bound_attempts_wait_in_order(bench: Bench) -> None:
    orders = [(await bench.handed())[0] for _ in range(3)]
    fourth, recorder = bench.begin()
    fifth, _ = bench.begin()
    assert (bench.executors.active, bench.executors.waiting) == (5, 2)
    assert bench.executors.why_held(*fourth.key) == (
        "3 attempts are in progress; this one waits for its turn"
    )
    assert bench.executors.why_held(*orders[0].key) is None

    bench.hands.started[orders[0].key](Completed())
    await wait_until(lambda: fourth.key in bench.hands.started, "the fourth has its turn")
    assert fifth.key not in bench.hands.started
    bench.port.stop(*orders[1].key)
    await wait_until(lambda: fifth.key in bench.hands.started, "the fifth has its turn")
    bench.hands.started[fourth.key](Completed(b"4"))
    assert await recorder.output() == b"4"
    assert bench.executors.why_held(*fourth.key) is None


async def test_the_time_of_an_attempt_counts_from_when_it_is_begun(bench: Bench) -> None:
    timeout_ms, port = 30_000, bench.port
    first, _ = await bench.handed()
    assert port.times_out_ms(*first.key) is None  # the run's own bound holds
    bench.hands.held.add(first.key)
    assert port.why_held(*first.key) == f"held: {first.run_id}"
    assert port.held_until_ms(*first.key) == START_MS + 500
    bench.clock.advance_ms(40_000)
    assert port.times_out_ms(*first.key) == START_MS + 40_000 + timeout_ms
    bench.hands.held.clear()
    bench.hands.started[first.key](Begun())
    bench.clock.advance_ms(10_000)
    assert port.times_out_ms(*first.key) == START_MS + 40_000 + timeout_ms
    assert port.held_until_ms(*first.key) is None
    assert port.times_out_ms("no-run", 0, 1) is None

    others = [await bench.handed() for _ in range(2)]
    waiting, recorder = bench.begin()
    assert port.times_out_ms(*waiting.key) == START_MS + 50_000 + timeout_ms
    bench.clock.advance_ms(1_000)
    bench.hands.started[others[0][0].key](Completed())
    await wait_until(lambda: waiting.key in bench.hands.started, "it has its turn")
    bench.clock.advance_ms(1_000)
    bench.hands.started[waiting.key](Accepted())
    assert await recorder.over() == Accepted(START_MS + 51_000 + timeout_ms)
    bench.hands.started[others[1][0].key](Accepted())
    assert await others[1][1].over() == Accepted()  # it was never held back


async def test_a_waiting_attempt_can_be_stopped_and_its_reports_moved(bench: Bench) -> None:
    orders = [(await bench.handed())[0] for _ in range(3)]
    stopped, _ = bench.begin()
    kept, first = bench.begin()
    second = Recorder()
    bench.port.start(kept, second)
    bench.port.stop(*stopped.key)
    bench.hands.started[orders[0].key](Completed())
    await wait_until(lambda: kept.key in bench.hands.started, "the last has its turn")
    bench.hands.started[kept.key](Completed(b"1"))
    assert await second.output() == b"1"
    assert first.reports == []
    assert stopped.key not in bench.hands.started


async def test_stopping_the_unknown_has_no_effect(bench: Bench) -> None:
    bench.port.stop("no-run", 0, 1)
    assert bench.executors.why_held("no-run", 0, 1) is None


async def test_abandoned_threads_hold_slots_of_their_job(bench: Bench) -> None:
    begun, let_go = threading.Event(), threading.Event()

    def stuck() -> None:
        begun.set()
        assert let_go.wait(20)

    bench.registry.register(stuck)
    order, _ = bench.begin("stuck")
    await wait_until(begun.is_set, "the function has begun")
    bench.port.stop(*order.key, timed_out=True)
    assert bench.executors.occupied("p", "stuck") == 1
    assert bench.executors.occupied("other project", "stuck") == 0
    assert bench.executors.abandoned_threads == 1
    assert bench.executors.held_back("stuck") is None
    assert bench.executors.held_back("unknown") is None
    let_go.set()
    await wait_until(lambda: bench.executors.occupied("p", "stuck") == 0, "the slot came free")


async def test_closing_waits_for_the_grace_and_takes_nothing_new() -> None:
    bench = Bench()
    order, recorder = await bench.handed()
    closing = asyncio.create_task(bench.executors.aclose(20))
    await asyncio.sleep(0)
    _, refused = bench.begin()
    bench.hands.started[order.key](Completed(b"1"))
    await closing
    assert await recorder.output() == b"1"
    assert bench.hands.closed
    assert bench.hands.stopped == []
    assert refused.reports == []


async def test_what_is_not_over_at_the_end_of_the_grace_is_handed_back() -> None:
    bench = Bench()
    orders = [(await bench.handed())[0] for _ in range(3)]
    bench.begin()
    bench.answers = [asyncio.Event()]
    await bench.executors.aclose(0.01)
    assert sorted(key for key, _ in bench.hands.stopped) == sorted(o.key for o in orders)
    assert bench.executors.active == 0


async def test_a_second_close_cuts_the_grace_short() -> None:
    bench = Bench()
    order, recorder = await bench.handed()
    closing = asyncio.create_task(bench.executors.aclose(600))
    await asyncio.sleep(0)
    await bench.executors.aclose(0)
    await closing
    assert [key for key, _ in bench.hands.stopped] == [order.key]
    assert recorder.reports == []


async def test_closing_gives_up_look_ups() -> None:
    bench = Bench()
    bench.answers = [asyncio.Event()]
    _, recorder = bench.begin()
    await wait_until(lambda: bool(bench.lookups), "the look-up has begun")
    await bench.executors.aclose(0)
    assert recorder.reports == []
    assert not bench.hands.started
