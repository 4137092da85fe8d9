"""`FakeClock`: time that only the test moves."""

from __future__ import annotations

from typing import Final

START_MS: Final = 1_700_000_000_000


class FakeClock:
    """A `Clock` whose two times are moved by hand, together or the wall clock alone."""

    def __init__(self, now_ms: int = START_MS) -> None:
        self._now_ms = now_ms
        self._elapsed_ms = 0

    def now_ms(self) -> int:
        """Wall-clock milliseconds since the epoch."""
        return self._now_ms

    def monotonic(self) -> float:
        """Seconds that `advance_ms` has let pass."""
        return self._elapsed_ms / 1000

    def advance_ms(self, duration_ms: int) -> None:
        """Let time pass: both clocks move."""
        if duration_ms < 0:
            raise ValueError("time passes forward only; use jump_ms to set the wall clock back")
        self._now_ms += duration_ms
        self._elapsed_ms += duration_ms

    def jump_ms(self, offset_ms: int) -> None:
        """Set the wall clock forward or back, as an administrator or NTP does."""
        self._now_ms += offset_ms
