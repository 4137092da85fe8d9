"""`Cell`: the mailbox, the scheduling state and the stopped flag of one actor, in one small object.

Rules:

1. Only the loop's thread touches a cell's queue and state; other threads hand mail to the
   dispatcher, which keeps the order of each sender.
2. An actor handles one message at a time. While a handler is suspended (`async def`) or the actor
   is paused, mail waits.
3. A put beyond the actor's `mailbox_capacity` raises `MailboxFullError` and never blocks. Senders
   on other threads may together go over it by one message each. Stop requests and `Terminated`
   are always taken.
4. `close` is the one exit: every ask that waits, deferred ones too, is answered with
   `ActorDeadError`, the watchers are told, and no reference to the actor is left behind.
5. An idle cell holds no queue.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from threading import get_ident
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

import pykka

from pilotage.actors.kernel.compat import Envelope, receiver, report_failure
from pilotage.actors.kernel.errors import MailboxFullError, RejectError, WouldBlockLoopError
from pilotage.actors.kernel.futures import running_loop
from pilotage.actors.kernel.termination import (
    Listener,
    Terminated,
    dead_error,
    is_system,
    tell_watcher,
)

if TYPE_CHECKING:
    from pilotage.actors.kernel.actor import DeferredReply, LoopActor, LoopRef
    from pilotage.actors.kernel.compat import AdaptedActor
    from pilotage.actors.kernel.dispatcher import LoopDispatcher

logger = logging.getLogger("pilotage.actors")

NEW: Final = 0
"""Made, not launched: mail is kept."""
IDLE: Final = 1
READY: Final = 2
"""In the dispatcher's run queue."""
STARTING: Final = 3
"""In the run queue for the first time, `on_start` still to run."""
RUNNING: Final = 4
SUSPENDED: Final = 5
"""An async handler is waiting for something."""
HELD: Final = 6
"""Paused by the actor."""
CLOSED: Final = 7

STOPPED: Final = 1
PAUSED: Final = 2


class Cell:
    """See the module. To Pykka it is an `ActorInbox` and (nearly) a `threading.Event`."""

    __slots__ = (
        "actor",
        "current",
        "deferred",
        "dispatcher",
        "exit_reason",
        "flags",
        "queue",
        "remote_pending",
        "state",
        "task",
        "watchers",
    )

    def __init__(self, dispatcher: LoopDispatcher) -> None:
        self.dispatcher = dispatcher
        self.actor: LoopActor | None = None
        self.queue: deque[Envelope[Any]] | None = None
        self.state = NEW
        self.flags = 0
        self.remote_pending = 0  # on their way from other threads; guarded by the dispatcher's lock
        self.current: Envelope[Any] | None = None
        self.deferred: dict[DeferredReply, None] | None = None  # in order
        self.exit_reason: BaseException | None = None
        self.task: asyncio.Task[None] | None = None
        self.watchers: tuple[Listener, ...] = ()

    # What Pykka expects of an event.

    def is_set(self) -> bool:
        """Whether the actor has been stopped or has failed."""
        return self.flags & STOPPED != 0

    def set(self) -> None:
        """Take no further message. Loop thread only."""
        self.flags |= STOPPED

    def wait(self, timeout: float | None = None) -> bool:
        """Block this thread until the actor has ended; for tests and shutdown."""
        if self.flags & STOPPED:
            return True
        actor = self.actor
        if actor is None:
            return True
        if running_loop() is not None:
            raise WouldBlockLoopError("wait() for the end of an actor on an event-loop thread")
        ended = threading.Event()

        def listener(_: Terminated) -> None:
            ended.set()

        self.dispatcher.on_loop(self.add_watcher, actor.actor_ref, listener)
        return ended.wait(timeout)

    # What Pykka expects of an inbox.

    def put(self, envelope: Envelope[Any]) -> None:
        """Queue a message, from any thread. Raises `MailboxFullError`."""
        dispatcher = self.dispatcher
        if get_ident() != dispatcher.thread_id:
            dispatcher.put_remote(self, envelope)
            return
        if dispatcher.remote:  # sent earlier, so delivered earlier
            dispatcher.flush_remote()
        queue = self.queue
        if queue is None:
            if self.state == CLOSED or dispatcher.closed:
                dispatcher.bury(envelope)
                return
            self.queue = deque((envelope,))
        elif len(queue) >= self.capacity() and not is_system(envelope.message):
            self.refuse()
        else:
            queue.append(envelope)
        if self.state == IDLE:
            self.state = READY
            dispatcher.schedule(self)

    def accept_remote(self, envelope: Envelope[Any]) -> bool:
        """Queue mail whose bound was checked when it was sent. False: the actor has ended."""
        if self.state == CLOSED:
            return False
        if self.queue is None:
            self.queue = deque((envelope,))
        else:
            self.queue.append(envelope)
        if self.state == IDLE:
            self.state = READY
            self.dispatcher.schedule(self)
        return True

    def get(self) -> Envelope[Any]:
        """The oldest message; IndexError when there is none."""
        if self.queue is None:
            raise IndexError("the mailbox is empty")
        return self.queue.popleft()

    def empty(self) -> bool:
        """Whether no message waits."""
        return not self.queue

    def depth(self) -> int:
        """How many messages wait, those on their way from other threads included."""
        queue = self.queue
        return self.remote_pending + (0 if queue is None else len(queue))

    def capacity(self) -> int:
        """How many messages may wait."""
        actor = self.actor
        return 1 if actor is None else actor.mailbox_capacity

    def refuse(self) -> NoReturn:
        """Count and raise the refusal of a message."""
        self.dispatcher.count_refused()
        receiver_name = "an actor" if self.actor is None else str(self.actor)
        raise MailboxFullError(receiver_name, self.capacity())

    # Scheduling.

    def attach(self, actor: AdaptedActor) -> None:
        """Launch the actor. From any thread, once."""
        dispatcher = self.dispatcher
        if dispatcher.closed:
            raise pykka.ActorDeadError(f"the dispatcher is closed: {actor} cannot be started")
        if get_ident() != dispatcher.thread_id:
            dispatcher.put_remote(self, None)
            return
        if dispatcher.remote:
            dispatcher.flush_remote()
        self.begin()

    def begin(self) -> None:
        """Let the actor take messages. Loop thread only."""
        actor = self.actor
        if actor is None or self.state != NEW:
            return
        if type(actor).on_start is not pykka.Actor.on_start:
            self.state = STARTING
            self.dispatcher.schedule(self)
        else:
            self._reschedule()

    def _reschedule(self) -> None:
        if self.queue:
            self.state = READY
            self.dispatcher.schedule(self)
        else:
            self.queue = None
            self.state = IDLE

    def pause(self) -> None:
        """Take no further message until `resume`. Loop thread only."""
        if self.state == CLOSED:
            return
        self.flags |= PAUSED
        self.dispatcher.obliged.add(self)
        if self.state == IDLE:
            self.state = HELD

    def resume(self) -> None:
        """Take messages again. Loop thread only."""
        self.flags &= ~PAUSED
        if not self.deferred:
            self.dispatcher.obliged.discard(self)
        if self.state == HELD:
            self._reschedule()

    def turn(self, limit: int, deadline: float) -> bool:
        """Handle up to `limit` messages until `deadline`. True: there is more, schedule again."""
        actor = self.actor
        if actor is None:
            return False
        if self.state == STARTING and not self._run_start_hook(actor):
            return False
        if self.flags:
            return self._interrupted()
        self.state = RUNNING
        queue = self.queue
        receive = receiver(actor)
        monotonic = time.monotonic
        for _ in range(limit):
            if not queue:
                break
            self._handle(actor, receive, queue.popleft())
            if self.task is not None:
                return False
            if self.flags:
                return self._interrupted()
            if monotonic() > deadline:
                break
        self.current = None
        if queue:
            self.state = READY
            return True
        self.queue = None
        self.state = IDLE
        return False

    def _handle(
        self, actor: LoopActor, receive: Callable[[Any], Any], envelope: Envelope[Any]
    ) -> None:
        self.current = envelope
        try:
            response = receive(envelope.message)
            if isinstance(response, CoroutineType):
                self._suspend(actor, envelope, cast("Coroutine[Any, Any, Any]", response))
            elif envelope.reply_to is not None:
                envelope.reply_to.set(response)
        except BaseException as exc:  # noqa: BLE001  nothing a handler raises may leave
            self._handler_failed(actor, envelope, exc)

    def _interrupted(self) -> bool:
        """After a message the actor is stopped or paused. Never wants another turn."""
        self.current = None
        if self.flags & STOPPED:
            self.close()
        else:
            self.state = HELD
        return False

    def _run_start_hook(self, actor: LoopActor) -> bool:
        self.state = RUNNING
        try:
            actor.on_start()
        except BaseException as exc:
            self.exit_reason = exc
            self.dispatcher.crashes += 1
            report_failure(actor, exc)
            self.close()
            if isinstance(exc, (KeyboardInterrupt, SystemExit)):
                raise
            return False
        return True

    # Async handlers.

    def _suspend(
        self, actor: LoopActor, envelope: Envelope[Any], coroutine: Coroutine[Any, Any, Any]
    ) -> None:
        self.state = SUSPENDED
        self.task = self.dispatcher.run_task(self, self._finish(actor, envelope, coroutine))
        self.task.add_done_callback(partial(self._task_done, actor, envelope, coroutine))

    async def _finish(
        self, actor: LoopActor, envelope: Envelope[Any], coroutine: Coroutine[Any, Any, Any]
    ) -> None:
        try:
            response = await coroutine
            if envelope.reply_to is not None:
                envelope.reply_to.set(response)
        except BaseException as exc:  # noqa: BLE001  as in `_handle`
            self._handler_failed(actor, envelope, exc)
        finally:
            self._handler_done()

    def _handler_done(self) -> None:
        self.task = None
        self.current = None
        if self.flags:
            self._interrupted()
        elif self.state == SUSPENDED:
            self._reschedule()

    def _task_done(
        self,
        actor: LoopActor,
        envelope: Envelope[Any],
        coroutine: Coroutine[Any, Any, Any],
        task: asyncio.Task[None],
    ) -> None:
        if self.task is task:  # cancelled before its first step, so `_finish` never ran
            coroutine.close()
            self._handler_failed(actor, envelope, asyncio.CancelledError())
            self._handler_done()
        elif not task.cancelled():
            task.exception()  # an exit was raised to the loop; this marks it as seen

    # Failure.

    def _handler_failed(
        self, actor: LoopActor, envelope: Envelope[Any], exc: BaseException
    ) -> None:
        """Decide who learns of `exc`. Re-raises what is meant for the process."""
        answered = self._answer_error(actor, envelope, exc)
        if isinstance(exc, RejectError):
            if not answered:
                logger.info("%s rejected a message nobody waits for: %s", actor, exc)
            return
        if answered and not actor.ask_failures_are_crashes and isinstance(exc, Exception):
            return
        try:
            self.crash(actor, exc)
            if isinstance(exc, (KeyboardInterrupt, SystemExit)):
                raise exc  # noqa: TRY301
        except BaseException:
            self.close()
            raise

    def _answer_error(self, actor: LoopActor, envelope: Envelope[Any], exc: BaseException) -> bool:
        """Give `exc` to the asker, if there is one, also when the reply was deferred."""
        reply = envelope.reply_to
        if reply is None and self.deferred is not None:
            for held in self.deferred:
                if held.envelope is envelope:
                    return held.fail(self.for_asker(exc))
        if reply is None:
            return False
        logger.info("Exception returned from %s to caller:", actor, exc_info=exc)
        seen = self.for_asker(exc)
        reply.set_exception((type(seen), seen, seen.__traceback__))
        return True

    def for_asker(self, exc: BaseException) -> BaseException:
        """What an asker gets: never a cancellation or an exit, which would be taken for its own."""
        if isinstance(exc, Exception):
            return exc
        return dead_error(None, self.exit_reason or exc)

    def crash(self, actor: LoopActor, exc: BaseException) -> None:
        """Mark the actor as failed with `exc` and run its hook. The caller closes the cell."""
        if self.exit_reason is not None:  # killed: what its handler makes of it is no news
            return
        self.exit_reason = exc
        self.dispatcher.crashes += 1
        report_failure(actor, exc)
        try:
            actor.on_failure(type(exc), exc, exc.__traceback__)
        except Exception as second:  # noqa: BLE001  a failing hook changes nothing
            report_failure(actor, second)

    def kill(self, reason: BaseException) -> None:
        """Fail the actor now, without its waiting mail. Loop thread only."""
        actor = self.actor
        if actor is None or self.flags & STOPPED:
            return
        try:
            self.crash(actor, reason)
        finally:
            if self.task is not None:
                self.task.cancel()
            elif self.state != RUNNING:  # a running turn closes when its message is done
                self.close()

    def abandon(self, reason: BaseException) -> None:
        """End without hooks, because the loop goes away. Loop thread only."""
        if self.exit_reason is None:
            self.exit_reason = reason
        self.set()
        if self.task is not None:
            self.task.cancel()
        else:
            self.close()

    def close(self) -> None:
        """The one exit of every actor. Loop thread only; again does nothing."""
        actor = self.actor
        if actor is None or self.state == CLOSED:
            return
        self.state = CLOSED
        self.flags |= STOPPED
        waiting, self.queue = self.queue, None
        deferred, self.deferred = self.deferred, None
        watchers, self.watchers = self.watchers, ()
        reason, self.exit_reason = self.exit_reason, None
        ref = actor.actor_ref
        self.actor = None
        self.current = None
        self.dispatcher.obliged.discard(self)
        for held in deferred or ():
            held.fail(dead_error(ref, reason))
        for envelope in waiting or ():
            self.dispatcher.bury(envelope, ref, reason)
        if watchers:
            last_word = Terminated(urn=ref.actor_urn, reason=reason, ref=ref)
            for watcher in watchers:
                tell_watcher(watcher, last_word)

    def retire(self) -> bool:
        """Close without a word, if the actor is idle. False: it has mail, or owes an answer."""
        if self.state != IDLE or self.deferred or self.remote_pending or self.flags:
            return False
        self.watchers = ()
        self.close()
        return True

    # Replies given later.

    def owe(self, reply: DeferredReply) -> None:
        """Remember that `reply` is to be answered, at the latest when the actor ends."""
        if self.deferred is None:
            self.deferred = {}
        self.deferred[reply] = None
        self.dispatcher.obliged.add(self)

    def settle(self, reply: DeferredReply) -> None:
        """Forget `reply`: it is answered."""
        if self.deferred is None:
            return
        self.deferred.pop(reply, None)
        if not self.deferred:
            self.deferred = None
            if not self.flags & PAUSED:
                self.dispatcher.obliged.discard(self)

    # Death watch.

    def __call__(self, last_word: Terminated) -> None:
        """Being told as a watcher: the word becomes a message to this actor."""
        self.put(Envelope(last_word))

    def add_watcher(self, ref: LoopRef[Any], watcher: Listener) -> None:
        """See `watch`. Loop thread only."""
        if self.state == CLOSED:
            gone = pykka.ActorDeadError(f"{ref} had ended before it was watched")
            last_word = Terminated(urn=ref.actor_urn, reason=gone, ref=ref)
            self.dispatcher.loop.call_soon(tell_watcher, watcher, last_word)
        elif not self.watchers:
            self.watchers = self.dispatcher.alone(watcher)
        elif watcher not in self.watchers:
            self.watchers = (*self.watchers, watcher)

    def remove_watcher(self, watcher: Listener) -> None:
        """See `unwatch`. Loop thread only."""
        self.watchers = tuple(w for w in self.watchers if w != watcher)
