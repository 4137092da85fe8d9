"""Small texts for people: what is safe on a terminal, how long, how long ago. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

_CONTROL = dict.fromkeys((*range(32), *range(127, 160)), "\N{REPLACEMENT CHARACTER}")
_CONTROL[ord("\n")] = " "
_CONTROL[ord("\t")] = " "


def clean(value: object) -> str:
    """The text on one line without control characters: a step's error must not move the cursor."""
    return str(value).translate(_CONTROL)


def shorten(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


def parse_time(text: str) -> datetime:
    """An RFC 3339 time of the API."""
    return datetime.fromisoformat(text)


def duration(seconds: float) -> str:
    """`0.42 s`, `12.3 s`, `4 min 05 s`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 1:
        return f"{max(seconds, 0):.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, secs = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {secs:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def between(start: str | None, end: str | None, now: datetime | None = None) -> str:
    """How long from `start` to `end` (to now while it has no end); empty before the start."""
    if not start:
        return ""
    until = parse_time(end) if end else now or datetime.now(UTC)
    return duration((until - parse_time(start)).total_seconds())


def ago(when: str | None, now: datetime | None = None) -> str:
    """`12.3 s ago`; empty without a time."""
    if not when:
        return ""
    seconds = ((now or datetime.now(UTC)) - parse_time(when)).total_seconds()
    if seconds < 0:
        return f"in {duration(-seconds)}"
    return f"{duration(seconds)} ago"
