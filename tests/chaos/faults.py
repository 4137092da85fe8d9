"""What is done to the server and its store, drawn from the seed; each fault counts itself.

A fault is a method whose name says what happens. It leaves the world whole again, but for servers
that are killed: those the fleet starts again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager

import redis

from tests.chaos.client import Client
from tests.chaos.ledger import Ledger
from tests.chaos.machines import EmbeddedStore, Fleet, OwnStore, ServerProcess
from tests.chaos.proxy import StoreProxy

STEPS_AWAY_SECS = (0.1, 4.0)
LONG_PAUSE_SECS = (0.2, 6.5)
"""Shorter and longer than the lease, and than the time that an answer of the store may take."""


class Faults:
    """`proxy` and an `OwnStore` with a store of one's own, neither with the embedded one."""

    def __init__(
        self,
        *,
        seed: int,
        fleet: Fleet,
        store: OwnStore | EmbeddedStore,
        proxy: StoreProxy | None,
        client: Client,
        ledger: Ledger,
    ) -> None:
        self._dice = random.Random(f"{seed}/faults")
        self._fleet = fleet
        self._store = store
        self._proxy = proxy
        self._client = client
        self._ledger = ledger
        self.counts: Counter[str] = Counter()

    # --- plans -----------------------------------------------------------------------------------

    def names(self) -> dict[str, int]:
        """Every fault that this form knows, with its weight."""
        names = {
            "kill_server": 4, "kill_store": 3, "kill_both": 2, "pause_server": 1, "pause_store": 2,
            "fill_store": 2, "flush_scripts": 1, "second_server": 1, "stop_and_start": 1,
        }  # fmt: skip
        if self._proxy is not None:
            names |= {
                "cut_replies": 4, "partition": 1, "half_open": 1, "refuse": 1, "demote_store": 1,
                "take_over": 1,
            }  # fmt: skip
        else:
            names["hang_store"] = 1
        return names

    def store_names(self) -> dict[str, int]:
        """Those that leave the server alone."""
        of_server = {"kill_server", "kill_both", "second_server", "stop_and_start", "take_over"}
        return {name: w for name, w in self.names().items() if name not in of_server}

    async def for_secs(self, secs: float, names: dict[str, int]) -> None:
        """Each once, then as the dice say."""
        first = list(names)
        self._dice.shuffle(first)
        deadline = time.monotonic() + secs
        while time.monotonic() < deadline:
            one = first.pop() if first else self._dice.choices(list(names), list(names.values()))[0]
            await self._one(one)

    async def exactly(self, names: Mapping[str, int]) -> None:
        """So many of each, in any order."""
        plan = [name for name, count in names.items() for _ in range(count)]
        self._dice.shuffle(plan)
        for name in plan:
            await self._one(name)

    async def _one(self, name: str) -> None:
        fault: Callable[[], Awaitable[None]] = getattr(self, name)
        await fault()
        await asyncio.sleep(self._dice.expovariate(1 / 1.2))

    async def _a_while(self, between: tuple[float, float]) -> None:
        await asyncio.sleep(self._dice.uniform(*between))

    # --- the server ------------------------------------------------------------------------------

    def _strike(self, name: str, number: signal.Signals) -> bool:
        """Signal the server as it is, also one that is just starting."""
        server = self._fleet.current
        if server is None or not server.running:
            return False
        server.signal(number)
        self.counts[name] += 1
        return True

    async def kill_server(self) -> None:
        """At any instant of its life, its start included."""
        if self._dice.random() < 0.8:
            await self._fleet.up()
            await self._a_while((0.0, 1.0))
        while not self._strike("kill_server", signal.SIGKILL):  # it had just ended by itself
            await self._fleet.up()

    async def stop_and_start(self) -> None:
        """SIGTERM: it must end with 0, whatever is in progress."""
        server = await self._fleet.up()
        self.counts["stop_and_start"] += 1
        server.signal(signal.SIGTERM)
        status = await server.ended()
        if status != 0:
            self._ledger.problem(f"{server.name} was stopped and ended with {status}")

    async def pause_server(self) -> None:
        server = await self._fleet.up()
        with self._paused(server.pid):
            self.counts["pause_server"] += 1
            await self._a_while(LONG_PAUSE_SECS)

    async def second_server(self) -> None:
        """It must be refused, or fence the first: never share."""
        await self._ready()
        first = await self._fleet.up()
        second = self._fleet.new()
        await second.spawn()
        ended = asyncio.create_task(second.ended(120))
        while not second.url and not ended.done():
            await asyncio.sleep(0.05)
        if second.url:
            await self._superseded(first, second)
            ended.cancel()
            return
        status = await ended
        said = str(second.log_lines()[-1:])
        self.counts["second_server"] += 1
        if status != 1 or ("owns this store" not in said and "in use by process" not in said):
            self._ledger.problem(f"a second server ended with {status}: {said[:300]}")

    async def take_over(self) -> None:
        """The server sleeps longer than its lease; when it wakes, another has its store."""
        await self._ready()
        first = await self._fleet.up()
        with self._paused(first.pid):
            second = self._fleet.new()
            await second.spawn()
            try:
                async with asyncio.timeout(60):
                    while not second.url:
                        if not second.running:
                            said = second.log_lines()[-1:]
                            self._ledger.problem(f"{second.name} did not take over: {said}")
                            return
                        await asyncio.sleep(0.05)
            except TimeoutError:
                self._ledger.problem(f"{second.name} did not take over")
                return
            self.counts["take_over"] += 1
            self._supersede(first, second)
        await self._end_of(first)

    async def _superseded(self, first: ServerProcess, second: ServerProcess) -> None:
        self.counts["second_server (took over)"] += 1
        self._supersede(first, second)
        await self._end_of(first)

    def _supersede(self, first: ServerProcess, second: ServerProcess) -> None:
        first.superseded = True
        self._fleet.current = second

    async def _end_of(self, first: ServerProcess) -> None:
        woke = time.monotonic()
        try:
            await first.ended(60)
        except TimeoutError:
            self._ledger.problem(f"superseded {first.name} goes on")
            first.signal(signal.SIGKILL)
        self._fleet.wakings.append((woke, time.monotonic()))

    # --- the store -------------------------------------------------------------------------------

    async def kill_store(self) -> None:
        await self._fleet.up()
        await self._end_store("kill_store")

    async def kill_both(self) -> None:
        await self._fleet.up()
        await self._a_while((0.0, 1.0))
        if self._strike("kill_both", signal.SIGKILL):
            await self._end_store(None)

    async def _end_store(self, name: str | None) -> None:
        if isinstance(self._store, OwnStore):
            await self._store.kill()
            await self._a_while(STEPS_AWAY_SECS)
            await self._store.start()
        else:
            while (pid := self._store.pid) is None:
                await asyncio.sleep(0.02)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if name is not None:
            self.counts[name] += 1

    async def pause_store(self) -> None:
        while (pid := self._store.pid) is None:
            await asyncio.sleep(0.02)
        with self._paused(pid):
            self.counts["pause_store"] += 1
            await self._a_while(LONG_PAUSE_SECS)

    async def hang_store(self) -> None:
        """Suspended, and nobody wakes it but the server that has started it, or the next one."""
        while (pid := self._store.pid) is None:
            await asyncio.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            self.counts["hang_store"] += 1

    async def fill_store(self) -> None:
        """No room for anything new, as when `maxmemory` is reached."""
        await self._fleet.up()
        limited = await self._tell("CONFIG", "SET", "maxmemory", "1mb")
        if limited:
            self.counts["fill_store"] += 1
            await self._a_while(STEPS_AWAY_SECS)
            await self._insist_on_store("CONFIG", "SET", "maxmemory", "0")

    async def demote_store(self) -> None:
        """It becomes a replica of nobody: it takes no writes."""
        if await self._tell("REPLICAOF", "127.0.0.1", "1"):
            self.counts["demote_store"] += 1
            await self._a_while(STEPS_AWAY_SECS)
            await self._insist_on_store("REPLICAOF", "NO", "ONE")

    async def flush_scripts(self) -> None:
        if await self._tell("SCRIPT", "FLUSH"):
            self.counts["flush_scripts"] += 1

    # --- the network -----------------------------------------------------------------------------

    async def cut_replies(self) -> None:
        assert self._proxy is not None
        before = self._proxy.cut
        self._proxy.cut_replies(*(self._dice.randrange(0, 40) for _ in range(3)))
        await self._a_while((0.2, 2.0))
        self._proxy.heal()
        self.counts["cut_replies"] += self._proxy.cut - before

    async def partition(self) -> None:
        await self._unreachable("partition", lambda proxy: proxy.partition())

    async def half_open(self) -> None:
        await self._unreachable("half_open", lambda proxy: proxy.partition(half=True))

    async def refuse(self) -> None:
        await self._unreachable("refuse", lambda proxy: proxy.refuse())

    async def _unreachable(self, name: str, worsen: Callable[[StoreProxy], None]) -> None:
        assert self._proxy is not None
        worsen(self._proxy)
        self.counts[name] += 1
        await self._a_while(LONG_PAUSE_SECS)
        self._proxy.heal()

    # --- helpers ---------------------------------------------------------------------------------

    @contextmanager
    def _paused(self, pid: int) -> Generator[None]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    async def _ready(self) -> None:
        """Wait until work is taken; a fault that needs a server that holds its lease."""
        while (await self._client.once("GET", "/health/ready"))[0] != 200:
            await asyncio.sleep(0.1)

    async def _tell(self, *words: str) -> bool:
        """One command to the store, past the server; False if the store is away."""

        def tell() -> bool:
            try:
                with self._store.client() as client:
                    client.execute_command(*words)
            except (redis.RedisError, OSError):
                return False
            return True

        return await asyncio.to_thread(tell)

    async def _insist_on_store(self, *words: str) -> None:
        """Again until it is done; a store that has been restarted has forgotten what was set."""
        while not await self._tell(*words):
            await asyncio.sleep(0.1)
