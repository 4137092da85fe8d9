"""One chaos run: server, store, load and faults put together, and the verdict at the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos import verdict
from tests.chaos.client import Client
from tests.chaos.faults import Faults
from tests.chaos.ledger import Ledger
from tests.chaos.machines import (
    ADMIN_KEY,
    EmbeddedStore,
    Fleet,
    OwnStore,
    free_port,
    is_alive,
    rss_kb,
)
from tests.chaos.outside import Outside
from tests.chaos.pilots import PROJECT, Pilots
from tests.chaos.proxy import StoreProxy

HEALTHY_SECS = 90.0
LAST_RUNS_SECS = 240.0
"""What the last runs get once everything is healthy: a stuck one never ends."""
MEMORY_FACTOR, MEMORY_SLACK_KB = 1.5, 40_000
JUDGE = {"kill_server": 50, "kill_store": 20}
"""The plan by which this is judged."""
MAY_BE_LOGGED = (
    "another server has taken over this store",
    "the embedded store died",
    "the embedded store cannot be started",
    "the store has used ",
)
"""Words of errors in the log that belong to faults."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`exactly`: so many of each fault, instead of a time."""

    form: str
    seed: int
    secs: float
    runs: int
    folder: Path
    exactly: Mapping[str, int] | None = None


@dataclass(kw_only=True)
class Report:
    plan: Plan
    problems: list[str]
    faults: Counter[str]
    ends: Counter[str]
    acknowledged: Counter[str]
    answers: Counter[str]
    refusals: Counter[str]
    logged: Counter[str]
    figures: dict[str, object] = field(default_factory=dict[str, object])

    @property
    def ok(self) -> bool:
        return not self.problems

    def text(self) -> str:
        plan = self.plan
        lines = [f"{plan.form} store, seed {plan.seed}, {plan.runs} runs at a time"]
        for name in ("faults", "ends", "acknowledged", "answers", "refusals", "logged"):
            counted: Counter[str] = getattr(self, name)
            told = ", ".join(f"{what} {n}" for what, n in sorted(counted.items()))
            lines.append(f"  {name}: {told or 'none'}")
        lines += [f"  {name}: {value}" for name, value in self.figures.items()]
        lines += [f"  PROBLEM {problem[:600]}" for problem in self.problems[:40]]
        if len(self.problems) > 40:
            lines.append(f"  … and {len(self.problems) - 40} more")
        lines.append("  verdict: " + ("kept" if self.ok else f"{len(self.problems)} problems"))
        return "\n".join(lines)


async def chaos(plan: Plan) -> Report:
    """Run the plan. The report says what was found; nothing is left running."""
    ledger = Ledger()
    async with _world(plan, ledger) as world:
        began = time.monotonic()
        await world.pilots.define(world.outside.base)
        stop = asyncio.Event()
        flying = asyncio.create_task(world.pilots.fly(stop))
        try:
            await world.attack(plan)
        except AssertionError as error:
            ledger.problem(f"the attack was given up: {error}")
        finally:
            stop.set()
            flying.cancel()
            await asyncio.gather(flying, return_exceptions=True)
        attacked = time.monotonic() - began
        await world.settle()
        report = await world.judge(plan)
        report.figures = {
            "seconds under attack": round(attacked),
            "runs": len(ledger.promises),
            **report.figures,
        }
        return report


@dataclass(kw_only=True)
class World:
    ledger: Ledger
    fleet: Fleet
    store: OwnStore | EmbeddedStore
    client: Client
    outside: Outside
    pilots: Pilots
    faults: Faults
    keeper: asyncio.Task[None]

    async def attack(self, plan: Plan) -> None:
        if plan.exactly is not None:
            await self.faults.exactly(plan.exactly)
            return
        await self.faults.for_secs(plan.secs * 0.75, self.faults.names())
        # The rest leaves the server alone, so that what it keeps by mistake can add up.
        await self.faults.for_secs(plan.secs * 0.25, self.faults.store_names())

    async def settle(self) -> None:
        """Everything is healthy: what was promised must come true now."""
        began = time.monotonic()
        while (await self.client.once("GET", "/health/ready"))[0] != 200:
            if time.monotonic() - began > HEALTHY_SECS:
                self.ledger.problem(f"not ready {HEALTHY_SECS:g} s after the last fault")
                break
            await asyncio.sleep(0.1)
        for stuck in await self.pilots.finished(LAST_RUNS_SECS):
            self.ledger.problem(f"stuck: {stuck}")

    async def judge(self, plan: Plan) -> Report:
        ledger = self.ledger
        await verdict.check_promises(self.client, ledger)
        executions = verdict.read_executions(self.fleet.folder / "executions")
        executions |= self.outside.deliveries
        repeats = verdict.check_executions(ledger, executions, self.fleet.wakings)
        with self.store.client() as client:
            keys = await asyncio.to_thread(verdict.check_store, ledger, client)
        await self._check_memory()
        await self._check_end()
        figures: dict[str, object] = {
            "commands acknowledged": sum(ledger.acknowledged.values()),
            "results acknowledged": len(ledger.results),
            "executions": sum(map(len, executions.values())),
            "of them again, never reported before": repeats.in_progress,
            "of them by a superseded server": repeats.by_superseded,
            "keys in the store": keys,
            "memory of the server": f"{self.rss} kB, of a fresh one on the same data "
            f"{self.base_rss} kB",
        }
        return Report(
            plan=plan,
            problems=ledger.problems,
            faults=self.faults.counts,
            ends=self.fleet.ends,
            acknowledged=ledger.acknowledged,
            answers=self.client.statuses,
            refusals=self.client.words,
            logged=self._logged(),
            figures=figures,
        )

    async def _check_memory(self) -> None:
        """A server that has gone through it all holds hardly more than one that has just begun."""
        old = await self.fleet.up()
        self.rss = rss_kb(old.pid)
        old.signal(signal.SIGTERM)
        if await old.ended() != 0:
            self.ledger.problem(f"{old.name} did not end with 0 when it was stopped")
        while (await self.client.once("GET", "/health/ready"))[0] != 200:
            await asyncio.sleep(0.05)
        fresh = await self.fleet.up()
        self.base_rss = rss_kb(fresh.pid)
        if self.rss > MEMORY_FACTOR * self.base_rss + MEMORY_SLACK_KB:
            self.ledger.problem(f"{old.name} holds {self.rss} kB, a fresh one {self.base_rss} kB")

    async def _check_end(self) -> None:
        """Nothing is left behind by a clean stop."""
        server = await self.fleet.up()
        store = self.store.pid if isinstance(self.store, EmbeddedStore) else None
        self.keeper.cancel()
        server.signal(signal.SIGTERM)
        if await server.ended() != 0:
            self.ledger.problem(f"{server.name} did not end with 0 when it was stopped")
        if store is not None and is_alive(store):
            self.ledger.problem("the embedded store outlives a server that was stopped")
        await self.fleet.all_children_ended()

    def _logged(self) -> Counter[str]:
        """Warnings and errors in the logs. An error that no fault explains is a problem."""
        found: Counter[str] = Counter()
        for server in self.fleet.all:
            for line in server.log_lines():
                level, message = line.get("level"), str(line.get("message"))
                if level == "error":
                    found["errors"] += 1
                    if not message.startswith(MAY_BE_LOGGED):
                        self.ledger.problem(f"{server.name} logged: {json.dumps(line)[:1500]}")
                elif level == "warning":
                    found["warnings"] += 1
                elif level == "plain" and not message.startswith("pilotage: "):
                    self.ledger.problem(f"{server.name} wrote: {message[:300]}")
        return found


@asynccontextmanager
async def _world(plan: Plan, ledger: Ledger) -> AsyncGenerator[World]:
    async with contextlib.AsyncExitStack() as stack:
        outside = await stack.enter_async_context(Outside(ledger))
        proxy: StoreProxy | None = None
        store: OwnStore | EmbeddedStore
        if plan.form == "own":
            own = OwnStore(plan.folder / "store", free_port())
            await own.start()
            stack.push_async_callback(own.kill)
            store = own
            proxy = await stack.enter_async_context(StoreProxy(own.port))
            args = ["--redis-url", f"redis://127.0.0.1:{proxy.port}/0"]
        else:
            store = EmbeddedStore(plan.folder / "data")
            args = ["--data-dir", str(plan.folder / "data")]
        fleet = Fleet(plan.folder, args, ledger.problems)
        client = Client(fleet.url, key=ADMIN_KEY, project=PROJECT, problem=ledger.problem)
        stack.push_async_callback(client.close)
        outside.client = client
        keeper = asyncio.create_task(fleet.keep_up())
        stack.push_async_callback(_end, fleet, keeper)
        await fleet.up()
        pilots = Pilots(client, ledger, plan.seed, plan.runs)
        faults = Faults(
            seed=plan.seed, fleet=fleet, store=store, proxy=proxy, client=client, ledger=ledger
        )
        yield World(
            ledger=ledger, fleet=fleet, store=store, client=client, outside=outside,
            pilots=pilots, faults=faults, keeper=keeper,
        )  # fmt: skip


async def _end(fleet: Fleet, keeper: asyncio.Task[None]) -> None:
    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)
    for server in fleet.all:
        if server.running:
            server.signal(signal.SIGCONT)
            server.signal(signal.SIGKILL)
            await server.ended()
