"""Plain functions in worker threads, which cannot be stopped, only abandoned."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pilotage.actors.executors.job_context import JobContext
from pilotage.actors.executors.port import Attempt
from pilotage.actors.executors.python_executor import PythonExecutor, PythonSettings
from pilotage.actors.executors.python_jobs import JobRegistry, PythonJob
from tests.integration.executors.recorder import Recorder, attempt
from tests.support.waiting import wait_until


class Bench:
    """An executor with few threads, and functions that end when they are told to."""

    def __init__(self, threads: int, abandoned: int) -> None:
        self.vacated: list[tuple[str, str]] = []
        self.executor = PythonExecutor(
            PythonSettings(max_threads=threads, max_abandoned_threads=abandoned),
            vacated=lambda project_id, job: self.vacated.append((project_id, job)),
        )
        self.let_go = threading.Event()
        self.begun = threading.Semaphore(0)
        self.stuck_job = self.job(self._stick)

    def _stick(self) -> None:
        self.begun.release()
        assert self.let_go.wait(20)

    @staticmethod
    def job(function: Any) -> PythonJob:
        return JobRegistry().register(function, name="job")

    def start(self, job: PythonJob, name: str = "job") -> tuple[Attempt, Recorder]:
        order, recorder = attempt(name), Recorder()
        self.executor.start(order, job, recorder)
        return order, recorder

    async def stuck(self, name: str = "job") -> tuple[Attempt, Recorder]:
        """An attempt whose function is under way."""
        order, recorder = self.start(self.stuck_job, name)
        await wait_until(lambda: self.begun.acquire(blocking=False), "the function has begun")
        return order, recorder

    async def abandoned(self, name: str = "job") -> Attempt:
        order, _ = await self.stuck(name)
        self.executor.stop(order.key, timed_out=True)
        return order


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench(threads=2, abandoned=3)
    yield bench
    bench.let_go.set()
    await wait_until(lambda: bench.executor.abandoned_threads == 0, "all threads came back")
    await bench.executor.aclose()


async def test_a_plain_function_runs_in_a_worker_thread(bench: Bench) -> None:
    def job(data: dict[str, int], ctx: JobContext) -> Any:
        return [data["n"], ctx.attempt, threading.current_thread().name]

    recorder = Recorder()
    bench.executor.start(attempt(data=b'{"n":1}'), bench.job(job), recorder)
    assert await recorder.output() == b'[1,1,"pilotage-worker-1"]'
    assert recorder.threads == {threading.get_ident()}


async def test_no_more_functions_run_at_a_time_than_there_are_threads(bench: Bench) -> None:
    for _ in range(2):
        await bench.stuck()
    order, recorder = bench.start(bench.job(lambda: 1))
    assert bench.executor.why_held(order.key) == "all 2 worker threads are busy"
    assert bench.executor.held_until_ms(order.key) is None
    bench.let_go.set()
    assert await recorder.output() == b"1"
    assert recorder.begun == 1  # its time counts from then
    assert bench.executor.why_held(order.key) is None


async def test_an_abandoned_thread_is_replaced_and_counted(bench: Bench) -> None:
    await bench.abandoned()
    await bench.abandoned()
    assert bench.executor.occupied("p", "job") == 2
    assert bench.executor.occupied("p", "other") == 0
    assert bench.executor.abandoned_threads == 2
    assert bench.executor.held_back("job") is None
    _, recorder = bench.start(bench.job(lambda: 1))
    assert await recorder.output() == b"1"


async def test_the_result_of_an_abandoned_thread_is_ignored_and_its_slot_given_back(
    bench: Bench,
) -> None:
    order, recorder = await bench.stuck()
    bench.executor.stop(order.key, timed_out=True)
    assert bench.vacated == []
    bench.let_go.set()
    await wait_until(lambda: bench.vacated == [("p", "job")], "the slot came free")
    assert bench.executor.occupied("p", "job") == 0
    assert recorder.reports == []


async def test_a_function_sees_that_it_was_told_to_stop(bench: Bench) -> None:
    begun = threading.Event()
    seen: list[bool] = []

    def job(ctx: JobContext) -> None:
        begun.set()
        seen.append(ctx.cancelled_event.wait(20) and ctx.cancelled)

    order, _ = bench.start(bench.job(job))
    await wait_until(begun.is_set, "the function has begun")
    bench.executor.stop(order.key, timed_out=False)
    await wait_until(lambda: bench.executor.occupied("p", "job") == 0, "the function ended")
    assert seen == [True]


async def test_at_the_bound_the_guilty_job_is_held_back_and_others_go_on(bench: Bench) -> None:
    for _ in range(3):
        await bench.abandoned("guilty")
    reason = bench.executor.held_back("guilty")
    assert reason is not None
    assert "3 threads did not stop at their timeout" in reason
    assert bench.executor.held_back("innocent") is None

    order, waiting = bench.start(bench.job(lambda: 1), "guilty")
    assert bench.executor.why_held(order.key) == reason
    _, innocent = bench.start(bench.job(lambda: 2), "innocent")
    assert await innocent.output() == b"2"
    assert not waiting.is_over

    bench.let_go.set()
    assert await waiting.output() == b"1"


async def test_beyond_the_bound_each_abandoned_thread_is_one_less(bench: Bench) -> None:
    for name in ("a", "b", "c", "d", "e"):
        await bench.abandoned(name)
    assert bench.executor.abandoned_threads == 5
    order, recorder = bench.start(bench.job(lambda: 1), "innocent")
    assert bench.executor.why_held(order.key) == (
        "all worker threads are stuck in 5 stopped attempts"
    )
    bench.let_go.set()
    assert await recorder.output() == b"1"


async def test_a_queued_attempt_can_be_stopped(bench: Bench) -> None:
    for _ in range(2):
        await bench.stuck()
    ran: list[int] = []
    order, recorder = bench.start(bench.job(lambda: ran.append(1)))
    bench.executor.stop(order.key, timed_out=False)
    _, last = bench.start(bench.job(lambda: 2))
    bench.let_go.set()
    assert await last.output() == b"2"
    assert not ran
    assert not recorder.reports


async def test_a_held_back_attempt_can_be_stopped(bench: Bench) -> None:
    for _ in range(3):
        await bench.abandoned("guilty")
    ran: list[int] = []
    stopped, _ = bench.start(bench.job(lambda: ran.append(1)), "guilty")
    _, kept = bench.start(bench.job(lambda: 2), "guilty")
    bench.executor.stop(stopped.key, timed_out=False)
    bench.let_go.set()
    assert await kept.output() == b"2"
    assert not ran


async def test_replaced_threads_end_when_the_abandoned_come_back(bench: Bench) -> None:
    def alive() -> int:
        return sum(t.name.startswith("pilotage-worker-") for t in threading.enumerate())

    for _ in range(3):
        await bench.abandoned()
    for _ in range(2):
        _, recorder = bench.start(bench.job(lambda: 1), "other")
        await recorder.over()
    bench.let_go.set()
    await wait_until(lambda: alive() <= 2, "only the pool's threads are left")


async def test_closing_reports_nothing_and_ends_idle_threads() -> None:
    bench = Bench(threads=2, abandoned=3)
    _, recorder = await bench.stuck()
    _, queued = bench.start(bench.stuck_job)
    await bench.executor.aclose()
    bench.let_go.set()
    await wait_until(
        lambda: not any(t.name.startswith("pilotage-worker-") for t in threading.enumerate()),
        "all threads ended",
    )
    assert recorder.reports == queued.reports == []
