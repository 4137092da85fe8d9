"""A whole server on a given store: `python -m tests.golden.stores.server URL hold|go [NOW_MS]`.

With `hold` its job `gate` never ends, `flaky` fails, and what is sent to the event key `cut-off`
never arrives: as if the process had been killed at that moment. `NOW_MS`: what time it takes it to
be. Prints `up PORT` when it serves, or `refused: WHY` when it cannot start.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path
from typing import Any

from pilotage.actors.executors.python_jobs import JobRegistry
from pilotage.actors.kernel import SystemClock
from pilotage.actors.runtime import Runtime
from pilotage.http.app import create_app
from pilotage.http.server import serve_app
from pilotage.persistence.port import StoreError
from pilotage.settings import Settings

ADMIN_KEY = "plt_" + "g" * 43
CUT_OFF = "cut-off"


class AheadClock(SystemClock):
    """The system's clocks, but for a wall clock that is ahead, or behind."""

    __slots__ = ("_ahead_ms",)

    def __init__(self, ahead_ms: int) -> None:
        self._ahead_ms = ahead_ms

    def now_ms(self) -> int:
        return super().now_ms() + self._ahead_ms


def registry(*, hold: bool) -> JobRegistry:
    async def noop(payload: Any) -> Any:
        return payload

    async def gate(payload: Any) -> Any:
        if hold:
            await asyncio.Event().wait()
        return payload

    async def flaky(_payload: Any) -> str:
        if hold:
            raise RuntimeError("out of order")
        return "repaired"

    async def broken(_payload: Any) -> None:
        raise RuntimeError("broken for good")

    jobs = JobRegistry()
    for function in (noop, gate, broken):
        jobs.register(function, name=function.__name__, max_attempts=1)
    jobs.register(gate, name="one_at_a_time", max_concurrency=1)
    jobs.register(flaky, name="flaky", max_attempts=5, retry_initial_delay=45)
    return jobs


def cut_off(runtime: Runtime) -> None:
    send = runtime.hub.send

    async def send_or_not(project_id: str, key: str, *args: Any, **more: Any) -> Any:
        if key == CUT_OFF:
            await asyncio.Event().wait()
        return await send(project_id, key, *args, **more)

    runtime.hub.send = send_or_not  # type: ignore[method-assign]


async def main(url: str, mode: str, now_ms: int) -> int:
    settings = Settings(
        data_dir=Path("unused"),
        redis_url=url,
        port=0,
        admin_key=ADMIN_KEY,
        allow_private_endpoints=True,
        lease_secs=2,
    )
    runtime = Runtime(
        settings=settings,
        registry=registry(hold=mode == "hold"),
        clock=AheadClock(now_ms - time.time_ns() // 1_000_000 if now_ms else 0),
    )
    try:
        await runtime.start()
    except StoreError as error:
        sys.stdout.write(f"refused: {error}\n")
        return 1
    if mode == "hold":
        cut_off(runtime)
    app = create_app(runtime.gateway, settings, metrics=runtime.metrics)
    server = await serve_app(app, settings.host, settings.port)
    sys.stdout.write(f"up {server.port}\n")
    sys.stdout.flush()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop()
    await runtime.stop(1)
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1], sys.argv[2], int((sys.argv[3:] or ["0"])[0]))))
