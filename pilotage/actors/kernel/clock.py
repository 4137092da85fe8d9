"""The two clocks a shell needs, behind one port, so that tests and simulations can drive time.

Wall-clock time (`now_ms`) is what due times are written in: it survives a restart and may jump.
Monotonic time (`monotonic`) measures durations in one process and never goes back.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where wall-clock and monotonic time come from."""

    def now_ms(self) -> int:
        """Milliseconds since the Unix epoch. May jump either way."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary origin. Never goes back."""
        ...


class SystemClock:
    """The clocks of the operating system."""

    __slots__ = ()

    def now_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        return time.time_ns() // 1_000_000

    monotonic = staticmethod(time.monotonic)  # no frame of ours: it is asked often
    """Seconds from an arbitrary origin, never going back."""
