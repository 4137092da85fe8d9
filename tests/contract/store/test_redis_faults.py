"""What only a server in another process can do: lose replies, die, refuse, be the wrong one."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from pilotage.persistence import redis_store, scripts, scripts_runs
from pilotage.persistence.embedded import EmbeddedServer
from pilotage.persistence.keys import Keys
from pilotage.persistence.port import (
    IdempotencyRecord,
    Record,
    RunQuery,
    StoreUnavailableError,
    UnsuitableStoreError,
    Verdict,
)
from pilotage.persistence.redis_store import RedisStore
from pilotage.runtime.status import RunStatus
from tests.contract.store.building import Life, step
from tests.contract.store.proxy import LossyProxy
from tests.contract.store.worlds import OWNER, RedisWorld
from tests.support.waiting import wait_until


@pytest.fixture
async def proxied(
    redis_world: RedisWorld, tmp_path: Path
) -> AsyncIterator[tuple[RedisStore, LossyProxy]]:
    """A store whose replies can get lost, on the server (and with the token) of `redis_world`."""
    server_socket = redis_world.url.removeprefix("unix://")
    async with LossyProxy(server_socket, tmp_path / "p.sock") as proxy:
        store = RedisStore(proxy.url)
        await store.open()
        # So that what gets lost is the reply to the script and not "I do not know it".
        for script in [*vars(scripts).values(), *vars(scripts_runs).values()]:
            if isinstance(script, scripts.Script):
                await redis_world.client.script_load(script.text)
        yield store, proxy
        await store.close()


# --- lost replies --------------------------------------------------------------------------------


async def test_a_batch_whose_reply_is_lost_is_applied_once_and_may_be_resent(
    redis_world: RedisWorld, proxied: tuple[RedisStore, LossyProxy]
) -> None:
    store, proxy = proxied
    lives = [Life(i) for i in range(20)]
    record = IdempotencyRecord(project_id="project", key="k", data=b"a")
    writes = [
        life.write(history=2, outbox_add={"m": b"m"}, job_runs={(0, 1): b"j"}) for life in lives
    ]
    writes.append(Life(50).write(idempotency=record))
    proxy.lose_next_reply()
    with pytest.raises(StoreUnavailableError):
        await store.commit(writes, redis_world.fence)
    assert proxy.lost == 1
    before = await redis_world.contents()
    assert {life.id for life in lives} < set(await redis_world.store.active_run_ids())
    assert await store.commit(writes, redis_world.fence) == [Verdict.OK] * 21
    assert await redis_world.contents() == before


async def test_other_writes_may_be_repeated_after_a_lost_reply(
    redis_world: RedisWorld, proxied: tuple[RedisStore, LossyProxy]
) -> None:
    store, proxy = proxied
    fence = redis_world.fence
    record = Record(kind="job", project_id="p", id="1", data=b"x", slug="s", created_at_ms=1)

    async def twice(method: Any, *arguments: Any) -> Any:
        proxy.lose_next_reply()
        with pytest.raises(StoreUnavailableError):
            await method(*arguments)
        return await method(*arguments)

    await twice(store.put_record, record, fence)
    assert await twice(store.buffer_event, "p", "key", "1", b"first", 60, fence)
    await store.buffer_event("p", "key", "2", b"second", 60, fence)
    assert await twice(store.take_event, "p", "key", "run", fence) == b"first"
    assert await store.take_event("p", "key", "other run", fence) == b"second"
    assert await store.take_event("p", "key", "third run", fence) is None
    await twice(store.renew, "first server", fence, 60.0)
    assert proxy.lost == 4


async def test_reads_are_repeated_by_themselves(
    redis_world: RedisWorld, proxied: tuple[RedisStore, LossyProxy]
) -> None:
    store, proxy = proxied
    life = Life(1)
    await redis_world.put(life.write())
    proxy.lose_next_reply()
    (run,) = await store.load_runs([life.id])
    assert run is not None
    assert proxy.lost == 1
    proxy.lose_next_reply()
    assert len((await store.list_runs(RunQuery(project_id="project", limit=5))).rows) == 1
    assert proxy.lost == 2


async def test_a_cancelled_commit_does_not_disturb_the_next(redis_world: RedisWorld) -> None:
    lives = [Life(i) for i in range(64)]
    for life in lives:
        write = life.write(steps={i: step(i) for i in range(50)})
        task = asyncio.create_task(redis_world.store.commit([write], redis_world.fence))
        for _ in range(life.head.created_at_ms % 4):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await redis_world.store.commit([write], redis_world.fence) == [Verdict.OK]


# --- a server that goes away ---------------------------------------------------------------------


async def test_no_write_is_torn_and_none_that_was_answered_is_lost_when_the_server_is_killed(
    data_dir: Path,
) -> None:
    server = EmbeddedServer(data_dir)
    store = RedisStore(await server.start())
    await store.open()
    fence = await store.acquire("owner", 60.0)
    lives = [Life(i) for i in range(40)]
    answered = [0] * len(lives)

    async def write_on() -> None:
        while True:
            writes = [life.write(steps={life.seq: step(0)}, history=1) for life in lives]
            assert await store.commit(writes, fence) == [Verdict.OK] * len(lives)
            answered[:] = [life.seq for life in lives]

    try:
        writing = asyncio.create_task(write_on())
        await wait_until(lambda: answered[0] > 20, "20 batches are answered")
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(StoreUnavailableError):
            await writing
        with pytest.raises(StoreUnavailableError):
            await store.load_runs([lives[0].id])
        await server.restart()
        runs = await store.load_runs([life.id for life in lives])
        for life, seq, run in zip(lives, answered, runs, strict=True):
            assert run is not None
            assert run.seq in {seq, seq + 1}
            assert sorted(run.steps) == [*range(run.seq)]
            assert len(await store.history(life.id, 0, 10_000)) == run.seq
        assert len({run.seq for run in runs if run}) == 1, "a batch is whole"
        assert await store.fence() == fence
    finally:
        await store.close()
        await server.stop()


async def test_scripts_come_back_after_the_server_forgot_them(redis_world: RedisWorld) -> None:
    life = Life(1)
    await redis_world.put(life.write())
    await redis_world.client.script_flush()
    await redis_world.put(life.write(RunStatus.COMPLETED))
    await redis_world.client.script_flush()
    assert len((await redis_world.store.list_runs(RunQuery(project_id="project", limit=5))).rows)


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError, match="cannot be reached"):
        await RedisStore(f"unix://{tmp_path}/nothing.sock").open()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(StoreUnavailableError, match="cannot be reached"):
            await RedisStore(f"redis://127.0.0.1:{port}").open()


async def test_a_server_that_does_not_answer_in_time(tmp_path: Path) -> None:
    ended = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        ended.set()

    path = tmp_path / "silent.sock"
    async with await asyncio.start_unix_server(silent, str(path)):
        with pytest.raises(StoreUnavailableError, match=r"did not answer within 0\.1 s"):
            await RedisStore(f"unix://{path}", timeout_secs=0.1).open()
        await ended.wait()


# --- a server that refuses -----------------------------------------------------------------------


@asynccontextmanager
async def configured(client: Redis, **settings: str) -> AsyncGenerator[None]:
    """The server with other settings, for a while."""
    names = {name: name.replace("_", "-") for name in settings}
    old = {name: (await client.config_get(names[name]))[names[name]] for name in settings}
    old_text = {name: str(value) for name, value in old.items()}
    try:
        for name, value in settings.items():
            await client.config_set(names[name], value)
        yield
    finally:
        for name, value in old_text.items():
            await client.config_set(names[name], value)


@pytest.fixture
async def admin(valkey_url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(valkey_url, decode_responses=True, protocol=2)
    yield client
    await client.aclose()


@pytest.mark.parametrize(
    ("settings", "cause"),
    [({"maxmemory": "1"}, "out of memory"), ({"min_replicas_to_write": "1"}, "too few replicas")],
)
async def test_a_server_that_refuses_writes_for_now(
    redis_world: RedisWorld, admin: Redis, settings: dict[str, str], cause: str
) -> None:
    lives = [Life(1), Life(2)]
    await redis_world.put(lives[0].write())
    before = await redis_world.contents()
    writes = [lives[0].write(RunStatus.RUNNING), lives[1].write()]
    async with configured(admin, **settings):
        with pytest.raises(StoreUnavailableError, match=cause):
            await redis_world.store.commit(writes, redis_world.fence)
        assert await redis_world.store.load_runs([lives[0].id]) != [None]
    assert await redis_world.contents() == before
    await redis_world.put(*writes)


async def test_a_server_that_becomes_a_replica(redis_world: RedisWorld, admin: Redis) -> None:
    life = Life(1)
    await redis_world.put(life.write())
    write = life.write(RunStatus.RUNNING)
    await admin.replicaof("127.0.0.1", 1)
    try:
        with pytest.raises(StoreUnavailableError, match="become a replica"):
            await redis_world.store.commit([write], redis_world.fence)
        with pytest.raises(UnsuitableStoreError, match=r"replica: name its master, 127.0.0.1:1"):
            await RedisStore(redis_world.url).open()
    finally:
        await admin.replicaof("NO", "ONE")
    await redis_world.put(write)


async def test_a_server_that_evicts_is_refused(valkey_url: str, admin: Redis) -> None:
    store = RedisStore(valkey_url)
    async with configured(admin, maxmemory_policy="allkeys-lru"):
        await store.open()
        await store.close()
        async with configured(admin, maxmemory="1000000000"):
            with pytest.raises(UnsuitableStoreError, match="set maxmemory-policy noeviction"):
                await store.open()
    async with configured(admin, maxmemory="1000000000"):
        await store.open()
    await store.close()


async def test_a_full_server_can_change_its_owner_and_keeps_it(
    redis_world: RedisWorld, admin: Redis
) -> None:
    """Or nobody could make room in it."""
    store, key = redis_world.store, Keys("pilotage").lease
    secret = await store.secret("s")
    await store.release(OWNER, redis_world.fence)
    async with configured(admin, maxmemory="1"):
        fence = await store.acquire("heir", 60.0)
        assert fence == redis_world.fence + 1
        assert await store.secret("s") == secret
        await store.renew("heir", fence, 60.0)
        await admin.delete(key)  # as if it had run out
        await store.renew("heir", fence, 60.0)
        assert await admin.get(key) == f"{fence} heir"
        assert await admin.pttl(key) > 0


async def test_a_server_that_wants_a_password(valkey_url: str, admin: Redis) -> None:
    async with configured(admin, requirepass="secret"):
        with pytest.raises(UnsuitableStoreError, match="credentials"):
            await RedisStore(valkey_url).open()
        with pytest.raises(UnsuitableStoreError, match="credentials") as caught:
            await RedisStore(valkey_url.replace("unix://", "unix://:wrong@")).open()
        assert "wrong@" not in str(caught.value)
        store = RedisStore(valkey_url.replace("unix://", "unix://:secret@"))
        await store.open()
        await store.close()


async def test_a_user_without_the_rights(valkey_url: str, admin: Redis) -> None:
    await admin.acl_setuser(
        "weak", enabled=True, passwords=["+pw"], keys=["*"], commands=["+info", "+get"]
    )
    try:
        store = RedisStore(valkey_url.replace("unix://", "unix://weak:pw@"))
        await store.open()
        with pytest.raises(UnsuitableStoreError, match="rights"):
            await store.acquire("owner", 1.0)
        await store.close()
    finally:
        await admin.acl_deluser("weak")


@asynccontextmanager
async def held_up(admin: Any) -> AsyncGenerator[None]:
    """Writes are answered only afterwards."""
    await admin.execute_command("CLIENT", "PAUSE", "60000", "WRITE")
    try:
        yield
    finally:
        await admin.execute_command("CLIENT", "UNPAUSE")


async def asking(store: RedisStore, admin: Redis) -> asyncio.Task[int]:
    """Somebody who wants the lease; the server has the request and does not answer."""
    before = await blocked(admin)
    wanted = asyncio.create_task(store.acquire("impatient", 60.0))

    async def has_it() -> bool:
        return await blocked(admin) > before

    await wait_until(has_it, "the server has the request")
    return wanted


async def blocked(admin: Redis) -> int:
    return int((await admin.info("clients"))["blocked_clients"])


async def test_who_gives_up_waiting_for_the_lease_leaves_none_behind(
    valkey_url: str, admin: Redis
) -> None:
    store, other = RedisStore(valkey_url), RedisStore(valkey_url)
    await store.open()
    await other.open()
    async with held_up(admin):
        wanted = await asking(store, admin)
        wanted.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await wanted
    assert await admin.exists(store.keys.lease) == 0
    assert await other.acquire("other", 60.0) == 2, "the first one was given back"
    async with held_up(admin):
        wanted = await asking(store, admin)
        wanted.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await wanted
    assert await admin.get(store.keys.lease) == "2 other", "that of another one stays"
    await store.close()
    await other.close()


async def test_a_silent_store_does_not_hold_up_who_gives_up(
    valkey_url: str, admin: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "_FORGO_SECS", 0.05)
    store = RedisStore(valkey_url)
    await store.open()
    async with held_up(admin):
        wanted = await asking(store, admin)
        wanted.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wanted
        await store.close()


async def test_something_that_is_no_redis(tmp_path: Path) -> None:
    async def web_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    path = tmp_path / "web.sock"
    async with await asyncio.start_unix_server(web_server, str(path)):
        with pytest.raises(UnsuitableStoreError, match="not a Redis or Valkey server"):
            await RedisStore(f"unix://{path}").open()
