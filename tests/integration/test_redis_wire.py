"""Connections that are shared: order, failures, limits, and how a server is greeted."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import pytest
from redis.asyncio import Redis
from redis.exceptions import (
    AuthenticationError,
    ConnectionError as RedisConnectionError,
    InvalidResponse,
    MaxConnectionsError,
    ResponseError,
    TimeoutError as RedisTimeoutError,
)

from pilotage.persistence import redis_wire
from pilotage.persistence.port import StoreUnavailableError, UnsuitableStoreError
from pilotage.persistence.redis_link import RedisLink
from pilotage.persistence.redis_wire import Address, Wire, Wires, packed
from tests.support.tls import certificate
from tests.support.waiting import wait_until


class Scripted:
    """A server that answers as a test says. `answer`: what to send for the bytes that came."""

    def __init__(
        self, folder: Path, answer: Callable[[int, bytes], Awaitable[bytes | None]]
    ) -> None:
        self.path = folder / "s.sock"
        self.url = f"unix://{self.path}"
        self._answer = answer
        self.packets: list[bytes] = []
        self.connections = 0
        self._serving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, str(self.path))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await wait_until(lambda: not self._serving, "every connection has ended")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        number = self.connections
        self.connections += 1
        try:
            while data := await reader.read(1 << 16):
                self.packets.append(data)
                answer = await self._answer(number, data)
                if answer is None:
                    return
                writer.write(answer)
        finally:
            writer.close()
            self._serving.discard(task)


@asynccontextmanager
async def wires_to(
    url: str, size: int = 2, *, timeout_secs: float = 30.0, eager: bool = False
) -> AsyncGenerator[Wires]:
    wires = Wires(Address(url), size, timeout_secs=timeout_secs, connect_secs=30.0, eager=eager)
    try:
        yield wires
    finally:
        await wires.close()


async def outcomes(*asked: Awaitable[Any]) -> list[Any]:
    """What each gives, or raises."""
    return list(await asyncio.gather(*asked, return_exceptions=True))


async def nothing(_: int, __: bytes) -> bytes:
    return b""


# --- asking --------------------------------------------------------------------------------------


@pytest.mark.parametrize("eager", [False, True])
async def test_each_of_many_gets_the_answer_to_its_own_command(
    valkey_url: str, *, eager: bool
) -> None:
    async with wires_to(valkey_url, 3, eager=eager) as wires:

        async def some(who: int) -> None:
            for n in range(50):
                text = f"{who} {n}".encode() + b"." * (n * 700)
                assert await wires.ask(packed("ECHO", text)) == text

        await asyncio.gather(*map(some, range(20)))


async def test_what_is_asked_in_one_turn_of_the_loop_travels_in_one_packet(tmp_path: Path) -> None:
    async def pongs(_: int, data: bytes) -> bytes:
        return b"+PONG\r\n" * data.count(b"PING")

    async with Scripted(tmp_path, pongs) as server, wires_to(server.url) as wires:
        await wires.ask(packed("PING"))
        await asyncio.gather(*(wires.ask(packed("PING")) for _ in range(9)))
        assert [packet.count(b"PING") for packet in server.packets] == [1, 9]


async def test_eager_commands_leave_on_connections_of_their_own(tmp_path: Path) -> None:
    asked = asyncio.Event()

    async def when_all_asked(_: int, __: bytes) -> bytes:
        if len(server.packets) == 2:
            asked.set()
        await asked.wait()
        return b"+PONG\r\n"

    async with (
        Scripted(tmp_path, when_all_asked) as server,
        wires_to(server.url, eager=True) as wires,
    ):
        first = asyncio.create_task(wires.ask(packed("PING")))
        await wait_until(lambda: len(server.packets) == 1, "the first command is there")
        assert await wires.ask(packed("PING")) == await first == b"PONG"
        assert server.connections == 2


async def test_several_commands_are_carried_out_in_their_order(valkey_url: str) -> None:
    async with wires_to(valkey_url, 4) as wires:

        async def own(n: int) -> None:
            assert await wires.ask_all(
                [packed("SET", f"k{n}", n), packed("INCR", f"k{n}"), packed("GET", f"k{n}")]
            ) == [b"OK", n + 1, str(n + 1).encode()]

        await asyncio.gather(*map(own, range(40)))


async def test_a_refusal_is_for_who_asked(valkey_url: str) -> None:
    async with wires_to(valkey_url) as wires:
        found = await outcomes(wires.ask(packed("LPUSH", "k")), wires.ask(packed("ECHO", "x")))
        assert isinstance(found[0], ResponseError)
        assert found[1] == b"x"


async def test_who_stops_waiting_disturbs_nobody(valkey_url: str) -> None:
    async with wires_to(valkey_url, 1) as wires:
        for turns in range(6):
            tasks = [asyncio.create_task(wires.ask(packed("ECHO", n))) for n in range(4)]
            for _ in range(turns):
                await asyncio.sleep(0)
            tasks[1].cancel()
            found = await outcomes(*tasks)
            assert [found[0], *found[2:]] == [b"0", b"2", b"3"]


# --- what goes wrong -----------------------------------------------------------------------------


async def test_a_lost_connection_fails_what_was_in_flight_and_the_next_command_opens_another(
    tmp_path: Path,
) -> None:
    async def answer(number: int, _: bytes) -> bytes | None:
        return None if number == 0 else b"+PONG\r\n"

    async with Scripted(tmp_path, answer) as server, wires_to(server.url, 1) as wires:
        found = await outcomes(*(wires.ask(packed("PING")) for _ in range(3)))
        assert all(isinstance(error, (RedisConnectionError, OSError)) for error in found), found
        assert await wires.ask(packed("PING")) == b"PONG"
        assert server.connections == 2


async def test_an_answer_that_does_not_come_fails_all_that_wait_behind_it(tmp_path: Path) -> None:
    async with (
        Scripted(tmp_path, nothing) as server,
        wires_to(server.url, 1, timeout_secs=0.05) as wires,
    ):
        found = await outcomes(*(wires.ask(packed("PING")) for _ in range(3)))
        assert [type(error) for error in found] == [RedisTimeoutError] * 3


async def test_an_answer_ends_only_what_it_answers_and_closing_the_rest(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with Scripted(tmp_path, nothing) as server:
        transport, wire = await loop.create_unix_connection(
            lambda: Wire(loop, 3_600.0, eager=False), str(server.path)
        )
        answers = [wire.send(packed("PING")) for _ in range(2)]
        wire.data_received(b"+PONG\r\n")
        assert await answers[0] == b"PONG"
        assert (wire.waiting, wire.closed, answers[1].done()) == (1, False, False)
        wire.close()
        await wire.lost.wait()
        assert transport.is_closing()
        with pytest.raises(RedisConnectionError, match="closed"):
            await answers[1]
        with pytest.raises(RedisConnectionError, match="lost"):
            await wire.send(packed("PING"))


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+PONG\r\n+PONG\r\n"])
async def test_a_server_that_does_not_keep_to_the_protocol(tmp_path: Path, answer: bytes) -> None:
    async def wrong(number: int, _: bytes) -> bytes:
        return answer if number == 0 else b"+PONG\r\n"

    async with Scripted(tmp_path, wrong) as server, wires_to(server.url, 1) as wires:
        (first,) = await outcomes(wires.ask(packed("PING")))
        assert first == b"PONG" or isinstance(first, InvalidResponse)
        assert await wires.ask(packed("PING")) == b"PONG"
        assert server.connections == 2


async def test_commands_in_flight_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_wire, "MAX_WAITING", 4)
    async with Scripted(tmp_path, nothing) as server, wires_to(server.url, 2) as wires:
        tasks = [asyncio.create_task(wires.ask(packed("PING"))) for _ in range(4)]
        await wait_until(lambda: b"".join(server.packets).count(b"PING") == 4, "one is full")
        tasks += [asyncio.create_task(wires.ask(packed("PING"))) for _ in range(4)]
        await wait_until(lambda: b"".join(server.packets).count(b"PING") == 8, "both are full")
        with pytest.raises(MaxConnectionsError):
            await wires.ask(packed("PING"))
        assert server.connections == 2
        await wires.close()
        found = await outcomes(*tasks)
        assert [type(error) for error in found] == [RedisConnectionError] * 8


async def test_a_busy_connection_takes_more_when_there_may_be_no_other(valkey_url: str) -> None:
    async with wires_to(valkey_url, 1) as wires, Redis.from_url(valkey_url) as other:
        waiting = asyncio.create_task(wires.ask(packed("BLPOP", "k", 0)))

        async def blocked() -> bool:
            return int((await other.info("clients"))["blocked_clients"]) == 1

        await wait_until(blocked, "the first command waits")
        second = asyncio.create_task(wires.ask(packed("ECHO", "x")))
        await other.lpush("k", "v")
        assert await waiting == [b"k", b"v"]
        assert await second == b"x"


async def test_closing_tells_those_who_wait_for_a_connection(tmp_path: Path) -> None:
    async with Scripted(tmp_path, nothing) as server:
        wires = Wires(
            Address(server.url.replace("unix://", "unix://:secret@")),
            1,
            timeout_secs=30.0,
            connect_secs=30.0,
        )
        task = asyncio.create_task(wires.ask(packed("PING")))
        await wait_until(lambda: bool(server.packets), "it introduces itself")
        await wires.close()
        with pytest.raises(RedisConnectionError, match="closed"):
            await task
        with pytest.raises(RedisConnectionError, match="closed"):
            await wires.ask(packed("PING"))


async def test_a_server_with_too_many_clients_is_away(tmp_path: Path) -> None:
    async def full(_: int, __: bytes) -> bytes:
        return b"-ERR max number of clients reached\r\n"

    async with Scripted(tmp_path, full) as server:
        with pytest.raises(StoreUnavailableError, match="max number of clients"):
            await RedisLink(server.url).open()


async def test_a_server_that_only_says_that_it_is_loading_is_away(tmp_path: Path) -> None:
    async def loading(_: int, __: bytes) -> bytes:
        return b"-LOADING Redis is loading the dataset in memory\r\n"

    async with Scripted(tmp_path, loading) as server:
        for url in (server.url, server.url.replace("unix://", "unix://:secret@")):
            with pytest.raises(StoreUnavailableError, match="loading its data"):
                await RedisLink(url).open()


@pytest.mark.parametrize(
    "refusal",
    [
        b"-LOADING Redis is loading the dataset in memory\r\n",
        b"-READONLY You can't write against a read only replica.\r\n",
        b"-MASTERDOWN Link with MASTER is down\r\n",
        b"-ERR Error running script: @user_script:1: -READONLY no writes here\r\n",
    ],
)
async def test_a_server_that_is_not_the_one_to_ask_is_left_with_all_idle_connections(
    tmp_path: Path, refusal: bytes
) -> None:
    """Another one is behind the address by now; the old one lives on and keeps its connections."""
    failed_over = False
    both_asked = asyncio.Event()

    async def answer(number: int, _: bytes) -> bytes:
        if number < 2 and failed_over:
            return refusal
        if len(server.packets) == 2:
            both_asked.set()
        await both_asked.wait()
        return b"+PONG\r\n"

    async with Scripted(tmp_path, answer) as server, wires_to(server.url, eager=True) as wires:
        first = asyncio.create_task(wires.ask(packed("PING")))
        await wait_until(lambda: len(server.packets) == 1, "the first command is there")
        assert await wires.ask(packed("PING")) == await first == b"PONG"
        assert server.connections == 2
        failed_over = True
        with pytest.raises(ResponseError):
            await wires.ask(packed("PING"))
        assert await wires.ask(packed("PING")) == b"PONG"
        assert server.connections == 3


async def test_what_is_in_flight_to_a_server_that_is_left_is_refused_alike(tmp_path: Path) -> None:
    async def one_refusal(_: int, data: bytes) -> bytes:
        return b"-LOADING\r\n" if b"PING" in data else b""

    async with Scripted(tmp_path, one_refusal) as server, wires_to(server.url, 1) as wires:
        said = await outcomes(*(wires.ask(packed("PING")) for _ in range(3)))
        assert [str(each) for each in said] == ["LOADING"] * 3


async def test_an_answer_of_another_kind_is_no_redis(tmp_path: Path) -> None:
    async def numbers(_: int, __: bytes) -> bytes:
        return b":1\r\n"

    async with Scripted(tmp_path, numbers) as server:
        with pytest.raises(UnsuitableStoreError, match="does not tell its version"):
            await RedisLink(server.url).open()


# --- the greeting --------------------------------------------------------------------------------


async def test_password_user_database_and_name_are_those_of_the_url(valkey_url: str) -> None:
    async with Redis.from_url(valkey_url) as admin:
        await admin.acl_setuser(
            "ann", enabled=True, passwords=["+pass word"], keys=["*"], commands=["+@all"]
        )
        try:
            url = valkey_url.replace("unix://", "unix://ann:pass%20word@")
            async with wires_to(f"{url}?db=3&client_name=pilotage") as wires:
                assert await wires.ask(packed("ACL", "WHOAMI")) == b"ann"
                assert await wires.ask(packed("CLIENT", "GETNAME")) == b"pilotage"
                await wires.ask(packed("SET", "here", 1))
            async with Redis.from_url(f"{valkey_url}?db=3") as third:
                assert await third.get("here") == b"1"
            assert await admin.get("here") is None
            async with wires_to(url.replace("ann", "bob")) as wires:
                with pytest.raises(AuthenticationError, match="WRONGPASS"):
                    await wires.ask(packed("PING"))
            async with wires_to(f"{valkey_url}?db=999") as wires:
                with pytest.raises(ResponseError, match="out of range"):
                    await wires.ask(packed("PING"))
        finally:
            await admin.acl_deluser("ann")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
async def test_tls_is_spoken_where_the_url_says_so_and_a_stranger_is_not_trusted(
    tmp_path: Path,
) -> None:
    cert, key = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    ended: set[asyncio.Task[None]] = set()

    async def pongs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        while data := await reader.read(1 << 16):
            writer.write(b"+PONG\r\n" * data.count(b"PING"))
        writer.close()
        ended.add(task)

    server = await asyncio.start_server(pongs, "localhost", 0, ssl=context)
    async with server:
        url = f"rediss://localhost:{server.sockets[0].getsockname()[1]}/0"
        async with wires_to(f"{url}?ssl_ca_certs={cert}") as wires:
            assert await wires.ask(packed("PING")) == b"PONG"
        await wait_until(lambda: len(ended) == 1, "the connection has ended")
        async with wires_to(url) as wires:
            with pytest.raises(ssl.SSLCertVerificationError):
                await wires.ask(packed("PING"))
