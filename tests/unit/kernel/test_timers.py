"""Timers: one per key, in due order, in bursts, across jumps of the wall clock."""

from __future__ import annotations

import asyncio
import contextvars
import random
import sys
import time
import tracemalloc
from collections.abc import Callable, Hashable

import pytest

from pilotage.actors.kernel import SystemClock, Timers, timers as timing
from tests.support.clock import START_MS, FakeClock

SEED = 11
Key = tuple[str, str]


class Driven:
    """Timers without a loop, with a clock that the test moves."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.timers: Timers[Hashable] = Timers(self.clock, None)
        self.fired: list[Hashable] = []

    def after(self, key: Hashable, delay_ms: int) -> None:
        self.timers.set(key, self.clock.now_ms() + delay_ms, self.fired.append)

    def pass_ms(self, duration_ms: int) -> None:
        self.clock.advance_ms(duration_ms)
        self.timers.fire_due()


@pytest.fixture
def driven() -> Driven:
    return Driven()


def test_timers_fire_when_due_in_due_order_and_never_early(driven: Driven) -> None:
    driven.after("third", 30)
    driven.after("first", 10)
    driven.after("second", 20)
    driven.pass_ms(9)
    assert driven.fired == []
    driven.pass_ms(1)
    assert driven.fired == ["first"]
    driven.pass_ms(100)
    assert driven.fired == ["first", "second", "third"]
    assert len(driven.timers) == 0


def test_equal_due_times_fire_in_the_order_they_were_set(driven: Driven) -> None:
    for number in range(50):
        driven.after(number, 10)
    driven.pass_ms(10)
    assert driven.fired == list(range(50))


def test_a_key_has_one_timer_and_setting_it_again_replaces_it(driven: Driven) -> None:
    key = ("run-1", "step-a")
    driven.after(key, 10)
    driven.after(key, 30)
    assert len(driven.timers) == 1
    assert driven.timers.due_ms(key) == START_MS + 30
    driven.pass_ms(20)
    assert driven.fired == []
    driven.after(key, 5)
    driven.pass_ms(5)
    assert driven.fired == [key]
    driven.pass_ms(100)
    assert driven.fired == [key]


def test_a_cancelled_timer_does_not_fire(driven: Driven) -> None:
    driven.after("a", 10)
    driven.after("b", 10)
    assert driven.timers.cancel("a") is True
    assert driven.timers.cancel("a") is False
    assert "a" not in driven.timers
    assert "b" in driven.timers
    assert driven.timers.due_ms("a") is None
    driven.pass_ms(10)
    assert driven.fired == ["b"]
    assert driven.timers.cancel("b") is False


def test_a_past_due_time_fires_in_the_next_round_and_never_inside_set(driven: Driven) -> None:
    driven.timers.set("past", START_MS - 1_000, driven.fired.append)
    driven.timers.set("before the epoch", -5, driven.fired.append)
    assert driven.fired == []
    assert driven.timers.fire_due() == 2
    assert driven.fired == ["before the epoch", "past"]


def test_next_due_looks_past_cancelled_timers(driven: Driven) -> None:
    assert driven.timers.next_due_ms() is None
    driven.after("soon", 10)
    driven.after("late", 99)
    driven.timers.cancel("soon")
    assert driven.timers.next_due_ms() == START_MS + 99


def test_a_callback_may_set_and_cancel_timers(driven: Driven) -> None:
    def again(key: Hashable) -> None:
        driven.fired.append(key)
        driven.timers.cancel("other")
        driven.timers.set("same instant", driven.clock.now_ms(), driven.fired.append)
        driven.after(key, 10)

    driven.timers.set("key", START_MS + 1, again)
    driven.after("other", 1)
    driven.pass_ms(1)
    assert driven.fired == ["key", "same instant"]
    driven.pass_ms(10)
    assert driven.fired == ["key", "same instant", "key"]


def test_a_failing_callback_is_logged_and_the_others_fire(
    driven: Driven, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: Hashable) -> None:
        raise RuntimeError("callback")

    driven.timers.set("broken", START_MS + 1, broken)
    driven.after("fine", 1)
    driven.pass_ms(1)
    assert driven.fired == ["fine"]
    assert driven.timers.failed == 1
    assert "The callback of timer 'broken' failed" in caplog.text


def test_it_behaves_like_a_plain_dict_of_due_times() -> None:
    """Random sets, replacements, cancels and passing time, against the obvious model."""
    choose = random.Random(SEED)
    driven = Driven()
    model: dict[Hashable, tuple[int, int]] = {}
    expected: list[Hashable] = []
    for number in range(20_000):
        key = choose.randrange(300)
        action = choose.random()
        if action < 0.6:
            due_ms = driven.clock.now_ms() + choose.randrange(-5, 500)
            driven.timers.set(key, due_ms, driven.fired.append)
            model[key] = (due_ms, number)
        elif action < 0.8:
            assert driven.timers.cancel(key) is (model.pop(key, None) is not None)
        else:
            driven.clock.advance_ms(choose.randrange(20))
            driven.timers.fire_due()
            due = [k for k, (at, _) in model.items() if at <= driven.clock.now_ms()]
            expected += sorted(due, key=lambda k: model[k])
            for fired_key in due:
                del model[fired_key]
        assert len(driven.timers) == len(model)
    assert driven.fired == expected
    assert len(expected) > 1_000


def test_replacing_for_ever_does_not_grow_the_heap(driven: Driven) -> None:
    for number in range(10_000):
        driven.after("key", 1_000 + number)
        assert len(driven.timers._heap) <= 2 * timing.SWEEP_MIN + 2


def test_cancelling_for_ever_does_not_grow_the_heap(driven: Driven) -> None:
    for number in range(10_000):
        driven.after(("cancelled", number), 500)
        driven.timers.cancel(("cancelled", number))
        assert len(driven.timers._heap) <= 2 * timing.SWEEP_MIN + 2


def test_a_round_looks_at_a_bounded_number_of_timers(driven: Driven) -> None:
    for number in range(timing.BUDGET + 10):
        driven.after(number, 1)
    driven.clock.advance_ms(1)
    assert driven.timers.fire_due() == timing.BUDGET
    assert driven.timers.fire_due() == 10
    assert driven.fired == list(range(timing.BUDGET + 10))


def test_a_round_of_slow_callbacks_ends_with_its_slice(driven: Driven) -> None:
    for number in range(1_000):
        driven.timers.set(number, START_MS, lambda _: driven.clock.advance_ms(1))
    fired = driven.timers.fire_due()
    assert fired == timing.CHECK_EVERY
    assert len(driven.timers) == 1_000 - fired


def test_a_jump_of_the_wall_clock_loses_no_timer(driven: Driven) -> None:
    driven.after("forward", 60_000)
    driven.clock.jump_ms(3_600_000)
    driven.timers.fire_due()
    assert driven.fired == ["forward"]
    driven.after("back", 1_000)
    driven.clock.jump_ms(-500_000)
    driven.pass_ms(1_000)
    assert "back" not in driven.fired
    driven.pass_ms(500_000)
    assert driven.fired == ["forward", "back"]


def test_closed_timers_forget_and_take_nothing(driven: Driven) -> None:
    driven.after("a", 1)
    driven.timers.close()
    driven.pass_ms(10)
    assert driven.fired == []
    with pytest.raises(RuntimeError, match="closed"):
        driven.after("b", 1)


def test_a_hundred_thousand_timers_take_less_than_30_mb() -> None:
    clock = FakeClock()
    timers: Timers[Key] = Timers(clock, None)
    fired: list[Key] = []
    fire = fired.append
    runs = [f"01J{number:023d}" for number in range(100_000)]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number, run in enumerate(runs):
            timers.set((run, "step"), START_MS + 1_000 + number, fire)
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(timers) == 100_000
    assert used < 30_000_000, f"{used / 1e6:.1f} MB"


# On a loop, with the clocks of the machine.


async def test_a_timer_on_the_loop_fires_in_time() -> None:
    clock = SystemClock()
    timers: Timers[str] = Timers(clock, asyncio.get_running_loop())
    due = asyncio.Event()
    fired_at_ms = 0

    def fire(_: str) -> None:
        nonlocal fired_at_ms
        fired_at_ms = clock.now_ms()
        due.set()

    wanted_ms = clock.now_ms() + 30
    timers.set("key", wanted_ms + 5_000, fire)
    timers.set("key", wanted_ms, fire)
    async with asyncio.timeout(10):
        await due.wait()
    assert fired_at_ms >= wanted_ms
    assert fired_at_ms < wanted_ms + 1_000, "not only at the next look at the clock"
    assert timers._handle is None
    timers.close()


async def test_one_call_is_pending_whatever_the_number_of_timers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    handles: list[asyncio.TimerHandle] = []
    call_later = loop.call_later

    def counting(
        delay: float, callback: Callable[[], object], *, context: contextvars.Context
    ) -> asyncio.TimerHandle:
        handles.append(call_later(delay, callback, context=context))
        return handles[-1]

    monkeypatch.setattr(loop, "call_later", counting)
    clock = FakeClock()
    timers: Timers[int] = Timers(clock, loop)
    for number in range(1_000):
        timers.set(number, START_MS + 1_000_000 - number, lambda _: None)
    assert sum(not handle.cancelled() for handle in handles) == 1
    timers.close()
    assert all(handle.cancelled() for handle in handles)


async def test_callbacks_run_in_the_context_of_the_owner() -> None:
    request = contextvars.ContextVar("request", default="none")
    timers: Timers[str] = Timers(SystemClock(), asyncio.get_running_loop())
    seen: list[str] = []
    done = asyncio.Event()

    def fire(_: str) -> None:
        seen.append(request.get())
        done.set()

    request.set("GET /runs")
    timers.set("key", 0, fire)
    async with asyncio.timeout(10):
        await done.wait()
    assert seen == ["none"]
    timers.close()


async def test_a_jump_forward_is_noticed_by_the_next_look_at_the_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timing, "RECHECK_SECS", 0.01)
    clock = FakeClock()
    timers: Timers[str] = Timers(clock, asyncio.get_running_loop())
    fired = asyncio.Event()
    timers.set("in a day", START_MS + 86_400_000, lambda _: fired.set())
    clock.jump_ms(86_400_000)
    async with asyncio.timeout(10):
        await fired.wait()
    timers.close()


async def test_a_burst_gives_the_loop_its_turn_and_fires_all() -> None:
    timers: Timers[int] = Timers(SystemClock(), asyncio.get_running_loop())
    count = 3 * timing.BUDGET
    fired: list[int] = []
    done = asyncio.Event()

    def fire(key: int) -> None:
        fired.append(key)
        if len(fired) == count:
            done.set()

    for number in range(count):
        timers.set(number, START_MS, fire)
    turns = 0
    async with asyncio.timeout(20):
        while not done.is_set():
            await asyncio.sleep(0)
            turns += 1
            assert len(fired) <= turns * timing.BUDGET
    assert fired == list(range(count))
    timers.close()


def test_an_exit_raised_by_a_callback_leaves_the_other_timers_armed() -> None:
    loop = asyncio.new_event_loop()
    clock = FakeClock()
    timers: Timers[str] = Timers(clock, loop)
    fired: list[str] = []
    timers.set("exit", START_MS, lambda _: sys.exit(3))
    timers.set("other", START_MS, fired.append)
    try:
        with pytest.raises(SystemExit):
            loop.run_until_complete(asyncio.sleep(10))
        assert fired == []
        loop.run_until_complete(asyncio.sleep(0.001))
        assert fired == ["other"]
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
    finally:
        timers.close()
        loop.close()


def test_the_clocks_of_the_system_are_the_clocks_of_the_system() -> None:
    clock = SystemClock()
    assert abs(clock.now_ms() - time.time() * 1000) < 1_000
    first = clock.monotonic()
    assert clock.monotonic() >= first
