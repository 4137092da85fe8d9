"""Pooled connections that are used again only while they are as clean as new ones.

An endpoint that says more than was asked for (a second answer, late) leaves that on its connection,
where the next request would take it for its own answer. Such a connection is closed instead.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

from aiohttp import ClientTimeout, TCPConnector
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.tracing import Trace


class CleanConnector(TCPConnector):
    """The connector of all HTTP attempts. Options are those of `TCPConnector`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._seen: WeakSet[ResponseHandler] = WeakSet()

    async def connect(
        self,
        req: ClientRequest,
        traces: list[Trace],
        timeout: ClientTimeout,  # noqa: ASYNC109 - aiohttp's signature
    ) -> Connection:
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol = connection.protocol
            if protocol is None or not self._used(protocol) or not protocol.should_close:
                return connection
            connection.close()

    def _used(self, protocol: ResponseHandler) -> bool:
        """Whether a request has gone out on it before; one is about to."""
        used = protocol in self._seen
        self._seen.add(protocol)
        return used
