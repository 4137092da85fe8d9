"""What may listen where the store should be: a TCP port that always answers the same."""

from __future__ import annotations

import socketserver
import threading
from typing import Self

LOADING = b"-LOADING the server is loading the dataset in memory\r\n"
HTTP = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"


def info(**fields: object) -> bytes:
    """The answer to INFO of a server that says this of itself."""
    text = "".join(f"{name}:{value}\r\n" for name, value in fields.items()).encode()
    return b"$%d\r\n%s\r\n" % (len(text), text)


class Impostor:
    """Gives `answer` to each command. `port` 0: a free one."""

    def __init__(self, answer: bytes, port: int = 0) -> None:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                while data := self.request.recv(1 << 16):
                    commands = data.count(b"*") or 1
                    self.request.sendall(answer * commands)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            block_on_close = False

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
