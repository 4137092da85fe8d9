"""Loop actors: messages, hooks, async handlers, deferred replies, pausing, stopping."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import weakref
from typing import Any

import pykka
import pytest

from pilotage.actors.kernel import (
    ActorDeadError,
    DeferredReply,
    LoopActor,
    LoopDispatcher,
    LoopRef,
    WouldBlockLoopError,
    watch,
)
from tests.unit.kernel.conftest import DemoRefusalError, Recorder, do


async def test_spawn_passes_dispatcher_urn_and_arguments(dispatcher: LoopDispatcher) -> None:
    class Sized(LoopActor):
        def __init__(self, dispatcher: LoopDispatcher, urn: str, size: int, *, unit: str) -> None:
            super().__init__(dispatcher, urn)
            self.size = f"{size} {unit}"

        def on_receive(self, message: Any) -> str:
            return self.size

    ref = dispatcher.spawn(Sized, "run-1", 3, unit="kB")
    assert ref.actor_urn == "run-1"
    assert ref.actor_class is Sized
    assert await ref.ask("size?", block=False) == "3 kB"
    started = Sized.start(dispatcher, "run-2", 4, unit="MB")
    assert await started.ask("size?", block=False) == "4 MB"


async def test_actors_are_not_in_pykkas_registry(dispatcher: LoopDispatcher) -> None:
    ref = dispatcher.spawn(Recorder, "run-1")
    await ref.ask("hello", block=False)
    assert pykka.ActorRegistry.get_all() == []


async def test_messages_are_handled_in_order_and_never_inside_tell(
    dispatcher: LoopDispatcher,
) -> None:
    ref = dispatcher.spawn(Recorder, "a")
    actor = _actor_of(ref)
    for number in range(100):
        ref.tell(number)
    assert actor.seen == []
    assert await ref.ask("last", block=False) == 101
    assert actor.seen == [*range(100), "last"]


async def test_a_message_to_itself_is_handled_after_the_present_one(
    dispatcher: LoopDispatcher,
) -> None:
    ref = dispatcher.spawn(Recorder, "a")

    def tell_self(actor: Recorder) -> list[Any]:
        actor.actor_ref.tell("second")
        return list(actor.seen)

    assert await ref.ask(tell_self, block=False) == []
    assert await ref.ask("third", block=False) == 2


async def test_an_async_handler_takes_no_other_message_meanwhile(
    dispatcher: LoopDispatcher,
) -> None:
    release = asyncio.Event()

    class Slow(LoopActor):
        running = 0

        async def on_receive(self, message: Any) -> Any:
            self.running += 1
            assert self.running == 1
            if message == "wait":
                await release.wait()
            self.running -= 1
            return message

    ref = dispatcher.spawn(Slow, "a")
    first = ref.ask("wait", block=False)
    second = ref.ask("next", block=False)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not first.done()
    assert not second.done()
    release.set()
    assert await second == "next"
    assert first.get() == "wait"


async def test_proxies_call_plain_and_async_methods(dispatcher: LoopDispatcher) -> None:
    class Calculator(LoopActor):
        def add(self, a: int, b: int) -> int:
            return a + b

        async def add_later(self, a: int, b: int) -> int:
            await asyncio.sleep(0)
            return a + b

    proxy = dispatcher.spawn(Calculator, "a").proxy()
    future: Any = proxy.add(1, 2)
    assert await future == 3
    later: Any = proxy.add_later(3, 4)
    assert await later == 7


async def test_on_start_runs_first_and_may_send_to_itself(dispatcher: LoopDispatcher) -> None:
    class Starting(Recorder):
        def on_start(self) -> None:
            self.hooks.append("on_start")
            self.actor_ref.tell("from on_start")

    ref = dispatcher.spawn(Starting, "a")
    actor = _actor_of(ref)
    assert actor.hooks == []
    ref.tell("from outside")
    await ref.ask("sent before the first turn", block=False)
    await ref.ask("last", block=False)
    assert actor.hooks == ["on_start"]
    assert actor.seen == ["from outside", "sent before the first turn", "from on_start", "last"]


async def test_on_start_of_an_actor_without_mail_runs_too(dispatcher: LoopDispatcher) -> None:
    started = asyncio.Event()

    class Starting(LoopActor):
        def on_start(self) -> None:
            started.set()

    ref = dispatcher.spawn(Starting, "a")
    async with asyncio.timeout(5):
        await started.wait()
    assert ref.is_alive()


def test_an_async_hook_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(TypeError, match=r"Wrong\.on_stop must be a plain function"):

        class Wrong(LoopActor):  # pyright: ignore[reportUnusedClass]
            async def on_stop(self) -> None:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
                await asyncio.sleep(0)


async def test_stop_comes_after_the_mail_before_it_and_later_mail_is_refused(
    dispatcher: LoopDispatcher,
) -> None:
    ref = dispatcher.spawn(Recorder, "a")
    actor = _actor_of(ref)
    ref.tell("before")
    stopping = ref.stop(block=False)
    behind = ref.ask("behind", block=False)
    assert await stopping is True
    assert actor.seen == ["before"]
    assert actor.hooks == ["on_stop"]
    with pytest.raises(ActorDeadError):
        await behind
    assert not ref.is_alive()
    with pytest.raises(ActorDeadError):
        ref.tell("late")
    with pytest.raises(ActorDeadError):
        await ref.ask("late", block=False)
    assert await ref.stop(block=False) is False


async def test_an_actor_may_stop_itself(dispatcher: LoopDispatcher) -> None:
    ref = dispatcher.spawn(Recorder, "a")
    await ref.ask(do(lambda actor: actor.stop()), block=False)
    await ref.stop(block=False)
    assert not ref.is_alive()


async def test_an_exit_in_on_stop_reaches_who_asked_for_the_stop_as_a_dead_actor(
    dispatcher: LoopDispatcher,
) -> None:
    class Clumsy(LoopActor):
        def on_stop(self) -> None:
            raise asyncio.CancelledError

    ref = dispatcher.spawn(Clumsy, "a")
    assert await ref.stop(block=False) is False
    assert not ref.is_alive()


async def test_pausing_an_ended_actor_leaves_no_trace(dispatcher: LoopDispatcher) -> None:
    ref = dispatcher.spawn(Recorder, "a")
    actor = _actor_of(ref)
    await ref.stop(block=False)
    actor.pause()
    actor.resume()
    assert dispatcher.obliged == set()
    assert actor.dispatcher is dispatcher


async def test_blocking_forms_on_the_loop_send_nothing(dispatcher: LoopDispatcher) -> None:
    ref = dispatcher.spawn(Recorder, "a")
    with pytest.raises(WouldBlockLoopError):
        ref.ask("blocking")
    with pytest.raises(WouldBlockLoopError):
        ref.stop()
    with pytest.raises(WouldBlockLoopError):
        ref.actor_stopped.wait(1)
    assert await ref.ask("only this", block=False) == 1


async def test_blocking_forms_work_on_a_thread(dispatcher: LoopDispatcher) -> None:
    ref = dispatcher.spawn(Recorder, "a")
    assert await asyncio.to_thread(ref.ask, "hello", timeout=5) == 1
    assert await asyncio.to_thread(ref.actor_stopped.wait, 0.001) is False
    assert await asyncio.to_thread(ref.stop, timeout=5) is True
    assert await asyncio.to_thread(ref.actor_stopped.wait, 5) is True


@pytest.mark.parametrize("message", ["fine", do(lambda _: 1 / 0)], ids=["stopped", "crashed"])
async def test_an_ended_actor_is_freed_without_the_garbage_collector(
    dispatcher: LoopDispatcher, message: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A log record keeps the traceback, and so the actor, for as long as its handler keeps it.
    monkeypatch.setattr(logging.getLogger("pilotage.actors"), "disabled", True)
    gc.collect()
    gc.disable()
    try:
        ref = dispatcher.spawn(Recorder, "a")
        freed = weakref.ref(_actor_of(ref))
        watch(ref, lambda _: None)
        ref.tell(message)
        await ref.stop(block=False)
        await asyncio.sleep(0)
        assert not ref.is_alive()
        assert freed() is None
    finally:
        gc.enable()


async def test_a_deferred_reply_is_given_later(dispatcher: LoopDispatcher) -> None:
    ref = dispatcher.spawn(Recorder, "a")
    held: list[DeferredReply] = []

    def defer(actor: Recorder) -> str:
        held.append(actor.defer_reply())
        return "ignored"

    first = ref.ask(defer, block=False)
    second = ref.ask(defer, block=False)
    await ref.ask("meanwhile", block=False)
    assert not first.done()
    assert held[0].pending
    assert held[1].answer("second") is True
    assert held[0].fail(DemoRefusalError("first")) is True
    assert await second == "second"
    with pytest.raises(DemoRefusalError):
        await first
    assert held[0].answer("again") is False
    assert held[0].fail(DemoRefusalError("again")) is False
    assert not held[0].pending
    assert dispatcher.obliged == set()


async def test_a_deferred_reply_to_a_told_message_goes_nowhere(
    dispatcher: LoopDispatcher,
) -> None:
    ref = dispatcher.spawn(Recorder, "a")
    held: list[DeferredReply] = []
    ref.tell(do(lambda actor: held.append(actor.defer_reply())))
    await ref.ask("done", block=False)
    assert not held[0].pending
    assert held[0].answer("x") is False


async def test_deferring_outside_a_handler_is_an_error(dispatcher: LoopDispatcher) -> None:
    ref = dispatcher.spawn(Recorder, "a")
    await ref.ask("done", block=False)
    with pytest.raises(RuntimeError, match="while no message is being handled"):
        _actor_of(ref).defer_reply()


async def test_a_deferred_reply_is_answered_when_the_actor_ends(
    dispatcher: LoopDispatcher,
) -> None:
    ref = dispatcher.spawn(Recorder, "a")
    held: list[DeferredReply] = []
    asked = ref.ask(do(lambda actor: held.append(actor.defer_reply())), block=False)
    await ref.stop(block=False)
    with pytest.raises(ActorDeadError):
        await asked
    assert held[0].answer("late") is False
    assert dispatcher.obliged == set()


@pytest.mark.parametrize(
    ("exc", "alive"), [(DemoRefusalError("refused"), True), (ValueError("bug"), False)]
)
async def test_an_exception_after_deferring_still_reaches_the_asker(
    dispatcher: LoopDispatcher, exc: Exception, alive: bool
) -> None:
    ref = dispatcher.spawn(Recorder, "a")

    def defer_and_raise(actor: Recorder) -> None:
        actor.defer_reply()
        raise exc

    with pytest.raises(type(exc)):
        await ref.ask(defer_and_raise, block=False)
    assert ref.is_alive() is alive


async def test_a_paused_actor_takes_no_message_until_it_resumes(
    dispatcher: LoopDispatcher,
) -> None:
    ref = dispatcher.spawn(Recorder, "a")
    actor = _actor_of(ref)
    paused = ref.ask(do(lambda a: a.pause()), block=False)
    behind = ref.ask("behind", block=False)
    await paused
    for _ in range(3):
        await asyncio.sleep(0)
    assert not behind.done()
    actor.resume()
    assert await behind == 1
    assert dispatcher.obliged == set()


async def test_an_idle_actor_may_be_paused_and_an_unneeded_resume_does_nothing(
    dispatcher: LoopDispatcher,
) -> None:
    ref = dispatcher.spawn(Recorder, "a")
    actor = _actor_of(ref)
    await ref.ask("idle now", block=False)
    actor.resume()
    actor.pause()
    asked = ref.ask("waits", block=False)
    await asyncio.sleep(0)
    assert not asked.done()
    actor.resume()
    actor.resume()
    assert await asked == 2


async def test_an_actor_paused_while_it_waits_for_its_turn_keeps_its_mail(
    dispatcher: LoopDispatcher,
) -> None:
    ref = dispatcher.spawn(Recorder, "a")
    actor = _actor_of(ref)
    asked = ref.ask("waits", block=False)
    actor.pause()
    for _ in range(3):
        await asyncio.sleep(0)
    assert actor.seen == []
    actor.resume()
    assert await asked == 1


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_the_context_of_a_sender_does_not_leak_into_handlers(
    dispatcher: LoopDispatcher, asynchronous: bool
) -> None:
    request = contextvars.ContextVar("request", default="none")
    ref = dispatcher.spawn(Recorder, "a")

    async def read_later() -> str:
        await asyncio.sleep(0)
        seen = request.get()
        request.set("left behind by a handler")
        return seen

    request.set("GET /runs")
    for _ in range(2):
        message = do(lambda _: read_later() if asynchronous else request.get())
        assert await ref.ask(message, block=False) == "none"
        assert await asyncio.to_thread(ref.ask, message, timeout=5) == "none"


async def test_str_of_actor_and_ref_name_class_and_urn(dispatcher: LoopDispatcher) -> None:
    ref = dispatcher.spawn(Recorder, "run-9")
    assert str(ref) == "Recorder (run-9)" == str(_actor_of(ref))


async def test_the_cell_is_an_inbox_to_pykka(dispatcher: LoopDispatcher) -> None:
    ref = dispatcher.spawn(Recorder, "a")
    assert ref.actor_inbox.empty()
    with pytest.raises(IndexError):
        ref.actor_inbox.get()
    ref.tell("x")
    assert not ref.actor_inbox.empty()
    assert ref.actor_inbox.get().message == "x"
    with pytest.raises(TypeError, match="in its constructor"):
        LoopActor._create_actor_inbox()


def _actor_of(ref: LoopRef[Any]) -> Recorder:
    """The actor behind a ref: a test may look."""
    actor = ref.cell.actor
    assert isinstance(actor, Recorder)
    return actor
