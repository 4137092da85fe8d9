"""Following a run over HTTP to its end.

The run's stream of Server-Sent Events says *when* there is news; what is shown is read with
plain requests. So a stream that breaks costs a second of delay and never a line, and a server
that is restarted meanwhile is waited for. Each look has the bound of a request, and between two
there is no wait longer than a second: nothing that the stream does can hold the watcher up.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress

from pilotage.cli.answers import Happened, Json, Run, Step, page_of
from pilotage.cli.client import Client, ClientSettings, segment
from pilotage.cli.errors import (
    DONE,
    FAILED,
    CommandError,
    ForeignAnswerError,
    RefusedError,
    ServerAwayError,
)
from pilotage.cli.exchange import Stream
from pilotage.cli.output import Output
from pilotage.cli.progress import Progress, progress_for
from pilotage.cli.session import Session
from pilotage.runtime.status import TERMINAL_RUN

TICK_SECS = 1.0
"""The longest between two looks at the run, stream or not."""
POLL_SECS = 0.25
"""The same where no stream can be had."""
SETTLE_SECS = 0.05
"""News come in bursts; one look covers what arrives within this time."""
AWAY_SECS = 60.0
"""How long a server may be away before watching gives up."""


def history(client: Client, run_id: str, after: int, limit: int) -> Iterator[dict[str, Json]]:
    """Up to `limit` history items after a sequence number, oldest first."""
    path = f"/v1/workflow-runs/{segment(run_id)}/events"
    left = limit
    while left > 0:
        query = {"after": after, "limit": min(left, 100)}
        page = client.get(path, page_of(Happened), query).data
        items: list[dict[str, Json]] = page["data"]
        if any(item["seq"] <= after for item in items):
            raise client.foreign(f"history from before item {after + 1}")
        yield from items[:left]
        left -= len(items)
        if not items or not page.get("has_more"):
            return
        after = items[-1]["seq"]


class Doorbell:
    """A thread that reads the stream of a run and rings at every line of it."""

    def __init__(self, settings: ClientSettings, run_id: str) -> None:
        self._settings = settings
        self._path = f"/v1/workflow-runs/{segment(run_id)}/stream"
        self._rung = threading.Event()
        self._over = threading.Event()
        self.alive = True
        self._stream: Stream | None = None
        self._thread = threading.Thread(target=self._listen, name="stream", daemon=True)
        self._thread.start()

    def wait(self, secs: float) -> None:
        """Return at the next ring, or after `secs`."""
        self._rung.wait(secs)
        self._rung.clear()

    def close(self) -> None:
        self._over.set()
        if self._stream is not None:
            self._stream.interrupt()
        self._thread.join(TICK_SECS)

    def _listen(self) -> None:
        last: str | None = None
        client = Client(self._settings)
        while not self._over.is_set():
            try:
                with closing(client.open_stream(self._path, last)) as stream:
                    self._stream = stream
                    for line in stream:
                        if self._over.is_set():
                            return
                        if line.startswith(b"id:"):
                            last = line[3:].strip().decode()
                        if line.startswith(b"data:"):
                            self._rung.set()
            except (RefusedError, ForeignAnswerError):
                self.alive = False  # looking does without; if that is refused too, it says why
                return
            except (OSError, ValueError, http.client.HTTPException, ServerAwayError):
                pass
            self._over.wait(TICK_SECS)


def follow(client: Client, run_id: str, progress: Progress) -> dict[str, Json]:
    """Show a run until it has ended; answers the run as it was then."""
    path = f"/v1/workflow-runs/{segment(run_id)}"
    bell = Doorbell(client.settings, run_id)
    seq = 0
    away_since: float | None = None
    try:
        while True:
            began = time.monotonic()
            try:
                # The run first: what is read after it was terminal contains its last items.
                run: dict[str, Json] = client.get(path, Run).data
                seq = _show_news(client, run, seq, progress)
                away_since = None
            except CommandError as error:
                if not isinstance(error, ServerAwayError) and getattr(error, "status", 0) != 503:
                    raise
                away_since = began if away_since is None else away_since
                if time.monotonic() - away_since > AWAY_SECS:
                    raise
            else:
                if run["status"] in TERMINAL_RUN:
                    return run
            bell.wait(TICK_SECS if bell.alive else POLL_SECS)
            time.sleep(SETTLE_SECS)
    finally:
        bell.close()
        with suppress(RuntimeError):
            progress.close()


def _show_news(client: Client, run: dict[str, Json], seq: int, progress: Progress) -> int:
    news = list(history(client, run["id"], seq, 1_000_000))
    progress.items(news)
    # At the end once more: history can be a moment ahead of what was read of the steps.
    if progress.needs_steps and (news or seq == 0 or run["status"] in TERMINAL_RUN):
        steps = client.get(f"/v1/workflow-runs/{segment(run['id'])}/steps", list[Step]).data
        progress.steps(run, steps)
    return int(news[-1]["seq"]) if news else seq


def outcome(out: Output, run: dict[str, Json], *, say: bool = True) -> int:
    """The exit status of a run's end; says it, unless JSON lines say it already."""
    status = run["status"]
    if say and not out.as_json:
        error = f": {run['error']}" if run.get("error") else ""
        out.say(f"{run['id']} is {status}{error}", "green" if status == "completed" else "red")
    return DONE if status == "completed" else FAILED


def watch_run(session: Session, run_id: str) -> int:
    out = session.out
    run = follow(session.client, run_id, progress_for(out, run_id, as_json=out.as_json))
    return outcome(out, run)
