"""What a Python job is given besides its input, and the words it can end an attempt with."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec

from pilotage.actors.executors.port import Attempt, Logged, Progressed, Report
from pilotage.runtime.errors import PilotageError

MAX_LOG_LINES = 1_000
MAX_LOG_CHARS = 2_000
MAX_LOG_DATA_BYTES = 8 << 10
LOG_LEVELS = ("debug", "info", "warning", "error")


class Retry(PilotageError):  # noqa: N818 - it is an order, not a mishap
    """Raised by a job: this attempt failed, another may help; `after` says when (else: policy)."""

    def __init__(self, message: str = "", *, after: float | timedelta | None = None) -> None:
        super().__init__(message or "the job asked to be tried again")
        self.after_secs = after.total_seconds() if isinstance(after, timedelta) else after


class Fail(PilotageError):  # noqa: N818 - likewise
    """Raised by a job: this attempt failed and no other will help."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or "the job gave up")


class JobContext:
    """The attempt, as its function sees it. Thread-safe.

    `run_id`, `step_ref` and `attempt` say what is done; `idempotency_key` stays the same when the
    attempt is delivered again after a crash: hand it to whatever must not happen twice.
    """

    __slots__ = ("_attempt", "_cancelled", "_emit", "_event", "_lines", "_lock")

    def __init__(self, attempt: Attempt, emit: Callable[[Report], None]) -> None:
        self._attempt = attempt
        self._emit = emit
        self._cancelled = False
        self._event: threading.Event | None = None
        self._lines = 0
        self._lock = threading.Lock()

    @property
    def project_id(self) -> str:
        return self._attempt.project_id

    @property
    def run_id(self) -> str:
        return self._attempt.run_id

    @property
    def step_ref(self) -> str:
        return self._attempt.step_ref

    @property
    def attempt(self) -> int:
        return self._attempt.attempt

    @property
    def job_run_id(self) -> str:
        return self._attempt.job_run_id

    @property
    def idempotency_key(self) -> str:
        return self._attempt.idempotency_key

    @property
    def cancelled(self) -> bool:
        """The attempt was told to stop: its result is no longer wanted. Plain functions look here
        now and then; `async` ones are cancelled as tasks are.
        """
        return self._cancelled

    @property
    def cancelled_event(self) -> threading.Event:
        """The same to wait for: `if ctx.cancelled_event.wait(5): return`."""
        with self._lock:
            if self._event is None:
                self._event = threading.Event()
                if self._cancelled:
                    self._event.set()
            return self._event

    def progress(self, percent: float, message: str | None = None) -> None:
        """Show how far the job is, 0 to 100. As often as you like: only the newest is kept."""
        if not math.isfinite(percent):
            raise ValueError(f"progress must be 0 to 100, not {percent}")
        self._emit(Progressed(min(max(float(percent), 0.0), 100.0), _cut(message)))

    def log(self, message: str, *, level: str = "info", **data: Any) -> None:
        """Add a line to the job run's log; `data` is anything that can be written as JSON.

        Kept: 1,000 lines of 2,000 characters, each with 8 KiB of data.
        """
        if level not in LOG_LEVELS:
            raise ValueError(f"level must be one of {', '.join(LOG_LEVELS)}, not {level!r}")
        with self._lock:
            self._lines += 1
            number = self._lines
        if number < MAX_LOG_LINES:
            self._emit(Logged(level, _cut(message) or "", _encoded(data)))
        elif number == MAX_LOG_LINES:
            self._emit(Logged("warning", f"only {MAX_LOG_LINES} lines are kept", None))

    def detach(self) -> None:
        """Used by the executor when the attempt is over: what is said from now on goes nowhere.

        Context and attempt know each other; parted, both are freed at once, without the collector.
        """
        self._emit = _nowhere

    def cancel(self) -> None:
        """Used by the executor when the attempt is told to stop."""
        with self._lock:
            self._cancelled = True
            if self._event is not None:
                self._event.set()


def _nowhere(_: Report) -> None:
    """What an attempt says that is over."""


def printable(text: str, max_chars: int = MAX_LOG_CHARS) -> str:
    """The text as it can be stored: bounded, and without what UTF-8 cannot carry."""
    if len(text) > max_chars:
        text = text[: max_chars - 1] + "…"
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _cut(text: str | None) -> str | None:
    return None if text is None else printable(str(text))


def _encoded(data: dict[str, Any]) -> bytes | None:
    if not data:
        return None
    try:
        encoded = msgspec.json.encode(data, enc_hook=repr)
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        return msgspec.json.encode({"not_kept": printable(f"{type(error).__name__}: {error}", 200)})
    if len(encoded) > MAX_LOG_DATA_BYTES:
        return msgspec.json.encode({"not_kept": f"{len(encoded)} bytes"})
    return encoded
