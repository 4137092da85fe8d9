"""Definitions and inputs made to hurt: each is refused or comes to its end, and meanwhile others
are answered. An answer that does not come within the client's patience is a failure.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.blackbox.api import Api, Json, ServerProcess, approval, job, sub
from tests.integration.actors.rig import noop, rig

MEBI = 1 << 20


@contextmanager
def bystander(server: ServerProcess) -> Generator[None]:
    """Somebody else who uses the server all the time, and is answered all the time."""
    api = Api(server)
    run = api.start(approval("a"))
    stop, answered = threading.Event(), [0]
    failures: list[object] = []

    def ask() -> None:
        while not stop.is_set():
            try:
                api.run(run)
                api.get("/health")
            except (AssertionError, httpx.HTTPError) as error:
                failures.append(error)
                return
            answered[0] += 1

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        api.close()
    assert failures == []
    assert answered[0] > 0
    assert server.running


def nested(depth: int, opening: bytes = b"[", closing: bytes = b"]", inner: bytes = b"") -> bytes:
    return opening * depth + inner + closing * depth


def definition(*steps: Any, **fields: Any) -> bytes:
    return msgspec.json.encode(
        {"name": "w", "project_id": "hostile", "steps": list(steps), **fields}
    )


def chain(count: int, *, ring: bool) -> list[Json]:
    steps = [job(f"s{n}", after=f"s{n - 1}" if n else ()) for n in range(count)]
    if ring:
        steps[0]["depends_on"] = [f"s{count - 1}"]
    return steps


def condition(depth: int) -> Any:
    found: Any = {"type": "exists", "operand": "{{ payload }}"}
    for _ in range(depth):
        found = {"type": "not", "condition": found}
    return found


# What is refused when it is defined, each with the statuses that are right for it.
REFUSED: dict[str, tuple[Callable[[], bytes], set[int]]] = {
    "arrays in arrays": (lambda: nested(500_000), {400, 422}),
    "objects in objects": (lambda: nested(200_000, b'{"a":', b"}", b"1"), {400, 422}),
    "a body too large": (lambda: b"[" + b" " * (9 * MEBI) + b"]", {413}),
    "a million keys": (
        lambda: b"{" + b",".join(b'"%d":0' % n for n in range(700_000)) + b"}",
        {413, 422},
    ),
    "a ring of ten thousand": (lambda: definition(*chain(10_000, ring=True)), {422}),
    "more steps than may be": (lambda: definition(*chain(10_001, ring=False)), {422}),
    "the same step ten thousand times": (lambda: definition(*([job("a")] * 10_000)), {422}),
    "two million dependencies": (
        lambda: definition(
            *(job(f"s{n}") for n in range(1_500)),
            *(job(f"t{n}", after=[f"s{m}" for m in range(1_500)]) for n in range(700)),
        ),
        {413, 422},
    ),
    "a condition in a condition": (
        lambda: definition(job("a"), job("b", after="a", condition=condition(300))),
        {400, 422},
    ),
    "a pattern that explodes": (
        lambda: definition(
            job("a", condition={"type": "regex", "left": "{{ payload }}", "right": "(a|b" * 200})
        ),
        {422},
    ),
    "an expression in an expression": (
        lambda: definition(job("a", output_transform="(" * 900 + "@" + ")" * 900)),
        {422},
    ),
    "an endless expression": (
        lambda: definition(job("a", output_transform="@ | " * 100_000 + "@")),
        {422},
    ),
    "ten thousand templates": (
        lambda: definition(job("a", payload=["{{ payload }}"] * 200_000)),
        {422},
    ),
    "a cron of commas": (lambda: definition(job("a"), cron="0," * 50_000 + "0 * * * *"), {422}),
    "a cron that never fires": (lambda: definition(job("a"), cron="0 0 31 2 *"), {201, 422}),
    "a number of many digits": (
        lambda: (
            b'{"name":"w","project_id":"hostile","max_concurrent_runs":%s,"steps":[]}'
            % (b"9" * 500_000)
        ),
        {400, 422},
    ),
    "a number too large": (
        lambda: definition(job("a"))[:-1] + b',"timeout_secs":1e999}',
        {400, 422},
    ),
    "a name of a megabyte": (lambda: definition(job("a" * MEBI)), {422}),
    "a hundred thousand tags": (
        lambda: definition(job("a"), tags={f"t{n}": "x" for n in range(100_000)}),
        {422},
    ),
    "text that is no text": (lambda: b'{"name":"\xff\xfe","steps":[]}', {400, 422}),
    "half a character": (
        lambda: b'{"name":"\\ud800","project_id":"hostile","steps":[]}',
        {400, 422},
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_definition_is_refused(server: ServerProcess, api: Api, name: str) -> None:
    make, statuses = REFUSED[name]
    with bystander(server):
        answer = api.raw("POST", "/v1/workflows", make())
    assert answer.status_code in statuses, answer.text[:500]
    assert len(answer.content) < MEBI


def test_the_largest_join_that_may_be_is_taken_and_run_through(
    server: ServerProcess, api: Api
) -> None:
    wide = [job(f"s{n}") for n in range(1_000)]
    joins = [job(f"t{n}", after=[f"s{m}" for m in range(1_000)]) for n in range(20)]
    with bystander(server):
        run = api.start(*wide, *joins)
        api.until(run, "completed", within_secs=60)


# Workflows that may be defined; what they do when they run is bounded.
BACKTRACKING = {"type": "regex", "left": "{{ payload.t }}", "right": "(a+)+(a+)+(a|aa)+$"}
MULTIPLYING = "v[*].[@, @, @] | [] | [*].[@, @, @] | []"
EXPLOSIVE: dict[str, tuple[list[Json], Any, str]] = {
    "a pattern that backtracks": (
        [job("a", "echo", condition=BACKTRACKING)],
        {"t": "a" * 5_000 + "b"},
        "completed or failed",
    ),
    "an expression that doubles": (
        [job("a", "echo", output_transform=" | ".join(["[@, @]"] * 40))],
        {"x": 1},
        "failed",
    ),
    "an expression that multiplies": (
        [job("a", "echo", payload={"v": "{{ payload }}"}, output_transform=MULTIPLYING)],
        list(range(20_000)),
        "completed or failed",
    ),
    "inputs that multiply": (
        [
            job("s0", "echo", payload={"v": "{{ payload.t }}"}),
            *(
                job(
                    f"s{n}",
                    "echo",
                    after=f"s{n - 1}",
                    payload={"v": [f"{{{{ steps.s{n - 1}.output }}}}"] * 4},
                )
                for n in range(1, 12)
            ),
        ],
        {"t": "x" * 200_000},
        "failed",
    ),
    "a template that repeats a payload": (
        [job("a", "echo", payload={"v": "{{ payload.t }}" * 100})],
        {"t": "x" * 500_000},
        "failed",
    ),
}


@pytest.mark.parametrize("name", EXPLOSIVE)
def test_what_explodes_when_it_runs_is_stopped(server: ServerProcess, api: Api, name: str) -> None:
    steps, payload, ends = EXPLOSIVE[name]
    with bystander(server):
        run = api.start(*steps, payload=payload)
        done = api.until(run, "completed", "failed", "timed_out", within_secs=60)
    assert done["status"] in ends, done


def test_hostile_payloads_of_a_trigger(server: ServerProcess, api: Api) -> None:
    flow = api.workflow(job("a", "echo", payload={"v": "{{ payload }}"}))
    path = f"/v1/workflows/{flow}/trigger"
    bodies: list[tuple[bytes, set[int]]] = [
        (b'{"payload":' + nested(100_000) + b"}", {400, 422}),
        (
            b'{"payload":{' + b",".join(b'"%d":0' % n for n in range(100_000)) + b"}}",
            {201, 413, 422},
        ),
        (b'{"payload":' + b"9" * 400_000 + b"}", {201, 400, 422}),
        (b'{"payload":[' + b"0," * 500_000 + b"0]}", {201, 413, 422}),
        (b'{"payload":"' + b"\\u0000" * 100_000 + b'"}', {201, 422}),
        (b'{"payload":1' + b" " * (2 * MEBI) + b"}", {413}),
        (b'{"payload":NaN}', {400}),
        (b"", {201}),
    ]
    for body, statuses in bodies:
        with bystander(server):
            answer = api.raw("POST", path, body)
            assert answer.status_code in statuses, (body[:40], answer.text[:300])
            if answer.status_code == 201:
                api.until(answer.json()["id"], "completed", "failed", within_secs=60)


def test_a_workflow_that_calls_itself_again_and_again_ends(api: Api) -> None:
    flow = api.workflow(job("a"))
    patch = {"steps": [sub(f"s{n}", flow, max_nesting_depth=3) for n in range(4)]}
    answer = api.request("PATCH", f"/v1/workflows/{flow}", patch)
    assert answer.status_code == 200, answer.text
    api.until(api.trigger(flow), "failed", "completed", within_secs=60)


async def test_runs_that_multiply_by_their_children_are_bounded(
    valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 0
    async with rig(valkey_url, tmp_path, max_active_runs=10) as world:
        flow = await world.workflow("w", [noop("a")])
        steps = [sub(f"s{n}", flow.id) for n in range(10)]
        flow = await world.patch(flow, steps=steps)
        supervisor = world.runtime.supervisor
        create = supervisor.create

        async def counted(*args: Any) -> Any:
            nonlocal most
            made = await create(*args)
            most = max(most, len(supervisor))
            return made

        monkeypatch.setattr(supervisor, "create", counted)
        run = await world.trigger(flow)
        state = await world.until(run, "failed", within_secs=60)
    assert "PILOTAGE_MAX_ACTIVE_RUNS" in (state.vitals.error or "")
    assert 15 < most <= 2 * 10
