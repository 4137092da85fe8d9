"""What the HTTP app is made of: handed to every handler, made once by `create_app`."""

from __future__ import annotations

from pilotage.actors.metrics import Metrics
from pilotage.http.limits import FailureLimit, RateLimit
from pilotage.http.ports import GatewayPort, HttpSettings


class Api:
    """The gateway, the settings, and what is counted in memory."""

    def __init__(
        self,
        gateway: GatewayPort,
        settings: HttpSettings,
        metrics: Metrics,
        *,
        rate: RateLimit,
        failures: FailureLimit,
    ) -> None:
        self.gateway = gateway
        self.catalog = gateway.catalog
        self.settings = settings
        self.metrics = metrics
        self.rate = rate
        self.failures = failures
        self.reference: tuple[bytes, bytes] | None = None
        self.in_progress: set[tuple[str, str]] = set()
        self.auth_failures = metrics.counter(
            "pilotage_http_auth_failures_total", "Requests without a valid key or run token."
        )
        self.replayed = metrics.counter(
            "pilotage_idempotent_replays_total", "Answers given again for a known Idempotency-Key."
        )
