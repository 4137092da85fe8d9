"""Events: who is parked on which key, and events that came before anybody waited.

The subscriptions are in memory, rebuilt from the runs at the start; an event is answered once
every receiver has stored it. Events nobody waits for are kept in the store while they last, and
each goes to one step: a step that was given one and does not take it gives it back. While the store
is nearly full no more are kept, but given back they are. An event that
may have been delivered before is given only to those who were parked when it was sent.

What is sent with an idempotency key is planned first: a repeat does what is left of the plan.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from itertools import count
from typing import NamedTuple

import msgspec

from pilotage.actors.errors import UnavailableError
from pilotage.actors.kernel import Clock
from pilotage.actors.messages import Answer
from pilotage.actors.ownership import confirm_owner
from pilotage.actors.store_room import StoreRoom
from pilotage.persistence import codec
from pilotage.persistence.port import Store, StoreError
from pilotage.runtime.commands import EventReceived
from pilotage.runtime.inputs import normal
from pilotage.runtime.replies import Done
from pilotage.runtime.status import StepStatus

logger = logging.getLogger(__name__)

Deliver = Callable[[str, EventReceived], Awaitable[Answer | None]]
"""Hands a command to a run; None if the run is gone, `UnavailableError` if it may come later."""


class EventReceipt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of an event: how many steps took it, and until when it is kept."""

    event_key: str
    delivered: int
    buffered: bool
    expires_at_ms: int | None = None


class KeptEvent(msgspec.Struct, frozen=True, array_like=True):
    """An event in the store, with what is needed to give it back."""

    event_id: str
    expires_at_ms: int
    payload: bytes | None = None


class EventPlan(msgspec.Struct, frozen=True, array_like=True):
    """Who is to have an event: told to the store before anybody is given it, so that a repeat goes
    to the same steps and keeps the same event. A target is run, step and attempt.
    """

    event_id: str
    expires_at_ms: int | None
    targets: tuple[tuple[str, int, int], ...]


class Parked(NamedTuple):
    """One attempt of a step that waits, and since when."""

    attempt: int
    since_ms: int


class EventHub:
    """`deliver` hands a command to a run and gives the answer once it is stored."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        fence: Callable[[], int],
        deliver: Deliver,
        room: StoreRoom,
    ) -> None:
        self._store = store
        self._room = room
        self._clock = clock
        self._fence = fence
        self._deliver = deliver
        self._parked: dict[tuple[str, str], dict[tuple[str, int], Parked]] = {}
        self._taking: dict[str, bool] = {}
        """Who is being given an event, and whether one has come since it was looked for."""

    def park(
        self, project_id: str, key: str, run_id: str, step: int, attempt: int, since_ms: int
    ) -> None:
        self._parked.setdefault((project_id, key), {})[run_id, step] = Parked(attempt, since_ms)

    def unpark(self, project_id: str, key: str, run_id: str, step: int) -> None:
        waiting = self._parked.get((project_id, key))
        if waiting is not None:
            waiting.pop((run_id, step), None)
            if not waiting:
                del self._parked[project_id, key]

    async def take_early(
        self, project_id: str, key: str, run_id: str, step: int, attempt: int
    ) -> None:
        """Give a step that has just parked the oldest event kept for its key, if there is one."""
        claimed_by = f"{run_id}/{step}/{attempt}"
        if claimed_by in self._taking:  # it would be given the same event twice
            self._taking[claimed_by] = True
            return
        kept: KeptEvent | None = None
        try:
            again = True
            while again:
                self._taking[claimed_by] = False
                kept = await self._oldest(project_id, key, claimed_by)
                again = kept is None and self._taking[claimed_by]
            if kept is not None:
                command = EventReceived(
                    step=step, attempt=attempt, payload=kept.payload, actor="event"
                )
                answer = await self._deliver(run_id, command)
                if not _took(answer, command):
                    await self._give_back(project_id, key, kept)
        finally:
            del self._taking[claimed_by]

    async def _oldest(self, project_id: str, key: str, claimed_by: str) -> KeptEvent | None:
        """The oldest kept event; one that cannot be read is left behind, it goes by itself."""
        for n in count():
            taker = f"{claimed_by}~{n}" if n else claimed_by
            data = await self._store.take_event(project_id, key, taker, self._fence())
            if data is None:
                break
            try:
                return codec.decode_record(data, KeptEvent)
            except codec.SnapshotError as error:
                logger.error("an event of key %s is lost: %s", key, error)  # noqa: TRY400
        return None

    async def _give_back(self, project_id: str, key: str, kept: KeptEvent) -> None:
        now = self._clock.now_ms()
        left_ms = kept.expires_at_ms - now
        if left_ms > 0:
            # a new id: the store has seen the old one, and keeps no event twice
            event_id = f"{kept.event_id.partition('~')[0]}~{now}"
            again = msgspec.structs.replace(kept, event_id=event_id)
            await self._offer(project_id, key, again, -(-left_ms // 1000))

    async def send(
        self,
        project_id: str,
        key: str,
        payload: bytes | None,
        *,
        event_id: str,
        actor: str,
        buffer_secs: int,
        now_ms: int,
        parked_by_ms: int | None = None,
    ) -> EventReceipt:
        """Complete every step parked on the key; with none, keep the event for `buffer_secs`.

        `parked_by_ms`: it may have been delivered before. A step that has parked since then must
        not take what one before it has taken.
        """
        plan = self.plan(
            project_id,
            key,
            event_id=event_id,
            buffer_secs=buffer_secs,
            now_ms=now_ms,
            parked_by_ms=parked_by_ms,
        )
        return await self.carry_out(project_id, key, payload, plan, actor=actor)

    def plan(
        self,
        project_id: str,
        key: str,
        *,
        event_id: str,
        buffer_secs: int,
        now_ms: int,
        parked_by_ms: int | None = None,
    ) -> EventPlan:
        """What `send` would do now."""
        return EventPlan(
            event_id=event_id,
            expires_at_ms=now_ms + buffer_secs * 1000 if buffer_secs > 0 else None,
            targets=tuple(
                (run_id, step, waits.attempt)
                for (run_id, step), waits in self._parked.get((project_id, key), {}).items()
                if parked_by_ms is None or waits.since_ms <= parked_by_ms
            ),
        )

    async def carry_out(
        self,
        project_id: str,
        key: str,
        payload: bytes | None,
        plan: EventPlan,
        *,
        actor: str,
        again: bool = False,
    ) -> EventReceipt:
        """Do as planned. `again`: what may have been done before counts as done now."""
        commands = [
            (run_id, EventReceived(step=step, attempt=attempt, payload=payload, actor=actor))
            for run_id, step, attempt in plan.targets
        ]
        delivered = await self._to_all(commands, again=again)
        expires_at_ms = plan.expires_at_ms
        if delivered or expires_at_ms is None:
            if not delivered:
                await confirm_owner(self._store, self._fence())
            return EventReceipt(event_key=key, delivered=delivered, buffered=False)
        left_ms = expires_at_ms - self._clock.now_ms()
        if left_ms > 0:
            kept = KeptEvent(plan.event_id, expires_at_ms, payload)
            with self._room.event(key, len(payload or b"")):
                await self._offer(project_id, key, kept, -(-left_ms // 1000))
        return EventReceipt(event_key=key, delivered=0, buffered=True, expires_at_ms=expires_at_ms)

    async def _to_all(self, commands: list[tuple[str, EventReceived]], *, again: bool) -> int:
        """How many of the parked steps took it; `again`: or have taken it before."""
        if not commands:
            return 0
        answers = await asyncio.gather(
            *(self._deliver(run_id, command) for run_id, command in commands),
            return_exceptions=True,
        )
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        if again:
            return sum(map(_took, answers, (command for _, command in commands)))
        return sum(
            isinstance(answer, Answer) and isinstance(answer.result, Done) and answer.result.changed
            for answer in answers
        )

    async def _offer(self, project_id: str, key: str, event: KeptEvent, secs: int) -> None:
        """Keep the event, and give it to a step that has parked in the meantime."""
        data = codec.encode_record(event)
        try:
            room = await self._store.buffer_event(
                project_id, key, event.event_id, data, secs, self._fence()
            )
        except StoreError as error:
            raise UnavailableError(f"the event could not be kept: {error}") from None
        if not room:
            raise UnavailableError("the project has 10000 events waiting for a reader", 60)
        for (run_id, step), waits in list(self._parked.get((project_id, key), {}).items())[:1]:
            await self.take_early(project_id, key, run_id, step, waits.attempt)


def _took(answer: Answer | BaseException | None, command: EventReceived) -> bool:
    """Whether the step has the event, now or by an earlier delivery of the same."""
    if not isinstance(answer, Answer):
        return False
    if isinstance(answer.result, Done):
        return answer.result.changed
    step = answer.state.step(command.step)
    return (
        step.attempt == command.attempt
        and step.status is StepStatus.COMPLETED
        and step.output == normal(command.payload)
    )
