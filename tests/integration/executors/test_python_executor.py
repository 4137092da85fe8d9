"""Inline jobs and jobs on the job loop."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from pilotage.actors.executors.job_context import JobContext
from pilotage.actors.executors.port import Completed, Logged, Progressed
from pilotage.actors.executors.python_executor import PythonExecutor, PythonSettings
from pilotage.actors.executors.python_jobs import JobRegistry
from tests.integration.executors.recorder import Recorder, attempt
from tests.support.waiting import wait_until

Begin = Callable[..., Recorder]


@pytest.fixture
async def executor() -> AsyncIterator[PythonExecutor]:
    executor = PythonExecutor(PythonSettings(blocked_secs=0.1))
    yield executor
    await executor.aclose()


@pytest.fixture
def begin(executor: PythonExecutor) -> Begin:
    """Start an attempt of a function."""

    def begin(function: Any, data: bytes = b"{}", **options: Any) -> Recorder:
        order = attempt(data=data, **options.pop("fields", {}))
        recorder = Recorder()
        job = JobRegistry().register(function, name="job", **options)
        executor.start(order, job, recorder)
        assert not recorder.reports, "a report from within start"
        return recorder

    return begin


def key_of(executor: PythonExecutor) -> Any:
    (key,) = executor._attempts
    return key


INLINE = pytest.mark.parametrize("inline", [False, True], ids=["job loop", "inline"])


@INLINE
async def test_an_async_job_gets_its_input_and_gives_its_output(begin: Begin, inline: bool) -> None:
    async def job(data: dict[str, int], ctx: JobContext) -> Any:
        await asyncio.sleep(0)
        return {"double": data["n"] * 2, "key": ctx.idempotency_key}

    recorder = begin(job, b'{"n":21}', inline=inline, fields={"run_id": "r", "attempt": 3})
    assert await recorder.output() == b'{"double":42,"key":"r/charge/3"}'


async def test_an_async_job_runs_in_another_thread_and_reports_in_this_one(begin: Begin) -> None:
    async def job() -> int:
        return threading.get_ident()

    recorder = begin(job)
    assert await recorder.output() != str(threading.get_ident()).encode()
    assert recorder.threads == {threading.get_ident()}


@INLINE
async def test_an_inline_job_runs_on_the_loop_of_the_actors(begin: Begin, inline: bool) -> None:
    loop = asyncio.get_running_loop()

    async def job() -> bool:
        return asyncio.get_running_loop() is loop

    assert await begin(job, inline=inline).output() == (b"true" if inline else b"false")


async def test_a_plain_function_may_be_inline(begin: Begin) -> None:
    def job(data: dict[str, Any]) -> Any:
        return [data, threading.get_ident()]

    recorder = begin(job, b'{"a":1}', inline=True)
    assert await recorder.output() == f'[{{"a":1}},{threading.get_ident()}]'.encode()


@INLINE
async def test_a_failure_is_reported_with_its_kind(begin: Begin, inline: bool) -> None:
    async def job() -> None:
        raise LookupError("nothing there")

    failed = await begin(job, inline=inline).failed()
    assert (failed.error, failed.error_class, failed.final) == (
        "LookupError: nothing there",
        "LookupError",
        False,
    )


@INLINE
async def test_an_exit_of_a_job_does_not_end_the_loop(begin: Begin, inline: bool) -> None:
    async def job() -> None:
        raise SystemExit(1)

    async def well() -> int:
        return 1

    assert (await begin(job, inline=inline).failed()).error_class == "SystemExit"
    assert await begin(well, inline=inline).output() == b"1"


@INLINE
async def test_logs_and_progress_come_in_order_before_the_end(begin: Begin, inline: bool) -> None:
    async def job(ctx: JobContext) -> None:
        ctx.progress(10, "a tenth")
        ctx.log("first")
        ctx.log("second", level="warning", n=1)

    recorder = begin(job, inline=inline)
    await recorder.over()
    assert Progressed(10.0, "a tenth") in recorder.reports
    assert [line.message for line in recorder.reports if isinstance(line, Logged)] == [
        "first",
        "second",
    ]
    assert isinstance(recorder.reports[-1], Completed)


@INLINE
async def test_of_much_progress_only_the_newest_is_reported(begin: Begin, inline: bool) -> None:
    async def job(ctx: JobContext) -> None:
        for i in range(10_000):
            ctx.progress(i / 100)

    recorder = begin(job, inline=inline)
    await recorder.over()
    progress = [each for each in recorder.reports if isinstance(each, Progressed)]
    assert progress[-1].percent == 99.99
    assert len(progress) < 5_000


@INLINE
async def test_a_stopped_job_is_cancelled_and_reports_nothing(
    executor: PythonExecutor, begin: Begin, inline: bool
) -> None:
    begun, ended = threading.Event(), threading.Event()
    seen: list[Any] = []

    async def job(ctx: JobContext) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            seen.append(ctx.cancelled)
            ctx.log("too late")
            ended.set()

    recorder = begin(job, inline=inline)
    await wait_until(begun.is_set, "the job has begun")
    executor.stop(key_of(executor), timed_out=True)
    assert executor.active == 0
    await wait_until(ended.is_set, "the job was cancelled")
    assert seen == [True]
    await begin(job_that_returns, inline=inline).over()
    assert recorder.reports == []


async def job_that_returns() -> None: ...


@INLINE
async def test_a_job_that_is_stopped_before_its_first_step_never_runs(
    executor: PythonExecutor, begin: Begin, inline: bool
) -> None:
    ran: list[int] = []
    let_go = threading.Event()

    async def job() -> None:
        ran.append(1)

    async def blocking() -> None:
        let_go.wait(20)

    if not inline:
        begin(blocking)
    recorder = begin(job, inline=inline)
    executor.stop(list(executor._attempts)[-1], timed_out=False)
    let_go.set()
    await begin(job_that_returns, inline=inline).over()
    assert not ran
    assert not recorder.reports


@INLINE
async def test_a_job_that_swallows_its_cancellation_is_ignored(
    executor: PythonExecutor, begin: Begin, inline: bool
) -> None:
    begun, ended = threading.Event(), threading.Event()

    async def job() -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.set()
        return "a result nobody wants"

    recorder = begin(job, inline=inline)
    await wait_until(begun.is_set, "the job has begun")
    executor.stop(key_of(executor), timed_out=False)
    await wait_until(ended.is_set, "the job swallowed its cancellation")
    await begin(job_that_returns, inline=inline).over()
    assert recorder.reports == []


async def test_stopping_what_is_over_has_no_effect(executor: PythonExecutor, begin: Begin) -> None:
    recorder = begin(job_that_returns)
    key = key_of(executor)
    await recorder.over()
    executor.stop(key, timed_out=False)
    assert executor.active == 0


async def test_a_job_that_blocks_the_job_loop_is_named_and_the_actors_go_on(
    begin: Begin, caplog: pytest.LogCaptureFixture
) -> None:
    let_go = threading.Event()

    async def guilty() -> None:
        let_go.wait(20)

    turns = 0

    def turn() -> None:
        nonlocal turns
        turns += 1
        if not let_go.is_set():
            loop.call_soon(turn)

    loop = asyncio.get_running_loop()
    with caplog.at_level(logging.WARNING, "pilotage.jobs"):
        recorder = begin(guilty, fields={"run_id": "the-run"})
        turn()
        await wait_until(lambda: "blocked the job loop" in caplog.text, "the watchdog spoke")
        assert not recorder.is_over
        assert turns > 10, "the loop of the actors went on"
        let_go.set()
        await recorder.over()
    assert "job 'job' (run the-run, step 'charge', attempt 1) has blocked the job loop" in (
        caplog.text
    )
    assert "let_go.wait(20)" in caplog.text, "the place is shown"


async def test_time_sleep_in_an_async_job_holds_up_nobody_else(begin: Begin) -> None:
    async def sleepy() -> None:
        time.sleep(2)

    recorder = begin(sleepy)
    longest, last = 0.0, time.monotonic()
    while not recorder.is_over:
        await asyncio.sleep(0)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    assert longest < 1.5  # the whole sleep, if it were on this loop


async def test_many_jobs_run_at_the_same_time(begin: Begin) -> None:
    together = asyncio.Event()
    count = 0

    async def job() -> int:
        nonlocal count
        count += 1
        if count == 500:
            together.set()
        await together.wait()
        return count

    recorders = [begin(job, fields={"step": i}) for i in range(500)]
    assert {await recorder.output() for recorder in recorders} == {b"500"}


async def test_many_inline_calls_leave_turns_to_others(begin: Begin) -> None:
    done = 0

    def job() -> None:
        nonlocal done
        done += 1

    recorders = [begin(job, inline=True, fields={"step": i}) for i in range(150)]
    await asyncio.sleep(0)
    assert 0 < done < 150
    for recorder in recorders:
        await recorder.over()
    assert done == 150


async def test_closing_cancels_what_runs_and_ends_the_job_loop() -> None:
    executor = PythonExecutor()
    begun = threading.Event()
    ended: list[str] = []

    async def job() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(threading.current_thread().name)

    recorder = Recorder()
    executor.start(attempt(), JobRegistry().register(job), recorder)
    await wait_until(begun.is_set, "the job has begun")
    await executor.aclose()
    assert ended == ["pilotage-job-loop"]
    assert recorder.reports == []
    assert "pilotage-job-loop" not in {thread.name for thread in threading.enumerate()}


async def test_closing_cancels_inline_jobs() -> None:
    executor = PythonExecutor()
    begun = asyncio.Event()
    ended: list[bool] = []

    async def job(ctx: JobContext) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(ctx.cancelled)

    recorder = Recorder()
    executor.start(attempt(), JobRegistry().register(job, inline=True), recorder)
    await begun.wait()
    await executor.aclose()
    assert ended == [True]
    assert recorder.reports == []


async def test_an_executor_that_did_nothing_closes_at_once() -> None:
    await PythonExecutor().aclose()
