"""What the operator's commands share: options, the client, the way out, values from the line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from pilotage.cli.answers import Json
from pilotage.cli.client import Client, require_key
from pilotage.cli.connect import client_settings
from pilotage.cli.errors import USAGE, CommandError
from pilotage.cli.output import Output

Command = TypeVar("Command", bound=Callable[..., Any])


class Session:
    """One command's client (with a key, made at first use) and output."""

    def __init__(self, url: str | None, project: str | None, *, as_json: bool | None) -> None:
        self.out = Output(as_json=as_json)
        self.settings = client_settings(url, project)
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        if self._client is None:
            require_key(self.settings)
            self._client = Client(self.settings)
        return self._client

    @property
    def project(self) -> str | None:
        return self.settings.project

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


def operator(command: Command) -> Command:
    """Give a command `--url`, `--project`, `--json/--table` and a `Session` as first argument."""

    @wraps(command)
    def with_session(
        *args: Any, url: str | None, project: str | None, as_json: bool | None, **kwargs: Any
    ) -> Any:
        session = Session(url, project, as_json=as_json)
        try:
            return command(session, *args, **kwargs)
        finally:
            session.close()

    options = (
        click.option("--url", metavar="URL", help="The server (else PILOTAGE_URL)."),
        click.option("--project", metavar="NAME", help="The project, with an admin key."),
        click.option(
            "--json/--table",
            "as_json",
            default=None,
            help="JSON lines or a table (else: a table on a terminal).",
        ),
    )
    wrapped: Any = with_session
    for option in reversed(options):
        wrapped = option(wrapped)
    decorated: Command = wrapped
    return decorated


def parse_json(text: str, name: str) -> Json:
    """JSON from the command line, from a file (`@FILE`) or from standard input (`@-`)."""
    source = name
    if text.startswith("@"):
        source = f"{name} {text}"
        try:
            text = sys.stdin.read() if text == "@-" else Path(text[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise CommandError(f"{source} cannot be read: {reason}", USAGE) from error
    try:
        return json.loads(text)
    except ValueError as error:
        raise CommandError(
            f"{source} is not JSON: {error} (text needs its quotes: '\"like this\"')", USAGE
        ) from error


def json_or_none(text: str | None, name: str) -> Json:
    return None if text is None else parse_json(text, name)


def key_values(pairs: tuple[str, ...], name: str) -> dict[str, str]:
    """`key=value` pairs of a repeatable option."""
    found: dict[str, str] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise CommandError(f"{name} {pair!r}: write it as key=value", USAGE)
        found[key] = value
    return found
