"""Where HTTP attempts wait while the circuit breaker of their host is open.

Nothing is reported for an attempt that waits. When the host may be probed, the attempt that has
waited longest goes out; if the host answers, all others follow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pilotage.actors.executors.breaker import Admission, Breaker
from pilotage.actors.executors.port import AttemptKey
from pilotage.actors.kernel.clock import Clock

CallLater = Callable[[float, Callable[[], None]], asyncio.TimerHandle]


class Visit:
    """One attempt's way to the host. What is learnt about the host is told here, at most once."""

    __slots__ = ("_gate", "_host", "_probe", "_told", "waited")

    def __init__(self, gate: HostGate, host: str, *, probe: bool, waited: bool) -> None:
        self._gate = gate
        self._host = host
        self._probe = probe
        self._told = False
        self.waited = waited

    def answered(self) -> None:
        self._told = True
        self._gate.answered(self._host)

    def unreachable(self) -> None:
        self._told = True
        self._gate.unreachable(self._host, probe=self._probe)

    def close(self) -> None:
        """Nothing was learnt: the attempt was stopped, or ran into its timeout."""
        if self._probe and not self._told:
            self._gate.withdrawn(self._host)


class HostGate:
    """Lets attempts through to their hosts, or holds them."""

    def __init__(self, clock: Clock, call_later: CallLater) -> None:
        self._clock = clock
        self._call_later = call_later
        self._breaker = Breaker()
        self._held: dict[AttemptKey, str] = {}
        self._waiters: dict[str, dict[asyncio.Future[None], None]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    async def enter(self, host: str, key: AttemptKey) -> Visit:
        """Wait until the host may be tried. The visit is to be closed."""
        waited = False
        while (admission := self._breaker.admit(host, self._clock.monotonic())) is Admission.WAIT:
            self._held[key] = host
            waited = True
            try:
                await self._wait(host)
            finally:
                del self._held[key]
        return Visit(self, host, probe=admission is Admission.PROBE, waited=waited)

    def why_held(self, key: AttemptKey) -> str | None:
        host = self._held.get(key)
        if host is None:
            return None
        wait_secs = self._breaker.wait_secs(host, self._clock.monotonic())
        when = "just now" if wait_secs is None else f"again in {wait_secs:.0f} s"
        return (
            f"{host} could not be reached {self._breaker.failures(host)} times in a row; "
            f"it is tried {when}"
        )

    def held_until_ms(self, key: AttemptKey) -> int | None:
        """When the host is tried again; None while the outcome of that is awaited."""
        host = self._held.get(key)
        if host is None:
            return None
        wait_secs = self._breaker.wait_secs(host, self._clock.monotonic())
        return None if wait_secs is None else self._clock.now_ms() + round(wait_secs * 1000)

    # --- what visits tell -------------------------------------------------------------------------

    def answered(self, host: str) -> None:
        self._breaker.succeeded(host)
        timer = self._timers.pop(host, None)
        if timer is not None:
            timer.cancel()
        self._wake(host, len(self._waiters.get(host, ())))

    def unreachable(self, host: str, *, probe: bool) -> None:
        self._breaker.failed(host, self._clock.monotonic(), probe=probe)
        self._arm(host)

    def withdrawn(self, host: str) -> None:
        self._breaker.withdrawn(host)
        self._wake(host, 1)

    # --- waiting ----------------------------------------------------------------------------------

    async def _wait(self, host: str) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(host, {})[waiter] = None
        self._arm(host)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._wake(host, 1)  # woken and stopped in one turn: the next one takes the call
            raise
        finally:
            self._forget(host, waiter)

    def _forget(self, host: str, waiter: asyncio.Future[None]) -> None:
        waiters = self._waiters.get(host)
        if waiters is not None:
            waiters.pop(waiter, None)
            if not waiters:
                del self._waiters[host]

    def _arm(self, host: str) -> None:
        if host in self._waiters and host not in self._timers:
            wait_secs = self._breaker.wait_secs(host, self._clock.monotonic())
            if wait_secs is not None:  # else the probe's outcome wakes whom it concerns
                self._timers[host] = self._call_later(wait_secs, lambda: self._due(host))

    def _due(self, host: str) -> None:
        del self._timers[host]
        self._wake(host, 1)

    def _wake(self, host: str, number: int) -> None:
        for waiter in list(self._waiters.get(host, ()))[:number]:
            self._forget(host, waiter)
            if not waiter.done():
                waiter.set_result(None)
