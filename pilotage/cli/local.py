"""`pilotage run FILE`: one workflow from a file, in this process, to its end.

The store is a private one that is forgotten afterwards, unless `--data-dir` or `--keep` says
otherwise. The exit status is the run's outcome. Recordings in WfFormat run as well: each task
sleeps as long as it took when it was recorded, times the scale.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec

from pilotage.actors.runtime import Runtime
from pilotage.app import Pilotage
from pilotage.cli.errors import USAGE, CommandError
from pilotage.cli.files import DefinitionFileError, LoadedFile, load_definition
from pilotage.cli.output import Output
from pilotage.cli.progress import Progress, progress_for
from pilotage.cli.serve import load, load_user_app
from pilotage.cli.session import parse_json
from pilotage.cli.text import clean
from pilotage.cli.watch import outcome
from pilotage.cli.wfformat import WFFORMAT_JOB
from pilotage.deploy import put_job, put_workflow
from pilotage.local import LocalRuntime, Run, put_app
from pilotage.runtime.jsonvalues import is_array, is_object
from pilotage.runtime.status import TERMINAL_RUN, StepStatus, WaitingFor
from pilotage.runtime.views import StepView
from pilotage.settings import Settings

LOOK_SECS = 0.1
GRACE_SECS = 2.0
"""What attempts get when the command is interrupted."""
TERMINATED = 143  # 128 + SIGTERM, as shells have it
QUIET_SECS = 1.0
"""Without news for so long it is looked whether any can come."""
_OUTSIDE = frozenset({WaitingFor.APPROVAL, WaitingFor.EVENT})
_BATCH = 1_000
_SHARE = 5
"""Looking at a large run takes its time; no more than a fifth of the loop's goes into it."""


class Task(msgspec.Struct):
    """The payload of a WfFormat task (other keys are ignored)."""

    runtime_secs: float


def register_replay(app: Pilotage, time_scale: float) -> None:
    """The job that stands for every task of a recording."""

    async def replay(task: Task) -> None:
        await asyncio.sleep(task.runtime_secs * time_scale)

    app.registry.register(replay, name=WFFORMAT_JOB)


def _is_recording(loaded: LoadedFile) -> bool:
    steps = loaded.workflow.get("steps")
    return is_array(steps) and any(is_object(s) and s.get("job_id") == WFFORMAT_JOB for s in steps)


@contextmanager
def place(data_dir: Path | None, *, keep: bool) -> Generator[Path, None, None]:
    """Where the store of this run is; a place of its own is removed afterwards."""
    if data_dir is not None:
        yield data_dir
        return
    folder = Path(tempfile.mkdtemp(prefix="pilotage-run-"))
    try:
        yield folder
    finally:
        if keep:
            print(f"kept in {folder} (pilotage serve --data-dir {folder})", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--payload", metavar="JSON|@FILE", help="What the run works on.")
@click.option("--app", "target", metavar="MODULE:APP", help="Python jobs that the steps name.")
@click.option("--data-dir", type=click.Path(file_okay=False, path_type=Path), help="Keep it there.")
@click.option("--keep", is_flag=True, help="Keep the private store and say where it is.")
@click.option(
    "--time-scale",
    type=click.FloatRange(min=0),
    default=0.001,
    show_default=True,
    help="WfFormat: seconds to sleep for each second recorded.",
)
@click.option("--json", "as_json", is_flag=True, help="History items as JSON lines.")
def run(
    *,
    file: Path,
    payload: str | None,
    target: str | None,
    data_dir: Path | None,
    keep: bool,
    time_scale: float,
    as_json: bool,
) -> int:
    """Run one workflow from a file, in this process.

    FILE is YAML, TOML or JSON, or a recording in WfFormat. The exit status is 0 only if the run
    has completed.
    """
    try:
        loaded = load_definition(file)
    except DefinitionFileError as error:
        raise CommandError(str(error), USAGE) from error
    decoded = None if payload is None else parse_json(payload, "--payload")
    app = load_user_app(target) or Pilotage()
    if _is_recording(loaded) and WFFORMAT_JOB not in app.registry:
        register_replay(app, time_scale)
    for warning in loaded.warnings:
        print(f"note: {clean(warning)}", file=sys.stderr)
    with place(data_dir, keep=keep) as folder:
        flags: dict[str, Any] = {"data_dir": folder, "port": 0}
        if data_dir is None and not keep:
            flags["snapshot_fsync"] = "no"  # it is forgotten anyway
        settings = load(flags, development=True).settings
        settings = msgspec.structs.replace(settings, redis_url=None)
        _quiet_logs(settings)
        try:
            return asyncio.run(_run(settings, app, loaded, decoded, as_json=as_json))
        except asyncio.CancelledError:  # by SIGTERM; Ctrl-C is a KeyboardInterrupt
            return TERMINATED


def _quiet_logs(settings: Settings) -> None:
    """Warnings only: the progress is the log."""
    from pilotage.cli.logs import set_up_logging

    level = settings.log_level if settings.log_level != "info" else "warning"
    set_up_logging(settings.log_format, level)


async def _run(
    settings: Settings, app: Pilotage, loaded: LoadedFile, payload: Any, *, as_json: bool
) -> int:
    actors = Runtime(settings=settings, registry=app.registry)
    await actors.start()
    grace = GRACE_SECS
    try:
        local = LocalRuntime(actors, app.project)
        await put_app(actors, app, by="cli")
        for job in loaded.jobs:
            await put_job(actors.catalog, app.project, job)
        workflow = await put_workflow(actors.catalog, app.project, loaded.workflow, by="cli")
        started = await local.trigger(workflow.id, payload)
        out = Output(as_json=as_json)
        progress = progress_for(out, f"{workflow.name}  {started.id}", as_json=as_json)
        with _until_terminated():
            try:
                ended = await follow(local, started, progress)
            finally:
                progress.close()
        return outcome(out, ended)
    except asyncio.CancelledError:
        grace = 0.0
        raise
    finally:
        await actors.stop(grace)


@contextmanager
def _until_terminated() -> Generator[None, None, None]:
    """SIGTERM cancels what runs inside, as Ctrl-C does."""
    task = asyncio.current_task()
    assert task is not None  # called from a coroutine
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


def say_if_stuck(steps: Sequence[StepView]) -> bool:
    """Tell when only somebody outside could move the run, and nobody can reach it in here."""
    waits = {step.step_ref: step.waiting_for for step in steps if step.waiting_for is not None}
    if any(step.status is StepStatus.RUNNING for step in steps):
        return False
    outside = [ref for ref, wait in waits.items() if wait in _OUTSIDE]
    if not outside or set(waits.values()) - {*_OUTSIDE, WaitingFor.DEPENDENCIES}:
        return False
    print(
        f"note: {', '.join(outside)} can be decided on a server only (pilotage dev, then apply "
        "and trigger); here only a timeout ends the waiting, or Ctrl-C",
        file=sys.stderr,
    )
    return True


async def follow(local: LocalRuntime, run: Run, progress: Progress) -> dict[str, Any]:
    """Show a run of this process until it has ended; the run as it was then."""
    gateway = local.actors.gateway
    clock = asyncio.get_running_loop().time
    seq = 0
    hinted = False
    news_at = clock()
    while True:
        began = clock()
        # The run first: what is read after it was terminal contains its last items.
        view: dict[str, Any] = json.loads(msgspec.json.encode(await run.view()))
        news = await gateway.history(run.id, local.principal, seq, _BATCH)
        items = [json.loads(item) for item in news]
        progress.items(items)
        over = view["status"] in TERMINAL_RUN
        # At the end once more: history can be a moment ahead of what was read of the steps.
        if progress.needs_steps and (items or over or seq == 0):
            steps: list[dict[str, Any]] = json.loads(msgspec.json.encode(await run.steps()))
            progress.steps(view, steps)
        if items:
            seq = int(items[-1]["seq"])
            news_at = clock()
        elif not hinted and clock() - news_at > QUIET_SECS:
            hinted = say_if_stuck(await run.steps())
        if len(items) == _BATCH:
            continue
        if over:
            return view
        await asyncio.sleep(max(LOOK_SECS, (clock() - began) * (_SHARE - 1)))
