"""Pooled connections that are used again only while they are as clean as new ones.

An endpoint that says more than was asked for (a second answer, late) leaves that on its connection,
where the next request would take it for its own answer. One that hangs up after an answer without
having said so would cost the next attempt. Such connections are closed instead.
"""

from __future__ import annotations

import select
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
            if protocol is None or not self._used(protocol):
                return connection
            if not protocol.should_close and not _has_news(connection):
                return connection
            connection.close()

    def _used(self, protocol: ResponseHandler) -> bool:
        """Whether a request has gone out on it before; one is about to."""
        used = protocol in self._seen
        self._seen.add(protocol)
        return used


def _has_news(connection: Connection) -> bool:
    """Whether something has arrived that the loop has not read yet: the end, or what nobody asked.

    A retry comes so soon after the answer that the end of the connection may not have been seen.
    """
    transport = connection.transport
    peer = None if transport is None else transport.get_extra_info("socket")
    if peer is None:
        return True
    poll = select.poll()
    poll.register(peer.fileno(), select.POLLIN)
    return bool(poll.poll(0))
