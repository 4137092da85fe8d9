"""The processes under chaos: `pilotage serve`, and a Valkey of one's own beside it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import redis

from pilotage.persistence.server_process import WATCHER, find_server_binary

ROOT = Path(__file__).resolve().parents[2]
ADMIN_KEY = "plt_" + "c" * 43
LEASE_SECS = 2
STOP_SECS = 60.0
CHILDREN_SECS = 20.0
"""What processes that a killed server leaves behind get to notice it."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that only waits to be collected does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def rss_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


class ServerProcess:
    """One `pilotage serve`.

    `killed` is set when it is ended on purpose, `superseded` when another has taken over its store.
    """

    def __init__(self, name: str, args: list[str], env: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.killed = False
        self.superseded = False
        self.url = ""
        self.log = log
        self._args = args
        self._env = env
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def spawn(self) -> None:
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "pilotage.cli", "serve", *self._args,
                cwd=ROOT,
                env={**os.environ, **self._env, "PYTHONPATH": str(ROOT)},
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            if line.startswith(b"listening on "):
                self.url = line.decode().split()[-1]

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    def signal(self, number: signal.Signals) -> None:
        """Nothing happens when it has ended."""
        if self.running:
            if number in {signal.SIGKILL, signal.SIGTERM}:
                self.killed = True
            os.kill(self.pid, number)

    async def ended(self, within_secs: float = STOP_SECS) -> int:
        """Its exit status, as a shell has it for signals: negative."""
        assert self._process is not None
        async with asyncio.timeout(within_secs):
            status = await self._process.wait()
        self.url = ""
        return status

    async def children_ended(self) -> bool:
        """Whether nobody holds its standard output any more: no child has outlived it for long."""
        assert self._reading is not None
        await asyncio.wait({self._reading}, timeout=CHILDREN_SECS)
        return self._reading.done()

    def log_lines(self) -> list[dict[str, Any]]:
        """Its log, as far as lines are whole."""
        lines: list[dict[str, Any]] = []
        for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                lines.append({"level": "plain", "message": line})
        return lines


class OwnStore:
    """A Valkey of one's own on a TCP port, as durable as the documentation tells an operator: with
    `appendfsync everysec` it would answer, while its disk is busy, what it loses when it is killed.

    It runs under the product's watcher, so that it does not outlive whoever started it.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.pid = 0
        self._watcher: asyncio.subprocess.Process | None = None

    async def start(self, *options: str) -> None:
        self.folder.mkdir(exist_ok=True)
        self._watcher = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", WATCHER, "chaos-watch",
            str(self.folder / "note"), str(self.folder / "log"), str(find_server_binary()),
            "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder),
            "--appendonly", "yes", "--appendfsync", "always", "--save", "",
            "--maxmemory-policy", "noeviction", *options,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        assert self._watcher.stdout is not None
        self.pid = int(await self._watcher.stdout.readline())

    async def kill(self) -> None:
        """SIGKILL, also while it is suspended."""
        assert self._watcher is not None
        if self._watcher.returncode is None:
            os.kill(self.pid, signal.SIGKILL)
        await self._watcher.wait()

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=10, decode_responses=True)


class EmbeddedStore:
    """The store that a server has started in its data directory."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir

    @property
    def pid(self) -> int | None:
        """None while there is none."""
        try:
            words = (self.data_dir / "server.lock").read_text(encoding="utf-8").split()
        except OSError:
            return None
        if len(words) != 2 or not is_alive(int(words[0])):
            return None
        return int(words[0])

    def client(self) -> redis.Redis:
        return redis.Redis(
            unix_socket_path=str(self.data_dir / "s.sock"), socket_timeout=10,
            decode_responses=True,
        )  # fmt: skip


class Fleet:
    """The server that should run, started again whenever it has ended, and those it superseded."""

    def __init__(self, folder: Path, args: list[str], problems: list[str]) -> None:
        self.folder = folder
        self._args = args
        self._problems = problems
        self._made = 0
        self.current: ServerProcess | None = None
        self.all: list[ServerProcess] = []
        self.ends: Counter[str] = Counter()
        self._watches: set[asyncio.Task[None]] = set()
        self.wakings: list[tuple[float, float]] = []
        """When superseded servers were awake: from their waking to their end."""

    def url(self) -> str:
        return self.current.url if self.current is not None else ""

    def new(self) -> ServerProcess:
        self._made += 1
        name = f"server-{self._made}"
        env = {
            "PILOTAGE_ADMIN_KEY": ADMIN_KEY,
            "PILOTAGE_LOG_FORMAT": "json",
            "PILOTAGE_ALLOW_PRIVATE_ENDPOINTS": "true",
            "PILOTAGE_LEASE_SECS": str(LEASE_SECS),
            "PILOTAGE_AUTH_FAILURE_LIMIT": "1000000",
            "CHAOS_LOG": str(self.folder / "executions"),
        }
        args = ["--port", "0", "--app", "tests.chaos.app:app", *self._args]
        server = ServerProcess(name, args, env, self.folder / f"{name}.log")
        self.all.append(server)
        return server

    async def keep_up(self) -> None:
        """Start the server, and another when it has ended, for ever."""
        while True:
            server = self.new()
            await server.spawn()
            self.current = server
            status = await server.ended(10**6)
            self._note_end(server, status)
            while self.current is not server:  # another one has taken over meanwhile
                server = self.current
                status = await server.ended(10**6)
                self._note_end(server, status)
            if status not in {0, -signal.SIGKILL}:
                await asyncio.sleep(0.5)

    async def _watch_children(self, server: ServerProcess) -> None:
        if not await server.children_ended():
            self._problems.append(f"{server.name} ended and left a process behind")

    async def all_children_ended(self) -> None:
        if self._watches:
            await asyncio.wait(self._watches)

    def _note_end(self, server: ServerProcess, status: int) -> None:
        self._watches.add(asyncio.create_task(self._watch_children(server)))
        words = server.log_lines()[-1:] or [{"message": ""}]
        said = str(words[0].get("message"))[:160]
        if server.superseded:
            self.ends["superseded"] += 1
            if status == 0 or "another server has taken over" not in said:
                self._problems.append(f"superseded {server.name} ended with {status}: {said}")
        elif server.killed:
            self.ends[f"ended by us: {status}"] += 1
        elif status == 1 and any(word in said for word in MAY_END):
            self.ends[f"1: {_short(said)}"] += 1
        else:
            self._problems.append(f"{server.name} ended by itself with {status}: {said}")

    async def up(self, within_secs: float = 60.0) -> ServerProcess:
        """The server, once it answers."""
        deadline = time.monotonic() + within_secs
        while self.current is None or not self.current.url or not self.current.running:
            if time.monotonic() > deadline:
                raise AssertionError("no server came up; see the logs")
            await asyncio.sleep(0.02)
        return self.current


MAY_END = (
    "the store cannot be reached",
    "the store did not answer",
    "the store is not available",
    "another server owns this store",
    "it is a replica",
)
"""What a server may say that does not start while its store is under attack."""


def _short(said: str) -> str:
    return next((word for word in MAY_END if word in said), said)
