"""`LoopDispatcher`: runs the actors of one event loop.

Guarantees:

- Actors with mail take turns: `THROUGHPUT` messages each, and after `SLICE_SECS` the loop gets its
  turn, so that a busy actor starves neither the others nor the sockets.
- The mail of one sender thread reaches an actor in the order it was sent. However many messages
  other threads send, one wake-up of the loop is pending.
- No ask is left unanswered, not by an actor that ends, nor by a dispatcher or a loop that is
  closed.
- Handlers run in the context (`contextvars`) in which the dispatcher was made, not in that of some
  sender: the log context of a request does not leak into what others do.
- What is lost or refused is counted, and logged at most every `REPORT_EVERY_SECS`.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from threading import get_ident
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

import msgspec
import pykka

from pilotage.actors.kernel.compat import Envelope, is_stop
from pilotage.actors.kernel.errors import MailboxFullError
from pilotage.actors.kernel.mailbox import Cell
from pilotage.actors.kernel.termination import Listener, dead_error, is_system

if TYPE_CHECKING:
    from pilotage.actors.kernel.actor import LoopActor, LoopRef

THROUGHPUT: Final = 32
"""Messages an actor handles in one turn: below 16 switching costs, above 64 others wait."""
SLICE_SECS: Final = 0.005
"""How long actors run before the loop polls its sockets again."""
SLOW_TURN_SECS: Final = 0.05
"""A turn beyond this holds everybody up and is reported: its handler does too much."""
REPORT_EVERY_SECS: Final = 10.0
CLOSE_SECS: Final = 5.0
"""How long `close` waits for handlers that it has cancelled."""
REMOTE_CAPACITY: Final = 100_000
"""Messages from other threads that may wait for the loop, over all actors."""

P = ParamSpec("P")
A = TypeVar("A", bound="LoopActor")

logger = logging.getLogger("pilotage.actors")


class DispatcherStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since the dispatcher was made, and its queues at this moment."""

    dead_letters: int
    """Messages that were accepted and not handled, because their actor ended first."""
    refused: int
    """Messages refused with `MailboxFullError`."""
    crashes: int
    """Actors that ended with an exception."""
    slow_turns: int
    """Turns of more than `SLOW_TURN_SECS`."""
    ready: int
    """Actors that wait for a turn."""
    remote: int
    """Messages from other threads that wait for the loop."""


class _Reporter:
    """Logs the first event of a kind, then at most one line per `REPORT_EVERY_SECS` for all."""

    __slots__ = ("_next", "_unsaid")

    def __init__(self) -> None:
        self._next = 0.0
        self._unsaid = 0

    def warn(self, template: str, *args: object) -> None:
        now = time.monotonic()
        if now < self._next:
            self._unsaid += 1
            return
        self._next = now + REPORT_EVERY_SECS
        unsaid, self._unsaid = self._unsaid, 0
        logger.warning("%s (%d more since the last report)", template % args, unsaid)


class LoopDispatcher:
    """Make it on the loop that is to run the actors; `close` it before that loop ends."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.thread_id = get_ident()
        self.closed = False
        self.dead_letters = 0
        self.refused = 0
        self.crashes = 0
        self.slow_turns = 0
        self.remote: deque[tuple[Cell, Envelope[Any] | None]] = deque()
        self.obliged: set[Cell] = set()
        """Cells that are paused or owe an answer: idle as they look, `close` must see them."""
        self._alone: tuple[Listener, ...] = ()
        self._ready: deque[Cell] = deque()
        self._armed = False  # a call of _run is pending; loop thread only
        self._woken = False  # a call of _on_wake is pending; guarded by _lock
        # Re-entrant: a finalizer that sends a message may run while it is held.
        self._lock = threading.RLock()
        self._suspended: dict[asyncio.Task[None], Cell] = {}
        self._context = contextvars.copy_context()
        self._dead_letter_report = _Reporter()
        self._slow_report = _Reporter()

    def spawn(
        self,
        actor_class: Callable[Concatenate[LoopDispatcher, str, P], A],
        urn: str,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> LoopRef[A]:
        """Make `actor_class(self, urn, *args, **kwargs)` and launch it. From any thread.

        Nobody but the ref keeps the actor: who spawns holds the ref, and sees to it that the `urn`
        is unique where that matters.
        """
        return actor_class(self, urn, *args, **kwargs).launch()

    def stats(self) -> DispatcherStats:
        """The counters of this moment."""
        return DispatcherStats(
            dead_letters=self.dead_letters,
            refused=self.refused,
            crashes=self.crashes,
            slow_turns=self.slow_turns,
            ready=len(self._ready),
            remote=len(self.remote),
        )

    def on_loop(self, action: Callable[..., object], *args: object) -> None:
        """Run `action(*args)` on the loop: at once when this is its thread, else soon.

        RuntimeError when the loop is closed.
        """
        if get_ident() == self.thread_id:
            action(*args)
        else:
            self.loop.call_soon_threadsafe(action, *args)

    # Other threads.

    def put_remote(self, cell: Cell, envelope: Envelope[Any] | None) -> None:
        """Hand mail, or with None the launch of a cell, to the loop. Raises `MailboxFullError`."""
        with self._lock:
            if self.closed:
                wake = False
            else:
                if envelope is not None and not is_system(envelope.message):
                    if cell.depth() >= cell.capacity() and cell.actor is not None:
                        cell.refuse()
                    if len(self.remote) >= REMOTE_CAPACITY:
                        self.count_refused()
                        raise MailboxFullError("the event loop of the actors", REMOTE_CAPACITY)
                cell.remote_pending += 1
                self.remote.append((cell, envelope))
                wake, self._woken = not self._woken, True
                envelope = None
        if envelope is not None:
            self.bury(envelope)
        elif wake:
            self._wake()

    def _wake(self) -> None:
        try:
            self.loop.call_soon_threadsafe(self._on_wake, context=self._context)
        except RuntimeError:  # the loop was closed and this dispatcher forgotten
            self._bury_remote()

    def _bury_remote(self) -> None:
        with self._lock:
            self.closed = True
            lost = list(self.remote)
            self.remote.clear()
        for _, envelope in lost:
            if envelope is not None:
                self.bury(envelope)

    # Loop thread.

    def _on_wake(self) -> None:
        with self._lock:
            self._woken = False
        self.flush_remote()

    def flush_remote(self) -> None:
        """Give the mail from other threads to the cells, in order."""
        late: list[Envelope[Any]] = []
        with self._lock:
            remote = self.remote
            while remote:
                cell, envelope = remote.popleft()
                cell.remote_pending -= 1
                if envelope is None:
                    cell.begin()
                elif not cell.accept_remote(envelope):
                    late.append(envelope)
        for envelope in late:
            self.bury(envelope)

    def schedule(self, cell: Cell) -> None:
        """Give `cell` a turn, after those that wait already."""
        self._ready.append(cell)
        if not self._armed:
            self._armed = True
            self.loop.call_soon(self._run, context=self._context)

    def run_task(self, cell: Cell, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a suspended handler; the loop itself holds its tasks only weakly."""
        task = self.loop.create_task(coroutine)
        self._suspended[task] = cell
        task.add_done_callback(self._suspended.pop)
        return task

    def at_once(self, action: Callable[[], object]) -> None:
        """Do `action`, and give the actors that it sends mail their turns before this returns, for
        as long as a slice: that saves a turn of the loop. Within a turn it is the action alone.
        """
        if self._armed:  # what waits already gets its turn later, and these behind it
            action()
            return
        self._armed = True
        try:
            action()
        finally:
            self._context.run(self._run)

    def _run(self) -> None:
        ready, monotonic = self._ready, time.monotonic
        before = monotonic()
        end = before + SLICE_SECS
        try:
            while ready:
                cell = ready.popleft()
                if cell.turn(THROUGHPUT, end):
                    ready.append(cell)
                now = monotonic()
                if now - before > SLOW_TURN_SECS:
                    self._report_slow(cell, now - before)
                if now > end:
                    break
                before = now
        finally:  # also when an exit is on its way to the loop
            if ready:
                self.loop.call_soon(self._run, context=self._context)
            else:
                self._armed = False

    def _report_slow(self, cell: Cell, secs: float) -> None:
        self.slow_turns += 1
        name = "an actor that has ended" if cell.actor is None else str(cell.actor)
        self._slow_report.warn("%s held the event loop for %.0f ms", name, secs * 1000)

    def alone(self, watcher: Listener) -> tuple[Listener, ...]:
        """`(watcher,)`: one tuple for all the actors that the same watches."""
        if self._alone != (watcher,):
            self._alone = (watcher,)
        return self._alone

    def count_refused(self) -> None:
        """A message was refused. From any thread."""
        with self._lock:
            self.refused += 1

    def bury(
        self,
        envelope: Envelope[Any],
        ref: LoopRef[Any] | None = None,
        reason: BaseException | None = None,
    ) -> None:
        """Answer mail that will not be handled, and count it. From any thread."""
        reply = envelope.reply_to
        if is_stop(envelope.message):
            if reply is not None:
                reply.set(None)
            return
        with self._lock:
            self.dead_letters += 1
            self._dead_letter_report.warn(
                "A %s for %s was not handled: the actor has ended",
                type(envelope.message).__name__,
                "an actor" if ref is None else ref,
            )
        if reply is not None:
            error = dead_error(ref, reason)
            reply.set_exception((pykka.ActorDeadError, error, None))

    async def close(self) -> None:
        """End every actor that has mail or a suspended handler, and refuse all further mail.

        Asks that wait are answered with `ActorDeadError`. Stop the actors first, in their order,
        if they are to finish their work: here their hooks are not called. Actors that are idle
        simply get no mail any more. A handler that does not let itself be cancelled is waited for
        `CLOSE_SECS` long, then logged and left behind.
        """
        self._bury_remote()
        reason = pykka.ActorDeadError("the dispatcher was closed")
        suspended = dict(self._suspended)
        for cell in [*self._ready, *self.obliged, *suspended.values()]:
            cell.abandon(reason)
        self._ready.clear()
        if suspended:
            _, stubborn = await asyncio.wait(suspended, timeout=CLOSE_SECS)
            for task in stubborn:
                logger.error("%s does not end when cancelled", suspended[task].actor)
