"""Whether the process lives, whether it serves, and its counters."""

from __future__ import annotations

import re
from typing import Any

from litestar import Controller, get
from litestar.response.base import ASGIResponse

from pilotage import __version__
from pilotage.actors.errors import UnavailableError
from pilotage.actors.metrics import CONTENT_TYPE
from pilotage.http.answers import ok
from pilotage.http.auth import PUBLIC
from pilotage.http.call import AnyRequest, api_of

_ADDRESS = re.compile(r"(?<=cannot be reached): .*")
"""Where the store is said to be is not for everybody."""
OPEN: dict[str, Any] = {"scope": PUBLIC}


class HealthController(Controller):
    path = "/"

    @get("/health", operation_id="get-health", opt=OPEN)
    async def health(self, request: AnyRequest) -> ASGIResponse:
        """Always 200: the process answers."""
        ready = api_of(request).gateway.ready
        return ok({"status": "ok", "version": __version__, "ready": ready})

    @get("/health/ready", operation_id="get-readiness", opt=OPEN)
    async def readiness(self, request: AnyRequest) -> ASGIResponse:
        """503 while the store is away, recovery runs or the server stops. `degraded` while no new
        run is taken on and everything else goes on.
        """
        gateway = api_of(request).gateway
        if gateway.ready and gateway.degraded is not None:
            return ok({"status": "degraded", "reason": gateway.degraded})
        if gateway.ready:
            return ok({"status": "ready"})
        raise UnavailableError(f"not ready: {_ADDRESS.sub('', gateway.degraded or '')}")

    @get("/metrics", operation_id="get-metrics", opt=OPEN)
    async def metrics(self, request: AnyRequest) -> ASGIResponse:
        """Prometheus text. Needs a key (any) unless `PILOTAGE_METRICS_PUBLIC` is set."""
        return ASGIResponse(body=api_of(request).metrics.text(), media_type=CONTENT_TYPE)
