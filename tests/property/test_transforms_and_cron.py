from __future__ import annotations

import warnings
from typing import Any

import jmespath
from hypothesis import assume, given, strategies as st
from jmespath.exceptions import JMESPathError

from pilotage.runtime.cron import CronError, CronSchedule, parse_cron
from pilotage.runtime.jsonvalues import json_equal
from pilotage.runtime.transforms import TransformError, compile_transform
from tests.support.definitions import outcome
from tests.support.strategies import ANY_TEXT, JSON

_PARTS = st.sampled_from(
    ["a", "b", "@", ".", "|", "[", "]", "[*]", "[]", "[0]", "[::2]", "[?", "&", "(", ")", ",", "{",
     "}", ":", "'x'", "`1`", "==", "<", "!", "||", "&&", "*", "length", "join", "map", "sort_by",
     "to_string", "merge", "keys", "nope", " ", '"k"']
)  # fmt: skip
EXPRESSIONS = st.lists(_PARTS, max_size=12).map("".join) | ANY_TEXT
GOOD = st.sampled_from(
    ["a", "a.b", "[*].a", "[].b", "*.a", "a[0]", "[?a].b", "{x: a, y: b}", "[a, b]", "keys(@)",
     "length(@)", "to_string(@)", "a || b", "a == b", "[::-1]", "@ | a", "type(@)"]
)  # fmt: skip


@given(EXPRESSIONS, JSON)
def test_any_expression_gives_a_value_or_a_transform_error(expression: str, value: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)  # of jmespath, for `{`
        found = outcome(lambda: compile_transform(expression).apply(value), TransformError)
        assert not isinstance(found, TransformError) or str(found)


@given(GOOD, JSON)
def test_counting_the_work_changes_no_result(expression: str, value: Any) -> None:
    try:
        expected = jmespath.search(expression, value)
    except JMESPathError:
        assume(False)
        return
    assert json_equal(compile_transform(expression).apply(value), expected)


_FIELDS = st.sampled_from(["*", "0", "5", "*/7", "1-3", "1,5", "59", "23", "31", "12", "6", "L"])
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"]
YEAR_2015 = 1_420_070_400
YEAR_2035 = 2_051_222_400
MOMENTS = st.integers(YEAR_2015 * 1_000, YEAR_2035 * 1_000)


@given(st.lists(_FIELDS, min_size=5, max_size=5).map(" ".join), st.sampled_from(ZONES), MOMENTS)
def test_fire_times_go_forward_and_meet_the_expression(
    expression: str, zone: str, after: int
) -> None:
    try:
        schedule = parse_cron(expression, zone)
    except CronError:
        assume(False)
        return
    fire = schedule.next_after(after)
    assert fire is not None
    assert fire > after
    assert fire % 60_000 == 0
    # Nothing lies between: from any moment before the fire the next one is the same.
    assert schedule.next_after(after + (fire - after) // 2) == fire
    assert schedule.next_after(fire - 1) == fire
    later = schedule.next_after(fire)
    assert later is None or later > fire


@given(ANY_TEXT | st.lists(_FIELDS | ANY_TEXT, max_size=6).map(" ".join), ANY_TEXT)
def test_any_text_is_a_schedule_or_a_cron_error(expression: str, zone: str) -> None:
    for parse in (lambda: parse_cron(expression), lambda: parse_cron("0 * * * *", zone)):
        found = outcome(parse, CronError)
        assert isinstance(found, CronSchedule) or str(found)
