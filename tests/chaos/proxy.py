"""A TCP port in front of a store that does to connections what networks do to them."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self

CHUNK = 1 << 16


class StoreProxy:
    """Passes bytes on between a server and its store, until it is told to do worse.

    `cut_replies(n)`    the next n replies end after some bytes, and their connections with them
    `partitioned`       nothing goes either way; connections stay open and new ones are accepted
    `half_open`         requests arrive, replies do not
    `refusing`          connections are closed, new ones at once
    """

    def __init__(self, store_port: int) -> None:
        self._store_port = store_port
        self._listener: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._cuts: list[int] = []
        self._open_forth = asyncio.Event()
        self._open_back = asyncio.Event()
        self._refusing = False
        self.port = 0
        self.cut = 0
        """How many replies have been cut."""
        self.heal()

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._listener is not None
        self._listener.close()
        self.heal()
        self._drop_all()
        await asyncio.gather(*self._links, return_exceptions=True)

    def cut_replies(self, *lengths: int) -> None:
        """The next replies end after this many bytes each."""
        self._cuts.extend(lengths)

    def partition(self, *, half: bool = False) -> None:
        self._open_back.clear()
        if not half:
            self._open_forth.clear()

    def refuse(self) -> None:
        self._refusing = True
        self._drop_all()

    def heal(self) -> None:
        """As it should be. What was held up meanwhile arrives now."""
        self._refusing = False
        self._cuts.clear()
        self._open_forth.set()
        self._open_back.set()

    def _drop_all(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        self._writers.add(writer)
        try:
            if not self._refusing:
                with contextlib.suppress(OSError):
                    await self._link(reader, writer)
        finally:
            writer.transport.abort()
            self._writers.discard(writer)
            self._links.discard(task)

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection("127.0.0.1", self._store_port)
        self._writers.add(forth)
        requests = asyncio.create_task(self._pass_requests(reader, forth))
        replies = asyncio.create_task(self._pass_replies(back, writer))
        try:
            await asyncio.wait({requests, replies}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (requests, replies):
                task.cancel()
            await asyncio.gather(requests, replies, return_exceptions=True)
            forth.transport.abort()
            self._writers.discard(forth)

    async def _pass_requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(CHUNK):
            await self._open_forth.wait()
            writer.write(data)
            await writer.drain()

    async def _pass_replies(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(CHUNK):
            await self._open_back.wait()
            if self._cuts:
                writer.write(data[: self._cuts.pop(0)])
                await writer.drain()
                self.cut += 1
                return
            writer.write(data)
            await writer.drain()
