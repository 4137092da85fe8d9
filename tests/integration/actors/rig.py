"""A runtime on a real store, with jobs that tests hold and let go, and ways to break it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pilotage.actors.catalog_model import Workflow
from pilotage.actors.executors.python_jobs import JobRegistry
from pilotage.actors.gateway import Gateway
from pilotage.actors.principal import ADMIN
from pilotage.actors.runtime import Runtime
from pilotage.persistence.port import RunWrite, StoreUnavailableError, Verdict
from pilotage.persistence.redis_store import RedisStore
from pilotage.runtime.state import RunState, StepState
from pilotage.runtime.validation import ParsedTrigger
from pilotage.settings import Settings
from tests.support.waiting import wait_until

PROJECT = "p"


class BreakableStore(RedisStore):
    """A real store that can be away, lose replies and give verdicts of the test's choice."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.away = False
        self.lose_replies = 0
        self.verdicts: dict[str, Verdict] = {}
        self.commits = 0
        self.renewals = 0

    def _check(self) -> None:
        if self.away:
            raise StoreUnavailableError("taken away by the test")

    async def ping(self) -> None:
        self._check()
        await super().ping()

    async def renew(self, owner: str, fence: int, lease_secs: float) -> None:
        self._check()
        await super().renew(owner, fence, lease_secs)
        self.renewals += 1

    async def commit(self, batch: Sequence[RunWrite], fence: int) -> list[Verdict]:
        self._check()
        self.commits += 1
        chosen = {w.run_id: v for w in batch if (v := self.verdicts.pop(w.run_id, None))}
        stored = await super().commit([w for w in batch if w.run_id not in chosen], fence)
        if self.lose_replies:
            self.lose_replies -= 1
            raise StoreUnavailableError("the reply was lost")
        rest = iter(stored)
        return [chosen.get(w.run_id) or next(rest) for w in batch]


class Rig:
    """One runtime after another on the same store (`restart`, `crash`).

    Jobs: `noop` returns its payload's `value`; `gate` waits until `let(key)`; `fail` fails for
    good as long as its key is in `broken`. What ran stands in `ran`, attempts at the same time in
    `now` and `most`.
    """

    def __init__(self, url: str, folder: Path, **settings: Any) -> None:
        self.url = url
        self.settings = Settings(data_dir=folder, redis_url=url, lease_secs=1, **settings)
        self.gates: dict[str, asyncio.Event] = {}
        self.ran: list[str] = []
        self.began: list[str] = []
        self.broken: set[str] = set()
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.registry = JobRegistry()
        self.registry.register(self._noop, name="noop", inline=True)
        self.registry.register(self._gate, name="gate", inline=True)
        self.registry.register(self._gate, name="gate2", inline=True, max_concurrency=2)
        self.registry.register(self._gate, name="gate1", inline=True, max_concurrency=1)
        self.registry.register(self._fail, name="fail", inline=True, max_attempts=1)
        self.runtime: Runtime
        self.store: BreakableStore

    # --- jobs ----------------------------------------------------------------------------------

    def _noop(self, given: dict[str, Any]) -> Any:
        return given.get("value")

    async def _gate(self, given: dict[str, Any]) -> Any:
        key = given["key"]
        kind = given.get("kind", "gate")
        self.began.append(key)
        self.now[kind] += 1
        self.most[kind] = max(self.most[kind], self.now[kind])
        try:
            await self.gates.setdefault(key, asyncio.Event()).wait()
        finally:
            self.now[kind] -= 1
        self.ran.append(key)
        return {"key": key}

    def _fail(self, given: dict[str, Any]) -> Any:
        key = given.get("key", "fail")
        self.began.append(key)
        if key in self.broken:
            raise ValueError(f"{key} is broken")
        return {"key": key}

    def let(self, *keys: str) -> None:
        for key in keys:
            self.gates.setdefault(key, asyncio.Event()).set()

    # --- the runtime -----------------------------------------------------------------------------

    async def start(self) -> None:
        self.store = BreakableStore(self.url)
        self.runtime = Runtime(settings=self.settings, registry=self.registry, store=self.store)
        await self.runtime.start()

    async def stop(self, grace_secs: float = 0.0) -> None:
        await self.runtime.stop(grace_secs)

    async def crash(self) -> None:
        """End without a word: nothing more is written, the lease stays."""
        runtime = self.runtime
        runtime.fenced.set()  # keeps it from flushing and from giving the lease back
        await runtime.writer.close()
        await runtime.stop(0)

    async def crash_and_start(self) -> None:
        await self.crash()
        await self.start()

    @property
    def gateway(self) -> Gateway:
        return self.runtime.gateway

    # --- runs ------------------------------------------------------------------------------------

    async def workflow(self, name: str, steps: list[dict[str, Any]], **rest: Any) -> Workflow:
        catalog = self.runtime.catalog
        parsed = await catalog.parse_workflow(PROJECT, {"name": name, "steps": steps, **rest})
        return await catalog.create_workflow(parsed, project_id=PROJECT, created_by="test")

    async def patch(self, workflow: Workflow, **changes: Any) -> Workflow:
        catalog = self.runtime.catalog
        workflow = await catalog.workflow_by_id(workflow.id)
        parsed = await catalog.parse_patch(workflow, changes)
        return await catalog.update_workflow(workflow, parsed, updated_by="test")

    async def trigger(self, workflow: Workflow, **payload: Any) -> str:
        trigger = ParsedTrigger(payload=payload or None)
        view = await self.gateway.trigger(workflow, trigger, actor="test")
        return view.id

    async def state(self, run_id: str) -> RunState:
        return await self.gateway.get_run(run_id, ADMIN)

    async def status(self, run_id: str) -> str:
        return (await self.state(run_id)).status.value

    async def step(self, run_id: str, ref: str) -> StepState:
        state = await self.state(run_id)
        return state.step(state.graph.index[ref])

    async def until(self, run_id: str, status: str, within_secs: float = 10.0) -> RunState:
        async def there() -> bool:
            return await self.status(run_id) == status

        try:
            await wait_until(there, f"run is {status}", within_secs=within_secs)
        except AssertionError:
            state = await self.state(run_id)
            steps = [(s.step_ref, n) for s, n in zip(state.graph.steps, state.steps(), strict=True)]
            raise AssertionError(f"not {status}: {state.vitals} {steps}") from None
        return await self.state(run_id)

    async def until_there(self, run_id: str) -> None:
        """Its parent names a child as soon as it is to be made."""

        async def there() -> bool:
            return (await self.store.load_runs([run_id]))[0] is not None

        await wait_until(there, "the run has been made")

    async def until_step(self, run_id: str, ref: str, status: str, wait: str | None = None) -> None:
        async def there() -> bool:
            step = await self.step(run_id, ref)
            return step.status.value == status and (wait is None or step.wait == wait)

        await wait_until(there, f"step {ref} is {status} {wait or ''}")

    def lose_the_next_answer(self, name: str) -> None:
        """The store does as it is asked by this method, and nobody hears of it."""
        store = self.store
        ask = getattr(store, name)

        async def unanswered(*args: Any, **kwargs: Any) -> Any:
            setattr(store, name, ask)
            await ask(*args, **kwargs)
            raise StoreUnavailableError("the reply was lost")

        setattr(store, name, unanswered)

    async def quarantine(self, run_id: str) -> None:
        """Its actor fails until it is set apart."""
        supervisor = self.runtime.supervisor

        def known() -> bool:
            return supervisor.published(run_id) is not None or run_id in supervisor.quarantined

        while run_id not in supervisor.quarantined:
            supervisor.notify(run_id, object())
            await wait_until(lambda: supervisor.published(run_id) is None, "its actor has ended")
            await wait_until(known, "it is up again, or set apart")

    async def began_all(self, *keys: str) -> None:
        await wait_until(lambda: set(keys) <= set(self.began), f"{keys} began")


@asynccontextmanager
async def rig(url: str, folder: Path, **settings: Any) -> AsyncGenerator[Rig]:
    made = Rig(url, folder, **settings)
    await made.start()
    try:
        yield made
    finally:
        made.let(*made.gates)
        await made.stop()


def gate(ref: str, *depends_on: str, job: str = "gate", **rest: Any) -> dict[str, Any]:
    """A step that runs until it is let go; its key is `RUNKEY.ref`, or `ref` without a payload."""
    payload = {"key": '{{ payload.k | default: "" }}' + ref, "kind": job}
    step: dict[str, Any] = {"step_ref": ref, "job_id": job, "payload": payload, **rest}
    return {**step, "depends_on": list(depends_on)} if depends_on else step


def noop(ref: str, *depends_on: str, **rest: Any) -> dict[str, Any]:
    return {"step_ref": ref, "job_id": "noop", "depends_on": list(depends_on), **rest}
