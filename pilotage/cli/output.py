"""What a command prints: tables for people on a terminal, JSON lines for programs.

Every value from a server goes through `clean` and is printed as plain text, never as markup.
`rich` is loaded when the first table is drawn.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from pilotage.cli.text import clean

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

Item: TypeAlias = Mapping[str, Any]

STATUS_STYLES = {
    "completed": "green",
    "running": "cyan",
    "executing": "cyan",
    "pending": "yellow",
    "waiting": "yellow",
    "queued": "yellow",
    "paused": "magenta",
    "failed": "bold red",
    "timed_out": "bold red",
    "canceled": "dim",
    "skipped": "dim",
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. `style` "status" colours by value; `fold`: may break over lines;
    `rest`: gets the width that the others leave.
    """

    title: str
    cell: Callable[[Item], object]
    style: str = ""
    fold: bool = False
    rest: bool = False
    right: bool = False


def key(name: str) -> Callable[[Item], object]:
    """The cell that shows a key as it is."""
    return lambda item: item.get(name)


def cell_text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (dict, list)):
        return clean(json.dumps(value, ensure_ascii=False))
    return clean(value)


def styled(value: object, style: str) -> Text:
    from rich.text import Text

    text = cell_text(value)
    return Text(text, style=STATUS_STYLES.get(text, "") if style == "status" else style)


class Output:
    """Where one command's results go. `as_json` None: JSON lines unless stdout is a terminal."""

    def __init__(self, *, as_json: bool | None = None) -> None:
        self.as_json = not sys.stdout.isatty() if as_json is None else as_json
        self._console: Console | None = None

    @property
    def console(self) -> Console:
        if self._console is None:
            from rich.console import Console

            self._console = Console(highlight=False, markup=False, emoji=False)
        return self._console

    def json_line(self, item: object) -> None:
        print(json.dumps(item, ensure_ascii=False, separators=(",", ":")), flush=True)

    def say(self, text: str = "", style: str | None = None) -> None:
        """A line for people; programs do not get it."""
        if not self.as_json:
            self.console.print(clean(text), style=style, soft_wrap=True)

    def done(self, text: str, item: object = None) -> None:
        """The outcome of an action: a sentence, or the object that it changed."""
        if self.as_json:
            self.json_line(item)
        else:
            self.say(text)

    def rows(self, items: Iterable[Item], columns: Sequence[Column], empty: str = "") -> None:
        if self.as_json:
            for item in items:
                self.json_line(item)
            return
        listed = list(items)
        if not listed:
            self.say(empty)
            return
        self.table(listed, columns)

    def table(self, items: Sequence[Item], columns: Sequence[Column]) -> None:
        from rich.table import Table

        wide = any(column.rest for column in columns)
        table = Table(box=None, pad_edge=False, header_style="bold dim", expand=wide)
        for column in columns:
            table.add_column(
                column.title,
                overflow="fold" if column.fold else "ellipsis",
                no_wrap=not column.fold,
                justify="right" if column.right else "left",
                ratio=1 if column.rest else None,
            )
        for item in items:
            table.add_row(*(styled(column.cell(item), column.style) for column in columns))
        self.console.print(table)

    def fields(self, pairs: Iterable[tuple[str, object]]) -> None:
        """Name and value below each other; empty ones are left out."""
        from rich.table import Table

        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in pairs:
            if value is not None and value != "":
                table.add_row(name, styled(value, "status" if name == "status" else ""))
        self.console.print(table)
