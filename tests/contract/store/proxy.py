"""A unix socket in front of a server that can lose a reply on its way back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import TracebackType
from typing import Self


class LossyProxy:
    """Passes everything on. After `lose_next_reply()` the next bytes from the server are thrown
    away and the connection that waits for them is closed, once."""

    def __init__(self, server_socket: str, own_socket: Path) -> None:
        self._server_socket = server_socket
        self.url = f"unix://{own_socket}"
        self._own_socket = own_socket
        self._lose = False
        self.lost = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_unix_server(self._connected, str(self._own_socket))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def lose_next_reply(self) -> None:
        self._lose = True

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        back, forth = await asyncio.open_unix_connection(self._server_socket)
        requests = asyncio.create_task(self._pass_on(reader, forth))
        try:
            while data := await back.read(1 << 16):
                if self._lose:
                    self._lose = False
                    self.lost += 1
                    return
                writer.write(data)
                await writer.drain()
        finally:
            requests.cancel()
            for end in (writer, forth):
                end.close()
            self._tasks.discard(task)

    @staticmethod
    async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()
