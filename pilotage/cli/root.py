"""The command tree: names and one-line helps here, everything else loaded when it is called.

`pilotage --help` must be quick, so this module imports click and nothing of ours but the errors.
Whatever a command raises ends here: one line on standard error, the exit status of
`pilotage.cli.errors`, never a traceback (unless PILOTAGE_LOG_LEVEL=debug asks for it).
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple, NoReturn

import click

import pilotage
from pilotage.cli.errors import FAILED, USAGE, CommandError
from pilotage.runtime.errors import PilotageError

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
PROGRAM = "pilotage"


class Lazy(NamedTuple):
    """Where a command is (`module:attribute`) and what the list of commands says of it."""

    target: str
    help: str


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called or completed."""

    def __init__(self, *args: Any, lazy: Mapping[str, Lazy] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy: Mapping[str, Lazy] = lazy or {}

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's
        return list(self.lazy)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's
        cmd_name: str,
    ) -> click.Command | None:
        entry = self.lazy.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.target.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's
        formatter: click.HelpFormatter,
    ) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in self.lazy.items()])


COMMANDS: dict[str, Lazy] = {
    "serve": Lazy("pilotage.cli.serve:serve", "API and actors in one process."),
    "dev": Lazy("pilotage.cli.dev:dev", "Serve for development: reload, pretty log, local key."),
    "demo": Lazy("pilotage.cli.demo:demo", "Start a server, run an example and show it live."),
    "run": Lazy("pilotage.cli.local:run", "Run one workflow from a file, in this process."),
    "apply": Lazy(
        "pilotage.cli.apply:apply",
        "Create or update workflows and jobs from YAML, TOML or JSON files.",
    ),
    "trigger": Lazy(
        "pilotage.cli.workflows:trigger", "Start a run of a workflow, named by its id or slug."
    ),
    "runs": Lazy("pilotage.cli.runs:runs", "Look at runs and steer them."),
    "send-event": Lazy(
        "pilotage.cli.events:send_event", "Send an event to every step that waits for it."
    ),
    "workflows": Lazy("pilotage.cli.workflows:workflows", "Look at workflows and delete them."),
    "jobs": Lazy("pilotage.cli.workflows:jobs", "Look at jobs."),
    "keys": Lazy("pilotage.cli.keys:keys", "Create, list and revoke API keys."),
    "doctor": Lazy("pilotage.cli.doctor:doctor", "Check this machine and the server."),
    "completion": Lazy(
        "pilotage.cli.completion:completion", "Print the completion script of a shell."
    ),
}


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
    epilog="Clients read PILOTAGE_URL and PILOTAGE_API_KEY. Exit status: 0 done, 1 failed, "
    "2 usage, 3 not found, 4 not authorized, 5 server away.",
)
@click.version_option(pilotage.__version__, prog_name=PROGRAM)
def root() -> None:
    """Every workflow run gets its own pilot."""


def _say(message: str, details: Sequence[str] = ()) -> None:
    from pilotage.cli.text import clean

    lines = [f"{PROGRAM}: {clean(message)}", *(f"  {clean(detail)}" for detail in details)]
    print("\n".join(lines), file=sys.stderr)


def _usage(error: click.UsageError) -> int:
    where = error.ctx.command_path if error.ctx is not None else PROGRAM
    _say(f"{error.format_message().rstrip('.')} (see `{where} --help`)")
    return USAGE


def _refused(error: PilotageError) -> int:
    """What the product refuses by itself. Errors that list problems are about what was given."""
    problems: tuple[str, ...] = getattr(error, "problems", ())
    if not problems:
        _say(str(error))
        return FAILED
    if len(problems) == 1:
        _say(problems[0])
    else:
        _say(f"{len(problems)} problems:", problems)
    return USAGE


def _unexpected(error: Exception) -> int:
    if os.environ.get("PILOTAGE_LOG_LEVEL", "").lower() == "debug":
        traceback.print_exception(error)
    _say(
        f"unexpected {type(error).__name__}: {error} "
        "(this is a bug; PILOTAGE_LOG_LEVEL=debug shows where)"
    )
    return FAILED


def invoke(args: Sequence[str] | None = None) -> int:
    """Run one command line; answers its exit status and never raises."""
    try:
        result = root.main(
            None if args is None else list(args), prog_name=PROGRAM, standalone_mode=False
        )
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return USAGE
    except click.UsageError as error:
        return _usage(error)
    except click.ClickException as error:
        _say(error.format_message())
        return USAGE
    except CommandError as error:
        _say(error.message, error.details)
        return error.exit_status
    except PilotageError as error:
        return _refused(error)
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has seen enough. Nothing may be flushed to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 - the last door: nothing may show a traceback
        return _unexpected(error)
    return result if isinstance(result, int) else 0


def main() -> NoReturn:
    """Entry point of the `pilotage` command."""
    sys.exit(invoke())
