"""The HTTP server: uvicorn inside the loop that the actors run on."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pilotage.actors.catalog_records import new_id
from pilotage.http.problems import Refusal
from pilotage.runtime.errors import PilotageError

GRACE_SECS = 5.0
"""What open requests get at a stop; streams are cut then."""
BACKLOG = 2048
KEEP_ALIVE_SECS = 75


MAX_CONNECTIONS = 8192
"""Open ones together; above that new requests get 503."""
MAX_HEAD = 64 << 10
"""Bytes of a request line and headers; uvicorn itself would take any number."""
HEAD_SECS = 30.0
"""For the head of a request to arrive, and for the first one to begin."""
MAX_UNREAD = 16 << 20
"""Bytes of a body that still arrive after the answer; enough for most clients to see a refusal."""


class PortError(PilotageError):
    """The address cannot be listened on; the message says which and why."""


class _Server(uvicorn.Server):
    """Leaves signals to whoever runs the process."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class BoundedProtocol(HttpToolsProtocol):
    """HTTP/1.1 whose request heads, and bodies that nobody reads, are bounded in size and time."""

    _in_head = True
    _head_bytes = 0
    _unread_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD:
            self.send_400_response(f"The head of a request has at most {MAX_HEAD} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes, self._unread_bytes = True, 0, 0
        if self._head_timer is None:
            self._await_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if not self._in_head:  # a trailer of a chunked body: nobody reads it
            self.headers.pop()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if self.cycle.response_complete:  # a refusal: the rest of the body has no end of its own
            self._unread_bytes += len(body)
            if self._unread_bytes > MAX_UNREAD:
                self.transport.close()
            elif self._head_timer is None:
                self._await_head()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is refused in the shape of every refusal."""
        request_id = new_id(time.time_ns() // 1_000_000)
        found = msg.rstrip(".")
        refusal = Refusal(status=400, message=f"this is not HTTP/1.1 as we read it: {found}")
        body = refusal.body(request_id)
        head = (
            "HTTP/1.1 400 Bad Request",
            "content-type: application/json",
            f"content-length: {len(body)}",
            f"x-request-id: {request_id}",
            "connection: close",
        )
        self.transport.write("\r\n".join([*head, "", ""]).encode() + body)
        self.transport.close()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECS, self.transport.close)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class RunningServer:
    """A server that answers. `stop` ends it after the open requests, within the grace."""

    def __init__(self, server: _Server, listener: socket.socket, task: asyncio.Task[None]) -> None:
        self._server = server
        self._listener = listener
        self._task = task
        self.host, self.port = _name_of(listener)

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    async def stop(self) -> None:
        self._server.should_exit = True
        await self.wait()

    async def wait(self) -> None:
        """Until the server has ended."""
        try:
            await asyncio.shield(self._task)
        finally:
            if self._task.done():
                self._listener.close()


async def serve_app(
    app: Any, host: str, port: int, *, grace_secs: float = GRACE_SECS
) -> RunningServer:
    """Serve `app` on the running loop; returns once requests are answered.

    The port is bound first, so that a taken one is refused at once (`PortError`); port 0 takes a
    free one, `RunningServer.port` tells which.
    """
    listener = _listen(host, port)
    config = uvicorn.Config(
        app,
        loop="none",
        http=BoundedProtocol,
        limit_concurrency=MAX_CONNECTIONS,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECS,
        timeout_graceful_shutdown=max(1, round(grace_secs)),
    )
    server = _Server(config)
    task = asyncio.create_task(_serve(server, listener), name="pilotage-http")
    while not server.started:
        done, _ = await asyncio.wait({task}, timeout=0.005)
        if done:
            listener.close()
            task.result()
            raise PortError(f"the server on {host}:{port} did not start; the log says why")
    return RunningServer(server, listener, task)


async def _serve(server: _Server, listener: socket.socket) -> None:
    """Uvicorn leaves a start that failed with `SystemExit`, which would end the whole process."""
    try:
        await server.serve(sockets=[listener])
    except SystemExit:
        return


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as exc:
        raise PortError(f"cannot listen on {host}: {exc.strerror or exc}") from exc
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as exc:
        listener.close()
        raise PortError(
            f"cannot listen on {host}:{port}: {exc.strerror}; choose another with --port"
        ) from exc
    return listener


def _name_of(listener: socket.socket) -> tuple[str, int]:
    name = listener.getsockname()
    return str(name[0]), int(name[1])
