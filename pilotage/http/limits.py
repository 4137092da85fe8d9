"""How often a key may ask, and how often an address may fail to authenticate."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from math import ceil

_WINDOW_SECS = 60.0
MAX_TRACKED = 20_000
"""Keys or addresses remembered; the one not seen for longest is forgotten first."""


class RateLimit:
    """At most `per_minute` requests a minute for each name, in any distribution over the minute.

    The generic cell rate algorithm (ITU-T I.371): one number a name. 0 switches the limit off.
    """

    def __init__(self, per_minute: int, monotonic: Callable[[], float]) -> None:
        self._interval = _WINDOW_SECS / per_minute if per_minute else 0.0
        self._monotonic = monotonic
        self._due: OrderedDict[str, float] = OrderedDict()

    def take(self, name: str) -> int:
        """0 if the request may pass, else the seconds to wait."""
        if not self._interval:
            return 0
        now = self._monotonic()
        due = max(self._due.get(name, now), now)
        wait = due + self._interval - (now + _WINDOW_SECS)
        if wait > 1e-9:
            return max(1, ceil(wait))
        self._due[name] = due + self._interval
        self._due.move_to_end(name)
        if len(self._due) > MAX_TRACKED:
            self._due.popitem(last=False)
        return 0


class FailureLimit:
    """At most `per_minute` failed authentications a minute for each address.

    Only failures are counted and only failures are refused: a valid key passes from any address.
    """

    def __init__(self, per_minute: int, monotonic: Callable[[], float]) -> None:
        self._limit = RateLimit(per_minute, monotonic)

    def failed(self, address: str) -> int:
        """Count a failure; 0, or the seconds for which the address is told to wait."""
        return self._limit.take(address)
