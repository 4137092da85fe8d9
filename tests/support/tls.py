"""TLS for tests: a certificate of one's own, and TLS in front of a server that speaks none."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
from pathlib import Path
from typing import Self

CHUNK = 1 << 16


def certificate(folder: Path) -> tuple[Path, Path]:
    """Certificate and key for `localhost`, signed by itself; needs `openssl`."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost", "-out", "cert.pem", "-keyout", "key.pem"),
        ],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder / "cert.pem", folder / "key.pem"


class TlsFront:
    """Speaks TLS at `port`, and passes what it hears on to a unix socket.

    `clients`: who has signed the certificates that clients must show; None: they show none.
    """

    def __init__(self, socket: str, cert: Path, key: Path, *, clients: Path | None = None) -> None:
        self._socket = socket
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(cert, key)
        if clients is not None:
            self._context.verify_mode = ssl.CERT_REQUIRED
            self._context.load_verify_locations(clients)
        self._links: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.accepted = 0

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(
            self._connected, "localhost", 0, ssl=self._context
        )
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()
        await asyncio.gather(*self._links, return_exceptions=True)

    def cut(self) -> None:
        """End all connections at once, without a word of TLS."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        self.accepted += 1
        back, forth = await asyncio.open_unix_connection(self._socket)
        self._writers |= {writer, forth}
        try:
            await asyncio.gather(_pass(reader, forth), _pass(back, writer))
        finally:
            self._writers -= {writer, forth}
            self._links.discard(task)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()
