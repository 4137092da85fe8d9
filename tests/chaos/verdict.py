"""What must hold at the end: the promises, the executions, the keys in the store, the memory."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import redis

from tests.chaos.client import Client
from tests.chaos.ledger import Ledger, Promise
from tests.chaos.outside import Delivery
from tests.chaos.pilots import CHILD, PROJECT
from tests.contract.store.key_table import check_key_names

Executions = dict[tuple[str, str], list[Delivery]]


async def check_promises(client: Client, ledger: Ledger) -> None:
    """Every acknowledged run has ended as its commands say, and there are no others."""
    room = asyncio.Semaphore(16)

    async def one(promise: Promise) -> None:
        async with room:
            await check_promise(client, ledger, promise)

    await asyncio.gather(*(one(promise) for promise in ledger.promises.values()))
    listed = await _all_runs(client)
    roots = {run["id"] for run in listed if "parent_workflow_run_id" not in run}
    for extra in roots - set(ledger.promises):
        ledger.problem(f"run {extra} was never acknowledged, although each trigger was insisted on")
    for run in listed:
        if run["status"] in {"pending", "running", "paused"}:
            ledger.problem(f"run {run['id']} is stuck: {run['status']}")
        if run.get("quarantined"):
            ledger.problem(f"run {run['id']} is quarantined")


async def check_promise(client: Client, ledger: Ledger, promise: Promise) -> None:
    path = f"/v1/workflow-runs/{promise.run_id}"
    status, run = await client.insist("GET", path, allowed={404})
    name = f"{promise.scenario} {promise.run_id}"
    if status != 200:
        ledger.problem(f"{name}: acknowledged and lost ({status})")
        return
    if run["status"] != promise.status:
        ledger.problem(f"{name}: must be {promise.status}, is {run['status']}: {run.get('error')}")
    _, listed = await client.insist("GET", path + "/steps")
    steps = {step["step_ref"]: step for step in listed}
    ledger.read(promise.run_id, steps)
    for key, wanted_of in (
        ("status", promise.steps), ("attempt", promise.attempts), ("output", promise.outputs)
    ):  # fmt: skip
        for ref, wanted in wanted_of.items():
            found = steps[ref].get(key)
            if found != wanted:
                ledger.problem(f"{name}: {key} of {ref} must be {wanted}, is {found}")
    await _check_history(client, ledger, promise, name)
    child = steps.get("sub", {}).get("child_workflow_run_id")
    if child is not None and promise.status == "completed":
        _, made = await client.insist("GET", f"/v1/workflow-runs/{child}/steps")
        seen = {step["step_ref"]: (step["status"], step["attempt"]) for step in made}
        if seen != {ref: ("completed", number) for ref, number in CHILD.items()}:
            ledger.problem(f"{name}: child {child} has {seen}")


async def _check_history(client: Client, ledger: Ledger, promise: Promise, name: str) -> None:
    items: list[dict[str, Any]] = []
    more = True
    while more:
        after = items[-1]["seq"] if items else 0
        path = f"/v1/workflow-runs/{promise.run_id}/events?limit=100&after={after}"
        _, page = await client.insist("GET", path)
        items += page["data"]
        more = page["has_more"]
    if [item["seq"] for item in items] != list(range(1, len(items) + 1)):
        ledger.problem(f"{name}: gaps in its history")
    found = Counter((item["type"], item.get("step_ref")) for item in items)
    for command, count in Counter(promise.commands).items():
        if found[command] != count:
            ledger.problem(f"{name}: {command} acknowledged {count} times, done {found[command]}")


async def _all_runs(client: Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        path = f"/v1/workflow-runs?project_id={PROJECT}&limit=100&cursor={cursor}"
        _, page = await client.insist("GET", path)
        found += page["data"]
        if not page["has_more"]:
            return found
        cursor = page["next_cursor"]


# --- executions ----------------------------------------------------------------------------------


def read_executions(log: Path) -> Executions:
    """What the Python jobs have written down."""
    found: Executions = defaultdict(list)
    if log.exists():
        for line in log.read_text(encoding="utf-8").splitlines():
            at, _, run, ref, attempt = line.split()
            found[run, ref].append(Delivery(float(at), int(attempt), f"{run}:{ref}:{attempt}"))
    return found


class Repeats(NamedTuple):
    """Executions beyond the first of an attempt."""

    in_progress: int
    """It had not reported: allowed, and counted."""
    by_superseded: int
    """Started by a server that had slept through the loss of its lease, before it noticed."""


def check_executions(
    ledger: Ledger, executions: Executions, wakings: list[tuple[float, float]]
) -> Repeats:
    """No attempt ran after its result was acknowledged; a number is never used for another."""
    in_progress = by_superseded = 0
    for (run, ref), deliveries in executions.items():
        carried = run in ledger.promises and ref in ledger.promises[run].carried
        if carried:
            ledger.problem(f"{run} {ref} ran again although its result was carried over")
        by_number: dict[int, list[Delivery]] = defaultdict(list)
        for delivery in deliveries:
            by_number[delivery.attempt].append(delivery)
        if sorted(by_number) != list(range(1, len(by_number) + 1)):
            ledger.problem(f"{run} {ref}: attempts {sorted(by_number)} are not numbered from 1")
        for number, same in by_number.items():
            if len({delivery.key for delivery in same}) > 1:
                ledger.problem(f"{run} {ref} attempt {number}: several idempotency keys")
            in_progress += len(same) - 1
            known = ledger.results.get((run, ref, number))
            for delivery in same:
                if known is None or delivery.at <= known[0]:
                    continue
                if any(begin <= delivery.at <= end for begin, end in wakings):
                    by_superseded += 1
                else:
                    late = delivery.at - known[0]
                    ledger.problem(
                        f"{run} {ref} attempt {number} ran again {late:.3f} s after its result "
                        "was acknowledged"
                    )
    return Repeats(in_progress, by_superseded)


# --- the store -----------------------------------------------------------------------------------


def check_store(ledger: Ledger, client: redis.Redis) -> int:
    """No key without an owner or a TTL; the number of keys."""
    names = list(map(str, client.keys()))
    table: list[tuple[str, str, int]] = []
    for k in range(0, len(names), 1000):
        pipeline = client.pipeline(transaction=False)
        for name in names[k : k + 1000]:
            pipeline.type(name)
            pipeline.pttl(name)
        answers = pipeline.execute()
        for name, (kind, ttl) in zip(
            names[k : k + 1000], zip(answers[::2], answers[1::2], strict=True), strict=True
        ):
            table.append((name, str(kind), int(ttl)))
    for problem in check_key_names(table):
        ledger.problem(problem)
    _check_indexes(ledger, client, set(names))
    return len(names)


def _check_indexes(ledger: Ledger, client: redis.Redis, names: set[str]) -> None:
    """Indexes name runs that are there, and nothing is active any more."""
    prefix = "pilotage:{s0}:"
    for name in names:
        tail = name.removeprefix(prefix)
        if tail == "active" or tail.startswith("busy:"):
            ledger.problem(f"{name} is not empty although every run has ended")
        if tail == "expire" or tail.startswith(("ix:", "ixw:", "ixt:")):
            for member in map(str, client.zrange(name, 0, -1)):
                run = member[12:] if tail == "expire" else member[13:]
                if f"{prefix}run:{run}" not in names:
                    ledger.problem(f"{name} has {member}, of which there is no run")
        if tail.startswith("out:"):
            ledger.problem(f"{name}: messages that were never taken")
