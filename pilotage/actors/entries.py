"""The directory's entries: runs that have an actor or are about to, and who waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager

from pilotage.actors.errors import UnavailableError
from pilotage.actors.kernel import LoopRef, MailboxFullError, RestartIntensity
from pilotage.actors.messages import QuarantinedError
from pilotage.actors.run_actor import RunActor
from pilotage.persistence.port import FencedError, StoreError


class Entry:
    """One run with an actor, or about to have one. `ref` is None while it is being loaded or waits
    for its restart; what comes meanwhile is in `waiting`, and who asks waits for `ready`, which is
    done when that is over. `away`: it was passivated until now.
    """

    __slots__ = ("actor", "asking", "away", "intensity", "ready", "ref", "waiting")

    def __init__(self) -> None:
        self.ref: LoopRef[RunActor] | None = None
        self.actor: RunActor | None = None
        self.ready: asyncio.Future[None] | None = None
        self.intensity: RestartIntensity | None = None
        self.waiting: list[object] | None = None
        self.asking = 0
        self.away = False

    def hold(self) -> None:
        self.ref = self.actor = None
        if self.ready is None:
            self.ready = asyncio.get_running_loop().create_future()

    def over(self, error: Exception | None = None) -> list[object]:
        """The wait is over; what had waited."""
        ready, self.ready = self.ready, None
        if ready is not None and not ready.done():
            if error is None:
                ready.set_result(None)
            else:
                ready.set_exception(error)
                ready.exception()  # nobody may be waiting
        waiting, self.waiting = self.waiting or [], None
        return waiting

    def refuse(self, error: Exception) -> None:
        """Whoever asks gets the error; what happened to the run goes on waiting."""
        waiting = self.over(error)
        self.waiting = waiting or None
        self.hold()

    async def is_ready(self) -> None:
        """Wait for the actor; raises why there will be none. `MailboxFullError`: too many do."""
        assert self.ready is not None  # `hold` made it
        if self.asking >= RunActor.mailbox_capacity:
            raise MailboxFullError("a run that is being loaded", RunActor.mailbox_capacity)
        self.asking += 1
        try:
            await asyncio.shield(self.ready)
        finally:
            self.asking -= 1


@contextmanager
def in_bounded_time() -> Generator[None]:
    """What goes wrong on the way to an actor, as the one thing a caller can do about it."""
    try:
        yield
    except TimeoutError:
        raise UnavailableError(
            "the run did not answer in time; the command may still be carried out, look at"
            " the run before sending it again"
        ) from None
    except MailboxFullError:
        raise UnavailableError("the run has too many messages waiting") from None
    except FencedError as error:
        raise UnavailableError(str(error), 5) from None
    except StoreError as error:
        raise UnavailableError(f"the store is away: {error}") from None


def is_quarantined(run_id: str, reason: str) -> QuarantinedError:
    return QuarantinedError(
        f'run "{run_id}" is quarantined and takes no commands: {reason}; release it to load it'
        " again, or discard it"
    )
