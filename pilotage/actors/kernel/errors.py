"""What the actor kernel raises on purpose. The message is made from the data the error carries."""

from __future__ import annotations

from pilotage.runtime.errors import PilotageError


class MailboxFullError(PilotageError):
    """The message was refused because `capacity` messages are waiting already; it was not queued.

    Back off and send again, or tell your own caller to: the receiver is slower than its senders.
    """

    def __init__(self, receiver: str, capacity: int) -> None:
        super().__init__(
            f"{receiver} has {capacity} messages waiting and takes no more; send again later"
        )
        self.receiver = receiver
        self.capacity = capacity


class WouldBlockLoopError(PilotageError, RuntimeError):
    """A blocking wait was asked for on a thread that runs an event loop; `await` instead."""


class RejectError(PilotageError):
    """Base of the refusals an actor raises on purpose.

    A `RejectError` raised while a message is handled goes to the asker and is *not* a crash: the
    actor lives on. Any other exception is taken for a bug and ends the actor.
    """
