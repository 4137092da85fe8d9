"""Cron: five fields in a time zone, and when they fire next. Pure: the time is an argument.

The expression describes local times. Each local time fires once:

- one that a clock change skips fires at the moment of the change;
- one that comes twice fires the first time only.

This holds for every expression, also for `*/15 * * * *`: whoever wants even spacing through clock
changes uses UTC, the default. Fields: minute, hour, day of month, month, day of week; `*`, lists,
ranges, steps, names (`MON`, `JAN`), `L`, `LW`, `MON#2`, `5L`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Final, cast
from zoneinfo import ZoneInfo

import cronsim

MAX_CRON_CHARS: Final = 256
MAX_TIMEZONE_CHARS: Final = 64
MAX_MISSED_AGE_MS: Final = 3_600_000
"""After downtime a missed fire is made up only if it is less than an hour old."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PROBE = datetime(2024, 1, 1, tzinfo=UTC)
_ZONE_CHARS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_+-/")
_NO_ZONES = frozenset({"localtime", "posixrules", "Factory"})
"""Names that the zone data of many systems have: what they mean depends on the machine."""
_COPIES = ("posix/", "right/")
"""Directories in which systems keep the zones once more, some of them with leap seconds."""
_FIELD_COUNT = 5

_CronSim = cast("Any", cronsim.CronSim)  # ships no types that a checker trusts
_CronSimError = cast("type[Exception]", cronsim.CronSimError)


class CronError(ValueError):
    """The expression or the time zone is wrong; the message says how."""


def load_timezone(name: str) -> tzinfo:
    """Raises CronError. Reads the system's (else the bundled) time zone data, which is cached."""
    wrong = CronError(f'"{name[:MAX_TIMEZONE_CHARS]}" is no IANA time zone (like "Europe/Berlin")')
    if name == "UTC":
        return UTC
    if not name or len(name) > MAX_TIMEZONE_CHARS or not _ZONE_CHARS.issuperset(name):
        raise wrong
    if name in _NO_ZONES or name.startswith(_COPIES):
        raise wrong
    try:
        return ZoneInfo(name)
    except (ValueError, KeyError, OSError):
        raise wrong from None


class CronSchedule:
    """A checked expression in its zone. All times are Unix milliseconds."""

    __slots__ = ("_zone", "expression", "timezone")

    def __init__(self, expression: str, timezone: str = "UTC") -> None:
        """Raises CronError, also for an expression that never fires."""
        self.expression = expression
        self.timezone = timezone
        self._zone = load_timezone(timezone)
        if len(expression) > MAX_CRON_CHARS:
            raise CronError(f"must be at most {MAX_CRON_CHARS} characters long")
        fields = expression.split()
        if len(fields) != _FIELD_COUNT:
            raise CronError(f"a cron expression has 5 fields, this one has {len(fields)}")
        try:
            _CronSim(expression, _PROBE)
        except _CronSimError as error:
            raise CronError(f"bad cron expression: {error}") from None
        if self.next_after(_to_ms(_PROBE)) is None:
            raise CronError("this cron expression never fires")

    def next_after(self, after_ms: int) -> int | None:
        """The first fire time later than `after_ms`; None if there is none within 50 years."""
        try:
            start = _EPOCH + timedelta(milliseconds=after_ms)
            local = start.astimezone(self._zone).replace(tzinfo=None, fold=0)
            for candidate in _CronSim(self.expression, local):
                fire_ms = self._instant_ms(candidate)
                if fire_ms > after_ms:
                    return fire_ms
        except OverflowError:  # beyond the year 9999
            return None
        return None

    def missed(self, last_ms: int, now_ms: int) -> int | None:
        """The fire time to make up for: the latest in (last_ms, now_ms], less than an hour old."""
        found: int | None = None
        fire_ms = self.next_after(max(last_ms, now_ms - MAX_MISSED_AGE_MS))
        while fire_ms is not None and fire_ms <= now_ms:
            found = fire_ms
            fire_ms = self.next_after(fire_ms)
        return found

    def _instant_ms(self, local: datetime) -> int:
        """When the local time is; if the clocks skip it, when they are changed."""
        while True:
            instant = local.replace(tzinfo=self._zone, fold=0).astimezone(UTC)
            if instant.astimezone(self._zone).replace(tzinfo=None) == local:
                return _to_ms(instant)
            local += timedelta(minutes=1)


def _to_ms(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def parse_cron(expression: str, timezone: str = "UTC") -> CronSchedule:
    """Raises CronError."""
    return CronSchedule(expression, timezone)
