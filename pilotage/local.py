"""A runtime in this process for a Python app: start it, trigger runs, wait for them, steer them.

Everything here runs on one asyncio loop, the one `running` was entered on. The runs are as durable
as with a server: whatever a method has answered is in the store.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from pilotage.actors.gateway import Gateway
from pilotage.actors.principal import ANY, Principal
from pilotage.actors.runtime import Runtime
from pilotage.deploy import put_workflow
from pilotage.runtime.errors import PilotageError
from pilotage.runtime.state import RunState
from pilotage.runtime.status import RunStatus, StepStatus
from pilotage.runtime.validation import parse_trigger
from pilotage.runtime.views import RunView, StepView
from pilotage.settings import Settings, load_settings

if TYPE_CHECKING:
    from pilotage.app import Pilotage, Workflow

# How often a run is looked at that is being waited for: at once for short runs, seldom for long.
_FIRST_LOOK_SECS = 0.002
_LAST_LOOK_SECS = 0.1
_GROWTH = 1.4


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended. `outputs`: step ref to output, of the steps that have one."""

    run_id: str
    status: str
    error: str | None = None
    outputs: dict[str, Any] = {}

    @property
    def completed(self) -> bool:
        return self.status == RunStatus.COMPLETED


class RunNotCompletedError(PilotageError):
    """A run that was expected to complete ended otherwise; `result` has the rest."""

    def __init__(self, result: RunResult) -> None:
        said = f": {result.error}" if result.error else ""
        super().__init__(f"run {result.run_id} is {result.status}{said}")
        self.result = result


class Run:
    """A run that was triggered here, or found by its id."""

    def __init__(self, runtime: LocalRuntime, run_id: str) -> None:
        self._runtime = runtime
        self.id = run_id

    def __repr__(self) -> str:
        return f"<Run {self.id}>"

    # --- how it stands -----------------------------------------------------------------------

    async def view(self) -> RunView:
        """The run as the REST API shows it."""
        return await self._gateway.get_run_view(self.id, self._by)

    async def steps(self) -> list[StepView]:
        """The step runs as the REST API shows them, in definition order."""
        return await self._gateway.steps(self.id, self._by)

    async def status(self) -> RunStatus:
        return (await self._state()).status

    async def wait(self, timeout: float | None = None) -> RunResult:  # noqa: ASYNC109 - a word of the API
        """Wait for the end of the run, whatever it is; `TimeoutError` after `timeout` seconds.

        The run goes on when the waiting ends early.
        """
        pause = _FIRST_LOOK_SECS
        async with asyncio.timeout(timeout):
            while True:
                state = await self._state()
                if state.status.is_terminal:
                    return _result(state)
                await asyncio.sleep(pause)
                pause = min(pause * _GROWTH, _LAST_LOOK_SECS)

    async def outputs(self, timeout: float | None = None) -> dict[str, Any]:  # noqa: ASYNC109 - likewise
        """Wait for the run to complete; `RunNotCompletedError` if it ends otherwise."""
        result = await self.wait(timeout)
        if not result.completed:
            raise RunNotCompletedError(result)
        return result.outputs

    # --- steering ----------------------------------------------------------------------------

    async def pause(self) -> None:
        """Let nothing new start."""
        await self._gateway.pause(self.id, self._by)

    async def resume(self) -> None:
        await self._gateway.resume(self.id, self._by)

    async def cancel(self, reason: str | None = None) -> None:
        """End the run and everything in it that has not ended."""
        await self._gateway.cancel(self.id, self._by, reason)

    async def approve(
        self, step: str, comment: str | None = None, *, by: str | None = None
    ) -> None:
        """Approve a step that waits for it, as `by` (default: `python`)."""
        await self._gateway.approve(self.id, step, self._by, comment, by or self._by.name)

    async def reject(self, step: str, reason: str | None = None, *, by: str | None = None) -> None:
        await self._gateway.reject(self.id, step, self._by, reason, by or self._by.name)

    async def skip(self, step: str, reason: str | None = None) -> None:
        """Do without a step: what depends on it goes on."""
        await self._gateway.skip(self.id, step, self._by, reason)

    async def complete(self, step: str, result: Any = None) -> None:
        """Call a step done, with the result given."""
        encoded = None if result is None else msgspec.json.encode(result)
        await self._gateway.force_complete(self.id, step, self._by, encoded)

    async def retry_step(self, step: str) -> None:
        """Run an ended step again, in this run."""
        await self._gateway.retry_step(self.id, step, self._by)

    async def replay(self, step: str) -> int:
        """Run a step and all that depends on it again, in this run; answers how many steps."""
        return cast("int", await self._gateway.replay_subtree(self.id, step, self._by))

    async def retry(self) -> Run:
        """A new run that takes over what this one, which failed, has done."""
        view = cast("RunView", await self._gateway.retry_run(self.id, self._by))
        return Run(self._runtime, view.id)

    # --- inside ------------------------------------------------------------------------------

    @property
    def _gateway(self) -> Gateway:
        return self._runtime.actors.gateway

    @property
    def _by(self) -> Principal:
        return self._runtime.principal

    async def _state(self) -> RunState:
        return await self._runtime.actors.gateway.get_run(self.id, self._by)


class LocalRuntime:
    """What `app.running()` gives. `actors` is the runtime itself, for what is not here."""

    def __init__(self, actors: Runtime, project: str) -> None:
        self.actors = actors
        self.project = project
        self.principal = Principal(name="python", project_id=project, scopes=frozenset({ANY}))

    async def trigger(
        self,
        workflow: Workflow | str,
        payload: Any = None,
        *,
        tags: Mapping[str, str] | None = None,
        delay: float = 0.0,
    ) -> Run:
        """Start a run; when this answers, the run is stored and will be finished.

        Args:
            workflow: one of the app, or the id or slug of any in the project.
            payload: any JSON value; msgspec Structs and dataclasses are written as objects.
            tags: up to 20, to find the run by.
            delay: seconds until it starts.
        """
        slug = workflow if isinstance(workflow, str) else workflow.slug
        catalog = self.actors.catalog
        found = await catalog.workflow(self.project, slug)
        graph = await catalog.graph(found.version_id)
        body = {
            "payload": msgspec.to_builtins(payload),
            "tags": dict(tags or {}),
            "delay_secs": delay,
        }
        parsed = parse_trigger(body, graph.index)
        view = await self.actors.gateway.trigger(found, parsed, actor=self.principal.name)
        return Run(self, view.id)

    def run(self, run_id: str) -> Run:
        """A run by its id; whether there is one shows at the first question to it."""
        return Run(self, run_id)

    async def send_event(self, event_key: str, payload: Any = None, *, keep: int = 0) -> int:
        """Complete every step that waits for the event; answers how many did.

        With none waiting the event is kept for `keep` seconds for the first step that will.
        """
        encoded = None if payload is None else msgspec.json.encode(payload)
        receipt = await self.actors.gateway.send_event(
            self.project, event_key, encoded, keep, actor=self.principal.name
        )
        return receipt.delivered


def _result(state: RunState) -> RunResult:
    outputs = {
        spec.step_ref: msgspec.json.decode(step.output)
        for spec, step in zip(state.graph.steps, state.steps(), strict=True)
        if step.output is not None and step.status is StepStatus.COMPLETED
    }
    return RunResult(
        run_id=state.id, status=state.status.value, error=state.vitals.error, outputs=outputs
    )


def local_settings(*, data_dir: str | Path | None = None, redis_url: str | None = None) -> Settings:
    """The settings as a server would have them here, with these two laid over."""
    config = Path("pilotage.toml")
    flags = {"data_dir": data_dir, "redis_url": redis_url}
    return load_settings(flags, os.environ, config if config.exists() else None).settings


@asynccontextmanager
async def running(
    app: Pilotage,
    *,
    data_dir: str | Path | None = None,
    redis_url: str | None = None,
    temporary: bool = False,
) -> AsyncGenerator[LocalRuntime, None]:
    """See `Pilotage.running`."""
    if not temporary:
        settings = local_settings(data_dir=data_dir, redis_url=redis_url)
        async with started(app, settings) as runtime:
            yield runtime
        return
    if data_dir is not None or redis_url is not None:
        raise ValueError("temporary=True keeps nothing: leave out data_dir and redis_url")
    with tempfile.TemporaryDirectory(prefix="pilotage-") as folder:
        settings = msgspec.structs.replace(
            local_settings(data_dir=folder), redis_url=None, snapshot_fsync="no"
        )
        async with started(app, settings) as runtime:
            yield runtime


@asynccontextmanager
async def started(app: Pilotage, settings: Settings) -> AsyncGenerator[LocalRuntime, None]:
    """A runtime of these settings with the app's jobs and workflows."""
    actors = Runtime(settings=settings, registry=app.registry)
    await actors.start()
    try:
        runtime = LocalRuntime(actors, app.project)
        await put_app(actors, app, by=runtime.principal.name)
        yield runtime
    finally:
        await actors.stop()


async def put_app(actors: Runtime, app: Pilotage, *, by: str) -> None:
    """The app's workflows into the catalog, in the order they were made."""
    for workflow in app.workflows:
        await put_workflow(actors.catalog, app.project, workflow.definition, by=by)
