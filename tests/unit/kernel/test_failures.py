"""What an exception means: to the asker, to the actor, to its watchers, to everybody else."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from pilotage.actors.kernel import (
    ActorDeadError,
    LoopActor,
    LoopDispatcher,
    LoopRef,
    Terminated,
    unwatch,
    watch,
)
from tests.unit.kernel.conftest import DemoRefusalError, Recorder, do, raising


class Oddity(BaseException):
    """Neither an Exception nor an exit."""


def watched(ref: LoopRef[Any]) -> list[Terminated]:
    words: list[Terminated] = []
    watch(ref, words.append)
    return words


async def settle() -> None:
    """Let everything happen that needs no more input."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_an_exception_under_ask_reaches_the_asker_and_ends_the_actor(
    dispatcher: LoopDispatcher, caplog: pytest.LogCaptureFixture
) -> None:
    ref = dispatcher.spawn(Recorder, "a")
    actor, words = ref.cell.actor, watched(ref)
    bug = ValueError("half changed")
    asked = ref.ask(raising(bug), block=False)
    behind = ref.ask("behind", block=False)
    with pytest.raises(ValueError, match="half changed"):
        await asked
    with pytest.raises(ActorDeadError) as raised:
        await behind
    assert "Recorder (a)" in str(raised.value)
    assert raised.value.__cause__ is bug
    assert [(w.urn, w.reason, w.ref) for w in words] == [("a", bug, ref)]
    assert isinstance(actor, Recorder)
    assert actor.hooks == ["on_failure"]
    assert not ref.is_alive()
    assert dispatcher.stats().crashes == 1
    errors = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert [r.getMessage() for r in errors] == ["Unhandled exception in Recorder (a):"]


async def test_an_exception_under_tell_ends_the_actor(dispatcher: LoopDispatcher) -> None:
    ref = dispatcher.spawn(Recorder, "a")
    words = watched(ref)
    bug = ValueError("nobody asked")
    ref.tell(raising(bug))
    await settle()
    assert [w.reason for w in words] == [bug]
    assert not ref.is_alive()


async def test_a_class_may_say_that_failed_asks_are_no_crashes(
    dispatcher: LoopDispatcher,
) -> None:
    class Patient(Recorder):
        ask_failures_are_crashes = False

    ref = dispatcher.spawn(Patient, "a")
    words = watched(ref)
    with pytest.raises(ValueError, match="for the asker"):
        await ref.ask(raising(ValueError("for the asker")), block=False)
    assert await ref.ask("still there", block=False) == 1
    ref.tell(raising(ValueError("a crash all the same")))
    await settle()
    assert len(words) == 1


async def test_a_rejection_is_an_answer_and_no_crash(
    dispatcher: LoopDispatcher, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ref = dispatcher.spawn(Recorder, "a")
    words = watched(ref)
    with pytest.raises(DemoRefusalError):
        await ref.ask(raising(DemoRefusalError("not in this status")), block=False)
    ref.tell(raising(DemoRefusalError("told")))
    assert await ref.ask("still there", block=False) == 1
    assert words == []
    assert "rejected a message nobody waits for: told" in caplog.text


@pytest.mark.parametrize("kind", [asyncio.CancelledError, GeneratorExit, Oddity])
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_base_exception_ends_one_actor_and_never_cancels_its_asker(
    dispatcher: LoopDispatcher, kind: type[BaseException], asynchronous: bool
) -> None:
    bystander = dispatcher.spawn(Recorder, "bystander")
    ref = dispatcher.spawn(Recorder, "a")
    words = watched(ref)

    async def fail_later() -> None:
        await asyncio.sleep(0)
        raise kind

    message = do(lambda _: fail_later()) if asynchronous else raising(kind())
    asked = ref.ask(message, block=False)
    with pytest.raises(ActorDeadError) as raised:
        await asked
    await settle()
    assert isinstance(raised.value.__cause__, kind)
    assert [type(w.reason) for w in words] == [kind]
    assert not ref.is_alive()
    assert await bystander.ask("and you?", block=False) == 1


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("where", ["handler", "on_start", "on_failure"])
def test_an_exit_ends_the_actor_and_goes_on_to_the_loop(
    kind: type[BaseException], asynchronous: bool, where: str
) -> None:
    class Exiting(LoopActor):
        def on_start(self) -> None:
            if where == "on_start":
                raise kind

        def on_failure(self, *_: Any, **__: Any) -> None:
            if where == "on_failure":
                raise kind

        def on_receive(self, message: Any) -> Any:
            if asynchronous:
                return self.later()
            raise kind if where == "handler" else ValueError

        async def later(self) -> None:
            await asyncio.sleep(0)
            raise kind if where == "handler" else ValueError

    loop = asyncio.new_event_loop()
    try:
        made: list[Any] = []

        async def run() -> None:
            dispatcher = LoopDispatcher()
            ref = dispatcher.spawn(Exiting, "a")
            words = watched(ref)
            other = dispatcher.spawn(Recorder, "other")
            made.extend([ref, words, ref.ask("exit", block=False), other.ask("hi", block=False)])
            await settle()

        main = loop.create_task(run())
        with pytest.raises(kind):
            loop.run_until_complete(main)
        loop.run_until_complete(asyncio.sleep(0.001))  # the actors of the others go on
        ref, words, asked, other = made
        assert not ref.is_alive()
        assert len(words) == 1
        assert isinstance(words[0].reason, (kind, ValueError))
        with pytest.raises((ActorDeadError, ValueError)):
            asked.get()
        assert other.get() == 1
        loop.run_until_complete(main)
    finally:
        loop.close()


async def test_a_failing_on_start_ends_the_actor_and_answers_its_mail(
    dispatcher: LoopDispatcher,
) -> None:
    bug = RuntimeError("on_start")

    class Stillborn(Recorder):
        def on_start(self) -> None:
            raise bug

    ref = dispatcher.spawn(Stillborn, "a")
    actor, words = ref.cell.actor, watched(ref)
    with pytest.raises(ActorDeadError):
        await ref.ask("hello", block=False)
    assert [w.reason for w in words] == [bug]
    assert isinstance(actor, Recorder)
    assert actor.hooks == []
    assert dispatcher.stats().crashes == 1


async def test_a_failing_on_stop_is_the_reason_the_watchers_see(
    dispatcher: LoopDispatcher,
) -> None:
    bug = RuntimeError("on_stop")

    class Clumsy(LoopActor):
        def on_stop(self) -> None:
            raise bug

    ref = dispatcher.spawn(Clumsy, "a")
    words = watched(ref)
    assert await ref.stop(block=False) is True
    assert [w.reason for w in words] == [bug]


async def test_a_failing_on_failure_changes_nothing(dispatcher: LoopDispatcher) -> None:
    bug = ValueError("the first one")

    class Clumsy(Recorder):
        def on_failure(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("on_failure")

    ref = dispatcher.spawn(Clumsy, "a")
    words = watched(ref)
    ref.tell(raising(bug))
    await settle()
    assert [w.reason for w in words] == [bug]


async def test_a_normal_stop_has_no_reason(dispatcher: LoopDispatcher) -> None:
    ref = dispatcher.spawn(Recorder, "a")
    words = watched(ref)
    await ref.stop(block=False)
    assert [(w.urn, w.reason) for w in words] == [("a", None)]


async def test_a_watching_actor_gets_the_word_as_a_message_beyond_its_bound(
    dispatcher: LoopDispatcher,
) -> None:
    class Narrow(Recorder):
        mailbox_capacity = 1

    watcher = dispatcher.spawn(Narrow, "watcher")
    refs = [dispatcher.spawn(Recorder, f"child-{n}") for n in range(20)]
    for ref in refs:
        watch(ref, watcher)
        ref.tell(raising(ValueError("all at once")))
    watching = watcher.cell.actor
    assert isinstance(watching, Recorder)
    await settle()
    assert [word.urn for word in watching.seen] == [ref.actor_urn for ref in refs]
    assert dispatcher.stats().refused == 0


async def test_watching_twice_tells_once_and_unwatching_tells_nothing(
    dispatcher: LoopDispatcher,
) -> None:
    ref = dispatcher.spawn(Recorder, "a")
    watcher = dispatcher.spawn(Recorder, "watcher")
    words: list[Terminated] = []
    forgotten: list[Terminated] = []
    for _ in range(2):
        watch(ref, words.append)
        watch(ref, watcher)
    watch(ref, forgotten.append)
    unwatch(ref, forgotten.append)
    unwatch(ref, dispatcher.spawn(Recorder, "stranger"))
    await ref.stop(block=False)
    assert len(words) == 1
    assert forgotten == []
    assert await watcher.ask("count", block=False) == 2


async def test_watching_an_ended_actor_is_answered_soon(dispatcher: LoopDispatcher) -> None:
    ref = dispatcher.spawn(Recorder, "a")
    await ref.stop(block=False)
    words = watched(ref)
    assert words == []
    await settle()
    assert [type(w.reason) for w in words] == [ActorDeadError]


async def test_a_failing_watcher_does_not_keep_the_others_uninformed(
    dispatcher: LoopDispatcher, caplog: pytest.LogCaptureFixture
) -> None:
    ref = dispatcher.spawn(Recorder, "a")

    def broken(_: Terminated) -> None:
        raise RuntimeError("watcher")

    watch(ref, broken)
    words = watched(ref)
    await ref.stop(block=False)
    assert len(words) == 1
    assert "A watcher of a failed" in caplog.text


async def test_watching_from_a_thread(dispatcher: LoopDispatcher) -> None:
    ref = dispatcher.spawn(Recorder, "a")
    words: list[Terminated] = []
    await asyncio.to_thread(watch, ref, words.append)
    await ref.stop(block=False)
    assert len(words) == 1


@pytest.mark.parametrize("condition", ["idle", "waiting", "paused", "starting"])
async def test_kill_ends_an_actor_without_its_mail(
    dispatcher: LoopDispatcher, condition: str
) -> None:
    class Starting(Recorder):
        def on_start(self) -> None:
            self.hooks.append("on_start")

    ref = dispatcher.spawn(Starting if condition == "starting" else Recorder, "a")
    actor, words = ref.cell.actor, watched(ref)
    assert isinstance(actor, Recorder)
    if condition == "paused":
        actor.pause()
    asked = None if condition == "idle" else ref.ask("never handled", block=False)
    fenced = RuntimeError("fenced")
    ref.kill(fenced)
    ref.kill(RuntimeError("once is enough"))
    assert [w.reason for w in words] == [fenced]
    if asked is not None:
        with pytest.raises(ActorDeadError):
            await asked
    await settle()
    assert actor.seen == []
    assert actor.hooks == ["on_failure"]
    assert dispatcher.obliged == set()


async def test_kill_from_within_ends_the_actor_after_its_message(
    dispatcher: LoopDispatcher,
) -> None:
    ref = dispatcher.spawn(Recorder, "a")
    words = watched(ref)
    fenced = RuntimeError("fenced")

    def kill_self(actor: Recorder) -> str:
        actor.actor_ref.kill(fenced)
        assert words == [], "not before the message is done"
        return "answered"

    asked = ref.ask(kill_self, block=False)
    behind = ref.ask("behind", block=False)
    assert await asked == "answered"
    with pytest.raises(ActorDeadError):
        await behind
    assert [w.reason for w in words] == [fenced]


@pytest.mark.parametrize("begun", [True, False])
async def test_kill_cancels_a_suspended_handler_once(
    dispatcher: LoopDispatcher, begun: bool
) -> None:
    ref = dispatcher.spawn(Recorder, "a")
    words = watched(ref)
    fenced = RuntimeError("fenced")
    entered = False

    async def wait_for_ever() -> None:
        nonlocal entered
        entered = True
        await asyncio.Event().wait()

    asked = ref.ask(do(lambda _: wait_for_ever()), block=False)
    behind = ref.ask("behind", block=False)
    while ref.cell.task is None:
        await asyncio.sleep(0)
    while begun and not entered:
        await asyncio.sleep(0)
    await asyncio.to_thread(ref.kill, fenced) if begun else ref.kill(fenced)
    for pending in (asked, behind):
        with pytest.raises(ActorDeadError) as raised:
            await pending
        assert raised.value.__cause__ is fenced
    assert entered is begun
    assert [w.reason for w in words] == [fenced]
    assert dispatcher.stats().crashes == 1
