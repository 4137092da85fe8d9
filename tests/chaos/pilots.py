"""The load: one pilot a run, each with a scenario of its own, drawn from the seed.

A pilot repeats each request until it is answered and then remembers what it was promised. With an
idempotency key every command happens once, however often it is sent.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from tests.chaos.client import Client
from tests.chaos.ledger import Ledger, Promise

PROJECT = "chaos"
ENOUGH_PROBLEMS = 100
"""More would say nothing new."""
POLL_SECS, MAX_POLL_SECS = 0.2, 1.5
TERMINAL = frozenset({"completed", "failed", "timed_out", "canceled"})
Steps = dict[str, dict[str, Any]]

BEFORE = {"a": 1, "f": 2, "cb": 1}
"""Steps before the approval, with the attempt that each succeeds in."""
AFTER = {"p": 1, "e": 1, "s": 1, "lim": 1, "sub": 1}
CHILD = {"c1": 1, "c2": 1}
SHORT = {"a": 1, "i": 1, "s": 1}


def definitions(outside: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Jobs and workflows, children before their parents."""

    def http_job(slug: str, kind: str, **more: Any) -> dict[str, Any]:
        return {
            "project_id": PROJECT, "name": slug, "slug": slug, "endpoint_url": f"{outside}/{kind}",
            "max_attempts": 4, "retry_initial_delay_secs": 0.1, **more,
        }  # fmt: skip

    def work(ref: str, job: str, *after: str) -> dict[str, Any]:
        return {"step_ref": ref, "job_id": job, "depends_on": list(after)}

    def order(slug: str, python_job: str) -> dict[str, Any]:
        return {
            "project_id": PROJECT, "name": slug, "slug": slug,
            "steps": [
                work("a", "ok"), work("f", "flaky", "a"), work("cb", "callback", "a"),
                {"step_ref": "go", "step_type": "approval", "depends_on": ["f", "cb"]},
                work("p", python_job, "go"),
                {"step_ref": "s", "step_type": "sleep", "sleep_duration_secs": 0.4,
                 "depends_on": ["go"]},
                work("lim", "limited", "go"),
                {"step_ref": "e", "step_type": "wait_for_event", "depends_on": ["p"],
                 "event_key": "go-{{ run.id }}", "event_timeout_secs": 36000},
                {"step_ref": "sub", "step_type": "sub_workflow", "sub_workflow_id": "child",
                 "depends_on": ["e", "s", "lim"]},
            ],
        }  # fmt: skip

    jobs = [
        http_job("ok", "ok"), http_job("flaky", "flaky"), http_job("callback", "callback"),
        http_job("limited", "ok", max_concurrency=6),
    ]  # fmt: skip
    child = [work("c1", "ok"), work("c2", "mark_async", "c1")]
    short = [
        work("a", "ok"),
        work("i", "mark_inline", "a"),
        {"step_ref": "s", "step_type": "sleep", "sleep_duration_secs": 0.1, "depends_on": ["i"]},
    ]
    base = {"project_id": PROJECT}
    workflows = [
        {**base, "name": "child", "slug": "child", "steps": child},
        order("order", "mark_thread"),
        order("order-process", "mark_process"),
        {**base, "name": "queued", "slug": "queued", "steps": short, "max_concurrent_runs": 8},
    ]
    return jobs, workflows


class Pilots:
    """`runs` of them at a time, until `stop`; `finished` then waits for the last."""

    def __init__(self, client: Client, ledger: Ledger, seed: int, runs: int) -> None:
        self._client = client
        self._ledger = ledger
        self._seed = seed
        self._room = asyncio.Semaphore(runs)
        self._tasks: dict[asyncio.Task[None], str] = {}
        self._started = 0
        self.done = 0

    async def define(self, outside: str) -> None:
        jobs, workflows = definitions(outside)
        for path, made in (("/v1/jobs", jobs), ("/v1/workflows", workflows)):
            for body in made:
                key = f"{self._seed}-{path}-{body['slug']}"
                await self._client.insist("POST", path, body, key=key)

    async def fly(self, stop: asyncio.Event) -> None:
        """Start pilots as others end."""
        while not stop.is_set() and len(self._ledger.problems) < ENOUGH_PROBLEMS:
            await self._room.acquire()
            number = self._started
            self._started += 1
            task = asyncio.create_task(self._pilot(number))
            self._tasks[task] = f"pilot {number}"
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._room.release()
        name = self._tasks.pop(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._ledger.problem(f"{name}: {error!r}")
        else:
            self.done += 1

    async def finished(self, within_secs: float) -> list[str]:
        """Wait for the last pilots; those that are still up then are stuck, and are named."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=within_secs)
        stuck = list(self._tasks.values())
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        return stuck

    # --- one run ---------------------------------------------------------------------------------

    async def _pilot(self, number: int) -> None:
        dice = random.Random(f"{self._seed}/{number}")
        if dice.random() < 0.25:
            await self._queued(number)
            return
        slug = "order-process" if dice.random() < 0.1 else "order"
        names = ("through", "cancel", "pause", "skip", "force", "reject-retry", "reject-again")
        weights = (4, 2, 2, 1, 1, 1, 1)
        name = dice.choices((*names, "replay"), (*weights, 2))[0]
        promise = await self._trigger(slug, number, name)
        await _SCENARIOS[name](self, promise, dice)

    async def _trigger(self, slug: str, number: int, scenario: str) -> Promise:
        path = f"/v1/workflows/{slug}/trigger"
        key = f"{self._seed}-{number}"
        body = {"payload": {"n": number}, "tags": {"scenario": scenario}}
        _, run = await self._insist("trigger", "POST", path, body, key=key)
        run_id = run["id"]
        if number % 3 == 0:
            _, again = await self._insist("trigger again", "POST", path, body, key=key)
            if again["id"] != run_id:
                self._ledger.problem(f"{key} made two runs: {run_id} and {again['id']}")
        if run_id in self._ledger.promises:
            self._ledger.problem(f"{key} was answered with the run of another: {run_id}")
        self._tasks[_this()] = f"{scenario} {run_id}"
        return self._ledger.promise(Promise(run_id=run_id, scenario=scenario))

    async def _queued(self, number: int) -> None:
        promise = await self._trigger("queued", number, "queued")
        _expect(promise, SHORT)
        await self._until_ended(promise)

    async def _through(self, promise: Promise, dice: random.Random) -> None:
        await self._parked(promise)
        await self._decide(promise, "approve", {"comment": "yes"})
        await self._second_half(promise)

    async def _second_half(self, promise: Promise) -> None:
        _expect(promise, BEFORE, AFTER, {"go": promise.attempts.get("go", 1)})
        await self._send_event(promise, 1)
        await self._until_ended(promise)

    async def _cancel(self, promise: Promise, dice: random.Random) -> None:
        if dice.random() < 0.5:
            await asyncio.sleep(dice.uniform(0, 1.5))
        else:
            await self._parked(promise)
        path = f"/v1/workflow-runs/{promise.run_id}?reason=chaos"
        await self._insist("cancel", "DELETE", path)
        promise.status = "canceled"
        promise.commands.append(("run_ended", None))
        await self._must_be(promise, "canceled")

    async def _pause(self, promise: Promise, dice: random.Random) -> None:
        await asyncio.sleep(dice.uniform(0, 1.5))
        await self._act(promise, "pause", "pause")
        promise.commands += [("run_paused", None), ("run_resumed", None)]
        await self._must_be(promise, "paused")
        await asyncio.sleep(dice.uniform(0, 2.0))
        await self._act(promise, "resume", "resume")
        await self._through(promise, dice)

    async def _skip(self, promise: Promise, dice: random.Random) -> None:
        await self._parked(promise)
        await self._decide(promise, "skip", {"reason": "chaos"})
        promise.steps["go"] = "skipped"
        await self._second_half(promise)

    async def _force(self, promise: Promise, dice: random.Random) -> None:
        await self._parked(promise)
        given = {"given": promise.run_id}
        await self._decide(promise, "force-complete", {"result": given})
        promise.outputs["go"] = given
        await self._second_half(promise)

    async def _reject_and_retry_the_run(self, promise: Promise, dice: random.Random) -> None:
        await self._parked(promise)
        await self._decide(promise, "reject", {"reason": "no"})
        promise.status = "failed"
        promise.steps.update(dict.fromkeys(BEFORE, "completed"), go="failed")
        promise.steps.update(dict.fromkeys(AFTER, "canceled"))
        await self._until_ended(promise)
        _, run = await self._act(promise, "retry", "retry")
        again = Promise(run_id=run["id"], scenario="retried", carried=frozenset(BEFORE))
        self._tasks[_this()] = f"retried {again.run_id}"
        self._ledger.promise(again)
        await self._through(again, dice)

    async def _reject_and_ask_again(self, promise: Promise, dice: random.Random) -> None:
        await self._parked(promise)
        await self._decide(promise, "reject", {"reason": "not yet"})
        promise.status = "failed"
        await self._until_ended(promise)
        await self._act(promise, "steps/go/retry", "retry-step")
        promise.status = "completed"
        promise.attempts["go"] = 2
        await self._parked(promise)
        await self._decide(promise, "approve", None)
        await self._second_half(promise)

    async def _replay(self, promise: Promise, dice: random.Random) -> None:
        await self._through(promise, dice)
        _, answer = await self._act(promise, "steps/p/replay-subtree", "replay")
        if answer != {"reset_steps": 3}:
            self._ledger.problem(f"{promise.run_id}: replay-subtree of p says {answer}")
        _expect(promise, BEFORE, AFTER, {"p": 2, "e": 2, "sub": 2})
        await self._send_event(promise, 2)
        await self._until_ended(promise)

    # --- what scenarios are made of --------------------------------------------------------------

    async def _insist(
        self, what: str, method: str, path: str, body: Any = None, *, key: str | None = None
    ) -> tuple[int, Any]:
        answer = await self._client.insist(method, path, body, key=key)
        if answer[0] >= 300:
            raise RuntimeError(f"{what} was refused: {answer}")
        self._ledger.acknowledged[what] += 1
        return answer

    async def _act(
        self, promise: Promise, path: str, what: str, body: Any = None
    ) -> tuple[int, Any]:
        key = f"{self._seed}-{promise.run_id}-{what}-{len(promise.commands)}"
        path = f"/v1/workflow-runs/{promise.run_id}/{path}"
        return await self._insist(what, "POST", path, body or {}, key=key)

    async def _decide(self, promise: Promise, verb: str, body: Any) -> None:
        await self._act(promise, f"steps/go/{verb}", verb, body)
        promise.commands.append((_HISTORY[verb], "go"))
        step = (await self._steps(promise))["go"]
        if step["status"] not in {"completed", "failed", "skipped"}:
            self._ledger.problem(f"{promise.run_id}: {verb} acknowledged, step is {step}")

    async def _send_event(self, promise: Promise, number: int) -> None:
        body = {"project_id": PROJECT, "payload": {"n": number}, "buffer_secs": 600}
        key = f"{self._seed}-{promise.run_id}-event-{number}"
        path = f"/v1/events/go-{promise.run_id}/send"
        _, sent = await self._insist("event", "POST", path, body, key=key)
        if not sent["delivered"] and not sent["buffered"]:
            self._ledger.problem(f"{promise.run_id}: event neither delivered nor kept: {sent}")
        # The second of a replay may find the first once more, kept by a send whose answer was lost.
        if number == 1:
            promise.outputs["e"] = {"n": number}
        else:
            promise.outputs.pop("e", None)

    async def _must_be(self, promise: Promise, status: str) -> None:
        """A read after an acknowledged command must show it, whatever happened in between."""
        run = await self._run(promise)
        if run["status"] != status:
            self._ledger.problem(f"{promise.run_id}: must be {status}, is {run['status']}")

    async def _run(self, promise: Promise) -> dict[str, Any]:
        path = f"/v1/workflow-runs/{promise.run_id}"
        run: dict[str, Any] = (await self._client.insist("GET", path))[1]
        return run

    async def _steps(self, promise: Promise) -> Steps:
        path = f"/v1/workflow-runs/{promise.run_id}/steps"
        listed = (await self._client.insist("GET", path))[1]
        steps = {step["step_ref"]: step for step in listed}
        self._ledger.read(promise.run_id, steps)
        return steps

    async def _parked(self, promise: Promise) -> None:
        def there(steps: Steps) -> bool:
            return steps["go"].get("waiting_for") == "approval"

        await self._until(promise, there)

    async def _until(self, promise: Promise, there: Callable[[Steps], bool]) -> None:
        pause = POLL_SECS
        while not there(await self._steps(promise)):
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, MAX_POLL_SECS)

    async def _until_ended(self, promise: Promise) -> None:
        pause = POLL_SECS
        while (await self._run(promise))["status"] not in TERMINAL:
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, MAX_POLL_SECS)
        await self._steps(promise)


def _this() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


def _expect(promise: Promise, *attempts: dict[str, int]) -> None:
    for some in attempts:
        for ref, attempt in some.items():
            promise.steps.setdefault(ref, "completed")
            promise.attempts[ref] = attempt


_HISTORY = {
    "approve": "step_completed",
    "reject": "step_failed",
    "skip": "step_skipped",
    "force-complete": "step_completed",
}
_SCENARIOS: dict[str, Callable[[Pilots, Promise, random.Random], Any]] = {
    "through": Pilots._through,
    "cancel": Pilots._cancel,
    "pause": Pilots._pause,
    "skip": Pilots._skip,
    "force": Pilots._force,
    "reject-retry": Pilots._reject_and_retry_the_run,
    "reject-again": Pilots._reject_and_ask_again,
    "replay": Pilots._replay,
}
