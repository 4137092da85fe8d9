"""How many requests are out at once: a bound in all and one for each host, first come first served.

A host that lets its callers wait cannot take all connections from the others: its attempts wait
for one of its own, everybody else goes past them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from types import ModuleType

resource: ModuleType | None = None
with contextlib.suppress(ImportError):  # not on every system
    import resource


class Connections:
    """`take` before a request, `give` after it. On one event loop."""

    def __init__(self, limit: int, limit_per_host: int) -> None:
        self._limit = limit
        self._limit_per_host = limit_per_host
        self._out: Counter[str] = Counter()
        self._total = 0
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @property
    def out(self) -> int:
        return self._total

    def try_take(self, host: str) -> bool:
        """Take one if there is room and nobody has waited longer."""
        if host in self._waiting or not self._room(host):
            return False
        self._count(host, 1)
        return True

    async def take(self, host: str) -> None:
        """Wait for one. Cancelled, it takes none."""
        if self.try_take(host):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(host, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(host)  # it was handed over and is not used
            else:
                self._leave(host, turn)
            raise

    def give(self, host: str) -> None:
        """The request is over: whoever has waited longest for the host goes, else another host."""
        self._count(host, -1)
        for following in (host, *tuple(self._waiting)):
            if following in self._waiting and self._room(following) and self._hand_over(following):
                return

    def why(self, host: str) -> str:
        """Why somebody waits."""
        if self._out[host] >= self._limit_per_host:
            return f"{self._limit_per_host} requests to {host} are under way; it waits for its turn"
        return f"{self._limit} requests are under way; it waits for its turn"

    def _room(self, host: str) -> bool:
        return self._total < self._limit and self._out[host] < self._limit_per_host

    def _hand_over(self, host: str) -> bool:
        """False if all who waited were cancelled in this turn of the loop."""
        waiting = self._waiting.pop(host)
        while waiting:
            turn = waiting.popleft()
            if not turn.done():
                if waiting:
                    self._waiting[host] = waiting  # at the end: hosts take turns
                self._count(host, 1)
                turn.set_result(None)
                return True
        return False

    def _leave(self, host: str, turn: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(host)
        if waiting is not None and turn in waiting:
            waiting.remove(turn)
            if not waiting:
                del self._waiting[host]

    def _count(self, host: str, by: int) -> None:
        self._total += by
        self._out[host] += by
        if not self._out[host]:
            del self._out[host]


def room_for(connections: int, *, others: int = 512) -> int:
    """How many of these connections the process may have open, besides `others` descriptors.

    The soft limit of the process is raised as far as that needs and the system allows.
    """
    if resource is None:
        return connections
    soft: int
    hard: int
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + others
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    if soft == resource.RLIM_INFINITY:
        return connections
    return max(1, min(connections, max(soft - others, soft // 2)))
