"""The app: assembled from its parts, without starting anything."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.handlers import BaseRouteHandler
from litestar.routes import HTTPRoute
from litestar.types import ControllerRouterHandler

from pilotage.actors.metrics import Metrics
from pilotage.http.api import Api
from pilotage.http.auth import Door, Routes, require_scopes
from pilotage.http.bulk import BulkController
from pilotage.http.callbacks import CallbacksController
from pilotage.http.events import EventsController
from pilotage.http.health import HealthController
from pilotage.http.jobs import JobRunsController, JobsController
from pilotage.http.keys import KeysController
from pilotage.http.limits import FailureLimit, RateLimit
from pilotage.http.ports import GatewayPort, HttpSettings
from pilotage.http.quarantine import QuarantineController
from pilotage.http.reference import ReferenceController
from pilotage.http.runs import InsightController, RunsController
from pilotage.http.steps import StepsController
from pilotage.http.workflows import WorkflowsController

V1: Sequence[ControllerRouterHandler] = (
    RunsController,
    InsightController,
    StepsController,
    BulkController,
    WorkflowsController,
    JobsController,
    JobRunsController,
    EventsController,
    KeysController,
    QuarantineController,
)


def create_app(
    gateway: GatewayPort,
    settings: HttpSettings,
    *,
    metrics: Metrics | None = None,
    v1: Sequence[ControllerRouterHandler] = (),
    pages: Sequence[ControllerRouterHandler] = (),
) -> Litestar:
    """The REST API over `gateway`.

    Args:
        gateway: the door to the runs.
        settings: keys, limits and switches.
        metrics: the registry that `/metrics` shows; a new one if there is none.
        v1: further handlers under `/v1`; each names its scope in `opt`.
        pages: further handlers outside of `/v1`, reached without a key unless they name a scope.
    """
    api = Api(
        gateway,
        settings,
        metrics or Metrics(),
        rate=RateLimit(settings.rate_limit, time.monotonic),
        failures=FailureLimit(settings.auth_failure_limit, time.monotonic),
    )
    api.metrics.gauge("pilotage_ready", "1 while work is taken.").ask(lambda: gateway.ready)
    if settings.admin_key is not None:
        gateway.catalog.keys.trust_admin_key(settings.admin_key)
    app = Litestar(
        route_handlers=[
            Router("/v1", route_handlers=[*V1, *v1]),
            CallbacksController,
            HealthController,
            ReferenceController,
            *pages,
        ],
        state=State({"api": api}),
        openapi_config=None,
        logging_config=None,
        request_max_body_size=None,
    )
    require_scopes(handlers_of(app))
    app.asgi_handler = Door(Routes(app, api), api)
    return app


def handlers_of(app: Litestar) -> Iterator[BaseRouteHandler]:
    """Every route handler but the framework's own answers to OPTIONS."""
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            yield from (h for h in route.route_handlers if h.http_methods != {"OPTIONS"})
