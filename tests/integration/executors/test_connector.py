"""Pooled connections: used again while they are clean, and only then."""

from __future__ import annotations

import asyncio
import socket

import aiohttp

from pilotage.actors.executors.connector import CleanConnector

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def exchange(session: aiohttp.ClientSession, listener: socket.socket) -> socket.socket:
    """One request on a connection that is accepted here, answered and kept."""
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    asked = asyncio.create_task(session.post(url, data=b"x"))
    peer, _ = await asyncio.get_running_loop().sock_accept(listener)
    peer.setblocking(False)
    await answer(peer)
    assert await (await asked).text() == "ok"
    return peer


async def answer(peer: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    heard = b""
    while not heard.endswith(b"\r\n\r\nx"):
        heard += await loop.sock_recv(peer, 65536)
    await loop.sock_sendall(peer, ANSWER)


async def test_a_clean_connection_is_used_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        async with aiohttp.ClientSession(connector=CleanConnector()) as session:
            with await exchange(session, listener) as peer:
                url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
                again = asyncio.create_task(session.post(url, data=b"x"))
                await answer(peer)
                assert (await again).status == 200


async def test_a_connection_that_was_closed_a_moment_ago_is_not_used_again() -> None:
    """The end has arrived, but the loop had no turn yet in which to see it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        async with aiohttp.ClientSession(connector=CleanConnector()) as session:
            (await exchange(session, listener)).close()
            (await exchange(session, listener)).close()
