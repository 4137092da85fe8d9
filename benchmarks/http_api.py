"""http_api: what the REST API costs beside a bare Litestar handler.

Two server processes on the same kind of server (uvicorn, uvloop, httptools), asked in turns by this
process over 16 connections that stay open: the product with all it does (key, scope, request id,
metrics, the run's newest state) and bare handlers that return the same structs ready made. What is
compared is the processor time of the server process a request (not of its store), from /proc.

get_us, get_bare_us         one active run
list_us, list_bare_us       a page of 50 active runs: the store says which they are, memory how
                            they are
finished_us, _bare_us       a page of 50 finished runs, all of it from the store
get_ratio, list_ratio       ours / bare, median of the rounds. Goals: 1.5 and 3; and finished_ratio,
                            without a goal
trigger_per_s               runs triggered, as fast as 32 connections go; each is durable when it
                            is answered (201). The workflow is one approval, so nothing else runs
get_p50_ms, _p99_ms         at a fixed rate, the same for both servers. The clock of a request
list_…                      starts when it was due, not when a connection was free (no
                            coordinated omission). `get_bare_…`, `list_bare_…`: the bare handlers
command_p50_ms, _p99_ms     the same for approving the only step of a run, which ends the run; it
                            is durable when it is answered (204). `command_bare_…`: a handler that
                            does one acknowledged write
trigger_p50_ms, _p99_ms     the same for triggering; and `bare_post_…`, one acknowledged write
trigger_p99_ratio           ours / bare, medians of the rounds. Goal: 3

Neither server writes access logs here.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from benchmarks._http_servers import Where

NAME = "http_api"
T = TypeVar("T")
CONNECTIONS = 16
TRIGGERING = 32
RATE_PER_S = 150
"""Low enough that neither server nor client wait for themselves on two cores."""
READS_PER_S = 300


class Size(NamedTuple):
    cost_rounds: int
    gets: int
    """A round; and a quarter as many pages."""
    rate_rounds: int
    paced: int
    """Requests of a round at a fixed rate."""
    triggers: int


SIZES = {
    "smoke": Size(cost_rounds=6, gets=400, rate_rounds=2, paced=75, triggers=300),
    "full": Size(cost_rounds=9, gets=4_000, rate_rounds=7, paced=450, triggers=4_000),
}


class Connection(asyncio.Protocol):
    """One keep-alive connection with one request at a time."""

    def __init__(self) -> None:
        self._seen = bytearray()
        self._answer: asyncio.Future[bytes] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._seen += data
        end = self._seen.find(b"\r\n\r\n")
        if end < 0 or self._answer is None:
            return
        head = bytes(self._seen[:end]).lower()
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0] or b"0")
        if len(self._seen) < end + 4 + length:
            return
        answer, self._answer = self._answer, None
        whole = bytes(self._seen)
        self._seen.clear()
        if head[9:10] != b"2":
            answer.set_exception(RuntimeError(whole.decode()))
        else:
            answer.set_result(whole)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionError("the server closed the connection"))

    async def ask(self, request: bytes) -> bytes:
        if self._transport is None:
            raise ConnectionError("the server closed the connection between two requests")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class _Made(msgspec.Struct):
    """What is read of the answer to a trigger."""

    id: str


class Server:
    """One of the two, and what can be asked of it."""

    def __init__(self, process: subprocess.Popen[bytes], where: Where) -> None:
        self._tasks = Path(f"/proc/{process.pid}/task")
        self.where = where
        key = f"authorization: Bearer {where.key}\r\n" if where.key else ""
        self._common = f"host: localhost:{where.port}\r\naccept: */*\r\n{key}"
        self.get = self.path(f"/v1/workflow-runs/{where.run_id}")
        self.list = self.path("/v1/workflow-runs?project_id=bench&limit=50")
        url = f"/v1/workflow-runs?project_id=bench&limit=50&workflow_id={where.finished_id}"
        self.finished = self.path(url)
        url = f"/v1/workflows/{where.workflow_id}/trigger"
        self.trigger = self.post(url, '{"payload":{"order":17}}')
        self._free: list[Connection] = []

    def path(self, path: str) -> bytes:
        """A GET as it goes over the wire."""
        return f"GET {path} HTTP/1.1\r\n{self._common}\r\n".encode()

    def post(self, path: str, body: str = "{}") -> bytes:
        return (
            f"POST {path} HTTP/1.1\r\n{self._common}"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
        ).encode()

    async def connect(self) -> None:
        """New connections: those that nobody has used for long are closed by the server."""
        self.close()
        loop = asyncio.get_running_loop()
        for _ in range(TRIGGERING):
            _, protocol = await loop.create_connection(Connection, "127.0.0.1", self.where.port)
            self._free.append(protocol)

    def close(self) -> None:
        for connection in self._free:
            connection.close()
        self._free.clear()

    async def ask(self, request: bytes) -> bytes:
        """Over the first connection, while nobody else uses it."""
        return await self._free[0].ask(request)

    def cpu_us(self) -> float:
        """Processor time of the process so far, all threads."""
        return sum(
            int((task / "schedstat").read_text().split()[0]) / 1e3 for task in self._tasks.iterdir()
        )

    async def burst(self, request: bytes, count: int, connections: int) -> tuple[float, float]:
        """(seconds, server CPU µs a request) for `count` requests, one after another on each
        connection.
        """

        async def some(connection: Connection) -> None:
            for _ in range(count // connections):
                await connection.ask(request)

        count -= count % connections
        used, started = self.cpu_us(), time.perf_counter()
        await asyncio.gather(*map(some, self._free[:connections]))
        return time.perf_counter() - started, (self.cpu_us() - used) / count

    async def approvals(self, count: int) -> list[bytes]:
        """As many requests as will be asked, each of a run of its own that waits for it."""
        found: list[bytes] = []

        async def some(connection: Connection, runs: int) -> None:
            for _ in range(runs):
                body = (await connection.ask(self.trigger)).partition(b"\r\n\r\n")[2]
                run_id = msgspec.json.decode(body, type=_Made).id
                found.append(self.post(f"/v1/workflow-runs/{run_id}/steps/gate/approve"))

        shares = [count // TRIGGERING + (n < count % TRIGGERING) for n in range(TRIGGERING)]
        await asyncio.gather(*map(some, self._free, shares))
        return found

    async def paced(self, requests: Sequence[bytes], rate: float) -> list[float]:
        """Milliseconds from when each request was due until it was answered, sorted."""
        loop = asyncio.get_running_loop()
        free: asyncio.Queue[Connection] = asyncio.Queue()
        for connection in self._free:
            free.put_nowait(connection)
        took: list[float] = []

        async def one(request: bytes, due: float) -> None:
            connection = await free.get()
            await connection.ask(request)
            took.append((loop.time() - due) * 1e3)
            free.put_nowait(connection)

        begin = loop.time() + 0.01
        async with asyncio.TaskGroup() as group:
            for n, request in enumerate(requests):
                due = begin + n / rate
                await asyncio.sleep(max(0.0, due - loop.time()))
                group.create_task(one(request, due))
        return sorted(took)


@contextmanager
def started(kind: str) -> Generator[Server]:
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks._http_servers", kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"the {kind} server did not start")
            yield Server(process, msgspec.json.decode(line, type=Where))
        finally:
            process.stdin.close()


def _at(took: list[float], part: float) -> float:
    return took[min(len(took) - 1, int(len(took) * part))]


async def in_turns(
    ours: Server, bare: Server, rounds: int, measure: Callable[[Server], Awaitable[T]]
) -> tuple[list[T], list[T]]:
    """What `measure` gives for each of the two, one after the other, who is first alternating."""
    found: dict[Server, list[T]] = {ours: [], bare: []}
    for n in range(rounds):
        for server in (ours, bare) if n % 2 else (bare, ours):
            found[server].append(await measure(server))
    return found[ours], found[bare]


async def costs(ours: Server, bare: Server, size: Size) -> dict[str, float]:
    """Processor time of the servers a request, asked as fast as they answer."""

    async def get(server: Server) -> float:
        return (await server.burst(server.get, size.gets, CONNECTIONS))[1]

    async def page(server: Server) -> float:
        return (await server.burst(server.list, size.gets // 4, CONNECTIONS))[1]

    async def finished(server: Server) -> float:
        return (await server.burst(server.finished, size.gets // 4, CONNECTIONS))[1]

    figures: dict[str, float] = {}
    for name, measure in (("get", get), ("list", page), ("finished", finished)):
        our_us, bare_us = await in_turns(ours, bare, size.cost_rounds, measure)
        figures[f"{name}_us"] = statistics.median(our_us)
        figures[f"{name}_bare_us"] = statistics.median(bare_us)
        ratios = (a / b for a, b in zip(our_us, bare_us, strict=True))
        figures[f"{name}_ratio"] = statistics.median(ratios)
    return figures


async def latencies(ours: Server, bare: Server, size: Size) -> dict[str, float]:
    """How long answers take at fixed rates."""
    count = size.paced
    for server in (ours, bare):
        await server.connect()

    async def get(server: Server) -> list[float]:
        return await server.paced([server.get] * count, READS_PER_S)

    async def page(server: Server) -> list[float]:
        return await server.paced([server.list] * count, READS_PER_S)

    async def command(server: Server) -> list[float]:
        return await server.paced(await server.approvals(count), RATE_PER_S)

    async def trigger(server: Server) -> list[float]:
        return await server.paced([server.trigger] * count, RATE_PER_S)

    figures: dict[str, float] = {}
    for name, bare_name, measure in (
        ("get", "get_bare", get),
        ("list", "list_bare", page),
        ("command", "command_bare", command),
        ("trigger", "bare_post", trigger),
    ):
        found = await in_turns(ours, bare, size.rate_rounds, measure)
        for label, spread in zip((name, bare_name), found, strict=True):
            for part in (50, 99):
                middle = statistics.median(_at(took, part / 100) for took in spread)
                figures[f"{label}_p{part}_ms"] = middle
    figures["trigger_p99_ratio"] = figures["trigger_p99_ms"] / figures["bare_post_p99_ms"]
    return figures


async def compare(ours: Server, bare: Server, size: Size) -> dict[str, float]:
    triggers = size.triggers - size.triggers % TRIGGERING
    for server in (ours, bare):
        await server.connect()
        for request in await server.approvals(8):
            await server.ask(request)
        await server.burst(server.trigger, 64, CONNECTIONS)  # the newest page is of active runs
        for request in (server.get, server.list, server.finished):
            await server.burst(request, 64, CONNECTIONS)
    figures = await costs(ours, bare, size) | await latencies(ours, bare, size)
    took, us = await ours.burst(ours.trigger, triggers, TRIGGERING)
    figures["trigger_per_s"] = triggers / took
    figures["trigger_us"] = us
    ours.close()
    bare.close()
    return figures


def run(size: str) -> dict[str, float]:
    with ExitStack() as stack:
        ours, bare = (stack.enter_context(started(kind)) for kind in ("ours", "bare"))
        # select() waits to the microsecond, epoll to the millisecond: requests go out when due
        loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            return runner.run(compare(ours, bare, SIZES[size]))
