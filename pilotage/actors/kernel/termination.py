"""How an actor's end is told: to its watchers, and to the askers it leaves behind."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import pykka

from pilotage.actors.kernel.compat import is_stop

if TYPE_CHECKING:
    from pilotage.actors.kernel.actor import LoopRef

logger = logging.getLogger("pilotage.actors")


class Terminated(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """An actor has ended. `ref` tells its incarnations apart, which share the `urn`."""

    urn: str
    reason: BaseException | None
    """None after a normal stop."""
    ref: LoopRef[Any]


Listener: TypeAlias = Callable[[Terminated], object]


def is_system(message: object) -> bool:
    """Whether mailbox bounds do not apply to this message."""
    return is_stop(message) or isinstance(message, Terminated)


def dead_error(ref: LoopRef[Any] | None, reason: BaseException | None) -> pykka.ActorDeadError:
    """What an asker gets whose message will not be handled, or not be answered, any more."""
    error = pykka.ActorDeadError(
        f"{'the actor' if ref is None else ref} stopped before answering the message"
    )
    error.__cause__ = reason
    return error


def tell_watcher(watcher: Listener, last_word: Terminated) -> None:
    """Deliver `last_word`; a watcher that fails is logged and disturbs nobody."""
    try:
        watcher(last_word)
    except Exception:
        logger.exception("A watcher of %s failed", last_word.urn)
