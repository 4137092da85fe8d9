"""A job server that does not keep to HTTP: each endpoint has a script that works on the socket."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Self
from uuid import uuid4

from tests.support.waiting import wait_until_sync

GIVE_UP_SECS = 20.0
"""How long a script goes on at most; the server under test gives up long before."""


class HungUpError(Exception):
    """The caller has closed the connection."""


class Line:
    """One connection on which one request has arrived."""

    def __init__(self, connection: socket.socket, head: bytes) -> None:
        self._socket = connection
        self.head = head
        self._deadline = time.monotonic() + GIVE_UP_SECS

    def header(self, name: str) -> str:
        for line in self.head.split(b"\r\n")[1:]:
            key, _, value = line.decode("latin-1").partition(":")
            if key.lower() == name:
                return value.strip()
        raise KeyError(name)

    @property
    def attempt(self) -> int:
        return int(self.header("x-attempt"))

    def read_body(self) -> bytes:
        body = b""
        missing = int(self.header("content-length"))
        while len(body) < missing:
            more = self._socket.recv(min(65536, missing - len(body)))
            if not more:
                raise HungUpError
            body += more
        return body

    def say(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError:
            raise HungUpError from None

    def for_ever(self, data: bytes, every_secs: float = 0.0) -> None:
        """Say it again and again, until the caller hangs up."""
        while not self.waits(every_secs):
            self.say(data)
            if time.monotonic() > self._deadline:
                raise AssertionError("nobody hung up")

    def waits(self, secs: float) -> bool:
        """Wait; whether the caller has hung up meanwhile (what it says is not listened to)."""
        if not secs:
            return False
        self._socket.settimeout(secs)
        try:
            return not self._socket.recv(65536)
        except TimeoutError:
            return False
        except OSError:
            return True
        finally:
            self._socket.settimeout(GIVE_UP_SECS)

    def until_hung_up(self) -> None:
        while not self.waits(0.1):
            if time.monotonic() > self._deadline:
                raise AssertionError("nobody hung up")

    def reset(self) -> None:
        """Close without a farewell: what was not delivered yet is lost."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()


Script = Callable[[Line], None]
"""Answers a request whose body has not been read; the connection is closed when it returns."""


class RawEndpoint:
    """The n-th attempt gets the n-th script, the last one for ever; `url` is its address."""

    def __init__(self, base: str, scripts: tuple[Script, ...]) -> None:
        self.path = f"/{uuid4().hex}"
        self.url = base + self.path
        self.scripts = scripts
        self.lines: list[Line] = []
        self.over = 0

    @property
    def attempts(self) -> list[int]:
        return [line.attempt for line in self.lines]

    def call(self, number: int = 1, *, within_secs: float = 10.0) -> Line:
        """The n-th call, waited for."""
        wait_until_sync(
            lambda: len(self.lines) >= number, f"call {number}", within_secs=within_secs
        )
        return self.lines[number - 1]


class RawServer:
    """A listening socket on a free loopback port, a thread for each connection."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._endpoints: dict[str, RawEndpoint] = {}
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self.base = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def endpoint(self, *scripts: Script) -> RawEndpoint:
        endpoint = RawEndpoint(self.base, scripts)
        self._endpoints[endpoint.path] = endpoint
        return endpoint

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(GIVE_UP_SECS)
        with connection, contextlib.suppress(OSError, HungUpError):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                byte = connection.recv(1)
                if not byte:
                    return
                head += byte
            line = Line(connection, head)
            endpoint = self._endpoints[head.split(b" ", 2)[1].decode()]
            endpoint.lines.append(line)
            script = endpoint.scripts[min(line.attempt, len(endpoint.scripts)) - 1]
            try:
                script(line)
            finally:
                endpoint.over += 1


# --- scripts --------------------------------------------------------------------------------------


def says(*parts: bytes) -> Script:
    """Reads the request, says this, closes."""

    def script(line: Line) -> None:
        line.read_body()
        for part in parts:
            line.say(part)

    return script


def says_for_ever(first: bytes, again: bytes, every_secs: float = 0.0) -> Script:
    def script(line: Line) -> None:
        line.read_body()
        line.say(first)
        line.for_ever(again, every_secs)

    return script


def says_and_holds(*parts: bytes) -> Script:
    """Says this and keeps the connection open, without another word."""

    def script(line: Line) -> None:
        says(*parts)(line)
        line.until_hung_up()

    return script


def resets(line: Line) -> None:
    line.read_body()
    line.reset()


def answer(
    body: bytes, *headers: str, status: str = "200 OK", media: str | None = "application/json"
) -> bytes:
    """A whole answer that keeps to HTTP, but for what the headers say."""
    lines = [f"HTTP/1.1 {status}", *headers]
    if media is not None:
        lines.append(f"Content-Type: {media}")
    if not any(h.lower().startswith(("content-length", "transfer-encoding")) for h in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
