"""The page docs/cli.md, made from the commands: `python -m tests.cli.reference > docs/cli.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from pilotage.cli.root import root
from pilotage.settings import BY_KEY

HEAD = """\
# The command line

Made from the commands themselves; `--help` says the same.

Operators' commands speak to the server at `--url`, else `PILOTAGE_URL`, else a development server
of the current directory, else `http://127.0.0.1:8080`, with the key `PILOTAGE_API_KEY` (or the
development server's). With an admin key `--project` or `PILOTAGE_PROJECT` names the project.

Results are tables on a terminal and JSON lines when piped (`--json`, `--table` choose). Errors are
one line on standard error. Exit status: 0 done, 1 failed, 2 usage, 3 not found, 4 not authorized,
5 server away.

`eval "$(pilotage completion bash)"` teaches the shell to complete all of this.
"""
SHARED = frozenset({"url", "project", "as_json"})
WITH_SETTINGS = frozenset({"serve", "dev"})


def leaves(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    ctx = click.Context(group)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from leaves(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def section(path: str, command: click.Command) -> Iterator[str]:
    ctx = click.Context(command, info_name=path)
    usage = " ".join(piece for piece in command.collect_usage_pieces(ctx) if piece != "[OPTIONS]")
    yield f"## {path}\n"
    yield f"`{path} {usage}`\n".replace(" `", "`")
    yield f"{' '.join((command.help or '').split())}\n"
    shared = bool(SHARED & {parameter.name for parameter in command.params} - {"as_json"})
    settings = path.rpartition(" ")[2] in WITH_SETTINGS
    rows: list[str] = []
    for parameter in command.params:
        if not isinstance(parameter, click.Option):
            continue
        if (shared and parameter.name in SHARED) or (settings and parameter.name in BY_KEY):
            continue
        record = parameter.get_help_record(ctx)
        assert record is not None  # none is hidden
        shown = (
            record[0].replace("|", "\\|").replace("INTEGER RANGE", "N").replace("FLOAT RANGE", "N")
        )
        default = f" Default: {parameter.default}." if parameter.show_default else ""
        rows.append(f"| `{shown}` | {parameter.help or ''}{default} |")
    if settings:
        rows.append("| `--host …`, `--port …` and so on | every [setting](settings.md) |")
    if rows:
        yield "| option | |\n|---|---|\n" + "\n".join(rows) + "\n"


def page() -> str:
    parts = [HEAD]
    for path, command in leaves(root, "pilotage"):
        parts += section(path, command)
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(page())
