"""`LoopActor` and `LoopRef`: a Pykka actor that runs on an event loop, and its address."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, Literal, Self, TypeVar, overload

import pykka

from pilotage.actors.kernel.compat import STOP, AdaptedActor, Envelope
from pilotage.actors.kernel.dispatcher import LoopDispatcher
from pilotage.actors.kernel.errors import MailboxFullError, WouldBlockLoopError
from pilotage.actors.kernel.futures import AwaitableFuture, running_loop
from pilotage.actors.kernel.mailbox import Cell

A = TypeVar("A", bound="LoopActor")


class LoopRef(pykka.ActorRef[A]):
    """The address of a `LoopActor`: safe to pass around, usable from any thread."""

    __slots__ = (
        "_actor_weakref", "actor_class", "actor_inbox", "actor_stopped", "actor_urn", "cell",
    )  # fmt: skip

    def __init__(self, actor: A) -> None:
        super().__init__(actor)
        self.cell: Cell = actor.cell

    def tell(self, message: Any) -> None:
        """Send without waiting. Raises `pykka.ActorDeadError` and `MailboxFullError`.

        Returning is no promise: an actor that ends first does not handle the message, which is
        then counted as a dead letter.
        """
        cell = self.cell
        if cell.flags and cell.is_set():
            raise pykka.ActorDeadError(f"{self} not found")
        cell.put(Envelope(message))

    @overload
    def ask(
        self, message: Any, *, block: Literal[False], timeout: float | None = None
    ) -> AwaitableFuture[Any]: ...

    @overload
    def ask(self, message: Any, *, block: Literal[True], timeout: float | None = None) -> Any: ...

    @overload
    def ask(self, message: Any, *, block: bool = True, timeout: float | None = None) -> Any: ...

    # pyright finds even a verbatim copy of the base's overloads incompatible, because of their Any.
    def ask(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, message: Any, *, block: bool = True, timeout: float | None = None
    ) -> Any:
        """Send and wait for the answer; with `block=False` give a future of it.

        Always answered: with the actor's result, what it raised, `pykka.ActorDeadError`, or
        `MailboxFullError`. `timeout` (seconds) is for the blocking form only; on a loop put
        `asyncio.timeout` around the `await`. Blocking on a thread that runs a loop raises
        `WouldBlockLoopError` and sends nothing.
        """
        if block and running_loop() is not None:
            raise WouldBlockLoopError(f"blocking ask of {self} on an event-loop thread: await it")
        future: AwaitableFuture[Any] = AwaitableFuture()
        cell = self.cell
        if cell.flags and cell.is_set():
            future.fail(pykka.ActorDeadError(f"{self} not found"))
        else:
            try:
                cell.put(Envelope(message, future))
            except MailboxFullError as full:
                future.fail(full)
        return future.get(timeout=timeout) if block else future

    @overload
    def stop(self, *, block: Literal[True], timeout: float | None = None) -> bool: ...

    @overload
    def stop(
        self, *, block: Literal[False], timeout: float | None = None
    ) -> AwaitableFuture[bool]: ...

    @overload
    def stop(
        self, *, block: bool = True, timeout: float | None = None
    ) -> bool | AwaitableFuture[bool]: ...

    def stop(
        self, *, block: bool = True, timeout: float | None = None
    ) -> bool | AwaitableFuture[bool]:
        """Ask the actor to stop after the mail before this. False: it had ended already."""
        if block and running_loop() is not None:
            raise WouldBlockLoopError(f"blocking stop of {self} on an event-loop thread: await it")
        stopped: AwaitableFuture[bool] = AwaitableFuture()
        asked = self.ask(STOP, block=False)

        def done() -> None:
            try:
                asked.get()
            except pykka.ActorDeadError:
                stopped.set(False)
            except BaseException:  # noqa: BLE001  the asker of the stop is to see it
                stopped.set_exception()
            else:
                stopped.set(True)

        asked.add_done_callback(done)
        return stopped.get(timeout=timeout) if block else stopped

    def kill(self, reason: BaseException) -> None:
        """Fail the actor with `reason` now, without its waiting mail; its watchers are told.

        From any thread. A suspended handler is cancelled, a running one finishes its message.
        """
        self.cell.dispatcher.on_loop(self.cell.kill, reason)


class DeferredReply:
    """The right and the duty to answer one message later. Made by `LoopActor.defer_reply`.

    If the actor ends first, the asker gets `ActorDeadError`, and answering has no effect.
    """

    __slots__ = ("_cell", "_future", "envelope")

    def __init__(self, cell: Cell, envelope: Envelope[Any]) -> None:
        self._cell = cell
        self._future = envelope.reply_to
        self.envelope: Envelope[Any] | None = envelope
        envelope.reply_to = None

    @property
    def pending(self) -> bool:
        """Whether somebody asked, and has no answer yet."""
        return self._future is not None

    def answer(self, value: object) -> bool:
        """Give the asker `value`. False: there is none, or it has its answer."""
        future = self._take()
        if future is None:
            return False
        future.set(value)
        return True

    def fail(self, exc: BaseException) -> bool:
        """Give the asker `exc`. False: there is none, or it has its answer."""
        future = self._take()
        if future is None:
            return False
        future.set_exception((type(exc), exc, exc.__traceback__))
        return True

    def _take(self) -> pykka.Future[Any] | None:
        future, self._future, self.envelope = self._future, None, None
        if future is not None:
            self._cell.settle(self)
        return future


class LoopActor(AdaptedActor):
    """An actor whose mailbox is drained on the event loop of its dispatcher.

    `on_receive` is a plain function, or `async def` when it must wait; the actor takes no other
    message meanwhile. `on_start`, `on_stop` and `on_failure` are plain functions and run on the
    loop. None of them may block. It is not in `pykka.ActorRegistry`: whoever spawns keeps the ref.
    """

    __slots__ = ()

    mailbox_capacity: ClassVar[int] = 10_000
    """Messages that may wait; one more raises `MailboxFullError` at its sender."""

    ask_failures_are_crashes: ClassVar[bool] = True
    """An exception under `ask`, other than a `RejectError`, ends the actor as it does under
    `tell`: its state may be half changed. False: it goes to the caller only, as in Pykka."""

    def __init__(self, dispatcher: LoopDispatcher, urn: str) -> None:
        """Make it; `launch` lets it run. Subclasses take these two first, then their own."""
        cell = Cell(dispatcher)
        super().__init__(urn, cell)
        cell.actor = self
        self.adopt_ref(LoopRef(self))

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        for hook in ("on_start", "on_stop", "on_failure"):
            if inspect.iscoroutinefunction(getattr(cls, hook)):
                raise TypeError(
                    f"{cls.__qualname__}.{hook} must be a plain function: it would never be "
                    "awaited; send the actor a message and wait in an async on_receive"
                )

    @classmethod
    def start(  # pyright: ignore[reportIncompatibleMethodOverride]  # as actor_ref
        cls, dispatcher: LoopDispatcher, urn: str, /, *args: Any, **kwargs: Any
    ) -> LoopRef[Self]:
        """Pykka's form of `dispatcher.spawn(cls, urn, ...)`, without its argument types."""
        return cls(dispatcher, urn, *args, **kwargs).launch()

    def launch(self) -> LoopRef[Self]:
        """Let the actor run. Once, from any thread."""
        self._start_actor_loop()
        return self.actor_ref

    @property
    def actor_ref(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
    ) -> LoopRef[Self]:  # a LoopRef[Self] is an ActorRef[Self]; pyright compares at Self=Actor
        """The address of this actor."""
        return self.own_ref()

    @property
    def dispatcher(self) -> LoopDispatcher:
        """What runs this actor."""
        return self.cell.dispatcher

    def defer_reply(self) -> DeferredReply:
        """Take over the answer to the message being handled: what `on_receive` returns is ignored.

        For a message that was told there is nobody to answer, and the answer goes nowhere. If the
        handler raises afterwards, the asker gets the exception, as without this.
        """
        cell = self.cell
        envelope = cell.current
        if envelope is None:
            raise RuntimeError(f"{self} defers a reply while no message is being handled")
        reply = DeferredReply(cell, envelope)
        if reply.pending:
            cell.owe(reply)
        return reply

    def pause(self) -> None:
        """Take no further message until `resume`; mail waits, a stop too. On the loop only."""
        self.cell.pause()

    def resume(self) -> None:
        """Take messages again. On the loop only."""
        self.cell.resume()

    def retire(self) -> bool:
        """End now if nothing waits for this actor, without hooks and without a word to its
        watchers: who calls it keeps what is needed to make it again. On the loop only.
        """
        return self.cell.retire()
