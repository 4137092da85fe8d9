"""Bounds, dead letters, fairness, and the end of a dispatcher."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from pilotage.actors.kernel import (
    ActorDeadError,
    LoopActor,
    LoopDispatcher,
    MailboxFullError,
    Terminated,
    dispatcher as dispatching,
    watch,
)
from pilotage.runtime.errors import PilotageError
from tests.unit.kernel.conftest import Recorder, do


class Narrow(Recorder):
    mailbox_capacity = 3


async def test_a_put_beyond_the_bound_is_refused_to_its_sender_and_counted(
    dispatcher: LoopDispatcher,
) -> None:
    ref = dispatcher.spawn(Narrow, "a")
    for number in range(3):
        ref.tell(number)
    with pytest.raises(MailboxFullError) as raised:
        ref.tell("one too many")
    assert isinstance(raised.value, PilotageError)
    assert (raised.value.receiver, raised.value.capacity) == ("Narrow (a)", 3)
    refused = ref.ask("two too many", block=False)
    with pytest.raises(MailboxFullError):
        await refused
    await asyncio.sleep(0)
    assert await ref.ask("there is room again", block=False) == 4
    assert dispatcher.stats().refused == 2
    assert dispatcher.stats().dead_letters == 0


async def test_a_stop_is_taken_by_a_full_mailbox(dispatcher: LoopDispatcher) -> None:
    ref = dispatcher.spawn(Narrow, "a")
    actor = ref.cell.actor
    assert isinstance(actor, Narrow)
    for number in range(3):
        ref.tell(number)
    assert await ref.stop(block=False) is True
    assert actor.seen == [0, 1, 2]


async def test_the_bound_holds_for_a_sender_on_a_thread(dispatcher: LoopDispatcher) -> None:
    ref = dispatcher.spawn(Narrow, "a")
    refused = 0
    ref.tell("from the loop")

    def send() -> None:
        nonlocal refused
        for number in range(10):
            try:
                ref.tell(number)
            except MailboxFullError:
                refused += 1

    run_blocking(send)  # the loop has no turn meanwhile
    assert refused == 8
    assert ref.cell.depth() == 3
    with pytest.raises(MailboxFullError):
        ref.tell("the loop is refused as well")
    assert ref.cell.remote_pending == 0
    await asyncio.sleep(0)
    assert await ref.ask("there is room again", block=False) == 4
    assert dispatcher.stats().refused == 9


async def test_an_ask_from_a_thread_is_answered_with_the_refusal(
    dispatcher: LoopDispatcher,
) -> None:
    ref = dispatcher.spawn(Narrow, "a")
    for number in range(3):
        ref.tell(number)
    failed: list[BaseException] = []

    def send() -> None:
        try:
            ref.ask("full", timeout=5)
        except MailboxFullError as full:
            failed.append(full)

    run_blocking(send)
    assert len(failed) == 1


async def test_mail_of_threads_for_the_whole_loop_is_bounded(
    dispatcher: LoopDispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatching, "REMOTE_CAPACITY", 5)
    refs = [dispatcher.spawn(Recorder, str(n)) for n in range(10)]
    accepted: list[int] = []
    stopping: list[Any] = []

    def send() -> None:
        for number, ref in enumerate(refs):
            try:
                ref.tell("hello")
            except MailboxFullError:
                continue
            accepted.append(number)
        stopping.append(refs[9].stop(block=False))  # always taken

    run_blocking(send)
    assert accepted == [0, 1, 2, 3, 4]
    assert dispatcher.stats().remote == 6
    assert await refs[0].ask("order is kept", block=False) == 2
    assert dispatcher.stats().remote == 0
    assert await stopping[0] is True
    assert dispatcher.stats().refused == 5


async def test_what_a_thread_sent_earlier_is_handled_before_what_the_loop_sends(
    dispatcher: LoopDispatcher,
) -> None:
    ref = dispatcher.spawn(Recorder, "a")
    actor = ref.cell.actor
    run_blocking(lambda: ref.tell("thread"))
    await ref.ask("loop", block=False)
    assert isinstance(actor, Recorder)
    assert actor.seen == ["thread", "loop"]


async def test_what_an_actor_leaves_unhandled_is_counted_and_logged_once(
    dispatcher: LoopDispatcher, caplog: pytest.LogCaptureFixture
) -> None:
    ref = dispatcher.spawn(Recorder, "a")
    stopped = ref.stop(block=False)
    for number in range(50):
        ref.tell(number)
    again = ref.stop(block=False)
    assert await stopped is True
    assert await again is True
    assert dispatcher.stats().dead_letters == 50
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warnings == [
        "A int for Recorder (a) was not handled: the actor has ended (0 more since the last report)"
    ]


async def test_the_next_report_says_how_many_were_not_reported(
    dispatcher: LoopDispatcher,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = dispatching._Reporter()
    for _ in range(4):
        report.warn("lost %s", "one")
    monkeypatch.setattr(report, "_next", 0.0)
    report.warn("lost %s", "another")
    assert [r.getMessage() for r in caplog.records] == [
        "lost one (0 more since the last report)",
        "lost another (3 more since the last report)",
    ]


async def test_mail_sent_by_a_thread_before_the_stop_and_flushed_after_it_is_answered(
    dispatcher: LoopDispatcher,
) -> None:
    ref = dispatcher.spawn(Recorder, "a")
    futures: list[Any] = []
    run_blocking(lambda: futures.append(ref.ask("late", block=False)))
    ref.cell.kill(RuntimeError("killed before the flush"))
    with pytest.raises(ActorDeadError):
        await futures[0]
    assert dispatcher.stats().dead_letters == 1


async def test_a_backlog_of_one_actor_does_not_starve_the_others(
    dispatcher: LoopDispatcher,
) -> None:
    class Hog(LoopActor):
        mailbox_capacity = 100_000
        handled = 0

        def on_receive(self, message: Any) -> int:
            self.handled += 1
            return self.handled

    hog = dispatcher.spawn(Hog, "hog")
    for number in range(50_000):
        hog.tell(number)
    assert isinstance(hog.cell.actor, Hog)
    actor: Hog = hog.cell.actor
    others = [dispatcher.spawn(Recorder, str(n)) for n in range(100)]
    asked = [other.ask(do(lambda _: actor.handled), block=False) for other in others]
    handled_before_the_others = [await answer for answer in asked]
    assert max(handled_before_the_others) <= 64


async def test_the_loop_gets_its_turn_while_actors_are_busy(dispatcher: LoopDispatcher) -> None:
    ref = dispatcher.spawn(Recorder, "a")

    def spin(_: Recorder) -> None:
        until = time.monotonic() + dispatching.SLICE_SECS * 1.5
        while time.monotonic() < until:
            pass

    asked = [ref.ask(spin, block=False) for _ in range(10)]
    turns_of_the_loop = 0
    while not asked[-1].done():
        await asyncio.sleep(0)
        turns_of_the_loop += 1
    assert turns_of_the_loop >= 10


async def test_a_handler_that_holds_the_loop_is_reported(
    dispatcher: LoopDispatcher, caplog: pytest.LogCaptureFixture
) -> None:
    ref = dispatcher.spawn(Recorder, "a")

    def spin(_: Recorder) -> None:
        until = time.monotonic() + dispatching.SLOW_TURN_SECS * 1.1
        while time.monotonic() < until:
            pass

    await ref.ask(spin, block=False)
    await ref.ask("after", block=False)
    assert dispatcher.stats().slow_turns == 1
    assert "Recorder (a) held the event loop for" in caplog.text


async def test_an_idle_actor_holds_no_queue(dispatcher: LoopDispatcher) -> None:
    ref = dispatcher.spawn(Recorder, "a")
    await ref.ask("hello", block=False)
    assert ref.cell.queue is None
    assert ref.cell.current is None


async def test_closing_answers_everything_that_waits() -> None:
    dispatcher = LoopDispatcher()
    words: list[Terminated] = []

    async def for_ever() -> None:
        await asyncio.Event().wait()

    idle, waiting, suspended, paused, owing = refs = [
        dispatcher.spawn(Recorder, name)
        for name in ("idle", "waiting", "suspended", "paused", "owing")
    ]
    for ref in refs:
        watch(ref, words.append)
    asked = [
        suspended.ask(do(lambda _: for_ever()), block=False),
        suspended.ask("behind", block=False),
        owing.ask(do(lambda actor: actor.defer_reply()), block=False),
    ]
    await paused.ask(do(lambda actor: actor.pause()), block=False)
    await asyncio.sleep(0)
    asked += [paused.ask("held", block=False), waiting.ask("ready", block=False)]
    run_blocking(lambda: asked.append(idle.ask("remote", block=False)))

    async with asyncio.timeout(10):
        await dispatcher.close()
        for future in asked:
            with pytest.raises(ActorDeadError):
                await future
        with pytest.raises(ActorDeadError):
            await idle.ask("after the end", block=False)
        with pytest.raises(ActorDeadError):
            await asyncio.to_thread(idle.ask, "after the end", timeout=5)
        with pytest.raises(ActorDeadError, match="cannot be started"):
            dispatcher.spawn(Recorder, "late")
        await dispatcher.close()
    assert {word.urn for word in words} == {"waiting", "suspended", "paused", "owing"}
    assert {str(word.reason) for word in words} == {"the dispatcher was closed"}
    assert dispatcher.stats().crashes == 0


async def test_closing_does_not_wait_for_ever_for_a_handler_that_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatching, "CLOSE_SECS", 0.01)
    dispatcher = LoopDispatcher()
    release = asyncio.Event()

    async def go_on() -> str:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return "finished all the same"

    ref = dispatcher.spawn(Recorder, "a")
    asked = ref.ask(do(lambda _: go_on()), block=False)
    behind = ref.ask("behind", block=False)
    for _ in range(3):
        await asyncio.sleep(0)
    await dispatcher.close()
    assert "Recorder (a) does not end when cancelled" in caplog.text
    release.set()
    assert await asked == "finished all the same"
    with pytest.raises(ActorDeadError):
        await behind


def test_an_ask_to_a_loop_that_was_closed_without_its_dispatcher_is_answered() -> None:
    made: list[Any] = []

    async def run() -> None:
        made.append(LoopDispatcher().spawn(Recorder, "a"))

    asyncio.run(run())
    ref = made[0]

    def ask() -> None:
        for _ in range(2):
            with pytest.raises(ActorDeadError):
                ref.ask("anybody?", timeout=5)

    run_blocking(ask)


async def test_spawning_from_a_thread_runs_on_the_loop(dispatcher: LoopDispatcher) -> None:
    threads: list[int] = []

    class Where(LoopActor):
        def on_start(self) -> None:
            threads.append(threading.get_ident())

        def on_receive(self, message: Any) -> None:
            threads.append(threading.get_ident())

    ref = await asyncio.to_thread(dispatcher.spawn, Where, "a")
    await ref.ask("hello", block=False)
    assert threads == [threading.get_ident()] * 2


def run_blocking(action: Callable[[], object]) -> None:
    """Run `action` on another thread while this one, and its loop, stand still."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as exc:  # noqa: BLE001  raised again by the caller
            failed.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    if failed:
        raise failed[0]
