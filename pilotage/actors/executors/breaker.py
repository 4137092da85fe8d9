"""A circuit breaker per host: whoever cannot be reached is left alone for a while.

Closed: attempts go out; five connection failures in a row open it. Open: nothing goes out for 30
seconds. Half-open: one attempt goes out as a probe; if it connects the breaker closes, if not it is
open for another 30 seconds. Pure: time comes in as an argument, in seconds of a monotonic clock.
"""

from __future__ import annotations

from enum import Enum

FAILURES_TO_OPEN = 5
OPEN_SECS = 30.0
FORGET_SECS = 600.0
"""Failures as old as that no longer count."""
MAX_HOSTS = 10_000
"""Hosts with failures that are remembered; beyond it the oldest is forgotten."""


class Admission(Enum):
    """Whether an attempt may go out. A probe must tell how it went."""

    GO = "go"
    PROBE = "probe"
    WAIT = "wait"


class _Host:
    __slots__ = ("failed_at", "failures", "open_until", "probing")

    def __init__(self) -> None:
        self.failures = 0
        self.failed_at = 0.0
        self.open_until: float | None = None
        self.probing = False


class Breaker:
    """Only hosts with failures are kept: a host that answers costs nothing."""

    def __init__(
        self, *, failures_to_open: int = FAILURES_TO_OPEN, open_secs: float = OPEN_SECS
    ) -> None:
        self._failures_to_open = failures_to_open
        self._open_secs = open_secs
        self._hosts: dict[str, _Host] = {}

    def __len__(self) -> int:
        return len(self._hosts)

    def admit(self, host: str, now: float) -> Admission:
        """In the half-open state the first asker is the probe, until it calls `succeeded`,
        `failed` or `withdrawn`.
        """
        state = self._hosts.get(host)
        if state is None or state.open_until is None:
            return Admission.GO
        if state.probing or now < state.open_until:
            return Admission.WAIT
        state.probing = True
        return Admission.PROBE

    def wait_secs(self, host: str, now: float) -> float | None:
        """How long until the host may be probed; None while the outcome of a probe is awaited."""
        state = self._hosts.get(host)
        if state is None or state.open_until is None:
            return 0.0
        return None if state.probing else max(0.0, state.open_until - now)

    def failures(self, host: str) -> int:
        state = self._hosts.get(host)
        return 0 if state is None else state.failures

    def succeeded(self, host: str) -> None:
        """The host answered, whatever it said."""
        self._hosts.pop(host, None)

    def failed(self, host: str, now: float, *, probe: bool = False) -> None:
        """The host could not be reached."""
        state = self._hosts.get(host)
        if state is None:
            if len(self._hosts) >= MAX_HOSTS:
                self._hosts.pop(next(iter(self._hosts)))
            state = self._hosts[host] = _Host()
        elif now - state.failed_at > FORGET_SECS and state.open_until is None:
            state.failures = 0
        state.failures += 1
        state.failed_at = now
        state.probing = state.probing and not probe
        # The failure of an attempt that was under way when the breaker opened extends nothing.
        opens = state.open_until is None and state.failures >= self._failures_to_open
        if probe or opens:
            state.open_until = now + self._open_secs

    def withdrawn(self, host: str) -> None:
        """The probe was stopped before anything was known: the next asker is the probe."""
        state = self._hosts.get(host)
        if state is not None:
            state.probing = False
