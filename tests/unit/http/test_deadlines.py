"""One timer for the time limits of all requests."""

from __future__ import annotations

import asyncio

import pytest

from pilotage.http import deadlines
from pilotage.http.deadlines import Deadlines, Waiting
from tests.support.waiting import wait_until

FAR = 10_000.0


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "LOOK_SECS", 0.005)


class Asked:
    """Says whether to hurry, and counts how often it was asked: once a look."""

    def __init__(self) -> None:
        self.times = 0
        self.hurry = False

    def __call__(self) -> bool:
        self.times += 1
        return self.hurry

    async def again(self, times: int = 1) -> None:
        goal = self.times + times
        await wait_until(lambda: self.times >= goal, "the requests are looked at")


class Request:
    """A request that waits for ever, behind deadlines."""

    def __init__(self, to: Deadlines) -> None:
        self.waiting: Waiting | None = None
        self.timed_out: bool | None = None
        self.task = asyncio.create_task(self._run(to))

    async def _run(self, to: Deadlines) -> None:
        self.waiting = to.begin()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.timed_out = self.waiting.timed_out()
            raise

    async def over(self) -> None:
        with pytest.raises(asyncio.CancelledError):
            await self.task


async def test_who_takes_too_long_is_canceled_and_knows_why() -> None:
    limits = Deadlines(0.01, FAR, Asked())
    requests = [Request(limits) for _ in range(3)]
    for request in requests:
        await request.over()
        assert request.timed_out is True
        assert request.task.cancelling() == 0  # taken back: whoever runs it sees no cancellation
    assert len(limits) == 0


async def test_who_has_time_is_left_alone() -> None:
    asked = Asked()
    limits = Deadlines(FAR, FAR, asked)
    request = Request(limits)
    await asked.again(3)
    assert not request.task.done()
    request.task.cancel()
    await request.over()
    assert request.timed_out is False


async def test_who_has_begun_to_answer_is_left_alone_however_long_it_takes() -> None:
    asked = Asked()
    limits = Deadlines(0.01, FAR, asked)
    answering = Request(limits)
    await asyncio.sleep(0)
    assert answering.waiting is not None
    limits.end(answering.waiting)
    limits.end(answering.waiting)  # again: nothing
    await Request(limits).over()  # began later and is late already
    assert not answering.task.done()
    answering.task.cancel()
    await answering.over()


async def test_who_waits_for_nothing_is_hurried() -> None:
    asked = Asked()
    limits = Deadlines(FAR, 0.0, asked)
    requests = [Request(limits) for _ in range(2)]
    await asked.again()
    assert not any(request.task.done() for request in requests)
    asked.hurry = True
    for request in requests:
        await request.over()
        assert request.timed_out is True


async def test_a_cancellation_from_elsewhere_is_not_taken_for_the_time() -> None:
    limits = Deadlines(FAR, FAR, Asked())
    request = Request(limits)
    await asyncio.sleep(0)
    assert request.waiting is not None
    request.waiting.expire()
    request.task.cancel()
    await request.over()
    assert request.timed_out is False
    assert request.task.cancelling() == 1


async def test_nobody_is_looked_for_while_nobody_waits_and_the_next_one_is() -> None:
    asked = Asked()
    limits = Deadlines(FAR, FAR, asked)
    first = limits.begin()
    limits.end(first)
    await asked.again()  # the last look: nobody is there
    seen = asked.times
    await asyncio.sleep(0.03)  # six looks, if there were any
    assert asked.times == seen
    second = limits.begin()
    await asked.again(2)
    limits.end(second)
