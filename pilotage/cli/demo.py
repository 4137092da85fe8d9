"""`pilotage demo` (`make demo`): a server, an example workflow, a run, shown live.

On a terminal it stays up afterwards, with links and a curl line, until Ctrl-C. With CI set or
without a terminal it prints plain lines and ends: with status 0 only after the server has said
over HTTP that the run is completed, otherwise with the reason.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec

from pilotage.app import Pilotage
from pilotage.cli.answers import Run, Workflow
from pilotage.cli.client import Client, ClientSettings
from pilotage.cli.connect import DEV_KEY_FILE, DEV_PROJECT, forget_dev_server, remember_dev_server
from pilotage.cli.dev import with_dev_key
from pilotage.cli.errors import DONE, FAILED, CommandError
from pilotage.cli.files import load_definition
from pilotage.cli.output import Output
from pilotage.cli.progress import PlainProgress, Progress, progress_for
from pilotage.cli.serve import load
from pilotage.cli.server_process import Serving, Signals, port_is_free, serving
from pilotage.cli.watch import follow
from pilotage.persistence.embedded import DataDirInUseError
from pilotage.settings import Settings

EXAMPLE = "order_fulfilment"
PORTS_TO_TRY = 20


class Example(NamedTuple):
    """What the demo runs: the jobs, the definition, the payload."""

    app: Pilotage
    definition: dict[str, Any]
    payload: Any


def load_example() -> Example:
    """The example of the repository; `CommandError` where there is none."""
    folder = Path(__file__).resolve().parents[2] / "examples"
    module_file = folder / f"{EXAMPLE}.py"
    spec = importlib.util.spec_from_file_location(f"pilotage_demo_{EXAMPLE}", module_file)
    if not module_file.exists() or spec is None or spec.loader is None:
        raise CommandError(
            "the demo's example is in the repository of Pilotage, not in the installed package; "
            "there: make demo"
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # type hints of the jobs are looked up there
    spec.loader.exec_module(module)
    payload = json.loads((folder / "order.json").read_text(encoding="utf-8"))
    definition = load_definition(folder / f"{EXAMPLE}.yaml").workflow
    return Example(module.app, definition, payload)


def choose_port(settings: Settings) -> Settings:
    """The port that is set, or the next free one."""
    if settings.port == 0:
        return settings
    for port in range(settings.port, min(settings.port + PORTS_TO_TRY, 65_536)):
        if port_is_free(settings.host, port):
            if port != settings.port:
                print(f"port {settings.port} is taken; using {port}")
            return msgspec.structs.replace(settings, port=port)
    last = settings.port + PORTS_TO_TRY - 1
    raise CommandError(f"no free port from {settings.port} to {last}; set PILOTAGE_PORT", FAILED)


@click.command()
@click.option("--port", type=click.IntRange(0, 65_535), help="The port (else 8080 or the next).")
def demo(*, port: int | None) -> int:
    """Start a server, run an example and show it live."""
    interactive = sys.stdout.isatty() and not os.environ.get("CI")
    settings = load({"port": port}, development=True).settings
    _quiet_logs(settings)
    example = load_example()
    settings = choose_port(with_dev_key(settings))
    try:
        return asyncio.run(_demo(settings, example, interactive=interactive))
    except DataDirInUseError as error:
        print(f"{error.data_dir} is in use by another server; using a temporary directory")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pilotage-demo-")))
        settings = msgspec.structs.replace(settings, data_dir=folder)
        return asyncio.run(_demo(settings, example, interactive=interactive))


def _quiet_logs(settings: Settings) -> None:
    from pilotage.cli.logs import set_up_logging

    level = settings.log_level if settings.log_level != "info" else "warning"
    set_up_logging(settings.log_format, level, secrets=[settings.admin_key or ""])


async def _demo(settings: Settings, example: Example, *, interactive: bool) -> int:
    signals = Signals()
    async with serving(settings, example.app, stop=signals.stop) as server:
        remember_dev_server(settings.data_dir, server.url, server.admin_key)
        print(f"Pilotage is up on {server.url}", flush=True)
        try:
            work = asyncio.create_task(
                asyncio.to_thread(_play, server.url, server.admin_key, example, interactive)
            )
            stopped = asyncio.create_task(signals.stop.wait())
            await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                # The thread ends with the next request, which a stopped server refuses.
                return FAILED
            run = work.result()
            if interactive:
                _show_around(server, settings, run)
                await signals.stop.wait()
            stopped.cancel()
        finally:
            forget_dev_server(settings.data_dir)
    return DONE if run["status"] == "completed" else FAILED


def _play(url: str, key: str, example: Example, interactive: bool) -> dict[str, Any]:  # noqa: FBT001 - through to_thread
    """All that an outside client would do, over HTTP: register, trigger, watch to the end."""
    client = Client(ClientSettings(url=url, api_key=key, project=DEV_PROJECT))
    out = Output(as_json=False)
    try:
        slug = _register(client, example)
        body = {"payload": example.payload, "tags": {"from": "demo"}}
        run: dict[str, Any] = client.post(f"/v1/workflows/{slug}/trigger", Run, body).data
        print(f"run {run['id']} of {slug}", flush=True)
        progress: Progress = (
            progress_for(out, f"{slug}  {run['id']}", as_json=False)
            if interactive
            else PlainProgress()
        )
        follow(client, run["id"], progress)
        # Once more, so that what is said below is what the server says now.
        ended: dict[str, Any] = client.get(f"/v1/workflow-runs/{run['id']}", Run).data
        error = f": {ended['error']}" if ended.get("error") else ""
        style = "green" if ended["status"] == "completed" else "red"
        out.say(f"run {ended['id']} is {ended['status']}{error}", style)
        return ended
    finally:
        client.close()


def _register(client: Client, example: Example) -> str:
    slug = str(example.definition["slug"])
    query = {"project_id": DEV_PROJECT}
    known = {w["slug"] for w in client.pages("/v1/workflows", Workflow, query, 1_000)}
    if slug in known:
        client.request("PATCH", f"/v1/workflows/{slug}", Workflow, body=example.definition)
        print(f"workflow {slug}: already there, brought up to date")
    else:
        client.post("/v1/workflows", Workflow, example.definition)
        print(f"workflow {slug}: registered")
    return slug


def _show_around(server: Serving, settings: Settings, run: dict[str, Any]) -> None:
    """Where to go from here. Only what this server has."""
    url = server.url
    print()
    for name, path in server.links():
        print(f"  {name:<12} {url}{path}")
    print(f"  {'key':<12} {settings.data_dir / DEV_KEY_FILE} (the command line finds it there)")
    print()
    print(f"  curl -H 'Authorization: Bearer {server.admin_key}' \\")
    print(f"    {url}/v1/workflow-runs/{run['id']}")
    print()
    print(f"  .venv/bin/pilotage runs show {run['id']}")
    print(f"  .venv/bin/pilotage runs replay {run['id']} charge && .venv/bin/pilotage runs list")
    print()
    print("Ctrl-C ends the server.", flush=True)
