"""Connections to one Redis or Valkey server, shared by all who ask.

A command goes out at once on whatever connection is free, behind those in flight if none is;
answers come back in the order of the commands. What is asked in the same turn of the loop travels
in one packet. The command-for-command client of redis-py takes 58 µs of processor time a round
trip, this 25, and less for each of several.

A lost connection, an answer that does not come, and a protocol that is none fail everything in
flight on that connection; the next command opens another. Nothing is ever sent twice here. Who
stops waiting for an answer disturbs nobody: it is read and dropped.

A server that says it is loading, or a replica, is left: behind the address there may be another by
now (a failover, a proxy), which only a new connection reaches. Idle connections to it go as well.

All methods belong to the event loop on which `Wires` first was asked.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import hiredis
from redis.asyncio import ConnectionPool
from redis.exceptions import (
    AuthenticationError,
    ConnectionError as RedisConnectionError,
    InvalidResponse,
    MaxConnectionsError,
    RedisError,
    ResponseError,
    TimeoutError as RedisTimeoutError,
)

Argument = str | bytes | int | float

MAX_WAITING: Final = 4_096
"""Answers that one connection owes at most."""
_NOTHING: Final = object()
_PASSING: Final = ("LOADING", "MASTERDOWN", "CLUSTERDOWN")
# Inside a script Redis 6.2 wraps the words of the error in its own.
_WRONG_SERVER: Final = re.compile(r"\b(LOADING|READONLY|MASTERDOWN)\b")


def packed(*words: Argument) -> bytes:
    """A command as the server reads it."""
    return hiredis.pack_command(words)  # type: ignore[arg-type, no-any-return]


def _refusal(text: str) -> RedisError:
    if text.startswith("ERR max number of clients"):
        return RedisConnectionError(text)
    return ResponseError(text)


class Address:
    """Where a server is and how one becomes its client, as a URL says it."""

    def __init__(self, url: str) -> None:
        # redis-py reads the URL, and makes the TLS context of its `ssl_...` parameters.
        pool: Any = ConnectionPool.from_url(url)
        told = pool.make_connection()
        self._path: str | None = getattr(told, "path", None)
        self._host: str = getattr(told, "host", "")
        self._port: int = getattr(told, "port", 0)
        tls = getattr(told, "ssl_context", None)
        self._tls = None if tls is None else tls.get()
        self._name: str | None = told.client_name
        self._database = int(told.db or 0)
        self._credentials = [part for part in (told.username, told.password) if part]

    async def connect(self, timeout_secs: float, *, eager: bool) -> Wire:
        """A connection that has said who it is. `eager`: each command leaves at once."""
        loop = asyncio.get_running_loop()

        def make() -> Wire:
            return Wire(loop, timeout_secs, eager=eager)

        try:
            if self._path is not None:
                _, wire = await loop.create_unix_connection(make, self._path)
            else:
                _, wire = await loop.create_connection(make, self._host, self._port, ssl=self._tls)
        except ssl.SSLError:
            raise
        except OSError as error:  # it does not say of itself where to
            where = self._path or f"{self._host}:{self._port}"
            raise RedisConnectionError(f"{where}: {error}") from error
        try:
            await self._introduce(wire)
        except BaseException:
            wire.close()
            await wire.lost.wait()
            raise
        return wire

    async def _introduce(self, wire: Wire) -> None:
        if self._credentials:
            try:
                await wire.send(packed("AUTH", *self._credentials))
            except ResponseError as error:
                if str(error).startswith(_PASSING):
                    raise
                raise AuthenticationError(str(error)) from error
        if self._database:
            await wire.send(packed("SELECT", self._database))
        if self._name:
            await wire.send(packed("CLIENT", "SETNAME", self._name))


class Wire(asyncio.Protocol):
    """One connection."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, timeout_secs: float, *, eager: bool
    ) -> None:
        self._loop = loop
        self._timeout_secs = timeout_secs
        self._eager = eager
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse, replyError=_refusal, notEnoughData=_NOTHING
        )
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._unsent: list[bytes] = []
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.closed = False
        self.lost = asyncio.Event()
        self.on_wrong_server: Callable[[], object] | None = None
        """Told when the server says that it is not the one to ask now; the connection is closed."""

    @property
    def waiting(self) -> int:
        """Answers that are still to come."""
        return len(self._waiting)

    @property
    def filling(self) -> bool:
        """Whether what is sent now travels with what was sent before."""
        return bool(self._unsent)

    def send(self, command: bytes) -> asyncio.Future[Any]:
        """The answer to come. Raises what the server refuses, and what the connection suffers."""
        answer: asyncio.Future[Any] = self._loop.create_future()
        if self._transport is None or self.closed:
            answer.set_exception(RedisConnectionError("the connection was lost"))
            return answer
        if not self._waiting:
            self._since = self._loop.time()
            if self._timer is None:
                self._timer = self._loop.call_later(self._timeout_secs, self._look_at_clock)
        self._waiting.append(answer)
        if self._eager:
            self._transport.write(command)
            return answer
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(command)
        return answer

    def close(self) -> None:
        self._fail(RedisConnectionError("the connection was closed"))

    # --- asyncio.Protocol ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one by its methods
        connected: socket.socket | None = transport.get_extra_info("socket")
        if connected is not None and connected.family != socket.AF_UNIX:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        reader, waiting = self._reader, self._waiting
        reader.feed(data)
        try:
            while (reply := reader.gets()) is not _NOTHING:
                if isinstance(reply, RedisConnectionError) or not waiting:
                    self._fail(reply if waiting else InvalidResponse("an answer to no command"))
                    return
                if isinstance(reply, ResponseError) and _WRONG_SERVER.search(str(reply)):
                    self._leave(reply)
                    return
                answer = waiting.popleft()
                if answer.done():
                    continue
                if isinstance(reply, RedisError):
                    answer.set_exception(reply)
                else:
                    answer.set_result(reply)
        except InvalidResponse as error:
            self._fail(error)
            return
        self._since = self._loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or RedisConnectionError("the server closed the connection"))
        self.lost.set()

    # ------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if self._transport is not None and not self.closed:
            self._transport.write(unsent[0] if len(unsent) == 1 else b"".join(unsent))

    def _leave(self, refusal: ResponseError) -> None:
        """What else is in flight would be refused alike."""
        self._fail(refusal)
        if self.on_wrong_server is not None:
            self.on_wrong_server()

    def _look_at_clock(self) -> None:
        """One timer a connection, not one a command: it asks how long nothing has come."""
        self._timer = None
        if not self._waiting:
            return
        left = self._since + self._timeout_secs - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look_at_clock)
        else:
            self._fail(RedisTimeoutError("no answer in time"))

    def _fail(self, error: Exception) -> None:
        if self.closed:
            return
        self.closed = True
        self._unsent.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()
        while self._waiting:
            answer = self._waiting.popleft()
            if not answer.done():
                answer.set_exception(error)


class Wires:
    """At most `size` connections to one server, opened when they are needed.

    `connect_secs` bounds the opening of one, `timeout_secs` each answer.
    """

    def __init__(
        self,
        address: Address,
        size: int,
        *,
        timeout_secs: float,
        connect_secs: float,
        eager: bool = False,
    ) -> None:
        self._address = address
        self._size = size
        self._timeout_secs = timeout_secs
        self._connect_secs = connect_secs
        self._eager = eager
        self._open: list[Wire] = []
        self._opening: asyncio.Task[Wire] | None = None
        self._closed = False

    async def ask(self, command: bytes) -> Any:
        """The server's answer to a packed command. It may have been carried out when this fails."""
        wire = self._free() or await self._another()
        return await wire.send(command)

    async def ask_all(self, commands: Sequence[bytes]) -> list[Any]:
        """The answers to several, carried out in this order but not as one."""
        if len(commands) == 1:
            return [await self.ask(commands[0])]
        wire = self._free() or await self._another()
        return await asyncio.gather(*[wire.send(command) for command in commands])

    def _free(self) -> Wire | None:
        """The connection to use; None: there ought to be one more."""
        if self._closed:
            raise RedisConnectionError("the connections were closed")
        least: Wire | None = None
        lost = False
        for wire in self._open:
            if wire.closed:
                lost = True
            elif not wire.waiting or wire.filling:
                if wire.waiting < MAX_WAITING:
                    return wire
            elif least is None or wire.waiting < least.waiting:
                least = wire
        if lost:
            self._open = [wire for wire in self._open if not wire.closed]
        if len(self._open) < self._size:
            return None
        if least is None or least.waiting >= MAX_WAITING:
            raise MaxConnectionsError("too many commands in flight")
        return least

    async def _another(self) -> Wire:
        """One opening at a time, for all who wait for it."""
        opening = self._opening
        if opening is None:
            opening = asyncio.create_task(self._connect(), name="pilotage-store-connect")
            opening.add_done_callback(self._opened)
            self._opening = opening
        await asyncio.wait([opening])
        if opening.cancelled():
            raise RedisConnectionError("the connections were closed")
        return opening.result()

    async def _connect(self) -> Wire:
        async with asyncio.timeout(self._connect_secs):
            return await self._address.connect(self._timeout_secs, eager=self._eager)

    def _opened(self, task: asyncio.Task[Wire]) -> None:
        self._opening = None
        if task.cancelled() or task.exception() is not None:
            return
        if self._closed:
            task.result().close()
        else:
            wire = task.result()
            wire.on_wrong_server = self._close_idle
            self._open.append(wire)

    def _close_idle(self) -> None:
        for wire in self._open:
            if not wire.waiting:
                wire.close()

    async def close(self) -> None:
        """Whoever waits for an answer hears that the connection was closed."""
        self._closed = True
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        for wire in self._open:
            wire.close()
        for wire in self._open:
            await wire.lost.wait()
        self._open.clear()
