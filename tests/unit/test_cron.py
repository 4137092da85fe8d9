from __future__ import annotations

from datetime import UTC, datetime

import pytest

from pilotage.runtime.cron import (
    MAX_CRON_CHARS,
    CronError,
    CronSchedule,
    load_timezone,
    parse_cron,
)


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def fires(expression: str, timezone: str, after: str, count: int) -> list[str]:
    schedule = parse_cron(expression, timezone)
    moment: int | None = ms(after)
    found: list[str] = []
    for _ in range(count):
        assert moment is not None
        moment = schedule.next_after(moment)
        assert moment is not None
        found.append(datetime.fromtimestamp(moment / 1000, UTC).strftime("%Y-%m-%d %H:%M"))
    return found


@pytest.mark.parametrize(
    ("expression", "timezone", "after", "expected"),
    [
        ("*/15 * * * *", "UTC", "2026-01-01T00:00:00Z", ["2026-01-01 00:15", "2026-01-01 00:30"]),
        ("0 9 * * MON-FRI", "UTC", "2026-01-02T09:00:00Z", ["2026-01-05 09:00"]),
        ("0 0 1 JAN *", "UTC", "2026-01-01T00:00:00Z", ["2027-01-01 00:00", "2028-01-01 00:00"]),
        ("0 0 29 2 *", "UTC", "2026-01-01T00:00:00Z", ["2028-02-29 00:00"]),
        ("0 12 L * *", "UTC", "2026-02-01T00:00:00Z", ["2026-02-28 12:00"]),
        ("30 2 * * *", "Asia/Tokyo", "2026-01-01T00:00:00Z", ["2026-01-01 17:30"]),
        ("0 0 * * *", "Asia/Kolkata", "2026-01-01T00:00:00Z", ["2026-01-01 18:30"]),
    ],
)
def test_the_next_fires(expression: str, timezone: str, after: str, expected: list[str]) -> None:
    assert fires(expression, timezone, after, len(expected)) == expected


def test_the_next_fire_is_later_than_the_moment_to_the_millisecond() -> None:
    schedule = parse_cron("0 * * * *")
    hour = ms("2026-01-01T05:00:00Z")
    assert schedule.next_after(hour - 1) == hour
    assert schedule.next_after(hour) == hour + 3_600_000
    assert schedule.next_after(hour + 1) == hour + 3_600_000


def test_a_local_time_that_is_skipped_fires_at_the_change() -> None:
    assert fires("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", 2) == [
        "2026-03-29 01:00",  # 03:00 in summer time, when the clocks are changed
        "2026-03-30 00:30",
    ]


def test_a_local_time_that_comes_twice_fires_once() -> None:
    assert fires("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2) == [
        "2026-10-25 00:30",
        "2026-10-26 01:30",
    ]
    schedule = parse_cron("30 2 * * *", "Europe/Berlin")
    between = ms("2026-10-25T00:45:00Z")  # 02:45 in summer time; 02:30 comes once more
    assert schedule.next_after(between) == ms("2026-10-26T01:30:00Z")
    again = ms("2026-10-25T01:15:00Z")  # 02:15 for the second time
    assert schedule.next_after(again) == ms("2026-10-26T01:30:00Z")


def test_the_rule_holds_for_wildcards_too() -> None:
    assert fires("*/30 * * * *", "Europe/Berlin", "2026-10-24T23:40:00Z", 4) == [
        "2026-10-25 00:00",
        "2026-10-25 00:30",
        "2026-10-25 02:00",
        "2026-10-25 02:30",
    ]
    assert fires("*/30 * * * *", "Europe/Berlin", "2026-03-29T00:20:00Z", 3) == [
        "2026-03-29 00:30",
        "2026-03-29 01:00",
        "2026-03-29 01:30",
    ]


def test_a_day_that_is_skipped_fires_once_at_the_change() -> None:
    # Samoa went from 29 to 31 December 2011.
    assert fires("0 12 * * *", "Pacific/Apia", "2011-12-29T12:00:00Z", 3) == [
        "2011-12-29 22:00",
        "2011-12-30 10:00",
        "2011-12-30 22:00",
    ]


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("", "has 5 fields, this one has 0"),
        ("* * * *", "has 5 fields, this one has 4"),
        ("* * * * * *", "has 5 fields, this one has 6"),
        ("@daily", "has 5 fields, this one has 1"),
        ("60 * * * *", "Bad minute"),
        ("* 24 * * *", "Bad hour"),
        ("* * 0 * *", "Bad day-of-month"),
        ("* * * 13 *", "Bad month"),
        ("* * * * 8", "Bad day-of-week"),
        ("*/0 * * * *", "Bad minute"),
        ("5-1 * * * *", "Bad minute"),
        ("a * * * *", "Bad minute"),
        ("- * * * *", "Bad minute"),
        ("0 0 31 2 *", "Bad day-of-month"),
        ("0 0 31 4,6,9,11 MON#6", "Bad day-of-week"),
        ("0 0 * * ²L", "Bad day-of-week"),
        ("," * (MAX_CRON_CHARS + 1), f"at most {MAX_CRON_CHARS} characters"),
    ],
)
def test_a_bad_expression_is_refused(expression: str, why: str) -> None:
    with pytest.raises(CronError) as caught:
        parse_cron(expression)
    assert why in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Mars/Olympus",
        "../UTC",
        "Europe",
        "/etc/passwd",
        "a\0b",
        "x" * 65,
        "Eur ope",
        "localtime",
        "posixrules",
        "Factory",
        "posix/UTC",
        "right/Europe/Berlin",
    ],
)
def test_a_bad_time_zone_is_refused(name: str) -> None:
    with pytest.raises(CronError, match="is no IANA time zone"):
        parse_cron("* * * * *", name)


def test_time_zones_that_are_known() -> None:
    assert load_timezone("UTC") is UTC
    for name in ("Europe/Berlin", "America/Argentina/Buenos_Aires", "Etc/GMT+5"):
        assert str(load_timezone(name)) == name


def test_a_schedule_remembers_what_it_was_made_of() -> None:
    schedule = CronSchedule("0 0 * * *", "Asia/Tokyo")
    assert (schedule.expression, schedule.timezone) == ("0 0 * * *", "Asia/Tokyo")


def test_an_expression_that_never_fires_is_refused() -> None:
    with pytest.raises(CronError, match="never fires"):
        parse_cron("0 0 LW * */7")  # the last weekday of a month that is a Sunday


# --- made up for after downtime -------------------------------------------------------------------

NOW = ms("2026-01-01T12:10:00Z")
MINUTE = 60_000


@pytest.mark.parametrize(
    ("expression", "last", "expected"),
    [
        ("*/15 * * * *", "2026-01-01T09:00:00Z", "2026-01-01T12:00:00Z"),
        ("*/15 * * * *", "2026-01-01T12:00:00Z", None),
        ("10 12 * * *", "2026-01-01T09:00:00Z", "2026-01-01T12:10:00Z"),
        ("11 11 * * *", "2026-01-01T09:00:00Z", "2026-01-01T11:11:00Z"),
        ("10 11 * * *", "2026-01-01T09:00:00Z", None),
        ("0 11 * * *", "2026-01-01T09:00:00Z", None),
        ("0 13 * * *", "2026-01-01T09:00:00Z", None),
    ],
)
def test_only_the_latest_missed_fire_of_the_last_hour_is_made_up(
    expression: str, last: str, expected: str | None
) -> None:
    found = parse_cron(expression).missed(ms(last), NOW)
    assert found == (None if expected is None else ms(expected))


def test_beyond_the_calendar_there_is_no_next_fire() -> None:
    assert parse_cron("0 0 1 1 *").next_after(ms("9999-06-01T00:00:00Z")) is None
    assert parse_cron("* * * * *").next_after(10**18) is None
