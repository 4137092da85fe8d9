"""Servers that are not Pilotage: whatever is asked, each says its one thing over real sockets."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Self

Script = Callable[["Caller"], None]
"""Answers a request whose head has been read; the connection is closed when it returns."""


class Caller:
    """One connection on which one request has arrived."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def say(self, data: bytes) -> None:
        self._socket.sendall(data)

    def has_hung_up(self, after_secs: float) -> bool:
        """Wait for it; what else the caller says is not listened to."""
        self._socket.settimeout(after_secs)
        try:
            return not self._socket.recv(65_536)
        except TimeoutError:
            return False
        except OSError:
            return True


class Stranger:
    """A listening socket on a free loopback port, a thread for each connection."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.calls = 0

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.calls += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                more = connection.recv(65_536)
                if not more:
                    return
                head += more
            self._script(Caller(connection))


def http(status: str, body: bytes = b"", media: str = "application/json", *more: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", "Connection: close", *more]
    if body:
        lines += [f"Content-Type: {media}", f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def says(data: bytes) -> Script:
    return lambda caller: caller.say(data)


def says_for_ever(first: bytes, again: bytes, every_secs: float = 0.01) -> Script:
    def script(caller: Caller) -> None:
        caller.say(first)
        while not caller.has_hung_up(every_secs):
            caller.say(again)

    return script


def says_nothing(caller: Caller) -> None:
    while not caller.has_hung_up(1.0):
        pass


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
HTML = b"<html><body>Welcome to the hotel</body></html>"

SCRIPTS: dict[str, Script] = {
    "closes at once": says(b""),
    "garbage": says(b"\x00\xffSSH-2.0-hello\r\n\r\n"),
    "502 HTML": says(http("502 Bad Gateway", HTML, "text/html")),
    "404 HTML": says(http("404 Not Found", HTML, "text/html")),
    "200 HTML": says(http("200 OK", HTML, "text/html; charset=utf-8")),
    "200 HTML that says JSON": says(http("200 OK", HTML)),
    "200 []": says(http("200 OK", b"[]")),
    "200 {}": says(http("200 OK", b"{}")),
    "200 of a list of other things": says(http("200 OK", b'{"data": [1, null], "id": 7}')),
    "200 too deep": says(http("200 OK", b"[" * 100_000)),
    "204": says(http("204 No Content")),
    "redirect": says(
        http("302 Found", b"", "", "Location: http://login.hotel/", "Content-Length: 0")
    ),
    "breaks off": says(http("200 OK", b"", "", "Content-Length: 100") + b"{"),
    "silent": says_nothing,
    "dribbles its body": says_for_ever(HEAD + b"Content-Length: 100000\r\n\r\n[", b" "),
    "dribbles its head": says_for_ever(HEAD, b"X-More: 1\r\nX-"),
}  # fmt: skip
