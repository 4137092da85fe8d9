"""`pilotage serve`: API and actors in one process, and where its settings come from."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pilotage.cli.connect import CONFIG_FILE
from pilotage.cli.errors import FAILED, CommandError
from pilotage.runtime.errors import PilotageError
from pilotage.settings import (
    ROWS,
    LoadedSettings,
    Settings,
    load_settings,
    print_config,
    require_admin_key,
)

if TYPE_CHECKING:
    from pilotage.app import Pilotage
    from pilotage.cli.server_process import Serving

Command = TypeVar("Command", bound=Callable[..., Any])


def setting_options(command: Command) -> Command:
    """Every setting as an option, but the secret: what is on a command line can be read by all."""
    decorated: Any = command
    for row in reversed(ROWS):
        if not row.secret:
            name = "--" + row.key.replace("_", "-")
            decorated = click.option(name, row.key, metavar="…", help=row.about)(decorated)
    result: Command = decorated
    return result


def load(flags: dict[str, Any], *, development: bool = False) -> LoadedSettings:
    """Flags, environment and `pilotage.toml` of the current directory."""
    config = Path(CONFIG_FILE)
    path = config if config.exists() else None
    return load_settings(flags, os.environ, path, development=development)


def import_from_here() -> None:
    """Make the modules of the current directory importable, as `python -m` does."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def load_user_app(target: str | None) -> Pilotage | None:
    """The app of `--app`, importable from the current directory; its own errors on one line."""
    from pilotage.app import load_app

    if target is None:
        return None
    import_from_here()
    try:
        return load_app(target)
    except PilotageError:
        raise
    except Exception as error:
        if os.environ.get("PILOTAGE_LOG_LEVEL", "").lower() == "debug":
            traceback.print_exc()
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{frame.filename}:{frame.lineno}"
        if isinstance(error, SyntaxError) and error.filename:
            where = f"{error.filename}:{error.lineno}"
        raise CommandError(
            f"{target} cannot be loaded: {type(error).__name__}: {error} ({where})", FAILED
        ) from error


def set_up(settings: Settings) -> None:
    from pilotage.cli.logs import set_up_logging

    set_up_logging(settings.log_format, settings.log_level, secrets=[settings.admin_key or ""])


@click.command()
@setting_options
@click.option("--app", "target", metavar="MODULE:APP", help="Python jobs and workflows to serve.")
@click.option("--print-config", "show", is_flag=True, help="Say what holds and where it is from.")
def serve(*, target: str | None, show: bool, **flags: Any) -> int:
    """API and actors in one process.

    Settings come from options, PILOTAGE_… variables and pilotage.toml, in this order. Without an
    admin key (PILOTAGE_ADMIN_KEY) one is made and printed, on a loopback address only.
    """
    loaded = load(flags)
    if show:
        print(print_config(loaded))
        return 0
    settings = loaded.settings
    require_admin_key(settings)
    set_up(settings)
    app = load_user_app(target)
    from pilotage.cli.lasting_loop import run_lasting
    from pilotage.cli.server_process import serve_until_stopped

    def when_up(server: Serving) -> None:
        print(f"listening on {server.url}")
        if settings.admin_key is None:
            print(f"admin key (shown only now): {server.admin_key}")
        sys.stdout.flush()

    return run_lasting(serve_until_stopped(settings, app, when_up=when_up))
