"""`pilotage dev`: a server for one's own machine that follows the changes of the code.

The server runs in a child process; when a file of the module changes the child is stopped and a
new one started. Runs go on across reloads, because they are in the store. A module that cannot be
loaded is waited for: the next change may mend it.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click
import msgspec

from pilotage.cli.connect import DEV_KEY_FILE, forget_dev_server, read_private, remember_dev_server
from pilotage.cli.serve import import_from_here, load, load_user_app, set_up, setting_options
from pilotage.settings import Settings, require_admin_key

if TYPE_CHECKING:
    from pilotage.cli.server_process import Serving

LOOK_SECS = 0.3
MAX_FILES = 5_000
_CHILD = "_PILOTAGE_DEV_CHILD"
"""Set for the child; not one of our settings, which all begin without an underscore."""
_STOP_SECS = 40.0


@click.command()
@click.argument("target", metavar="[MODULE:APP]", required=False)
@setting_options
@click.option("--reload/--no-reload", default=True, help="Start anew when the module changes.")
def dev(*, target: str | None, reload: bool, **flags: Any) -> int:
    """Serve for development: reload, pretty log, local key."""
    settings = load(flags, development=True).settings
    require_admin_key(settings)
    if target is not None and reload and _CHILD not in os.environ:
        return Reloader(target).run()
    return serve_dev(settings, target)


def with_dev_key(settings: Settings) -> Settings:
    """The key that was set, else the one of last time, else a new one."""
    from pilotage.cli.server_process import new_admin_key

    key = settings.admin_key or read_private(DEV_KEY_FILE, settings.data_dir) or new_admin_key()
    return msgspec.structs.replace(settings, admin_key=key)


def serve_dev(settings: Settings, target: str | None) -> int:
    from pilotage.cli.lasting_loop import run_lasting
    from pilotage.cli.server_process import serve_until_stopped

    settings = with_dev_key(settings)
    if settings.log_format == "auto":
        settings = msgspec.structs.replace(settings, log_format="pretty")
    set_up(settings)
    app = load_user_app(target)
    if _CHILD in os.environ:
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()

    def when_up(server: Serving) -> None:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        remember_dev_server(settings.data_dir, server.url, server.admin_key)
        print(f"listening on {server.url}; the key is in {settings.data_dir / DEV_KEY_FILE}")
        if app is not None:
            jobs, workflows = len(app.registry), len(app.workflows)
            print(f"serving {target}: {jobs} job(s), {workflows} workflow(s)")
        sys.stdout.flush()

    def when_down() -> None:
        forget_dev_server(settings.data_dir)

    return run_lasting(serve_until_stopped(settings, app, when_up=when_up, when_down=when_down))


def _end_with_parent(parent: int) -> None:
    """A reloader that was killed leaves no server behind."""
    while os.getppid() == parent:
        time.sleep(LOOK_SECS)
    os.kill(os.getpid(), signal.SIGTERM)


def watched_files(target: str) -> dict[Path, int]:
    """The files whose change means a reload, with their times: the package, or the folder."""
    top = target.partition(":")[0].partition(".")[0]
    import_from_here()
    spec = importlib.util.find_spec(top)
    if spec is None:
        found = sorted(Path.cwd().glob("*.py"))
    elif spec.submodule_search_locations:
        found = [f for place in spec.submodule_search_locations for f in Path(place).rglob("*.py")]
    else:
        found = sorted(Path(spec.origin or ".").parent.glob("*.py"))
    times: dict[Path, int] = {}
    for file in found[:MAX_FILES]:
        try:
            times[file] = file.stat().st_mtime_ns
        except OSError:
            continue
    return times


class Reloader:
    """Keeps a child process serving; starts a new one when a watched file has changed."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._over = threading.Event()

    def run(self) -> int:
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        seen = watched_files(self._target)
        child = self._start()
        told = False
        while not self._over.wait(LOOK_SECS):
            now = watched_files(self._target)
            if now != seen:
                seen, told = now, False
                print("the code has changed: starting anew", file=sys.stderr, flush=True)
                self._end(child)
                child = self._start()
            elif child.poll() is not None and not told:
                told = True
                print("waiting for a change of the code ...", file=sys.stderr, flush=True)
        return self._end(child)

    def _stop(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the handler's
        self._over.set()

    def _start(self) -> subprocess.Popen[bytes]:
        # A group of its own: Ctrl-C reaches this process alone, which then ends the child in order.
        command = [sys.executable, "-m", "pilotage.cli", *sys.argv[1:]]
        return subprocess.Popen(  # noqa: S603 - our own program with our own arguments
            command, env={**os.environ, _CHILD: "1"}, start_new_session=True
        )

    def _end(self, child: subprocess.Popen[bytes]) -> int:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(_STOP_SECS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        return max(child.returncode, 0)
