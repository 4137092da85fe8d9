"""`AwaitableFuture` on loops and on threads."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pykka
import pytest

from pilotage.actors.kernel import AwaitableFuture, WouldBlockLoopError
from pilotage.runtime.errors import PilotageError


def on_thread(action: Callable[[], Any]) -> Any:
    """Run on a thread that has no event loop."""
    results: queue.Queue[Any] = queue.Queue()

    def run() -> None:
        try:
            results.put((True, action()))
        except BaseException as exc:  # noqa: BLE001  raised again by the caller
            results.put((False, exc))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    returned, value = results.get(timeout=0)
    if not returned:
        raise value
    return value


async def test_awaiting_lets_the_loop_go_on_until_the_value_comes() -> None:
    future: AwaitableFuture[int] = AwaitableFuture()
    waiting = asyncio.create_task(_value_of(future))
    await asyncio.sleep(0)
    assert not waiting.done()
    future.set(7)
    assert await waiting == 7


async def test_several_tasks_may_await_and_one_that_is_cancelled_disturbs_nobody() -> None:
    future: AwaitableFuture[str] = AwaitableFuture()
    first = asyncio.create_task(_value_of(future))
    second = asyncio.create_task(_value_of(future))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    future.set("done")
    assert await second == "done"


async def test_a_timeout_around_await_ends_the_wait_in_time() -> None:
    future: AwaitableFuture[int] = AwaitableFuture()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await future
    assert not future.done()
    assert future._waiters == []


async def test_completing_on_another_thread_wakes_the_loop() -> None:
    future: AwaitableFuture[str] = AwaitableFuture()
    thread = threading.Thread(target=future.set, args=("from a thread",))
    waiting = asyncio.create_task(_value_of(future))
    await asyncio.sleep(0)
    thread.start()
    async with asyncio.timeout(10):
        assert await waiting == "from a thread"
    thread.join()


async def test_get_of_a_pending_future_on_a_loop_thread_is_an_error_not_a_freeze() -> None:
    future: AwaitableFuture[int] = AwaitableFuture()
    with pytest.raises(WouldBlockLoopError) as raised:
        future.get()
    assert isinstance(raised.value, PilotageError)
    future.set(1)
    assert future.get() == 1


def test_get_on_a_thread_waits_and_times_out() -> None:
    future: AwaitableFuture[int] = AwaitableFuture()
    with pytest.raises(pykka.Timeout):
        on_thread(lambda: future.get(timeout=0.001))
    assert future._waiters == []
    completer = threading.Timer(0.01, future.set, args=(3,))
    completer.start()
    assert on_thread(lambda: future.get(timeout=10)) == 3
    completer.join()


def test_it_is_completed_once() -> None:
    for complete in ("set", "set_exception", "set_get_hook"):
        future: AwaitableFuture[int] = AwaitableFuture()
        future.set(1)
        with pytest.raises(queue.Full):
            getattr(future, complete)(None)
        assert future.get() == 1


def test_an_error_is_raised_to_every_reader_with_a_traceback_that_does_not_grow() -> None:
    future: AwaitableFuture[int] = AwaitableFuture()
    try:
        raise ValueError("first")  # noqa: TRY301
    except ValueError:
        future.set_exception()
    depths: list[int] = []
    for _ in range(3):
        with pytest.raises(ValueError, match="first") as raised:
            future.get()
        depths.append(len(raised.traceback))
    assert len(set(depths)) == 1


async def test_fail_completes_with_the_exception_given() -> None:
    future: AwaitableFuture[int] = AwaitableFuture()
    reason = KeyError("gone")
    future.fail(reason)
    with pytest.raises(KeyError) as raised:
        await future
    assert raised.value is reason


def test_an_exc_info_of_a_class_alone_is_raised_as_an_instance() -> None:
    future: AwaitableFuture[int] = AwaitableFuture()
    future.set_exception((LookupError, None, None))
    with pytest.raises(LookupError):
        future.get()
    unexplained: AwaitableFuture[int] = AwaitableFuture()
    unexplained.set_exception((None, None, None))
    with pytest.raises(RuntimeError, match="without an exception"):
        unexplained.get()


def test_done_callbacks_run_once_each_and_a_broken_one_stops_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    future: AwaitableFuture[int] = AwaitableFuture()
    called: list[str] = []

    def broken() -> None:
        raise RuntimeError("callback")

    future.add_done_callback(lambda: called.append("before"))
    future.add_done_callback(broken)
    future.add_done_callback(lambda: called.append("after"))
    future.set(1)
    future.add_done_callback(lambda: called.append("late"))
    assert called == ["before", "after", "late"]
    assert "A done callback of a future failed" in caplog.text


async def test_combinators_push_and_can_be_awaited() -> None:
    numbers: AwaitableFuture[Iterable[int]] = AwaitableFuture()
    other: AwaitableFuture[int] = AwaitableFuture()
    doubled = numbers.map(lambda ns: [n * 2 for n in ns])
    even = numbers.filter(lambda n: n % 2 == 0)
    total = numbers.reduce(lambda a, b: a + b, 0)
    both = numbers.join(other)
    assert not doubled.done()
    numbers.set([1, 2, 3])
    assert not both.done()
    other.set(9)
    assert await doubled == [2, 4, 6]
    assert await even == [2]
    assert await total == 6
    assert await both == [[1, 2, 3], 9]


async def test_an_error_passes_through_a_combinator() -> None:
    future: AwaitableFuture[int] = AwaitableFuture()
    derived = future.map(lambda n: n + 1)
    future.fail(ValueError("upstream"))
    with pytest.raises(ValueError, match="upstream"):
        await derived


async def test_a_hook_runs_off_the_loop_once() -> None:
    threads: list[int] = []

    def hook(_: float | None) -> str:
        threads.append(threading.get_ident())
        return "hooked"

    future: AwaitableFuture[str] = AwaitableFuture()
    future.set_get_hook(hook)
    assert future.hooked()
    assert await future == "hooked"
    assert await future.map(str.upper) == "HOOKED"
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()


async def test_joining_a_future_of_another_class_falls_back_to_pulling() -> None:
    foreign: pykka.Future[int] = pykka.ThreadingFuture()  # noqa: TID251  the case under test
    own: AwaitableFuture[int] = AwaitableFuture()
    both = own.join(foreign)
    own.set(1)
    foreign.set(2)
    assert await both == [1, 2]


def test_completing_for_a_loop_that_is_closed_is_harmless() -> None:
    future: AwaitableFuture[int] = AwaitableFuture()

    async def give_up() -> None:
        waiting = asyncio.create_task(_value_of(future))
        await asyncio.sleep(0)
        left = list(future._waiters or ())
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        future._waiters = left  # as if the loop had been dropped with its task

    asyncio.run(give_up())
    future.set(5)
    assert future.get() == 5


def test_repr_tells_the_state() -> None:
    future: AwaitableFuture[int] = AwaitableFuture()
    assert "pending" in repr(future)
    future.set(1)
    assert "value" in repr(future)


async def _value_of(future: AwaitableFuture[Any]) -> Any:
    return await future
