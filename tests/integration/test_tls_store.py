"""A real store behind TLS, as `rediss://` reaches it.

The bundled server speaks no TLS, so a front speaks it: what is tested is our end, with all that a
real server answers.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from pilotage.persistence.port import StoreUnavailableError, UnsuitableStoreError, Verdict
from pilotage.persistence.redis_store import RedisStore
from tests.contract.store.building import Life
from tests.integration.actors.rig import noop, rig
from tests.support.tls import TlsFront, certificate
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="openssl makes the certificate"
)

LARGE = 300_000
"""Far more than a record of TLS, and than what a socket takes at once."""


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return certificate(tmp_path)


@pytest.fixture
async def front(valkey_url: str, pair: tuple[Path, Path]) -> AsyncIterator[TlsFront]:
    async with TlsFront(valkey_url.removeprefix("unix://"), *pair) as made:
        yield made


def url_of(front: TlsFront, *more: str) -> str:
    return f"rediss://localhost:{front.port}/0?" + "&".join(more)


def trusting(pair: tuple[Path, Path]) -> str:
    return f"ssl_ca_certs={pair[0]}"


async def test_large_batches_go_there_and_come_back_whole(
    front: TlsFront, pair: tuple[Path, Path]
) -> None:
    store = RedisStore(url_of(front, trusting(pair)))
    await store.open()
    fence = await store.acquire("me", 60.0)
    lives = [Life(n, payload=b'"%s"' % (b"%d" % n * LARGE)) for n in range(8)]
    verdicts = await store.commit([life.write() for life in lives], fence)
    assert verdicts == [Verdict.OK] * len(lives)
    loaded = await store.load_runs([life.id for life in lives])
    assert [run and run.head for run in loaded] == [life.encoded_head for life in lives]
    await store.release("me", fence)
    await store.close()


async def test_a_cut_connection_is_a_store_away_and_the_next_call_connects_again(
    front: TlsFront, pair: tuple[Path, Path], valkey_url: str
) -> None:
    store = RedisStore(url_of(front, trusting(pair)))
    await store.open()
    fence = await store.acquire("me", 60.0)
    write, accepted = Life(1).write(), front.accepted
    admin: Any = Redis.from_url(valkey_url)
    await admin.execute_command("CLIENT", "PAUSE", "60000", "WRITE")
    asked = asyncio.create_task(store.commit([write], fence))

    async def on_its_way() -> bool:
        return bool((await admin.info("clients"))["blocked_clients"])

    await wait_until(on_its_way, "the server has it and does not answer")
    front.cut()
    with pytest.raises(StoreUnavailableError, match="cannot be reached"):
        await asked
    await admin.execute_command("CLIENT", "UNPAUSE")
    await admin.aclose()
    assert await store.commit([write], fence) == [Verdict.OK]
    assert front.accepted > accepted
    await store.close()


async def test_who_is_not_trusted_is_named_with_what_to_do(
    front: TlsFront, pair: tuple[Path, Path]
) -> None:
    with pytest.raises(UnsuitableStoreError, match=r"self-signed.*\?ssl_ca_certs=FILE"):
        await RedisStore(url_of(front)).open()
    elsewhere = url_of(front, trusting(pair)).replace("localhost", "127.0.0.1")
    with pytest.raises(UnsuitableStoreError, match=r"IP address mismatch.*name the host"):
        await RedisStore(elsewhere).open()
    unchecked = RedisStore(url_of(front, "ssl_cert_reqs=none"))
    await unchecked.open()
    await unchecked.close()


@pytest.mark.parametrize("files", ["ssl_ca_certs=/no/such/file", "ssl_certfile=/no/such/file"])
async def test_files_that_cannot_be_read_are_a_wrong_url(front: TlsFront, files: str) -> None:
    with pytest.raises(UnsuitableStoreError, match=r"^store URL .*/no/such/file.*No such file"):
        await RedisStore(url_of(front, files)).open()


async def test_a_server_that_wants_to_see_a_certificate(
    valkey_url: str, pair: tuple[Path, Path]
) -> None:
    cert, key = pair
    async with TlsFront(valkey_url.removeprefix("unix://"), cert, key, clients=cert) as front:
        shown = f"ssl_certfile={cert}", f"ssl_keyfile={key}"
        store = RedisStore(url_of(front, trusting(pair), *shown))
        await store.open()
        await store.close()
        with pytest.raises(StoreUnavailableError):
            await RedisStore(url_of(front, trusting(pair))).open()


async def test_runs_go_on_over_tls_also_when_the_connections_are_cut(
    front: TlsFront, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    async with rig(url_of(front, trusting(pair)), tmp_path) as world:
        chain = [noop(f"s{n}", *([f"s{n - 1}"] if n else [])) for n in range(60)]
        flow = await world.workflow("w", chain)
        runs = [await world.trigger(flow) for _ in range(5)]

        async def some_way() -> bool:
            state = await world.state(runs[0])
            return state.vitals.seq > 5

        await wait_until(some_way, "they are under way")
        front.cut()
        for run in runs:
            await world.until(run, "completed", within_secs=30)
