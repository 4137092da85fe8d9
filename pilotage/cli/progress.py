"""How a run is shown while it moves: live on a terminal, as lines for people, or as JSON lines.

A progress is told of new history items and, if it asks for them, of the newest step runs. It
never asks anything itself, so the same three serve a run over HTTP and one in this process.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from pilotage.cli.drawings import QUIET_EVENTS, event_words, step_note
from pilotage.cli.output import STATUS_STYLES, Item, Output
from pilotage.cli.text import between, clean
from pilotage.runtime.status import TERMINAL_STEP

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table
    from rich.text import Text

FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
GLYPHS = {
    "completed": "✔",
    "failed": "✖",
    "skipped": "↷",
    "canceled": "–",
    "pending": "…",
    "waiting": "·",
}
REFRESHES_PER_SECOND = 10
_ROWS_FOR_THE_REST = 6
_BAR_WIDTH = 30


class Progress(Protocol):
    """Where the news of one run go."""

    needs_steps: bool

    def items(self, items: Sequence[Item]) -> None:
        """History items that are new, oldest first."""

    def steps(self, run: Item, steps: Sequence[Item]) -> None:
        """The run and its step runs as they are now."""

    def close(self) -> None:
        """Nothing more will come."""


class JsonProgress:
    """Each history item as a JSON line."""

    needs_steps = False

    def __init__(self, out: Output) -> None:
        self._out = out

    def items(self, items: Sequence[Item]) -> None:
        for item in items:
            self._out.json_line(item)

    def steps(self, run: Item, steps: Sequence[Item]) -> None:
        """Not asked for."""

    def close(self) -> None:
        """Lines need no end."""


class PlainProgress:
    """Each history item as a line of text."""

    needs_steps = False

    def items(self, items: Sequence[Item]) -> None:
        for item in items:
            if item.get("type") in QUIET_EVENTS:
                continue
            who = str(item.get("step_ref") or "run")
            print(f"{clean(item['at'])[11:23]}  {clean(who):<24} {event_words(item)}")
        if items:
            sys.stdout.flush()

    def steps(self, run: Item, steps: Sequence[Item]) -> None:
        """Not asked for."""

    def close(self) -> None:
        """Lines need no end."""


class LiveProgress:
    """A table of the steps that redraws itself; what does not fit is counted."""

    needs_steps = True

    def __init__(self, console: Console, title: str) -> None:
        from rich.live import Live

        self._title = title
        self._now: tuple[Item, Sequence[Item]] | None = None
        self._live = Live(
            self,
            console=console,
            refresh_per_second=REFRESHES_PER_SECOND,
            # What does not fit is left out here; at the end all of it may scroll by.
            vertical_overflow="crop",
        )
        self._console = console
        self._live.start()

    def items(self, items: Sequence[Item]) -> None:
        """The steps tell it all."""

    def steps(self, run: Item, steps: Sequence[Item]) -> None:
        self._now = (run, steps)

    def close(self) -> None:
        self._live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._now is None:
            return
        run, steps = self._now
        room = max(console.height - _ROWS_FOR_THE_REST, 3)
        yield self._heading(run, steps)
        yield step_table(worth_showing(steps, room))
        if len(steps) > room:
            yield counts(steps)

    def _heading(self, run: Item, steps: Sequence[Item]) -> Text:
        from rich.text import Text

        over = sum(step["status"] in TERMINAL_STEP for step in steps)
        filled = _BAR_WIDTH * over // max(len(steps), 1)
        status = str(run["status"])
        return Text.assemble(
            (clean(self._title), "bold"),
            "  ",
            (status, STATUS_STYLES.get(status, "")),
            "  ",
            ("━" * filled, "green"),
            ("─" * (_BAR_WIDTH - filled), "dim"),
            f"  {over}/{len(steps)} steps  ",
            (between(run.get("started_at"), run.get("finished_at")), "dim"),
        )


def worth_showing(steps: Sequence[Item], room: int) -> list[Item]:
    """All steps if there is room; else first those that move or failed, in definition order."""
    if len(steps) <= room:
        return list(steps)
    ranks = {"failed": 0, "running": 1, "pending": 2, "waiting": 4}

    def rank(step: Item) -> int:
        if step.get("waiting_for") in {"approval", "event", "timer", "retry"}:
            return 3
        return ranks.get(str(step["status"]), 5)

    chosen = sorted(range(len(steps)), key=lambda i: rank(steps[i]))[:room]
    return [steps[i] for i in sorted(chosen)]


def counts(steps: Sequence[Item]) -> Text:
    from rich.text import Text

    tally = Counter(str(step["status"]) for step in steps)
    parts = [(f"{n} {status}  ", STATUS_STYLES.get(status, "")) for status, n in tally.items()]
    return Text.assemble(*parts)


def step_table(steps: Sequence[Item]) -> Table:
    from rich.table import Table
    from rich.text import Text

    frame = FRAMES[int(time.monotonic() * REFRESHES_PER_SECOND) % len(FRAMES)]
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0), expand=True)
    for name in ("glyph", "step", "status", "attempt", "took"):
        table.add_column(name, no_wrap=True)
    table.add_column("note", no_wrap=True, overflow="ellipsis", style="dim", ratio=1)
    for step in steps:
        status = str(step["status"])
        style = STATUS_STYLES.get(status, "")
        attempt = int(step["attempt"])
        table.add_row(
            Text(frame if status == "running" else GLYPHS.get(status, " "), style=style),
            Text(clean(step["step_ref"])),
            Text(status, style=style),
            Text(f"attempt {attempt}" if attempt > 1 else "", style="yellow"),
            Text(between(step.get("started_at"), step.get("finished_at")), style="dim"),
            Text(step_note(step)),
        )
    return table


def progress_for(out: Output, title: str, *, as_json: bool) -> Progress:
    """JSON lines when asked for, live on a terminal, else lines of text."""
    if as_json:
        return JsonProgress(out)
    if sys.stdout.isatty() and out.console.is_terminal and not out.console.is_dumb_terminal:
        return LiveProgress(out.console, title)
    return PlainProgress()
