"""Every kind of stored value cut short, with a bit flipped, or empty: found, told, and alone.

The store is the golden one, in which every kind of value occurs. One value of a kind is damaged, a
server starts on it, and everything else goes on as ever. `pilotage doctor --deep` names the value.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from redis.asyncio import Redis

from pilotage.actors.errors import ConflictError
from pilotage.actors.idempotency import recall
from pilotage.actors.principal import ADMIN
from pilotage.actors.runtime import Runtime
from pilotage.cli.doctor_deep import BESIDE, RECORDS
from pilotage.persistence import codec
from pilotage.persistence.redis_check import check_store
from pilotage.persistence.redis_store import RedisStore
from pilotage.settings import Settings
from tests.golden import stores
from tests.golden.stores.server import ADMIN_KEY, AheadClock, registry
from tests.golden.stores.story import EARLY, PROJECT
from tests.support.waiting import wait_until

N = "pilotage:{s0}:"
GOLDEN = stores.read(codec.SCHEMA_VERSION)
RUNS = GOLDEN.notes["going on"]
OVER = GOLDEN.notes["over"]
CUT = RUNS["approval"]
"""The run whose values are damaged."""


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 4])


def empty(_data: bytes) -> bytes:
    return b""


class Spot(NamedTuple):
    """Where one value is: a key, and the field, index or part of it."""

    key: str
    part: str | int | None = None


class Case(NamedTuple):
    """`kind`: what the codec calls it. `quarantined`: what is set apart because of it at the
    start. `tell`: how whoever asks for it is told; raises, or logs.
    """

    kind: str
    spot: Callable[[Any], Awaitable[Spot]]
    quarantined: set[str] = set()  # noqa: RUF012
    tell: Callable[[Runtime], Awaitable[Any]] | None = None


def at(key: str, part: str | int | None = None) -> Callable[[Any], Awaitable[Spot]]:
    async def spot(_client: Any) -> Spot:
        return Spot(N + key, part)

    return spot


def first(pattern: str, field: str | None = None) -> Callable[[Any], Awaitable[Spot]]:
    """The first key that fits, in order; of a hash the first field that begins so."""

    async def spot(client: Any) -> Spot:
        key = min(await client.keys(N.replace("{s0}", "[{]s0[}]") + pattern)).decode()
        if field is None:
            return Spot(key)
        fields = sorted(name.decode() for name in await client.hkeys(key))
        return Spot(key, next(name for name in fields if name.startswith(field)))

    return spot


def of_run(kind: str, attribute: str) -> Callable[[Any], Awaitable[Spot]]:
    """The record that the damaged run refers to."""

    async def spot(client: Any) -> Spot:
        head = codec.decode_head(await client.hget(f"{N}run:{CUT}", "r"))
        return Spot(f"{N}rec:{kind}:{getattr(head, attribute)}", "v")

    return spot


async def read(client: Any, spot: Spot) -> bytes:
    data: bytes
    if isinstance(spot.part, int):
        data = await client.lindex(spot.key, spot.part)
    elif spot.part in {"vitals", "blob"}:
        head, vitals, blob = parts(await client.get(spot.key))
        assert head
        data = vitals if spot.part == "vitals" else blob
    else:
        data = await (client.get(spot.key) if spot.part is None else client.hget(*spot))
    return data


async def write(client: Any, spot: Spot, data: bytes) -> None:
    if isinstance(spot.part, int):
        await client.lset(spot.key, spot.part, data)
    elif spot.part in {"vitals", "blob"}:
        line, vitals, blob = parts(await client.get(spot.key))
        words = line.split(b" ")
        if spot.part == "vitals":
            line, vitals = b" ".join([*words[:3], b"%d" % len(data)]), data
        else:
            blob = data
        await client.set(spot.key, line + b"\n" + vitals + blob)
    elif spot.part is None:
        await client.set(spot.key, data, keepttl=True)
    else:
        await client.hset(spot.key, spot.part, data)


def parts(value: bytes) -> tuple[bytes, bytes, bytes]:
    line, _, rest = value.partition(b"\n")
    length = int(line.split(b" ")[3])
    return line, rest[:length], rest[length:]


async def ask_cut(runtime: Runtime) -> None:
    await runtime.gateway.get_run(CUT, ADMIN)


async def ask_finished(runtime: Runtime) -> None:
    await runtime.gateway.get_run(OVER["finished"], ADMIN)


async def ask_history(runtime: Runtime) -> None:
    await runtime.gateway.history(CUT, ADMIN, 0, 100)


async def ask_job_runs(runtime: Runtime) -> None:
    await runtime.gateway.job_runs(CUT, ADMIN)


async def ask_workflow(runtime: Runtime) -> None:
    state = await runtime.gateway.get_run(CUT, ADMIN)
    await runtime.catalog.workflow_by_id(state.head.workflow_id)


async def ask_job(runtime: Runtime) -> None:
    page = await runtime.store.list_records("job", None, 10, None)
    await runtime.catalog.job(PROJECT, page.rows[0].id)


async def ask_event(runtime: Runtime) -> None:
    """It is passed over, with a word in the log."""
    await runtime.hub.take_early(PROJECT, EARLY, CUT, 1, 1)


async def ask_answer(runtime: Runtime) -> None:
    key = next(k for k in GOLDEN.keys if b":idem:" in k.name)
    assert isinstance(runtime.store, RedisStore)
    try:
        recall(await runtime.store.link.command("GET", key.name.decode()))
    except codec.SnapshotError as error:
        raise ConflictError(f"cannot be read: {error}") from None


CASES = {
    "head": Case("run head", at(f"run:{CUT}", "r"), {CUT}, ask_cut),
    "vitals": Case("run vitals", at(f"run:{CUT}", "h"), {CUT}, ask_cut),
    "step": Case("step state", at(f"run:{CUT}", "s0"), {CUT}, ask_cut),
    "finished": Case("finished run", at(f"run:{OVER['finished']}", "blob"), tell=ask_finished),
    "vitals of a finished run": Case(
        "run vitals", at(f"run:{OVER['finished']}", "vitals"), tell=ask_finished
    ),
    "message": Case("outbox message", first(f"out:{RUNS['sender']}", ""), {RUNS["sender"]}),
    "history": Case("history item", at(f"hist:{CUT}", 1), tell=ask_history),
    "job run": Case("record", at(f"jobs:{CUT}", "0:1"), tell=ask_job_runs),
    "answer": Case("record", first("idem:*"), tell=ask_answer),
    "event": Case("record", first(f"ev:{PROJECT}", "e"), tell=ask_event),
    "api_key": Case("record", first("rec:api_key:*", "v")),
    "deleted_workflow": Case("record", first("rec:deleted_workflow:*", "v")),
    "workflow": Case("definition", of_run("workflow", "workflow_id"), tell=ask_workflow),
    "version": Case("definition", of_run("version", "version_id"), {CUT}, ask_cut),
    "job": Case("definition", first("rec:job:*", "v"), tell=ask_job),
    "cron": Case("definition", first("rec:cron:*", "v")),
}
MENDED = {"cron"}
"""What is of no use any more is put away as soon as it is met, with a word in the log."""


@pytest.fixture
async def client(valkey_url: str) -> AsyncIterator[Any]:
    stores_client = Redis.from_url(valkey_url, protocol=2)
    yield stores_client
    await stores_client.aclose()


def test_no_kind_of_value_is_left_out() -> None:
    """A new kind or a new record needs a case here, and a place in the golden store."""
    assert {case.kind for case in CASES.values()} == set(codec._NAMES.values())
    assert set(RECORDS) <= set(CASES)
    parts_beside = {"history", "job_run", "answer", "event"}
    assert parts_beside == set(BESIDE.__struct_fields__)
    stored = {key.name.split(b":")[2] for key in GOLDEN.keys}
    assert stored >= {b"run", b"out", b"hist", b"jobs", b"idem", b"ev", b"rec"}


@pytest.mark.parametrize("harm", [cut, flipped, empty])
@pytest.mark.parametrize("name", CASES)
async def test_a_damaged_value_is_told_and_harms_nothing_else(
    name: str,
    harm: Callable[[bytes], bytes],
    client: Any,
    valkey_url: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    case = CASES[name]
    await restore(client)
    spot = await case.spot(client)
    whole = await read(client, spot)
    assert whole
    await write(client, spot, harm(whole))
    settings = Settings(data_dir=tmp_path, redis_url=valkey_url, admin_key=ADMIN_KEY, lease_secs=5)
    runtime = Runtime(settings=settings, registry=registry(hold=True), clock=AheadClock(ahead()))
    with caplog.at_level(logging.ERROR):
        await runtime.start()
        try:
            assert set(runtime.gateway.quarantined) == case.quarantined
            if case.tell is not None:
                await told(case, runtime, caplog)
            await goes_on(runtime)
            assert set(runtime.gateway.quarantined) <= {*case.quarantined, OVER["finished"]}
            assert isinstance(runtime.store, RedisStore)
            problems = (await check_store(runtime.store, RECORDS, BESIDE)).problems
            if name in MENDED:
                assert problems == []
            else:
                assert any(f"stored {case.kind} is damaged" in problem for problem in problems)
            assert len(problems) <= 3, problems
        finally:
            await runtime.stop(0)


async def told(case: Case, runtime: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    assert case.tell is not None
    try:
        await case.tell(runtime)
    except ConflictError as error:
        assert f"stored {case.kind} is damaged" in str(error)  # noqa: PT017
    else:
        assert f"stored {case.kind} is damaged" in caplog.text


async def goes_on(runtime: Runtime) -> None:
    """A run that has nothing to do with it ends as its user wants."""
    other = RUNS["event"]
    receipt = await runtime.gateway.send_event(PROJECT, "paid", b"1", 0, actor="test")
    assert receipt.delivered == 1

    async def ended() -> bool:
        return (await runtime.gateway.get_run(other, ADMIN)).status.is_terminal

    await wait_until(ended, "the other run has ended")


def ahead() -> int:
    import time

    return GOLDEN.made_ms + 1_000 - time.time_ns() // 1_000_000


async def restore(client: Any) -> None:
    import redis

    path = client.connection_pool.connection_kwargs["path"]
    with redis.Redis(unix_socket_path=path, protocol=2) as plain:
        stores.restore(plain, GOLDEN)
