"""`LoopDispatcher.at_once`: actors that hear of something get their turns without another turn of
the loop, and nothing else about turns changes.
"""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

import pytest

from pilotage.actors.kernel import LoopActor, LoopDispatcher
from pilotage.actors.kernel.dispatcher import SLICE_SECS
from tests.support.waiting import wait_until
from tests.unit.kernel.conftest import DemoRefusalError, Recorder, do


class Talker(LoopActor):
    """Tells others; keeps what it hears."""

    def __init__(self, dispatcher: LoopDispatcher, urn: str, heard: list[Any]) -> None:
        super().__init__(dispatcher, urn)
        self.heard = heard

    def on_receive(self, message: Any) -> None:
        if callable(message):
            message()
        else:
            self.heard.append(message)


async def test_mail_of_the_action_is_handled_and_what_that_sends_too(
    dispatcher: LoopDispatcher,
) -> None:
    heard: list[Any] = []
    last = dispatcher.spawn(Talker, "last", heard)
    first = dispatcher.spawn(Talker, "first", heard)
    dispatcher.at_once(lambda: first.tell(lambda: last.tell("passed on")))
    assert heard == ["passed on"]


async def test_who_waits_already_keeps_the_place(dispatcher: LoopDispatcher) -> None:
    heard: list[Any] = []
    early, late = (dispatcher.spawn(Talker, name, heard) for name in ("early", "late"))
    early.tell(1)
    dispatcher.at_once(lambda: late.tell(2))
    assert heard == []
    await wait_until(lambda: heard == [1, 2], "both were handled, in the order of their mail")


async def test_within_a_turn_it_is_the_action_alone(dispatcher: LoopDispatcher) -> None:
    heard: list[Any] = []
    other = dispatcher.spawn(Talker, "other", heard)

    def within() -> None:
        dispatcher.at_once(lambda: other.tell("told"))
        heard.append("not handled yet")

    dispatcher.spawn(Talker, "one", heard).tell(within)
    await wait_until(lambda: len(heard) == 2, "both were handled")
    assert heard == ["not handled yet", "told"]


async def test_an_action_that_raises_leaves_nobody_without_a_turn(
    dispatcher: LoopDispatcher,
) -> None:
    heard: list[Any] = []
    ref = dispatcher.spawn(Talker, "one", heard)

    def action() -> None:
        ref.tell("before")
        raise DemoRefusalError("stop")

    with pytest.raises(DemoRefusalError):
        dispatcher.at_once(action)
    assert heard == ["before"]
    ref.tell("after")
    await wait_until(lambda: heard == ["before", "after"], "turns go on")


async def test_more_than_a_slice_of_work_is_left_to_later_turns_of_the_loop(
    dispatcher: LoopDispatcher,
) -> None:
    loop = asyncio.get_running_loop()
    heard: list[Any] = []
    refs = [dispatcher.spawn(Talker, str(n), heard) for n in range(3)]

    def work() -> None:
        until = loop.time() + 2 * SLICE_SECS
        while loop.time() < until:
            pass
        heard.append("worked")

    def tell_all() -> None:
        for ref in refs:
            ref.tell(work)

    dispatcher.at_once(tell_all)
    assert heard == ["worked"]
    await wait_until(lambda: len(heard) == 3, "the others had their turn")


async def test_handlers_run_in_the_context_of_the_dispatcher() -> None:
    name = contextvars.ContextVar("name", default="nobody")
    dispatcher = LoopDispatcher()
    seen: list[str] = []
    ref = dispatcher.spawn(Recorder, "one")
    name.set("a sender")
    dispatcher.at_once(lambda: ref.tell(do(lambda _: seen.append(name.get()))))
    assert seen == ["nobody"]
    await dispatcher.close()
