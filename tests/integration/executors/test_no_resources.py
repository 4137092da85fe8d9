"""A system that gives no more threads: attempts fail, retryable, and nothing else breaks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from pilotage.actors.executors.python_executor import PythonExecutor, PythonSettings
from pilotage.actors.executors.python_jobs import JobRegistry
from tests.integration.executors.recorder import Recorder, attempt
from tests.support.waiting import wait_until


@pytest.fixture
async def executor() -> AsyncIterator[PythonExecutor]:
    executor = PythonExecutor(PythonSettings(max_threads=4))
    yield executor
    await executor.aclose()


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Refuse to start threads whose name begins so."""
    start = threading.Thread.start

    def refuse(prefix: str) -> None:
        def refusing(self: threading.Thread) -> None:
            if self.name.startswith(prefix):
                raise RuntimeError("can't start new thread")
            start(self)

        monkeypatch.setattr(threading.Thread, "start", refusing)

    return refuse


async def awaited() -> int:
    return 1


def begin(executor: PythonExecutor, function: Any) -> Recorder:
    recorder = Recorder()
    executor.start(attempt(), JobRegistry().register(function, name="job"), recorder)
    assert not recorder.reports
    return recorder


@pytest.mark.parametrize("function", [awaited, lambda: 1], ids=["job loop", "worker thread"])
async def test_without_any_thread_the_attempt_fails(
    executor: PythonExecutor,
    no_threads: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    function: Any,
) -> None:
    no_threads("pilotage-")
    failed = await begin(executor, function).failed()
    assert (failed.final, failed.error_class) == (False, "no_resources")
    monkeypatch.undo()
    assert await begin(executor, function).output() == b"1", "and works when there are some again"


async def test_with_some_threads_the_attempt_waits_for_one(
    executor: PythonExecutor, no_threads: Callable[[str], None]
) -> None:
    begun, let_go = threading.Event(), threading.Event()

    def stuck() -> int:
        begun.set()
        assert let_go.wait(20)
        return 1

    first = begin(executor, stuck)
    await wait_until(begun.is_set, "the first has begun")
    no_threads("pilotage-")
    second = begin(executor, lambda: 2)
    let_go.set()
    assert await first.output() == b"1"
    assert await second.output() == b"2"


async def test_without_a_watchdog_async_jobs_run_all_the_same(
    executor: PythonExecutor,
    no_threads: Callable[[str], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    no_threads("pilotage-job-watchdog")
    assert await begin(executor, awaited).output() == b"1"
    assert "will not be named" in caplog.text


async def test_a_job_that_refuses_to_be_cancelled_does_not_hold_up_the_close() -> None:
    executor = PythonExecutor()
    begun = threading.Event()
    let_go = threading.Event()

    async def stubborn() -> None:
        begun.set()
        while not let_go.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue

    recorder = begin(executor, stubborn)
    await wait_until(begun.is_set, "the job has begun")
    await executor.aclose()
    let_go.set()
    assert recorder.reports == []
