"""The world outside: an HTTP server that does the attempts of jobs and reports their results.

It is never at fault itself, so whatever goes wrong with an attempt is the doing of the server.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from typing import Any, NamedTuple, Self
from uuid import uuid4

from aiohttp import web

from tests.chaos.client import Client
from tests.chaos.ledger import Ledger


class Delivery(NamedTuple):
    """One arrival of an attempt."""

    at: float
    attempt: int
    key: str


class Outside:
    """Endpoints: `/ok` answers, `/flaky` fails attempt 1, `/callback` takes and reports later."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.client: Client | None = None
        self.deliveries: dict[tuple[str, str], list[Delivery]] = defaultdict(list)
        self._reports: set[asyncio.Task[None]] = set()
        self.base = ""

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/{kind}", self._attempt)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.base = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._reports:
            task.cancel()
        await asyncio.gather(*self._reports, return_exceptions=True)
        await self._runner.cleanup()

    async def _attempt(self, request: web.Request) -> web.Response:
        await request.read()
        headers = request.headers
        run, ref = headers["X-Workflow-Run-ID"], headers["X-Step-Ref"]
        attempt = int(headers["X-Attempt"])
        self.deliveries[run, ref].append(
            Delivery(time.monotonic(), attempt, headers["Idempotency-Key"])
        )
        output: dict[str, Any] = {"did": uuid4().hex, "attempt": attempt}
        match request.match_info["kind"]:
            case "flaky" if attempt == 1:
                return web.Response(status=500, text="not yet")
            case "callback":
                report = self._report(headers["X-Run-ID"], headers["X-Run-Token"], run, ref, output)
                task = asyncio.create_task(report)
                self._reports.add(task)
                task.add_done_callback(self._reports.discard)
                return web.Response(status=202)
            case _:
                return web.json_response(output)

    async def _report(
        self, job_run: str, token: str, run: str, ref: str, output: dict[str, Any]
    ) -> None:
        """Report until it is acknowledged, or refused because another report was first."""
        assert self.client is not None
        status, _ = await self.client.insist(
            "POST",
            f"/sdk/v1/runs/{job_run}/complete",
            {"result": output},
            token=token,
            allowed={204, 409, 410},
        )
        if status == 204:
            self._ledger.acknowledged_result(run, ref, output)
