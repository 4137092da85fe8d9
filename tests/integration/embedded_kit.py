"""What the tests of the embedded server share: writing to it, looking at it, suspending it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import redis

from pilotage.persistence.embedded import EmbeddedServer

# Starts a server, then writes and says what was answered until it is killed.
WRITER = """
import asyncio, sys
from pathlib import Path
import redis
from pilotage.persistence.embedded import EmbeddedServer

async def main():
    server = EmbeddedServer(Path(sys.argv[1]))
    client = redis.Redis.from_url(await server.start())
    print(server.pid, flush=True)
    n = 0
    while True:
        n += 1
        client.set(f"k{n}", "x" * 300)
        print(n, flush=True)

asyncio.run(main())
"""


def client_of(server: EmbeddedServer) -> redis.Redis:
    return redis.Redis.from_url(server.url, decode_responses=True)


def write(server: EmbeddedServer, key: str, value: str) -> None:
    with client_of(server) as client:
        client.set(key, value)


def read(server: EmbeddedServer, key: str) -> object:
    with client_of(server) as client:
        return client.get(key)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/status")
    return not (status.exists() and "\nState:\tZ" in status.read_text())


def suspend(server: EmbeddedServer, *, watcher: bool) -> None:
    """The server alone, or all of its group."""
    assert server.pid is not None
    if watcher:
        os.killpg(os.getpgid(server.pid), signal.SIGSTOP)
    else:
        os.kill(server.pid, signal.SIGSTOP)
