"""Events: who is parked on which key, and events that came before anybody waited.

The subscriptions are in memory, rebuilt from the runs at the start; an event is answered once
every receiver has stored it. Events nobody waits for are kept in the store while they last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from pilotage.actors.errors import UnavailableError
from pilotage.persistence.port import Store
from pilotage.runtime.commands import EventReceived
from pilotage.runtime.replies import Done, Reply

Deliver = Callable[[str, EventReceived], Awaitable[Reply | None]]


class EventReceipt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of an event: how many steps took it, and until when it is kept."""

    event_key: str
    delivered: int
    buffered: bool
    expires_at_ms: int | None = None


class EventHub:
    """`deliver` hands a command to a run and gives the reply once it is stored."""

    def __init__(self, store: Store, fence: Callable[[], int], deliver: Deliver) -> None:
        self._store = store
        self._fence = fence
        self._deliver = deliver
        self._parked: dict[tuple[str, str], dict[tuple[str, int], int]] = {}

    def park(self, project_id: str, key: str, run_id: str, step: int, attempt: int) -> None:
        self._parked.setdefault((project_id, key), {})[run_id, step] = attempt

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
        data = await self._store.take_event(project_id, key, claimed_by, self._fence())
        if data is not None:
            command = EventReceived(step=step, attempt=attempt, payload=data or None, actor="event")
            await self._deliver(run_id, command)

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
    ) -> EventReceipt:
        """Complete every step parked on the key; with none, keep the event for `buffer_secs`."""
        waiting = list(self._parked.get((project_id, key), {}).items())
        replies = await asyncio.gather(
            *(
                self._deliver(
                    run_id,
                    EventReceived(step=step, attempt=attempt, payload=payload, actor=actor),
                )
                for (run_id, step), attempt in waiting
            )
        )
        delivered = sum(isinstance(reply, Done) and reply.changed for reply in replies)
        if delivered or buffer_secs <= 0:
            return EventReceipt(event_key=key, delivered=delivered, buffered=False)
        kept = await self._store.buffer_event(
            project_id, key, event_id, payload or b"", buffer_secs, self._fence()
        )
        if not kept:
            raise UnavailableError("the project has 10000 events waiting for a reader", 60)
        for (run_id, step), attempt in list(self._parked.get((project_id, key), {}).items())[:1]:
            # it parked while the event was being stored, and found nothing
            await self.take_early(project_id, key, run_id, step, attempt)
        return EventReceipt(
            event_key=key, delivered=0, buffered=True, expires_at_ms=now_ms + buffer_secs * 1000
        )
