"""An HTTP executor for tests, and endpoints that give one answer."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from pilotage.actors.executors.host_gate import CallLater
from pilotage.actors.executors.http_executor import HttpExecutor, HttpSettings
from pilotage.actors.executors.port import Attempt
from pilotage.actors.executors.tokens import RunTokens
from pilotage.runtime.definition import JobSpec
from tests.integration.executors.peers import Handler
from tests.integration.executors.recorder import Recorder, attempt
from tests.support.clock import FakeClock
from tests.unit.executors.test_addresses import Names

TOKENS = RunTokens(b"k" * 32)


class Client:
    """An executor and what tests do with it."""

    def __init__(
        self,
        *,
        allow_private_endpoints: bool = True,
        connect_timeout_secs: float = 10.0,
        names: Names | None = None,
        call_later: CallLater | None = None,
    ) -> None:
        self.clock = FakeClock()
        self.executor = HttpExecutor(
            TOKENS,
            self.clock,
            HttpSettings(
                allow_private_endpoints=allow_private_endpoints,
                connect_timeout_secs=connect_timeout_secs,
            ),
            resolver=names,
            call_later=call_later,
        )

    def begin(self, url: str, **fields: Any) -> tuple[Attempt, Recorder]:
        order, recorder = attempt(**fields), Recorder()
        self.executor.start(order, JobSpec(endpoint_url=url), recorder)
        assert not recorder.reports, "a report from within start"
        return order, recorder

    def post(self, url: str, **fields: Any) -> Recorder:
        return self.begin(url, **fields)[1]


def answering(*args: Any, **kwargs: Any) -> Handler:
    async def handler(_request: web.Request) -> web.StreamResponse:
        return web.Response(*args, **kwargs)

    return handler
