"""What jobs can do to the job loop, and what becomes of the others on it."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import msgspec
import pytest
import uvloop

from pilotage.actors.executors import job_loop, job_thread
from pilotage.actors.executors.port import Attempt, Failed
from pilotage.actors.executors.python_executor import PythonExecutor, PythonSettings
from pilotage.actors.executors.python_jobs import JobRegistry
from tests.integration.executors.recorder import Recorder, attempt
from tests.support.waiting import wait_until


class Bench:
    """An executor, a bystander that waits on the job loop, and functions that block it."""

    def __init__(self, first_pause_secs: float = 0.0) -> None:
        self.vacated: list[tuple[str, str]] = []
        self.executor = PythonExecutor(
            PythonSettings(blocked_secs=0.1, first_pause_secs=first_pause_secs),
            vacated=lambda project_id, job: self.vacated.append((project_id, job)),
        )
        self.waits = threading.Event()
        self.go_on = threading.Event()
        self.blocks = threading.Event()
        self.let_go = threading.Event()

    def start(self, function: Any, name: str = "job", **options: Any) -> tuple[Attempt, Recorder]:
        order, recorder = attempt(name), Recorder()
        job = JobRegistry().register(function, name=name, **options)
        self.executor.start(order, job, recorder)
        assert not recorder.reports, "a report from within start"
        return order, recorder

    async def bystander(self) -> Recorder:
        """It is on the job loop and waits for `go_on`."""

        async def bystander() -> str:
            self.waits.set()
            while not self.go_on.is_set():
                await asyncio.sleep(0.001)
            return "undisturbed"

        recorder = self.start(bystander, "bystander")[1]
        await wait_until(self.waits.is_set, "the bystander is on the loop")
        return recorder

    async def blocker(self, name: str = "guilty") -> tuple[Attempt, Recorder]:
        """It has the job loop and does not give it back before `let_go`."""

        async def block() -> str:
            self.blocks.set()
            self.let_go.wait(60)
            return "at last"

        self.blocks.clear()
        started = self.start(block, name)
        await wait_until(self.blocks.is_set, "the loop is blocked")
        return started

    async def done(self) -> bytes | None:
        """What an innocent job gives now."""

        async def well() -> str:
            await asyncio.sleep(0)
            return "well"

        return await self.start(well, "innocent")[1].output()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    bench.go_on.set()
    bench.let_go.set()
    await wait_until(lambda: bench.executor.abandoned_threads == 0, "all threads came back")
    await bench.executor.aclose()


# --- stopped: it goes on --------------------------------------------------------------------------


async def stops() -> str:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0)
    return "done"


async def stops_later() -> str:
    loop = asyncio.get_running_loop()
    loop.call_soon(loop.stop)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return "done"


async def stops_again_and_again() -> str:
    for _ in range(500):
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0)
    return "done"


async def exits_in_a_callback() -> str:
    asyncio.get_running_loop().call_soon(sys.exit, 3)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return "done"


async def is_interrupted_in_a_callback() -> str:
    def interrupt() -> None:
        raise KeyboardInterrupt

    asyncio.get_running_loop().call_soon(interrupt)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return "done"


async def exits_in_a_task() -> str:
    async def leave() -> None:
        raise SystemExit(4)

    task = asyncio.create_task(leave())
    await asyncio.wait({task})
    assert isinstance(task.exception(), SystemExit)
    return "done"


STOPS = (
    stops,
    stops_later,
    stops_again_and_again,
    exits_in_a_callback,
    is_interrupted_in_a_callback,
    exits_in_a_task,
)


@pytest.mark.parametrize("saboteur", STOPS, ids=lambda each: each.__name__)
async def test_a_job_loop_that_a_job_stops_goes_on(
    bench: Bench, saboteur: Any, caplog: pytest.LogCaptureFixture
) -> None:
    bystander = await bench.bystander()
    assert await bench.start(saboteur, "saboteur")[1].output() == b'"done"'
    assert await bench.done() == b'"well"'
    assert not bystander.is_over
    bench.go_on.set()
    assert await bystander.output() == b'"undisturbed"'
    lines = [line.getMessage() for line in caplog.records if "and goes on" in line.getMessage()]
    assert len(lines) == 1, "said once, however often"
    assert "job 'saboteur' (run" in lines[0]
    assert "job 'bystander' (run" in lines[0]


def test_the_same_holds_for_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        for saboteur in STOPS:
            bench = Bench()
            bystander = await bench.bystander()
            assert await bench.start(saboteur)[1].output() == b'"done"'
            bench.go_on.set()
            assert await bystander.output() == b'"undisturbed"'
            await bench.executor.aclose()

    defaults = job_loop.JobLoop.__init__.__kwdefaults__ or {}
    monkeypatch.setitem(defaults, "loop_factory", uvloop.new_event_loop)
    with asyncio.Runner() as runner:
        runner.run(run())


async def test_closing_the_job_loop_is_an_error_of_the_job_that_tries(bench: Bench) -> None:
    async def close() -> None:
        asyncio.get_running_loop().close()

    assert (await bench.start(close)[1].failed()).error_class == "RuntimeError"
    assert await bench.done() == b'"well"'


async def test_a_job_that_cancels_all_others_ends_their_attempts(bench: Bench) -> None:
    """Those under way and those that have not had their first turn."""
    bystander = await bench.bystander()
    has_it, posted = threading.Event(), threading.Event()

    async def cancel_all() -> None:
        has_it.set()
        posted.wait(20)
        await asyncio.sleep(0)
        for task in asyncio.all_tasks():
            task.cancel()
        await asyncio.sleep(0)

    async def never() -> None:
        await asyncio.Event().wait()

    saboteur = bench.start(cancel_all, "saboteur")[1]
    await wait_until(has_it.is_set, "the saboteur has the loop")
    others = [bench.start(never)[1] for _ in range(3)]
    posted.set()
    for recorder in (saboteur, bystander, *others):
        failed = await recorder.failed()
        assert (failed.error_class, failed.final) == ("CancelledError", False)
    assert await bench.done() == b'"well"'


class Leaving(msgspec.Struct):
    def __post_init__(self) -> None:
        raise SystemExit(5)


async def test_an_exit_from_reading_the_input_ends_the_attempt(bench: Bench) -> None:
    async def job(data: Leaving) -> None: ...

    failed = await bench.start(job)[1].failed()
    assert failed.error_class == "SystemExit"
    assert await bench.done() == b'"well"'


# --- broken: another takes over -------------------------------------------------------------------


async def breaks() -> None:
    def broken() -> None:
        raise OSError("nothing to select from")

    asyncio.get_running_loop()._run_once = broken  # type: ignore[attr-defined]
    await asyncio.sleep(3600)


async def test_when_the_loop_breaks_its_attempts_fail_and_another_takes_over(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bystander = await bench.bystander()
    saboteur = bench.start(breaks, "saboteur")[1]
    for recorder in (saboteur, bystander):
        failed = await recorder.failed()
        assert (failed.error_class, failed.final) == ("job_loop", False)
        assert "the job loop broke (OSError: nothing to select from); jobs on it: " in failed.error
        assert "job 'bystander' (run" in failed.error
        assert "job 'saboteur' (run" in failed.error
    assert await bench.done() == b'"well"'
    assert "the job loop broke: OSError: nothing to select from" in caplog.text


async def test_a_loop_that_takes_no_more_tasks_is_replaced(bench: Bench) -> None:
    """A job has left it a task factory that does not work."""

    async def spoil() -> None:
        def refuse(*_: Any, **__: Any) -> Any:
            raise TypeError("no tasks any more")

        asyncio.get_running_loop().set_task_factory(refuse)

    bystander = await bench.bystander()
    assert await bench.start(spoil, "saboteur")[1].output() is None
    late = bench.start(stops, "late")[1]
    for recorder in (bystander, late):
        failed = await recorder.failed()
        assert (failed.error_class, failed.final) == ("job_loop", False)
        assert "it takes no tasks: TypeError: no tasks any more" in failed.error
    assert await bench.done() == b'"well"'


async def test_a_loop_that_breaks_again_is_replaced_after_a_pause_and_that_is_explained() -> None:
    bench = Bench(first_pause_secs=3600.0)
    for _ in range(2):
        assert (await bench.start(breaks, "saboteur")[1].failed()).error_class == "job_loop"

    async def well() -> str:
        return "well"

    order, held = bench.start(well)
    why = bench.executor.why_held(order.key)
    assert why is not None
    assert why.startswith("the job loop broke 2 times in a short while, last so: OSError: ")
    assert "job 'saboteur' (run" in why
    withdrawn, never = bench.start(well)
    bench.executor.stop(withdrawn.key, timed_out=False)
    bench.executor._job_loop._end_pause()
    assert await held.output() == b'"well"'
    assert held.begun == 1, "its time counts from then"
    assert never.reports == []
    await bench.executor.aclose()


async def test_closing_in_a_pause_ends_it() -> None:
    bench = Bench(first_pause_secs=3600.0)
    for _ in range(2):
        await bench.start(breaks, "saboteur")[1].failed()
    held = bench.start(breaks)[1]
    await bench.executor.aclose()
    assert held.reports == []


# --- blocked for good: likewise -------------------------------------------------------------------


async def test_when_a_job_blocks_the_loop_for_good_the_others_fail_and_go_on_elsewhere(
    bench: Bench,
) -> None:
    bystander = await bench.bystander()
    order, guilty = await bench.blocker()
    failed = await bystander.failed()
    assert (failed.error_class, failed.final) == ("job_loop", False)
    assert failed.error.startswith("the job loop was blocked for good by job 'guilty' (run")
    assert await bench.done() == b'"well"'
    assert not guilty.is_over, "it has its time"
    assert bench.executor.abandoned_threads == 1
    assert bench.executor.occupied("p", "guilty") == 0
    bench.executor.stop(order.key, timed_out=True)
    assert bench.executor.occupied("p", "guilty") == 1
    bench.let_go.set()
    await wait_until(lambda: bench.vacated == [("p", "guilty")], "its thread came back")
    assert bench.executor.occupied("p", "guilty") == 0
    assert bench.executor.abandoned_threads == 0
    assert guilty.reports == []


async def test_what_a_job_gives_that_let_go_of_the_loop_at_last_counts(bench: Bench) -> None:
    bystander = await bench.bystander()
    guilty = (await bench.blocker())[1]
    await bystander.failed()
    bench.let_go.set()
    assert await guilty.output() == b'"at last"'


def is_blocked(thread: job_thread.JobThread) -> bool:
    return thread.blocked is not None


async def test_a_loop_whose_blocker_was_stopped_is_given_up_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_thread, "STUCK_TICKS", 1_000_000)
    for seen_first in (True, False):
        bench.waits.clear()
        bystander = await bench.bystander()
        order, _ = await bench.blocker()
        if seen_first:
            current = bench.executor._job_loop._current
            assert current is not None
            await wait_until(partial(is_blocked, current), "it was noticed")
        bench.executor.stop(order.key, timed_out=True)
        assert (await bystander.failed()).error_class == "job_loop"
        assert await bench.done() == b'"well"'


async def test_a_stopped_job_that_then_blocks_the_loop_is_noticed(bench: Bench) -> None:
    begun = threading.Event()

    async def spiteful() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            bench.blocks.set()
            bench.let_go.wait(60)

    order, _ = bench.start(spiteful, "spiteful")
    await wait_until(begun.is_set, "it has begun")
    bench.executor.stop(order.key, timed_out=True)
    await wait_until(bench.blocks.is_set, "it blocks")
    failed = await bench.start(stops, "late")[1].failed()
    assert failed.error.startswith("the job loop was blocked for good by job 'spiteful' (run")
    assert await bench.done() == b'"well"'


async def test_a_job_that_blocks_loop_after_loop_is_held_back_and_others_go_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_loop, "MAX_GUILTY_LOOPS", 1)
    order, _ = await bench.blocker()
    bench.executor.stop(order.key, timed_out=True)
    await wait_until(lambda: bench.executor.abandoned_threads == 1, "the loop is given up")
    again, held = bench.start(stops, "guilty")
    why = bench.executor.why_held(again.key)
    assert why is not None
    assert why.startswith("1 threads are blocked by async jobs that neither await nor return (gui")
    assert await bench.done() == b'"well"'
    assert not held.is_over
    monkeypatch.setattr(job_loop, "MAX_GIVEN_UP_LOOPS", 1)
    innocent, waiting = bench.start(stops, "innocent")
    assert bench.executor.why_held(innocent.key) == why, "in the end all are"
    bench.let_go.set()
    assert await held.output() == b'"done"'
    assert await waiting.output() == b'"done"'
    assert (held.begun, waiting.begun) == (1, 1)


async def test_closing_leaves_blocked_loops_behind() -> None:
    bench = Bench()
    order, recorder = await bench.blocker()
    bench.executor.stop(order.key, timed_out=True)
    await wait_until(lambda: bench.executor.abandoned_threads == 1, "the loop is given up")
    await bench.executor.aclose()
    bench.let_go.set()
    assert not any(isinstance(report, Failed) for report in recorder.reports)
