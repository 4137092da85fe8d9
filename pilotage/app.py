"""Jobs and workflows in Python, and a runtime for them in the same process.

    app = Pilotage()

    @app.job(max_attempts=5, timeout=30)
    async def charge(order: Order, ctx: JobContext) -> Receipt: ...

    flow = app.workflow("orders", steps=[step("charge", job=charge)])

    async with app.running() as runtime:
        run = await runtime.trigger(flow, payload={"order_id": 42})
        print(await run.wait())

A workflow is checked when it is made, by the rules of the API, and `DefinitionError` lists
everything that is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack, overload

import msgspec

from pilotage.actors.executors.python_jobs import JobRegistry
from pilotage.runtime.errors import DefinitionError
from pilotage.runtime.validation import parse_workflow
from pilotage.steps import Duration, Step, seconds

if TYPE_CHECKING:
    from pilotage.local import LocalRuntime

DEFAULT_PROJECT = "default"
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


class JobOptions(TypedDict, total=False):
    """How a job is done; what is not given is 3 attempts of at most 300 seconds.

    name             how steps and the API call it (default: the function's name)
    inline, process  run on the actors' loop (tiny and trusted), or in a process of its own
    max_concurrency  attempts at the same time, over all runs
    """

    name: str
    inline: bool
    process: bool
    max_attempts: int
    timeout: Duration
    retry_backoff: str
    retry_initial_delay: Duration
    retry_max_delay: Duration
    max_concurrency: int


class WorkflowOptions(TypedDict, total=False):
    """What a workflow may say besides its steps; the same as over the API."""

    name: str
    description: str
    tags: Mapping[str, str]
    enabled: bool
    timeout: Duration
    max_concurrent_runs: int
    max_parallel_steps: int
    cron: str
    cron_timezone: str
    skip_if_running: bool


class Workflow(msgspec.Struct, frozen=True):
    """A checked workflow. `definition` is what would be sent to `POST /v1/workflows`."""

    slug: str
    definition: dict[str, Any]


class Pilotage:
    """An application: its jobs, its workflows, and the project they belong to.

    `pilotage serve --app MODULE:APP` and `pilotage dev MODULE:APP` serve one; `running` runs one
    without a server.
    """

    def __init__(self, *, project: str = DEFAULT_PROJECT) -> None:
        self.project = project
        self.registry = JobRegistry()
        self._workflows: dict[str, Workflow] = {}

    @property
    def workflows(self) -> tuple[Workflow, ...]:
        """All workflows, those that others run as sub-workflows before these."""
        return tuple(self._workflows.values())

    @overload
    def job(self, function: FunctionT, /) -> FunctionT: ...

    @overload
    def job(self, /, **options: Unpack[JobOptions]) -> Callable[[FunctionT], FunctionT]: ...

    def job(
        self, function: FunctionT | None = None, /, **options: Unpack[JobOptions]
    ) -> FunctionT | Callable[[FunctionT], FunctionT]:
        """Make a function a job: `@app.job` or `@app.job(max_attempts=5, timeout="30s")`.

        The function stays what it was. Its first parameter gets the step's input, checked against
        the type hint; a parameter that is a `JobContext` gets the context.
        """

        def decorate(function: FunctionT) -> FunctionT:
            given: dict[str, Any] = dict(options)
            for name in ("timeout", "retry_initial_delay", "retry_max_delay"):
                if given.get(name) is not None:
                    given[name] = seconds(given[name])
            self.registry.register(function, **given)
            return function

        return decorate if function is None else decorate(function)

    def workflow(
        self, slug: str, *, steps: Iterable[Step], **options: Unpack[WorkflowOptions]
    ) -> Workflow:
        """Make a workflow of steps. `DefinitionError` lists everything that is wrong with it."""
        if slug in self._workflows:
            raise DefinitionError([f'slug: there is a workflow "{slug}" in this app already'])
        definition: dict[str, Any] = {"slug": slug, **options}
        if (timeout := definition.pop("timeout", None)) is not None:
            definition["timeout_secs"] = seconds(timeout)
        problems: list[str] = []
        given = list(steps)
        definition["steps"] = [self._resolved(i, one, problems) for i, one in enumerate(given)]
        try:
            parse_workflow(definition, resolve=_Unchecked())
        except DefinitionError as error:
            problems += error.problems
        if problems:
            raise DefinitionError(problems)
        made = Workflow(slug, definition)
        self._workflows[slug] = made
        return made

    def running(
        self,
        *,
        data_dir: str | Path | None = None,
        redis_url: str | None = None,
        temporary: bool = False,
    ) -> AbstractAsyncContextManager[LocalRuntime]:
        """A runtime in this process, from its start to its clean stop.

        Runs are kept as `pilotage serve` would keep them: in `redis_url`, else in the embedded
        store in `data_dir`, else as PILOTAGE_REDIS_URL, PILOTAGE_DATA_DIR and `pilotage.toml`
        say; by default in `.pilotage`. Active runs of before go on. With `temporary` everything
        is forgotten at the end.
        """
        from pilotage.local import running

        return running(self, data_dir=data_dir, redis_url=redis_url, temporary=temporary)

    def _resolved(self, i: int, one: Step, problems: list[str]) -> dict[str, Any]:
        """The step's fields with its job and sub-workflow by name."""
        fields = dict(one.fields)
        if isinstance(one.job, str):
            fields["job_id"] = one.job
        elif one.job is not None:
            name = self.registry.named(one.job)
            if name is None:
                called = getattr(one.job, "__name__", repr(one.job))
                problems.append(
                    f"steps[{i}].job: {called} is not a job of this app; "
                    "decorate it with @app.job, or give a job's name"
                )
            fields["job_id"] = name or "unknown"
        if one.workflow is not None:
            other = one.workflow
            fields["sub_workflow_id"] = other if isinstance(other, str) else other.slug
        return fields


class _Unchecked:
    """Takes every reference: what is there is known only when the runtime has started."""

    def job(self, id_or_slug: str) -> str | None:
        return id_or_slug

    def workflow(self, id_or_slug: str) -> str | None:
        return id_or_slug


def load_app(target: str) -> Pilotage:
    """The app that `MODULE:NAME` means, e.g. `shop.flows:app`; NAME is `app` when left out.

    Raises `AppNotFoundError` with what is wrong; an exception of the module itself goes through.
    """
    from importlib import import_module
    from importlib.util import find_spec

    module_name, _, attribute = target.partition(":")
    try:
        spec = find_spec(module_name)
    except (ImportError, ValueError) as error:
        raise AppNotFoundError(target, f"no module {module_name} ({error})") from error
    if spec is None:
        raise AppNotFoundError(target, f"there is no module {module_name} here")
    found: Any = import_module(module_name)
    for part in (attribute or "app").split("."):
        found = getattr(found, part, None)
    if not isinstance(found, Pilotage):
        names = _apps_in(import_module(module_name))
        hint = f"; it has {', '.join(names)}" if names else ""
        raise AppNotFoundError(
            target, f"{module_name} has no Pilotage called {attribute or 'app'}{hint}"
        )
    return found


class AppNotFoundError(DefinitionError):
    """`MODULE:APP` does not name an app."""

    def __init__(self, target: str, why: str) -> None:
        super().__init__([f"{target}: {why}"])


def _apps_in(module: ModuleType) -> list[str]:
    names: dict[str, Any] = vars(module)
    return [name for name, value in names.items() if isinstance(value, Pilotage)]
