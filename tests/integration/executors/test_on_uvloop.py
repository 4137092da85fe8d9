"""Servers may run on uvloop, whose transports and errors differ from those of asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from pilotage.actors.executors.python_executor import PythonExecutor, PythonSettings
from pilotage.actors.executors.python_jobs import JobRegistry
from tests.integration.executors import process_functions, test_processes
from tests.integration.executors.http_client import Client
from tests.integration.executors.peers import Peer
from tests.integration.executors.recorder import Recorder, attempt


async def process_jobs() -> None:
    executor = PythonExecutor(PythonSettings(max_processes=1))
    assert await test_processes.output(executor, process_functions.awaited) == "done"
    await test_processes.test_a_stopped_job_is_killed_with_all_it_has_started(executor)
    await executor.aclose()


async def jobs_in_threads_and_on_the_job_loop() -> None:
    executor = PythonExecutor()
    registry = JobRegistry()

    async def awaited() -> int:
        await asyncio.sleep(0)
        return 1

    for function, options in ((awaited, {}), (awaited, {"inline": True}), (lambda: 1, {})):
        recorder = Recorder()
        name = f"job{len(registry)}"
        executor.start(attempt(), registry.register(function, name=name, **options), recorder)
        assert await recorder.output() == b"1"
    await executor.aclose()


async def http_jobs() -> None:
    client = Client()
    async with Peer() as peer:
        assert await client.post(peer.url).output() == b'{"ok":true}'
        await client.executor.aclose()
        client = Client()
        await peer.close()
        failed = await client.post(peer.url).failed()
        assert (failed.final, failed.error_class) == (False, "unreachable")
    await client.executor.aclose()


async def refused_addresses() -> None:
    client = Client(allow_private_endpoints=False)
    async with Peer() as peer:
        failed = await client.post(peer.url).failed()
        assert (failed.final, failed.error_class) == (True, "address_refused")
    await client.executor.aclose()


@pytest.mark.parametrize(
    "scenario",
    [process_jobs, jobs_in_threads_and_on_the_job_loop, http_jobs, refused_addresses],
)
def test_executors_work_on_uvloop(scenario: Callable[[], Awaitable[None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:

        async def run() -> None:
            await scenario()

        runner.run(run())
