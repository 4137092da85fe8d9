"""Timers when the wall clock is set: what measures a duration keeps it."""

from __future__ import annotations

import random
from collections.abc import Hashable

import pytest

from pilotage.actors.kernel import timers as timing
from tests.support.clock import START_MS
from tests.unit.kernel.test_timers import SEED, Driven

HOUR_MS = 3_600_000


@pytest.fixture
def driven() -> Driven:
    return Driven()


def lasting(driven: Driven, key: Hashable, left_ms: int) -> None:
    """A timer that measures a duration."""
    driven.timers.set(key, driven.clock.now_ms() + left_ms, driven.fired.append, left_ms)


@pytest.mark.parametrize("hours", [1, -1])
def test_a_duration_is_neither_shortened_nor_stretched_by_a_jump(
    driven: Driven, hours: int
) -> None:
    lasting(driven, "lasts", 30_000)
    driven.after("time of day", HOUR_MS // 2)
    driven.pass_ms(10_000)
    driven.clock.jump_ms(hours * HOUR_MS)
    driven.pass_ms(19_999)
    assert driven.timers.due_ms("lasts") == driven.clock.now_ms() + 1
    assert "lasts" not in driven.fired
    driven.pass_ms(1)
    assert ("time of day" in driven.fired) == (hours > 0)
    assert driven.fired[-1] == "lasts"


@pytest.mark.parametrize("hours", [1, -1])
def test_a_duration_that_begins_after_a_jump_that_nobody_has_noticed_is_not_moved(
    driven: Driven, hours: int
) -> None:
    lasting(driven, "before", 30_000)
    driven.clock.jump_ms(hours * HOUR_MS)
    lasting(driven, "after", 10_000)
    driven.pass_ms(9_999)
    assert driven.fired == []
    driven.pass_ms(1)
    assert driven.fired == ["after"]
    driven.pass_ms(20_000)
    assert driven.fired == ["after", "before"]


def test_a_jump_between_working_out_the_end_and_setting_the_timer_counts_for_nothing(
    driven: Driven,
) -> None:
    for hours in (1, -1):
        due_ms = driven.clock.now_ms() + 10_000
        driven.clock.jump_ms(hours * HOUR_MS)
        driven.timers.set("lasts", due_ms, driven.fired.append, 10_000)
        assert driven.timers.due_ms("lasts") == driven.clock.now_ms() + 10_000


def test_what_is_worked_out_some_milliseconds_before_keeps_its_end(driven: Driven) -> None:
    due_ms = driven.clock.now_ms() + 10_000
    driven.clock.advance_ms(timing.JUMP_MS - 1)
    driven.timers.set("lasts", due_ms, driven.fired.append, 10_000)
    assert driven.timers.due_ms("lasts") == due_ms


def test_many_jumps_and_a_clock_that_slowly_goes_wrong_add_up_to_nothing(driven: Driven) -> None:
    lasting(driven, "lasts", 1_000_000)
    choose = random.Random(SEED)
    for _ in range(999):
        driven.clock.jump_ms(choose.choice((-7 * HOUR_MS, -300, 1, 400, 999, 1_000, HOUR_MS)))
        driven.pass_ms(1_000)
    assert driven.fired == []
    driven.pass_ms(1_000 + timing.JUMP_MS)
    assert driven.fired == ["lasts"]


def test_the_timers_that_were_moved_are_told_with_their_new_times(driven: Driven) -> None:
    told: list[tuple[int, object]] = []
    driven.timers.on_jump.append(lambda by_ms, moved: told.append((by_ms, moved)))
    driven.after("time of day", 10)
    driven.clock.jump_ms(-HOUR_MS)
    driven.pass_ms(0)
    assert (told.pop(), driven.timers.jumps) == ((-HOUR_MS, []), 1)
    lasting(driven, "gone", 10_000)
    lasting(driven, "lasts", 10_000)
    driven.timers.cancel("gone")
    driven.clock.jump_ms(HOUR_MS)
    driven.pass_ms(0)
    due_ms = driven.clock.now_ms() + 10_000
    assert told == [(HOUR_MS, [("lasts", driven.fired.append, due_ms)])]
    assert driven.timers.jumps == 2


def test_a_listener_that_fails_stops_nothing(
    driven: Driven, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("listener")

    driven.timers.on_jump.append(broken)
    driven.after("due", 10)
    driven.clock.jump_ms(HOUR_MS)
    driven.timers.fire_due()
    assert driven.fired == ["due"]
    assert driven.timers.failed == 1
    assert "Who listens for jumps of the wall clock failed" in caplog.text


def test_a_hundred_thousand_durations_move_at_once_and_keep_their_order(driven: Driven) -> None:
    count = 100_000
    for number in range(count):
        lasting(driven, number, 1_000 + number % 1_000)
    driven.clock.jump_ms(-HOUR_MS)
    driven.pass_ms(999)
    assert (driven.fired, len(driven.timers)) == ([], count)
    driven.clock.advance_ms(1_000)
    while driven.timers.fire_due():
        pass
    assert driven.fired == sorted(range(count), key=lambda number: number % 1_000)


def test_a_callback_that_meets_a_jump_lets_nothing_fire_by_the_old_time(driven: Driven) -> None:
    def sets(_: Hashable) -> None:
        driven.clock.jump_ms(-HOUR_MS)
        lasting(driven, "next", 10)

    driven.timers.set("first", START_MS + 10, sets)
    driven.timers.set("second", START_MS + 10, driven.fired.append, 10)
    driven.after("time of day", 10)
    driven.clock.advance_ms(10)
    assert driven.timers.fire_due() == 1
    assert driven.fired == []
    assert driven.timers.fire_due() == 1
    assert driven.fired == ["second"]
    driven.pass_ms(10)
    assert driven.fired == ["second", "next"]


def test_a_process_that_stands_still_between_two_looks_has_seen_no_jump(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driven = Driven()
    lasting(driven, "lasts", 30_000)
    monotonic, stalls = driven.clock.monotonic, [7_000, 0, 20_000]

    def slow() -> float:
        if stalls:
            driven.clock.advance_ms(stalls.pop())
        return monotonic()

    monkeypatch.setattr(driven.clock, "monotonic", slow)
    driven.timers.fire_due()
    assert driven.timers.jumps == 0
    assert driven.timers.due_ms("lasts") == START_MS + 30_000


def test_a_process_that_stands_still_at_every_look_believes_the_last(
    driven: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    lasting(driven, "lasts", 30_000)
    monotonic = driven.clock.monotonic

    def slow() -> float:
        driven.clock.advance_ms(200)
        return monotonic()

    driven.clock.jump_ms(HOUR_MS)
    monkeypatch.setattr(driven.clock, "monotonic", slow)
    driven.timers.fire_due()
    assert driven.timers.jumps == 1
    assert driven.fired == []
