"""The server's process: runtime and HTTP on one loop, started and stopped in order.

Start: the port is looked at first (a server that cannot listen must not move runs), then store,
fence and recovery, while HTTP answers already (`/health/ready` says 503 until all is recovered).
A stop that is asked for meanwhile ends the start wherever it is, and gives back what it has taken.
Stop: readiness off, attempts in progress get the grace, everything is flushed, then HTTP ends. A
second signal ends the process at once; what was acknowledged is in the store either way.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

import msgspec

from pilotage.actors.api_keys import PREFIX
from pilotage.actors.errors import UnavailableError
from pilotage.actors.executors.python_jobs import JobRegistry
from pilotage.actors.metrics import Metrics
from pilotage.actors.runtime import Runtime
from pilotage.app import Pilotage
from pilotage.cli.errors import FAILED, CommandError
from pilotage.http.app import create_app
from pilotage.http.server import RunningServer, serve_app
from pilotage.local import put_app
from pilotage.runtime.errors import PilotageError
from pilotage.settings import Settings

logger = logging.getLogger("pilotage.server")

PUT_AGAIN_SECS = 0.5


PLACES = (
    ("dashboard", "/"),
    ("API docs", "/reference"),
    ("OpenAPI", "/reference/openapi.json"),
    ("health", "/health"),
)
"""What a person may want to open, as far as the server has it."""


class Serving(NamedTuple):
    """A server that answers."""

    runtime: Runtime
    http: RunningServer
    admin_key: str
    paths: frozenset[str]
    """The paths of its routes."""

    def links(self) -> list[tuple[str, str]]:
        """Name and path of the places of this server that a browser can show."""
        return [(name, path) for name, path in PLACES if path in self.paths]

    @property
    def url(self) -> str:
        """Where a client on this machine reaches it."""
        host = self.http.host
        if host in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
            return f"http://127.0.0.1:{self.http.port}"
        return self.http.url


def new_admin_key() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def port_is_free(host: str, port: int) -> bool:
    """Whether the address can be listened on, as the server will."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError:
        return False
    with socket.socket(family, kind, protocol) as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
        except OSError:
            return False
    return True


@asynccontextmanager
async def serving(
    settings: Settings, app: Pilotage | None = None, *, stop: asyncio.Event | None = None
) -> AsyncGenerator[Serving, None]:
    """Serve until the block is left. Settings without an admin key get one for this process.

    When `stop` is set while the start is still under way: `StoppedError`.
    """
    if settings.admin_key is None:
        settings = msgspec.structs.replace(settings, admin_key=new_admin_key())
    if settings.port and not port_is_free(settings.host, settings.port):
        raise CommandError(
            f"{settings.host}:{settings.port} cannot be listened on, another program may have it; "
            "choose another with --port or PILOTAGE_PORT",
            FAILED,
        )
    metrics = Metrics()
    registry = app.registry if app is not None else JobRegistry()
    runtime = Runtime(settings=settings, registry=registry, metrics=metrics)
    starting = asyncio.create_task(runtime.start(), name="start")
    http: RunningServer | None = None
    try:
        await _unless_stopped(starting, stop, enough=runtime.assembled)
        web = create_app(runtime.gateway, settings, metrics=metrics)
        http = await serve_app(web, settings.host, settings.port)
        await _unless_stopped(starting, stop)
        if app is not None:
            putting = asyncio.create_task(_put(runtime, app), name="put the app")
            try:
                await _unless_stopped(putting, stop)
            finally:
                putting.cancel()
        paths = frozenset(str(route.path) for route in web.routes)
        yield Serving(runtime, http, settings.admin_key or "", paths)
    finally:
        await _stop(runtime, starting, http)


class StoppedError(PilotageError):
    """A stop was asked for before the server was up."""


async def _unless_stopped(
    starting: asyncio.Task[None],
    stop: asyncio.Event | None,
    *,
    enough: asyncio.Event | None = None,
) -> None:
    """Wait for the end of the start, or until it has come far `enough`, and no longer when a stop
    is asked for meanwhile. Raises what kept it from starting.
    """
    waits = [asyncio.create_task(event.wait()) for event in (stop, enough) if event is not None]
    try:
        await asyncio.wait({starting, *waits}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    if starting.done():
        starting.result()
    if stop is not None and stop.is_set():
        raise StoppedError("stopped before the start was complete")


async def _put(runtime: Runtime, app: Pilotage) -> None:
    """Store what the app defines, as soon as the store takes it."""
    while not runtime.fenced.is_set():
        try:
            await put_app(runtime, app, by="app")
        except UnavailableError as error:
            logger.warning("the workflows of the app cannot be stored yet: %s", error)
            await asyncio.sleep(PUT_AGAIN_SECS)
        else:
            return


async def _stop(runtime: Runtime, starting: asyncio.Task[None], http: RunningServer | None) -> None:
    if not starting.done():
        starting.cancel()  # it takes down what it has put up
        await asyncio.wait({starting})
    # A cancellation can get lost in the store's client (see `endings`): then it has come up.
    if not starting.cancelled() and starting.exception() is None:
        await runtime.stop()
    if http is not None:
        await http.stop()


class Signals:
    """SIGINT and SIGTERM of this process: the first asks for a stop, the second ends at once."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._received, number)

    def _received(self, number: signal.Signals) -> None:
        if self.stop.is_set():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(128 + number)
        logger.info("%s: stopping; once more ends at once", number.name)
        self.stop.set()


async def serve_until_stopped(
    settings: Settings,
    app: Pilotage | None,
    *,
    when_up: Callable[[Serving], None],
    when_down: Callable[[], None] = lambda: None,
) -> int:
    """Serve until a signal; the exit status. `when_up` is called once requests are answered."""
    signals = Signals()
    try:
        return await _serve(settings, app, signals, when_up, when_down)
    except StoppedError as stopped:
        logger.info("%s", stopped)
        return 0


async def _serve(
    settings: Settings,
    app: Pilotage | None,
    signals: Signals,
    when_up: Callable[[Serving], None],
    when_down: Callable[[], None],
) -> int:
    async with serving(settings, app, stop=signals.stop) as server:
        when_up(server)
        fenced = asyncio.create_task(server.runtime.fenced.wait())
        stopped = asyncio.create_task(signals.stop.wait())
        ended = asyncio.create_task(server.http.wait())
        try:
            await asyncio.wait({fenced, stopped, ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            when_down()
        why_fenced = await server.runtime.why_fenced() if fenced.done() else None
        died = ended.done() and not stopped.done()
        for task in (fenced, stopped, ended):
            task.cancel()
    if why_fenced is not None:
        raise CommandError(f"{why_fenced}; this one has ended", FAILED)
    if died:
        raise CommandError("the HTTP server ended by itself; the log says why", FAILED)
    logger.info("stopped")
    return 0
