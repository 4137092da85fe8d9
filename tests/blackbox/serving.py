"""The server of the black-box tests: `python -m tests.blackbox.serving DATA_DIR [AHEAD_MS]`.

A few registered Python jobs, everything else comes over HTTP. Its clock is ahead by `AHEAD_MS`. It
prints `up PORT` when it serves.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec

from pilotage.actors.executors.job_context import Fail, JobContext, Retry
from pilotage.actors.executors.python_jobs import JobRegistry
from pilotage.actors.kernel import SystemClock
from pilotage.actors.runtime import Runtime
from pilotage.http.app import create_app
from pilotage.http.server import serve_app
from pilotage.settings import Settings

ADMIN_KEY = "plt_" + "a" * 43


class Order(msgspec.Struct):
    """What `typed` takes."""

    amount: int


async def noop(_payload: Any) -> dict[str, int]:
    return {"ok": 1}


async def echo(payload: Any) -> Any:
    return payload


async def value(payload: dict[str, Any]) -> Any:
    """The output that the input asks for."""
    return payload.get("value")


async def typed(order: Order) -> int:
    return order.amount


async def who(_payload: Any, ctx: JobContext) -> dict[str, Any]:
    return {
        "run": ctx.run_id,
        "step": ctx.step_ref,
        "attempt": ctx.attempt,
        "key": ctx.idempotency_key,
    }


async def ordered_to_fail(_payload: Any) -> None:
    raise Fail("enough of this")


async def retry_once(_payload: Any, ctx: JobContext) -> int:
    if ctx.attempt == 1:
        raise Retry(after=0.01)
    return ctx.attempt


def plain(payload: dict[str, Any]) -> Any:
    """A plain function, in a worker thread."""
    if "raise" in payload:
        raise ValueError(payload["raise"])
    return {"plain": True}


def registry() -> JobRegistry:
    jobs = JobRegistry()
    jobs.register(noop, name="noop", inline=True)
    for function in (echo, value, typed, who, ordered_to_fail, retry_once):
        jobs.register(function, name=function.__name__)
    jobs.register(plain, name="plain", max_attempts=1)
    return jobs


class AheadClock(SystemClock):
    """The system's clocks, but for a wall clock that is ahead."""

    __slots__ = ("_ahead_ms",)

    def __init__(self, ahead_ms: int) -> None:
        self._ahead_ms = ahead_ms

    def now_ms(self) -> int:
        return super().now_ms() + self._ahead_ms


async def main(data_dir: Path, ahead_ms: int) -> None:
    settings = Settings(
        data_dir=data_dir,
        port=0,
        admin_key=ADMIN_KEY,
        allow_private_endpoints=True,
        lease_secs=2,
        auth_failure_limit=1_000_000,  # a client that tries everything fails often
    )
    runtime = Runtime(settings=settings, registry=registry(), clock=AheadClock(ahead_ms))
    await runtime.start()
    app = create_app(runtime.gateway, settings, metrics=runtime.metrics)
    server = await serve_app(app, settings.host, settings.port)
    sys.stdout.write(f"up {server.port}\n")
    sys.stdout.flush()
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    await stop.wait()
    await server.stop()
    await runtime.stop(1)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
