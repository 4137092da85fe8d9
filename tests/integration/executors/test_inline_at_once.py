"""Inline jobs that are started within `at_once`."""

from __future__ import annotations

import contextvars
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pilotage.actors.executors.inline import CALLS_PER_TURN
from pilotage.actors.executors.port import Completed, Failed
from pilotage.actors.executors.python_executor import PythonExecutor
from pilotage.actors.executors.python_jobs import JobRegistry, PythonJob
from tests.integration.executors.recorder import Recorder, attempt

CALLS = contextvars.ContextVar("CALLS", default=0)


def counted(_: dict[str, Any]) -> int:
    CALLS.set(CALLS.get() + 1)
    return CALLS.get()


def broken(_: dict[str, Any]) -> None:
    raise SystemExit(3)


@pytest.fixture
async def executor() -> AsyncIterator[PythonExecutor]:
    executor = PythonExecutor()
    yield executor
    await executor.aclose()


def inline(function: Any) -> PythonJob:
    return JobRegistry().register(function, name="job", inline=True)


async def test_they_are_called_at_its_end_and_not_within_start(executor: PythonExecutor) -> None:
    job, recorders = inline(counted), [Recorder(), Recorder()]

    def action() -> None:
        for recorder in recorders:
            executor.start(attempt(), job, recorder)
            assert not recorder.reports

    executor.at_once(action)
    assert [recorder.reports for recorder in recorders] == [[Completed(b"1")], [Completed(b"2")]]
    assert CALLS.get() == 0  # what they set stays with them


async def test_no_more_than_a_turn_is_called_the_rest_soon(executor: PythonExecutor) -> None:
    job = inline(counted)
    recorders = [Recorder() for _ in range(CALLS_PER_TURN + 1)]

    def action() -> None:
        for recorder in recorders:
            executor.start(attempt(), job, recorder)

    executor.at_once(action)
    assert [len(recorder.reports) for recorder in recorders] == [1] * CALLS_PER_TURN + [0]
    assert await recorders[-1].output() is not None


async def test_what_was_started_before_is_called_before(executor: PythonExecutor) -> None:
    job, before, within = inline(counted), Recorder(), Recorder()
    executor.start(attempt(), job, before)
    executor.at_once(lambda: executor.start(attempt(), job, within))
    assert not before.reports
    assert not within.reports
    assert (await before.output(), await within.output()) == (b"1", b"2")


async def test_an_action_and_a_job_that_fail_hold_up_nobody(executor: PythonExecutor) -> None:
    bad, good = Recorder(), Recorder()

    def action() -> None:
        executor.start(attempt(), inline(broken), bad)
        executor.start(attempt(), inline(counted), good)
        raise ValueError("the action")

    with pytest.raises(ValueError, match="the action"):
        executor.at_once(action)
    assert isinstance(bad.reports[0], Failed)
    assert good.reports == [Completed(b"1")]
