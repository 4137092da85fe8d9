"""Results that come while the store is away: thousands of attempts in progress end meanwhile.

Results of Python jobs and HTTP answers are kept until they can be stored, once each; what that
takes is bounded by the attempts in progress. Callbacks are refused, take nothing, and are taken
when they are repeated.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

import pytest
from aiohttp import web

from tests.chaos.machines import rss_kb
from tests.chaos.test_store_at_run_time import suspended
from tests.chaos.world import WAIT_SECS, World, a_world
from tests.support.waiting import wait_until

RUNS = 20
PYTHON, ANSWERED, CALLED_BACK = 50, 20, 20
"""Steps a run, by what does them."""
TEXT = 20_000
KB_A_RESULT = 60
"""What a result may take while it waits, three times its size: objects, buffers, fragments."""
CALLBACKS_KB = 12_000
"""Far less than what all refused callbacks would take if they were kept."""
AT_ONCE = 50


class Remote:
    """Endpoints: `/answered` answers once `gate` is set, `/called_back` takes and reports later."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.deliveries: Counter[tuple[str, str]] = Counter()
        self.tokens: dict[tuple[str, str], tuple[str, str]] = {}
        """By run and step: job run and token."""
        self.base = ""

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/{kind}", self._attempt)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, backlog=2_000)
        await site.start()
        self.base = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.gate.set()
        await self._runner.cleanup()

    async def _attempt(self, request: web.Request) -> web.Response:
        await request.read()
        headers = request.headers
        step = headers["X-Workflow-Run-ID"], headers["X-Step-Ref"]
        self.deliveries[step] += 1
        if request.match_info["kind"] == "called_back":
            self.tokens[step] = headers["X-Run-ID"], headers["X-Run-Token"]
            return web.Response(status=202)
        await self.gate.wait()
        return web.json_response(result_of(step))


def result_of(step: tuple[str, str]) -> dict[str, str]:
    return {"did": "/".join(step), "text": "x" * TEXT}


@pytest.fixture
async def remote() -> AsyncIterator[Remote]:
    async with Remote() as made:
        yield made


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path, PILOTAGE_ALLOW_PRIVATE_ENDPOINTS="true") as made:
        yield made


async def runs_of_many_steps(world: World, remote: Remote) -> list[str]:
    """All their attempts are in progress."""
    for slug in ("answered", "called_back"):
        job = {"project_id": "p", "name": slug, "slug": slug, "timeout_secs": 3600}
        job["endpoint_url"] = f"{remote.base}/{slug}"
        status, made = await world.client.once("POST", "/v1/jobs", job)
        assert status == 201, made
    payload = {"gate": str(world.folder / "gate"), "size": TEXT}
    steps: list[dict[str, Any]] = [
        {"step_ref": f"p{n}", "job_id": "mark_gated", "payload": payload} for n in range(PYTHON)
    ]
    steps += [{"step_ref": f"a{n}", "job_id": "answered"} for n in range(ANSWERED)]
    steps += [{"step_ref": f"c{n}", "job_id": "called_back"} for n in range(CALLED_BACK)]
    wide = {"project_id": "p", "name": "wide", "slug": "wide", "steps": steps}
    status, made = await world.client.once("POST", "/v1/workflows", wide)
    assert status == 201, made
    ids: list[str] = []
    for _ in range(RUNS):
        status, run = await world.client.once("POST", "/v1/workflows/wide/trigger")
        assert status == 201, run
        ids.append(run["id"])

    def begun() -> bool:
        there = len(executed(world)) == RUNS * PYTHON
        return there and len(remote.deliveries) == RUNS * (ANSWERED + CALLED_BACK)

    await wait_until(begun, "all attempts are in progress", within_secs=WAIT_SECS)
    return ids


def executed(world: World) -> Counter[tuple[str, str]]:
    """How often each Python step was executed, by run and step."""
    log = world.folder / "executions"
    lines = log.read_text().splitlines() if log.exists() else []
    return Counter((run, ref) for _, _, run, ref, _ in map(str.split, lines))


async def in_progress(world: World) -> int:
    status, text = await world.client.text("/metrics")
    assert status == 200
    (line,) = [line for line in text.splitlines() if line.startswith("pilotage_attempts_in_pro")]
    return int(float(line.split()[-1]))


async def call_back(world: World, remote: Remote) -> Counter[int]:
    """Every callback once; how often each status was the answer."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(step: tuple[str, str]) -> int:
        job_run, token = remote.tokens[step]
        path, body = f"/sdk/v1/runs/{job_run}/complete", {"result": result_of(step)}
        async with turns:
            return (await world.client.once("POST", path, body, token=token))[0]

    return Counter(await asyncio.gather(*map(one, remote.tokens)))


async def stored(world: World, run_id: str) -> dict[str, Any]:
    """The steps of a run by their refs."""
    path = f"/v1/workflow-runs/{run_id}/steps?limit=100"
    status, steps = await world.client.once("GET", path)
    assert status == 200, steps
    return {step["step_ref"]: step for step in steps}


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_results_wait_in_bounded_memory_and_are_stored_once_and_callbacks_are_repeated(
    world: World, remote: Remote
) -> None:
    runs = await runs_of_many_steps(world, remote)
    pid = world.server.pid
    called_back = RUNS * CALLED_BACK

    async def away() -> bool:
        return not await world.is_ready()

    async def ended() -> bool:
        return await in_progress(world) == 0

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(suspended(world))
        await wait_until(away, "it is noticed", within_secs=WAIT_SECS)
        before = rss_kb(pid)
        (world.folder / "gate").touch()
        remote.gate.set()
        await wait_until(ended, "all results are there", within_secs=WAIT_SECS)
        kept = rss_kb(pid)
        results = RUNS * (PYTHON + ANSWERED)
        assert kept - before < KB_A_RESULT * results, f"{(kept - before) / results:.1f} kB a result"
        assert await call_back(world, remote) == {503: called_back}
        before = rss_kb(pid)
        for _ in range(3):
            assert await call_back(world, remote) == {503: called_back}
        assert rss_kb(pid) - before < CALLBACKS_KB
    await wait_until(world.is_ready, "ready again", within_secs=WAIT_SECS)
    assert await call_back(world, remote) == {204: called_back}, "none had been taken before"
    for run_id in runs:
        await world.until_completed(run_id, "its results were stored")
    assert world.problems == [], "each 503 has Retry-After"
    assert set(executed(world).values()) == {1}
    assert set(remote.deliveries.values()) == {1}
    for run_id in runs:
        steps = await stored(world, run_id)
        assert len(steps) == PYTHON + ANSWERED + CALLED_BACK
        assert {step["attempt"] for step in steps.values()} == {1}
        assert len({step["output"]["did"] for step in steps.values()}) == len(steps)
        assert all(
            step["output"] == result_of((run_id, ref))
            for ref, step in steps.items()
            if not ref.startswith("p")
        )
