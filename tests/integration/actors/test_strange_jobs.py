"""Whatever a Python job returns, raises or does to its thread and loop, its run comes to an end."""

from __future__ import annotations

import _thread
import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from pilotage.runtime.state import RunState
from tests.integration.actors.rig import Rig, rig
from tests.support.waiting import wait_until


class Unshowable(Exception):  # noqa: N818 - it is what it is
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def raising(error: BaseException) -> Any:
    raise error


STRANGE: dict[str, tuple[Callable[[], Any], str | None]] = {
    "nested 500": (lambda: nested(500), None),
    "nested 501": (lambda: nested(501), "nested more than 500 deep"),
    "nested 970": (lambda: nested(970), "nested more than 500 deep"),
    "nested 100,000": (lambda: nested(100_000), "nested more than 500 deep"),
    "beyond 64 bits": (lambda: {"n": 2**200}, None),
    "beyond all digits": (lambda: 10**5_000, "4300 digits"),
    "NaN": (lambda: {"n": float("nan")}, "JSON has no number nan"),
    "infinity": (lambda: [float("inf")], "JSON has no number inf"),
    "key twice": (lambda: {1: 1, "1": 2}, 'the key "1" is there twice'),
    "NUL": (lambda: "a\0b", None),
    "bytes": (lambda: b"\xff", None),
    "set": (lambda: {"x"}, None),
    "surrogate": (lambda: "\ud800", "surrogates not allowed"),
    "huge": (lambda: "x" * 2_000_000, "at most 1048576 are kept"),
    "object": (object, "objects of type object"),
    "unshowable object": (Unshowable, "objects of type Unshowable"),
    "surrogate raised": (lambda: raising(ValueError("\ud800")), "ValueError: ?"),
    "NUL raised": (lambda: raising(ValueError("a\0b")), "ValueError: a\0b"),
    "huge raised": (lambda: raising(ValueError("x" * 5_000_000)), "ValueError: xxx"),
    "unshowable raised": (lambda: raising(Unshowable()), "its message cannot be shown"),
    "exit": (lambda: sys.exit(3), "SystemExit: 3"),
    "exit of the thread": (_thread.exit, "SystemExit"),
    "interrupt": (lambda: raising(KeyboardInterrupt()), "KeyboardInterrupt"),
    "end of a generator": (lambda: raising(StopIteration(5)), "StopIteration"),
    "a group": (lambda: raising(BaseExceptionGroup("g", [SystemExit(1)])), "BaseExceptionGroup"),
}


def plain(given: dict[str, Any]) -> Any:
    return STRANGE[given["what"]][0]()


async def awaited(given: dict[str, Any]) -> Any:
    await asyncio.sleep(0)
    return STRANGE[given["what"]][0]()


async def cancelling(given: dict[str, Any]) -> None:
    for task in asyncio.all_tasks():
        task.cancel()
    await asyncio.sleep(0)


async def stopping(given: dict[str, Any]) -> str:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0)
    return "done"


async def breaking(given: dict[str, Any]) -> None:
    def broken() -> None:
        raise OSError("nothing to select from")

    asyncio.get_running_loop()._run_once = broken  # type: ignore[attr-defined]
    await asyncio.Event().wait()


@pytest.fixture
async def world(valkey_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig(valkey_url, tmp_path) as made:
        once: dict[str, Any] = {"max_attempts": 1, "timeout": 3_600}
        made.registry.register(plain, name="thread", **once)
        made.registry.register(plain, name="inline", inline=True, **once)
        made.registry.register(awaited, name="loop", **once)
        made.registry.register(cancelling, name="cancelling", **once)
        made.registry.register(stopping, name="stopping", **once)
        made.registry.register(breaking, name="breaking", **once)
        yield made


async def over(world: Rig, run: str) -> RunState:
    async def there() -> bool:
        return (await world.state(run)).status.is_terminal

    await wait_until(there, "the run has ended", within_secs=60)
    return await world.state(run)


@pytest.mark.parametrize("job", ["thread", "inline", "loop"])
async def test_a_run_ends_whatever_its_job_gives(world: Rig, job: str) -> None:
    workflow = await world.workflow("w", [{"step_ref": "a", "job_id": job}])
    runs = {what: await world.trigger(workflow, what=what) for what in STRANGE}
    for run in runs.values():
        await over(world, run)
    await world.crash_and_start()
    for what, (_, error) in STRANGE.items():
        state = await world.state(runs[what])
        step = state.step(0)
        if error is None:
            assert (what, step.status.value, step.error) == (what, "completed", None)
        else:
            assert (what, step.status.value) == (what, "failed")
            assert error in (step.error or ""), what
    assert (await world.step(runs["beyond 64 bits"], "a")).output == b'{"n":%d}' % 2**200


async def test_runs_go_on_whatever_jobs_do_to_the_job_loop(world: Rig) -> None:
    """Nothing waits for a timeout: those are an hour long."""
    well = await world.workflow("well", [{"step_ref": "a", "job_id": "loop"}])
    for job, status in (
        ("stopping", "completed"),
        ("cancelling", "failed"),
        ("breaking", "failed"),
    ):
        workflow = await world.workflow(job, [{"step_ref": "a", "job_id": job}])
        state = await over(world, await world.trigger(workflow))
        assert (job, state.status.value) == (job, status)
        if job == "breaking":
            assert "the job loop broke (OSError: nothing to select" in (state.step(0).error or "")
        state = await over(world, await world.trigger(well, what="NUL"))
        assert state.status.value == "completed"
