"""Jobs in worker processes, which can be killed."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import msgspec
import pytest

from pilotage.actors.executors import process_pool
from pilotage.actors.executors.port import Attempt, Failed, Logged, Progressed
from pilotage.actors.executors.process_wire import frame, order_of
from pilotage.actors.executors.python_executor import PythonExecutor, PythonSettings
from pilotage.actors.executors.python_jobs import JobRegistry
from tests.integration.executors import process_functions as functions
from tests.integration.executors.recorder import Recorder, attempt
from tests.support.waiting import wait_until


@pytest.fixture
async def executor() -> AsyncIterator[PythonExecutor]:
    executor = PythonExecutor(PythonSettings(max_processes=1))
    yield executor
    await executor.aclose()


def begin(
    executor: PythonExecutor, function: Any, data: Any = None, **fields: Any
) -> tuple[Attempt, Recorder]:
    order = attempt(data=msgspec.json.encode(data or {}), **fields)
    recorder = Recorder()
    executor.start(order, JobRegistry().register(function, name="job", process=True), recorder)
    return order, recorder


async def output(executor: PythonExecutor, function: Any, data: Any = None, **fields: Any) -> Any:
    text = await begin(executor, function, data, **fields)[1].output()
    return None if text is None else msgspec.json.decode(text)


async def failed(executor: PythonExecutor, function: Any, data: Any = None) -> Failed:
    return await begin(executor, function, data)[1].failed()


class Caller:
    """Listens for the processes of a hanging job, and notices when they are gone."""

    def __init__(self) -> None:
        self.pids: list[int] = []
        self.gone = asyncio.Event()

    async def __aenter__(self) -> Self:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = str(self.server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.pids = [int(pid) for pid in (await reader.readline()).split()]
        await reader.read()
        writer.close()
        self.gone.set()

    async def called(self) -> None:
        await wait_until(lambda: len(self.pids) == 2, "the job has begun", within_secs=20)


def runs(pid: int) -> bool:
    """Whether the process still does something; one that nobody has reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def test_a_job_runs_in_another_process_which_stays_for_the_next(
    executor: PythonExecutor,
) -> None:
    first = await output(executor, functions.double, {"n": 21}, run_id="r")
    second = await output(executor, functions.double, {"n": 1})
    assert first["n"] == 42
    assert first["key"] == "r/charge/1"
    assert first["pid"] not in {os.getpid(), None}
    assert second["pid"] == first["pid"]


async def test_a_coroutine_function_may_run_there(executor: PythonExecutor) -> None:
    assert await output(executor, functions.awaited) == "done"


async def test_the_input_is_checked_there(executor: PythonExecutor) -> None:
    failure = await failed(executor, functions.double, {"n": "two"})
    assert failure.final
    assert "`$.n`" in failure.error


@pytest.mark.parametrize(
    ("function", "failure"),
    [
        (functions.retry, Failed("busy", "Retry", retry_after_secs=7)),
        (functions.fail, Failed("never", "Fail", final=True)),
        (functions.leave, Failed("SystemExit: 3", "SystemExit")),
    ],
)
async def test_failures_come_back_as_they_are(
    executor: PythonExecutor, function: Any, failure: Failed
) -> None:
    assert await failed(executor, function) == failure


async def test_the_output_is_bounded_there(executor: PythonExecutor) -> None:
    assert (await failed(executor, functions.large)).error.startswith("output is 3000002 bytes")


async def test_logs_and_progress_come_through(executor: PythonExecutor) -> None:
    _, recorder = begin(executor, functions.talk)
    await recorder.over()
    assert Logged("warning", "hello", b'{"n":1}') in recorder.reports
    progress = [each.percent for each in recorder.reports if isinstance(each, Progressed)]
    assert progress[-1] == 99.98
    assert len(progress) < 500


async def test_what_a_job_prints_does_not_disturb(executor: PythonExecutor) -> None:
    assert await output(executor, functions.noisy) == "fine"


async def test_the_transform_is_applied_there(executor: PythonExecutor) -> None:
    assert await output(executor, functions.double, {"n": 4}, output_transform="n") == 8


async def test_what_a_decorator_left_in_place_of_the_function_is_looked_through(
    executor: PythonExecutor,
) -> None:
    assert await output(executor, functions.held_function) == "held"


@pytest.mark.parametrize(
    ("function", "how"),
    [(functions.die, "ended with status 7"), (functions.die_by_signal, "killed by SIGSEGV")],
)
async def test_a_process_that_dies_fails_its_attempt_and_is_replaced(
    executor: PythonExecutor, function: Any, how: str
) -> None:
    failure = await failed(executor, function)
    assert not failure.final
    assert how in failure.error
    assert await output(executor, functions.awaited) == "done"


async def test_a_stopped_job_is_killed_with_all_it_has_started(executor: PythonExecutor) -> None:
    async with Caller() as caller:
        order, recorder = begin(executor, functions.hang, {"port": caller.port})
        await caller.called()
        waiting, second = begin(executor, functions.awaited)
        assert executor.why_held(order.key) is None
        assert executor.why_held(waiting.key) == "all 1 worker processes are busy"
        executor.stop(order.key, timed_out=True)
        await caller.gone.wait()
        await wait_until(lambda: not any(map(runs, caller.pids)), "both processes are gone")
        assert await second.output() == b'"done"', "a new process took the next attempt"
        assert recorder.reports == []


async def test_a_queued_attempt_can_be_stopped(executor: PythonExecutor, tmp_path: Path) -> None:
    _, first = begin(executor, functions.awaited)
    order, second = begin(executor, functions.write, {"path": str(tmp_path / "file")})
    assert executor.why_held(order.key) == "its worker process is starting"
    executor.stop(order.key, timed_out=False)
    await first.over()
    await output(executor, functions.awaited)
    assert second.reports == []
    assert not (tmp_path / "file").exists()


async def test_closing_kills_what_runs_without_a_report() -> None:
    executor = PythonExecutor(PythonSettings(max_processes=1))
    async with Caller() as caller:
        _, recorder = begin(executor, functions.hang, {"port": caller.port})
        await caller.called()
        await executor.aclose()
        await caller.gone.wait()
        await wait_until(lambda: not any(map(runs, caller.pids)), "both processes are gone")
    assert recorder.reports == []


async def test_a_process_that_cannot_be_started_fails_the_attempt(
    executor: PythonExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    failure = await failed(executor, functions.awaited)
    assert not failure.final
    assert failure.error.startswith("no worker process can be started: ")
    monkeypatch.undo()
    assert await output(executor, functions.awaited) == "done"


async def test_a_function_that_cannot_be_imported_is_a_final_failure(
    executor: PythonExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions.awaited, "__module__", "no_such_module")
    failure = await failed(executor, functions.awaited)
    assert failure.final
    assert "cannot be loaded in a worker process: ModuleNotFoundError" in failure.error


PROGRAM = """
import asyncio, os, sys
from pilotage.actors.executors import process_pool
from pilotage.actors.executors.port import Attempt, Completed
from pilotage.actors.executors.process_wire import frame, order_of
from pilotage.actors.executors.python_executor import PythonExecutor
from pilotage.actors.executors.python_jobs import JobRegistry

registry = JobRegistry()


@registry.job(process=True)
def job(data: dict[str, int]) -> list[int]:
    return [data["n"], os.getpid()]


async def main() -> None:
    executor = PythonExecutor()
    over = asyncio.get_running_loop().create_future()
    found = registry.get("job")
    assert found is not None
    executor.start(
        Attempt(
            project_id="p", run_id="r", step=0, step_ref="s", attempt=1, job="job",
            job_run_id="j", input=b'{"n": 7}', timeout_secs=30,
        ),
        found,
        lambda report: over.set_result(report) if isinstance(report, Completed) else None,
    )
    print(os.getpid(), (await over).output.decode(), flush=True)
    if sys.argv[1:] == ["die"]:
        os._exit(0)
    await executor.aclose()


if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize("how", [["program.py"], ["-m", "program"]], ids=["file", "module"])
async def test_a_job_in_the_main_module_is_found(tmp_path: Path, how: list[str]) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    process = await asyncio.create_subprocess_exec(
        sys.executable, *how, cwd=tmp_path, stdout=subprocess.PIPE
    )
    printed, _ = await process.communicate()
    server, result = printed.decode().split(" ", 1)
    n, worker = msgspec.json.decode(result)
    assert n == 7
    assert worker != int(server)


async def test_a_worker_does_not_outlive_its_server(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "program.py", "die", cwd=tmp_path, stdout=subprocess.PIPE
    )
    printed, _ = await process.communicate()
    worker = msgspec.json.decode(printed.decode().split(" ", 1)[1])[1]
    await wait_until(lambda: not runs(worker), "the worker is gone")


async def test_a_worker_does_not_outlive_a_server_that_was_killed_before_it_read_the_news() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with theirs:
        worker = process_pool._start(theirs)
    ours.sendall(frame(order_of(attempt(), "awaited", functions.awaited)))
    await asyncio.to_thread(ours.recv, 1, socket.MSG_PEEK)  # there is news, and nobody reads it
    ours.close()
    assert await asyncio.to_thread(worker.wait, 30) == -signal.SIGKILL
