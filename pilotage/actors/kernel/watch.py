"""Death watch, and how often an actor may be restarted.

A watcher is told exactly once how a watched actor ended: `Terminated` with `reason` None after a
normal stop, with the exception after a crash. It is told after the actor has answered all its mail
(with `ActorDeadError`), and its mailbox bound does not apply to this message, so it is never lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

from pilotage.actors.kernel.actor import LoopRef
from pilotage.actors.kernel.termination import Terminated

__all__ = ["RestartIntensity", "Terminated", "Watcher", "unwatch", "watch"]

Watcher: TypeAlias = LoopRef[Any] | Callable[[Terminated], object]


def watch(ref: LoopRef[Any], watcher: Watcher) -> None:
    """Tell `watcher` when the actor of `ref` ends: as a message, or by a call on its loop.

    From any thread. An actor that has ended already is reported at once, with `ActorDeadError` as
    the reason, because the real one is not kept. The same watcher is told once, however often it
    was registered.
    """
    ref.cell.dispatcher.on_loop(ref.cell.add_watcher, ref, _listener(watcher))


def unwatch(ref: LoopRef[Any], watcher: Watcher) -> None:
    """Do not tell `watcher` any more. From any thread; nothing happens if it was not watching."""
    ref.cell.dispatcher.on_loop(ref.cell.remove_watcher, _listener(watcher))


def _listener(watcher: Watcher) -> Callable[[Terminated], object]:
    return watcher.cell if isinstance(watcher, LoopRef) else watcher


class RestartIntensity:
    """At most `max_restarts` in any `window_secs`, with a delay that doubles from the second on.

    The rule is the intensity and period of OTP supervisors. Pure: the caller passes the time, any
    clock of seconds that does not go back.
    """

    __slots__ = ("_restarts", "base_delay_secs", "max_delay_secs", "max_restarts", "window_secs")

    def __init__(
        self,
        max_restarts: int,
        window_secs: float,
        *,
        base_delay_secs: float = 0.0,
        max_delay_secs: float = 30.0,
    ) -> None:
        if max_restarts < 0 or window_secs <= 0 or base_delay_secs < 0 or max_delay_secs < 0:
            raise ValueError(
                "max_restarts and the delays must be 0 or more and window_secs more than 0, got "
                f"{max_restarts=} {window_secs=} {base_delay_secs=} {max_delay_secs=}"
            )
        self.max_restarts = max_restarts
        self.window_secs = window_secs
        self.base_delay_secs = base_delay_secs
        self.max_delay_secs = max_delay_secs
        self._restarts: deque[float] = deque(maxlen=max_restarts)

    def next_delay(self, now: float) -> float | None:
        """Count a crash at `now`: seconds to wait before the restart, None to give up.

        The first restart of a window comes at once, the nth after
        `min(max_delay_secs, base_delay_secs * 2**(n - 2))`.
        """
        restarts = self._restarts
        while restarts and restarts[0] <= now - self.window_secs:
            restarts.popleft()
        if len(restarts) >= self.max_restarts:
            return None
        restarts.append(now)
        earlier = len(restarts) - 1
        if earlier == 0:
            return 0.0
        # 2**64 is beyond any delay: the bound keeps the float finite.
        return min(self.max_delay_secs, self.base_delay_secs * 2.0 ** min(earlier - 1, 64))

    def recent(self, now: float) -> int:
        """How many restarts of the window that ends at `now` are on record."""
        return sum(1 for at in self._restarts if at > now - self.window_secs)
