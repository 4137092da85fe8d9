"""http_attempts: how fast HTTP attempts are done, beside a bare aiohttp loop of the same POSTs.

A small endpoint in a process of its own answers every POST at once. The same requests (body,
headers) are sent to it by 64 at a time, in rounds that take turns, the best of each counts:

bare_per_s        a loop around `aiohttp.ClientSession.post`
attempts_per_s    our HTTP executor: signed token, breaker, bounds, outcome. `ratio` is to the bare
                  loop. Goal: at least 0.5
steps_per_s       the same as steps of a run, stored and all; `steps_ratio` is to the bare loop

in_flight         attempts that wait for the endpoint at the same time, in one run
in_flight_threads threads that the process has more for them
"""

from __future__ import annotations

import asyncio
import multiprocessing
import secrets
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, ClassVar

import aiohttp

from benchmarks._actors import PROJECT, finish, make_workflow, running, start_run
from pilotage.actors.executors.http_executor import HttpExecutor, HttpSettings
from pilotage.actors.executors.port import Attempt, Completed, ModeReport
from pilotage.actors.executors.tokens import RunTokens
from pilotage.actors.kernel import SystemClock
from pilotage.actors.runtime import Runtime
from pilotage.runtime.definition import JobSpec
from pilotage.runtime.ids import job_run_id, make_run_id
from pilotage.runtime.tracing import traceparent
from pilotage.runtime.validation_jobs import parse_job

NAME = "http_attempts"
AT_ONCE = 64
BODY = b'{"order":17,"customer":"c-4711","items":[{"sku":"a","n":1},{"sku":"b","n":2}]}'
RUN = make_run_id(1_790_000_000_000, 1)
_ANSWER = (
    b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n{"ok":true}'
)


class _Endpoint(asyncio.Protocol):
    """Answers each request; under `/hold/N` when N of them are there."""

    held: ClassVar[list[asyncio.Transport]] = []

    def __init__(self) -> None:
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[:end].lower()
            at = head.index(b"content-length:") + len(b"content-length:")
            size = end + 4 + int(head[at:].split(b"\r\n", 1)[0])
            if len(self._data) < size:
                return
            self._data = self._data[size:]
            if head.startswith(b"post /hold/"):
                self._hold(int(head[len(b"post /hold/") :].split(b" ", 1)[0]))
            else:
                self._transport.write(_ANSWER)

    def _hold(self, number: int) -> None:
        self.held.append(self._transport)
        if len(self.held) == number:
            for transport in self.held:
                transport.write(_ANSWER)
            self.held.clear()


def _serve(told: Connection) -> None:
    async def serve() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(_Endpoint, "127.0.0.1", 0, backlog=4_096)
        told.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())


@contextmanager
def endpoint() -> Generator[str]:
    """The base URL of an endpoint in another process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join()


def _attempt(n: int) -> Attempt:
    job_run = job_run_id(RUN, n % 10_000, 1)
    return Attempt(
        project_id=PROJECT,
        run_id=RUN,
        step=n,
        step_ref="charge",
        attempt=1,
        job="web",
        job_run_id=job_run,
        input=BODY,
        timeout_secs=30.0,
        traceparent=traceparent(RUN, None, job_run),
    )


async def _bare(url: str, count: int) -> float:
    """POSTs a second of a loop around the client alone."""
    clock, tokens = SystemClock(), RunTokens(secrets.token_bytes(32))
    headers = HttpExecutor(tokens, clock).headers(_attempt(0), JobSpec())
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def work() -> None:
            for _ in range(count // AT_ONCE):
                async with session.post(url, data=BODY, headers=headers) as response:
                    await response.read()

        started = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(AT_ONCE)))
        return count / (time.perf_counter() - started)


async def _attempts(url: str, count: int) -> float:
    """Attempts a second of the executor."""
    settings = HttpSettings(allow_private_endpoints=True)
    executor = HttpExecutor(RunTokens(secrets.token_bytes(32)), SystemClock(), settings)
    job, left, begun = JobSpec(endpoint_url=url), count, 0
    over = asyncio.get_running_loop().create_future()

    def report(what: ModeReport) -> None:
        nonlocal left
        if not isinstance(what, Completed):
            if not over.done():
                over.set_exception(RuntimeError(str(what)))
            return
        left -= 1
        if begun < count:
            begin()
        elif left == 0:
            over.set_result(None)

    def begin() -> None:
        nonlocal begun
        begun += 1
        executor.start(_attempt(begun), job, report)

    started = time.perf_counter()
    for _ in range(AT_ONCE):
        begin()
    await over
    elapsed = time.perf_counter() - started
    await executor.aclose()
    return count / elapsed


async def _job(runtime: Runtime, slug: str, url: str) -> None:
    parsed = parse_job({"name": slug, "slug": slug, "endpoint_url": url})
    await runtime.catalog.create_job(parsed, project_id=PROJECT)


def _side_by_side(count: int, job: str) -> list[dict[str, Any]]:
    return [{"step_ref": f"s{i}", "job_id": job} for i in range(count)]


async def _steps(runtime: Runtime, url: str, count: int, name: str) -> float:
    """Steps a second of one run whose steps stand side by side."""
    await _job(runtime, name, url)
    limited = {"max_parallel_steps": AT_ONCE}
    flow = await make_workflow(runtime, name, _side_by_side(count, name), **limited)
    started = time.perf_counter()
    await finish(runtime, await start_run(runtime, flow))
    return count / (time.perf_counter() - started)


async def _in_flight(runtime: Runtime, base: str, count: int) -> int:
    """Threads that there are more while `count` attempts wait for their answers."""
    await _job(runtime, "hold", f"{base}/hold/{count}")
    flow = await make_workflow(runtime, "hold", _side_by_side(count, "hold"))
    before = most = threading.active_count()
    run = asyncio.create_task(finish(runtime, await start_run(runtime, flow)))
    while not run.done():
        most = max(most, threading.active_count())
        await asyncio.sleep(0.01)
    await run
    return most - before


async def _measure(size: str) -> dict[str, float]:
    rounds, count, steps = (2, 64 * 20, 500) if size == "smoke" else (5, 64 * 150, 5_000)
    bare = attempts = stored = 0.0
    with endpoint() as base:
        async with running() as runtime:
            for n in range(rounds):
                bare = max(bare, await _bare(f"{base}/job", count))
                attempts = max(attempts, await _attempts(f"{base}/job", count))
                name = f"steps-{n}"
                stored = max(stored, await _steps(runtime, f"{base}/job", steps, name))
            threads = await _in_flight(runtime, base, 1_000)
    return {
        "bare_per_s": bare,
        "attempts_per_s": attempts,
        "ratio": attempts / bare,
        "steps_per_s": stored,
        "steps_ratio": stored / bare,
        "in_flight": 1_000,
        "in_flight_threads": threads,
    }


def run(size: str) -> dict[str, float]:
    return asyncio.run(_measure(size))
