"""The one place that touches private names of Pykka.

What is used, and why (pinned as `pykka>=4.5,<4.6`; `tests/contract/pykka` fails when one changes):

- `pykka._envelope.Envelope`: what a mailbox holds, a message and its reply future.
- `pykka.messages._ActorStop`: the message that `stop()` sends; it is exempt from mailbox bounds.
- `Actor._create_actor_inbox`, `_create_future`, `_start_actor_loop`: the documented points for a
  new kind of actor.
- `Actor._handle_receive`: what a message means to an actor (stop, proxy call, `on_receive`).
- `Actor._stop` and `_handle_failure`: replaced, because theirs search the global registry.
- `Actor._actor_ref`: set here, because `Actor.__init__` (not called) would make an event, a lock, a
  queue and a UUID for each actor, 5 kB in all.
- The attributes of `Actor` and `ActorRef` are declared as slots: with a hundred thousand actors the
  room that Python keeps for a dictionary in each object counts.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, cast

import pykka
from pykka._envelope import Envelope  # pyright: ignore[reportPrivateUsage]  # see above
from pykka.messages import _ActorStop  # pyright: ignore[reportPrivateUsage]  # see above

from pilotage.actors.kernel.futures import AwaitableFuture

if TYPE_CHECKING:
    from pilotage.actors.kernel.actor import LoopRef
    from pilotage.actors.kernel.mailbox import Cell

__all__ = ["STOP", "AdaptedActor", "Envelope", "is_stop", "receiver", "report_failure"]

logger = logging.getLogger("pilotage.actors")

STOP: Final = _ActorStop()
"""The message that stops an actor after the mail before it."""


def is_stop(message: object) -> bool:
    """Whether Pykka takes this message for a stop."""
    return isinstance(message, _ActorStop)


def receiver(actor: AdaptedActor) -> Callable[[Any], Any]:
    """The function that gives one message to `actor`."""
    return actor._handle_receive  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def report_failure(actor: AdaptedActor, exc: BaseException) -> None:
    """Log `exc` as the end of `actor` and mark it stopped."""
    actor._handle_failure(  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        type(exc), exc, exc.__traceback__
    )


class AdaptedActor(pykka.Actor):
    """A `pykka.Actor` whose mailbox and stopped flag are one `Cell`; in no global registry."""

    __slots__ = ("_actor_ref", "actor_inbox", "actor_stopped", "actor_urn")

    def __init__(self, urn: str, cell: Cell) -> None:
        # Pykka's own constructor is not called: see the module docstring.
        self.actor_urn = urn
        self.actor_inbox = cell
        # The cell has the four methods of an Event that Pykka uses, and saves a kilobyte an actor.
        self.actor_stopped = cast("threading.Event", cell)

    def adopt_ref(self, ref: LoopRef[Any]) -> None:
        """Make `ref` the address of this actor."""
        self._actor_ref = ref

    def own_ref(self) -> LoopRef[Any]:
        """What `adopt_ref` was given."""
        return cast("LoopRef[Any]", self._actor_ref)  # the only ref that is ever put there

    @property
    def cell(self) -> Cell:
        """The mailbox and state of this actor."""
        return cast("Cell", self.actor_inbox)  # the constructor put it there

    @staticmethod
    def _create_actor_inbox() -> Cell:
        raise TypeError(
            "a loop actor gets its mailbox in its constructor, which knows the dispatcher"
        )

    @staticmethod
    def _create_future() -> AwaitableFuture[Any]:
        return AwaitableFuture()

    def _start_actor_loop(self) -> None:
        self.cell.attach(self)

    def _stop(self) -> None:
        self.cell.set()
        logger.debug("Stopped %s", self)
        try:
            self.on_stop()
        except Exception as exc:  # noqa: BLE001  whatever a hook raises, the actor ends
            self.cell.exit_reason = exc
            self._handle_failure(*sys.exc_info())

    def _handle_failure(
        self,
        exception_type: type[BaseException] | None,  # noqa: ARG002  Pykka's signature
        exception_value: BaseException | None,
        traceback: TracebackType | None,  # noqa: ARG002  Pykka's signature
    ) -> None:
        logger.error("Unhandled exception in %s:", self, exc_info=exception_value)
        self.cell.set()
