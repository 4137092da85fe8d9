"""The world outside: an HTTP server that does attempts well, badly, late or never, as told."""

from __future__ import annotations

import json
import select
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from uuid import uuid4

from tests.support.waiting import wait_until_sync

HOLD_SECS = 20.0


@dataclass(kw_only=True)
class Call:
    """One attempt as it arrived."""

    headers: Mapping[str, str]
    raw: bytes
    at: float
    closed: threading.Event = field(default_factory=threading.Event)

    @property
    def body(self) -> Any:
        return json.loads(self.raw)

    @property
    def attempt(self) -> int:
        return int(self.headers["x-attempt"])

    @property
    def job_run_id(self) -> str:
        return self.headers["x-run-id"]

    @property
    def token(self) -> str:
        return self.headers["x-run-token"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What an endpoint says. With a gate: only when the gate opens, or the caller hangs up."""

    status: int = 200
    body: bytes = b"{}"
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    gate: threading.Event | None = None
    hang_up: bool = False


def ok(value: Any = None, *, gate: threading.Event | None = None) -> Answer:
    return Answer(body=json.dumps(value).encode(), gate=gate)


def status(code: int, text: str = "no", **headers: str) -> Answer:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Answer(status=code, body=text.encode(), content_type="text/plain", headers=named)


def accepted() -> Answer:
    """202: the outcome is reported through the callback API."""
    return Answer(status=202, body=b"")


class Endpoint:
    """One URL with its script: the n-th call gets the n-th answer, the last one for ever."""

    def __init__(self, base: str, answers: Sequence[Answer]) -> None:
        self.path = f"/{uuid4().hex}"
        self.url = base + self.path
        self.answers = list(answers)
        self.calls: list[Call] = []
        self.served = 0
        self._lock = threading.Lock()

    def take(self, call: Call) -> Answer:
        with self._lock:
            self.calls.append(call)
            return self.answers[min(len(self.calls), len(self.answers)) - 1]

    def call(self, number: int = 1, *, within_secs: float = 10.0) -> Call:
        """The n-th call, waited for."""
        wait_until_sync(
            lambda: len(self.calls) >= number,
            f"call {number} of the endpoint (came: {len(self.calls)})",
            within_secs=within_secs,
        )
        return self.calls[number - 1]

    @property
    def attempts(self) -> list[int]:
        return [call.attempt for call in self.calls]


class QuietServer(ThreadingHTTPServer):
    """A caller that hangs up is what some tests are about, not an error of this server."""

    daemon_threads = True
    # A handler may be held by a gate; the end of the tests does not wait for it.
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class JobServer:
    """A threading HTTP server on a free loopback port."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._endpoints: dict[str, Endpoint] = {}
        self._server = QuietServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.base = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def endpoint(self, *answers: Answer) -> Endpoint:
        endpoint = Endpoint(self.base, answers or [ok({"ok": 1})])
        self._endpoints[endpoint.path] = endpoint
        return endpoint

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        endpoints, clock = self._endpoints, self._clock

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length", "0")))
                headers = {name.lower(): text for name, text in self.headers.items()}
                call = Call(headers=headers, raw=raw, at=clock())
                endpoint = endpoints[self.path]
                answer = endpoint.take(call)
                if answer.gate is not None and not self._gate_opened(answer.gate, call):
                    return
                if answer.hang_up:
                    self.close_connection = True
                    return
                self._send(answer)
                endpoint.served += 1

            def _gate_opened(self, gate: threading.Event, call: Call) -> bool:
                """False when the caller hung up meanwhile."""
                deadline = clock() + HOLD_SECS
                while not gate.wait(0.005):
                    readable, _, _ = select.select([self.connection], [], [], 0)
                    if readable or clock() > deadline:
                        call.closed.set()
                        self.close_connection = True
                        return False
                return True

            def _send(self, answer: Answer) -> None:
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.content_type)
                self.send_header("Content-Length", str(len(answer.body)))
                for name, text in answer.headers.items():
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
                """Say nothing."""

        return Handler
