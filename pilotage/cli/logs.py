"""Logging of the server's process: one line a record, on standard error.

Pretty on a terminal, JSON lines elsewhere; fields given as `extra=` are kept in both. Whatever
looks like a credential, and every secret that is known by value, is masked before it is written.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import IO, Literal

LogFormat = Literal["auto", "pretty", "json"]
MASK = "********"

# API keys, run tokens in headers, passwords in URLs.
_CREDENTIALS = (
    (re.compile(r"plt_[A-Za-z0-9_-]{8,}"), "plt_" + MASK),
    (re.compile(r"(?i)\b(bearer\s+)[^\s\"',]+"), r"\1" + MASK),
    (re.compile(r"(://[^/\s:@]*:)[^/\s@]+@"), r"\1" + MASK + "@"),
)
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_COLOURS = {"DEBUG": "2", "INFO": "36", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}
# What other packages say on `info` is theirs, not the operator's.
_QUIET = ("asyncio", "aiohttp.access", "uvicorn.access", "uvicorn.error", "uvicorn", "pykka")


def masked(text: str, secrets: Sequence[str] = ()) -> str:
    for secret in secrets:
        text = text.replace(secret, MASK)
    for pattern, replacement in _CREDENTIALS:
        text = pattern.sub(replacement, text)
    return text


def _extras(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


class JsonFormatter(logging.Formatter):
    """`{"at", "level", "logger", "message", …extras, "error"?}`."""

    def __init__(self, secrets: Sequence[str] = ()) -> None:
        super().__init__()
        self._secrets = tuple(secrets)

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extras(record),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return masked(json.dumps(line, default=str, ensure_ascii=False), self._secrets)


class PrettyFormatter(logging.Formatter):
    """`12:00:01.250 INFO  supervisor  message  name=value`, the traceback below it."""

    def __init__(self, secrets: Sequence[str] = (), *, colours: bool = False) -> None:
        super().__init__()
        self._secrets = tuple(secrets)
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")
        level = f"{record.levelname:<7}"
        if self._colours:
            level = f"\x1b[{_COLOURS.get(record.levelname, '0')}m{level}\x1b[0m"
        name = record.name.removeprefix("pilotage.")
        extras = "".join(f"  {key}={value}" for key, value in _extras(record).items())
        line = f"{at[11:23]} {level} {name}  {record.getMessage()}{extras}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return masked(line, self._secrets)


def set_up_logging(
    log_format: LogFormat = "auto",
    level: str = "info",
    *,
    secrets: Sequence[str] = (),
    stream: IO[str] | None = None,
) -> None:
    """Send every record of this process through one handler. `secrets`: values never written."""
    out = stream or sys.stderr
    on_terminal = out.isatty()
    pretty = log_format == "pretty" or (log_format == "auto" and on_terminal)
    known = [secret for secret in secrets if secret]
    handler = logging.StreamHandler(out)
    if pretty:
        handler.setFormatter(PrettyFormatter(known, colours=on_terminal))
    else:
        handler.setFormatter(JsonFormatter(known))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    others = logging.INFO if level == "debug" else logging.WARNING
    for name in _QUIET:
        logging.getLogger(name).setLevel(others)
    logging.captureWarnings(True)
