"""Functions that worker processes import by name."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, TypedDict

from pilotage.actors.executors.job_context import Fail, JobContext, Retry


class Order(TypedDict):
    n: int


def double(order: Order, ctx: JobContext) -> Any:
    return {"n": order["n"] * 2, "pid": os.getpid(), "key": ctx.idempotency_key}


async def awaited() -> str:
    await asyncio.sleep(0)
    return "done"


def talk(ctx: JobContext) -> None:
    ctx.log("hello", level="warning", n=1)
    for i in range(5_000):
        ctx.progress(i / 50)


def retry() -> None:
    raise Retry("busy", after=7)


def fail() -> None:
    raise Fail("never")


def leave() -> None:
    raise SystemExit(3)


def die() -> None:
    os._exit(7)


def die_by_signal() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(data: dict[str, str]) -> None:
    """Say which processes there are, one of them a child, and never return."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with socket.create_connection(("127.0.0.1", int(data["port"]))) as link:
        link.sendall(f"{os.getpid()} {child.pid}\n".encode())
        time.sleep(600)


def large() -> str:
    return "x" * 3_000_000


def write(data: dict[str, str]) -> str:
    Path(data["path"]).write_text("here")
    return sys.argv[0]


def noisy() -> str:
    sys.stdout.write("printed by a job\n")
    return "fine"


class Holder:
    """What a decorator may leave behind in place of the function."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.__qualname__ = function.__qualname__
        self.__module__ = function.__module__


def _plain() -> str:
    return "held"


held_function = _plain
_plain.__qualname__ = "held"
held = Holder(_plain)
