"""One request and its answer over `http.client`, bounded as a whole.

Guarantees: it ends within the time given, name look-up, connecting and reading together, however
slowly the other side speaks; a body or a line of a stream longer than the bound is an error and
is not kept. The work is done in a thread of its own, because no limit on single reads adds up to
one on all of them; who gives up cuts the connection, which ends that thread.
"""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import NamedTuple, TypeVar

from pilotage.cli.answers import Reply

MAX_BODY_BYTES = 128 << 20
"""A page of a hundred runs with the largest payloads fits."""
MAX_LINE_BYTES = 1 << 20
EVENT_STREAM = "text/event-stream"

T = TypeVar("T")


class TooLongError(http.client.HTTPException):
    """More was said than is read."""


class TooSlowError(TimeoutError):
    """The whole of it took too long."""


class Ask(NamedTuple):
    """A request, ready to be sent."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes | None = None


class Line:
    """A connection, with the socket under it: `http.client` gives it away once the answer says
    that it will close, and somebody else may have to cut it.
    """

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self.connection = connection
        self._socket: socket.socket | None = None
        self._is_cut = False

    @property
    def is_open(self) -> bool:
        return self.connection.sock is not None

    def send(self, ask: Ask) -> http.client.HTTPResponse:
        if self.connection.sock is None:
            self.connection.connect()
        self._socket = self.connection.sock
        if self._is_cut:  # while it connected: nothing is sent for somebody who has given up
            raise TooSlowError("given up")
        headers = dict(ask.headers)
        self.connection.request(ask.method, ask.target, body=ask.body, headers=headers)
        return self.connection.getresponse()

    def cut(self) -> None:
        """End what another thread reads or sends; nothing goes over this line any more."""
        self._is_cut = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.connection.close()


class Stream:
    """An answer that goes on. Read and closed by one thread; any may interrupt it."""

    def __init__(self, line: Line, response: http.client.HTTPResponse) -> None:
        self._line = line
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        while said := self._response.readline(MAX_LINE_BYTES):
            if len(said) == MAX_LINE_BYTES:
                raise TooLongError(f"a line of more than {MAX_LINE_BYTES} bytes")
            yield said

    def interrupt(self) -> None:
        """End the reading in another thread; that one closes."""
        self._line.cut()

    def close(self) -> None:
        self._response.close()
        self._line.close()


def exchange(line: Line, ask: Ask, within_secs: float) -> Reply:
    """Send and read to the end; raises `OSError` or `HTTPException`."""
    return _within(within_secs, line, lambda: _read(line, line.send(ask)))


def open_stream(line: Line, ask: Ask, within_secs: float) -> Stream | Reply:
    """A stream of events, or the answer that is none; events have all the time they want."""

    def opened() -> Stream | Reply:
        response = line.send(ask)
        media = response.getheader("content-type", "").partition(";")[0].strip().lower()
        if response.status == 200 and media == EVENT_STREAM:
            return Stream(line, response)
        return _read(line, response)

    return _within(within_secs, line, opened)


def _read(line: Line, response: http.client.HTTPResponse) -> Reply:
    with response:
        body = response.read(MAX_BODY_BYTES + 1)
        missing = response.length
    if len(body) > MAX_BODY_BYTES:
        raise TooLongError(f"a body of more than {MAX_BODY_BYTES} bytes")
    if missing:
        raise http.client.IncompleteRead(body, missing)
    if response.will_close:
        line.close()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Reply(status=response.status, reason=response.reason, headers=headers, body=body)


def _within(secs: float, line: Line, work: Callable[[], T]) -> T:
    future: Future[T] = Future()

    def do() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=do, name="exchange", daemon=True).start()
    try:
        return future.result(secs)
    except BaseException as error:
        if future.done():
            raise
        line.cut()
        if isinstance(error, TimeoutError):
            raise TooSlowError(f"no whole answer within {secs:.0f} s") from None
        raise
