"""Following a run over HTTP: woken by the stream, kept up over a server that is away."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from pilotage.cli import client as client_module, local, watch
from pilotage.cli.client import Client, ClientSettings
from pilotage.cli.errors import NOT_FOUND, ForeignAnswerError, RefusedError, ServerAwayError
from pilotage.cli.output import Item
from tests.cli.stranger import SCRIPTS, Stranger
from tests.support.waiting import wait_until_sync

RUN = "r1"
AT = "2026-01-31T12:00:00.000Z"
VIEW = {"id": RUN, "workflow_id": "w", "project_id": "p", "triggered_by": "api",
        "workflow_version": 1, "created_at": AT}  # fmt: skip


def refusal(code: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": code}, "message": code}


class Recorder:
    """A progress that remembers; `seen` runs at each news."""

    def __init__(self, seen: Callable[[], None] = lambda: None) -> None:
        self.needs_steps = True
        self.types: list[str] = []
        self.statuses: list[str] = []
        self.closed = False
        self._seen = seen

    def items(self, items: Sequence[Item]) -> None:
        self.types += [item["type"] for item in items]
        if items:
            self._seen()

    def steps(self, run: Item, steps: Sequence[Item]) -> None:
        self.statuses.append(run["status"])

    def close(self) -> None:
        self.closed = True


class RunServer:
    """One run, its history and its stream, moved by the test."""

    def __init__(self) -> None:
        self.status = "running"
        self.history: list[dict[str, Any]] = []
        self.away = 0
        self.has_stream = True
        self.ignores_after = False
        self.shown: Any = None
        self.streams: list[str | None] = []
        self.news = threading.Event()
        self.over = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path.endswith("/stream") and outer.has_stream:
                    outer.stream(self)
                elif path.endswith("/stream") or RUN not in path:
                    self.answer(404, refusal("not_found"))
                elif outer.away:
                    outer.away -= 1
                    self.answer(503, refusal("service_unavailable"))
                elif path.endswith("/events"):
                    after = int(self.path.partition("after=")[2].partition("&")[0])
                    data = [item for item in outer.history if item["seq"] > after]
                    if outer.ignores_after:
                        data = outer.history
                    self.answer(200, {"data": data, "has_more": outer.ignores_after})
                elif path.endswith("/steps"):
                    self.answer(200, [])
                else:
                    self.answer(200, outer.shown or {**VIEW, "status": outer.status})

            def answer(self, status: int, body: Any) -> None:
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Retry-After", "0")
                self.end_headers()
                self.wfile.write(content)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def happen(self, kind: str, status: str = "running") -> None:
        self.status = status
        self.history.append({"seq": len(self.history) + 1, "type": kind, "at": AT})

    def stream(self, handler: BaseHTTPRequestHandler) -> None:
        """One event each time `news` is set; the connection breaks after it."""
        self.streams.append(handler.headers.get("Last-Event-ID"))
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        handler.wfile.write(b": hello\n\n")
        while not self.over.is_set():
            if self.news.wait(0.01):
                self.news.clear()
                handler.wfile.write(f"id: {len(self.history)}\ndata: {{}}\n\n".encode())
                return

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[RunServer]:
    server = RunServer()
    yield server
    server.close()


@pytest.fixture
def client(server: RunServer) -> Iterator[Client]:
    client = Client(ClientSettings(url=server.url), sleep=lambda _: None)
    yield client
    client.close()


def test_the_stream_wakes_the_watcher(
    server: RunServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looks it would wait for an hour: only a ring can bring the news."""
    ticks = iter([3600.0])
    monkeypatch.setattr(watch, "TICK_SECS", 3600.0)
    server.happen("run_created")

    def end() -> None:
        if next(ticks, None) is not None:
            server.happen("run_ended", "completed")
            server.news.set()

    progress = Recorder(end)
    assert watch.follow(client, RUN, progress)["status"] == "completed"
    assert progress.types == ["run_created", "run_ended"]
    assert progress.statuses[-1] == "completed"
    assert progress.closed


def test_a_stream_that_breaks_is_taken_up_where_it_was(
    server: RunServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "TICK_SECS", 0.02)
    server.happen("run_created")
    server.happen("run_started")
    bell = watch.Doorbell(client.settings, RUN)
    server.news.set()
    while len(server.streams) < 2:
        bell.wait(0.01)
    bell.close()
    assert server.streams[:2] == [None, "2"]


def test_without_a_stream_it_looks_often(server: RunServer, client: Client) -> None:
    server.has_stream = False
    server.happen("run_created")
    progress = Recorder(lambda: server.happen("run_ended", "failed"))
    assert watch.follow(client, RUN, progress)["status"] == "failed"
    assert progress.types[:2] == ["run_created", "run_ended"]


def test_the_end_is_shown_though_history_told_of_it_before(
    server: RunServer, client: Client
) -> None:
    """What is read of the steps can be older than what was read of the history before."""
    server.has_stream = False
    server.happen("run_created")
    server.happen("run_ended")

    def end() -> None:
        server.status = "completed"

    progress = Recorder(end)
    assert watch.follow(client, RUN, progress)["status"] == "completed"
    assert progress.statuses == ["running", "completed"]


async def test_the_end_of_a_run_in_this_process_is_shown_likewise() -> None:
    class Ahead:
        """A run whose history was read whole while it was still shown as running."""

        id = RUN
        principal = None
        statuses: ClassVar = ["running", "completed"]
        items: ClassVar = [[b'{"seq": 1, "type": "run_ended"}'], []]

        def __init__(self) -> None:
            self.actors = self.gateway = self

        async def view(self) -> dict[str, str]:
            return {"status": self.statuses.pop(0)}

        async def steps(self) -> list[object]:
            return []

        async def history(self, *_: object) -> list[bytes]:
            return self.items.pop(0)

    ahead: Any = Ahead()
    progress = Recorder()
    assert (await local.follow(ahead, ahead, progress))["status"] == "completed"
    assert progress.statuses == ["running", "completed"]


def test_a_server_that_is_away_for_a_while_is_waited_for(server: RunServer, client: Client) -> None:
    server.happen("run_ended", "completed")
    server.away = 7  # more than the client tries by itself
    assert watch.follow(client, RUN, Recorder())["status"] == "completed"


def test_a_server_that_stays_away_ends_the_watching(
    server: RunServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "AWAY_SECS", 0.0)
    server.close()
    progress = Recorder()
    with pytest.raises(ServerAwayError):
        watch.follow(client, RUN, progress)
    assert progress.closed


def test_a_run_that_is_not_there_is_told_at_once(client: Client) -> None:
    with pytest.raises(RefusedError) as refused:
        watch.follow(client, "other", Recorder())
    assert refused.value.exit_status == NOT_FOUND


def test_a_stream_of_somebody_else_is_done_without() -> None:
    with Stranger(SCRIPTS["200 HTML"]) as stranger:
        bell = watch.Doorbell(ClientSettings(url=stranger.url), RUN)
        wait_until_sync(lambda: not bell.alive, "the bell is given up")
        bell.close()
        assert stranger.calls == 1


def test_history_that_goes_backwards_is_not_shown_for_ever(
    server: RunServer, client: Client
) -> None:
    server.history = [{"seq": 5, "type": "run_created", "at": AT}] * 2
    server.ignores_after = True
    with pytest.raises(ForeignAnswerError, match="history from before item 6"):
        list(watch.history(client, RUN, 0, 1_000))


def test_somebody_else_in_the_place_of_the_server_ends_the_watching(
    server: RunServer, client: Client
) -> None:
    server.has_stream = False
    server.happen("run_created")

    def replaced() -> None:
        server.shown = {"hello": "world"}

    progress = Recorder(replaced)
    with pytest.raises(ForeignAnswerError, match="other JSON"):
        watch.follow(client, RUN, progress)
    assert progress.closed


def test_a_server_that_is_silent_is_away_since_it_was_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One look at it may take a minute: it counts."""
    monkeypatch.setattr(client_module, "REQUEST_SECS", 0.05)
    monkeypatch.setattr(watch, "AWAY_SECS", 0.0)
    with Stranger(SCRIPTS["silent"]) as stranger:
        silent = Client(ClientSettings(url=stranger.url))
        with pytest.raises(ServerAwayError, match="no whole answer"):
            watch.follow(silent, RUN, Recorder())
