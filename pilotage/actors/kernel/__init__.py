"""The actor kernel: Pykka actors on an asyncio loop, watched, bounded, and cheap while idle.

    dispatcher = LoopDispatcher()                       # on the loop that is to run the actors
    ref = dispatcher.spawn(RunActor, "run-17", store)   # RunActor(dispatcher, "run-17", store)
    watch(ref, supervisor_ref)                          # or watch(ref, callback)
    async with asyncio.timeout(5):
        answer = await ref.ask(Pause(), block=False)

    class RunActor(LoopActor):
        mailbox_capacity = 10_000
        ask_failures_are_crashes = True
        def __init__(self, dispatcher: LoopDispatcher, urn: str, store: Store) -> None:
            super().__init__(dispatcher, urn)
        def on_receive(self, message: Any) -> Any: ...  # or `async def`

Public names (all of it for the loop's thread, except where "any thread" stands):

- `LoopDispatcher()`; `.spawn(actor_class, urn, *args, **kwargs) -> LoopRef[A]` (any thread),
  `.on_loop(action, *args)` (any thread), `.stats() -> DispatcherStats`, `async .close()`.
- `LoopActor(dispatcher, urn)`: `on_start`, `on_receive`, `on_stop`, `on_failure`;
  `.actor_ref`, `.dispatcher`, `.stop()`, `.defer_reply() -> DeferredReply`, `.pause()`,
  `.resume()`.
- `LoopRef[A]` (any thread): `.tell(message) -> None`,
  `.ask(message, block=False) -> AwaitableFuture[Any]`, `.stop(block=False)`,
  `.kill(reason: BaseException)`, `.is_alive()`, `.actor_urn`.
- `DeferredReply`: `.answer(value) -> bool`, `.fail(exc) -> bool`, `.pending`.
- `AwaitableFuture[T]` (any thread): `await`, `.get(timeout=...)`, `.set`, `.fail(exc)`, `.done()`,
  `.add_done_callback(callback)`, `.map`, `.join`, ...
- `watch(ref, watcher)`, `unwatch(ref, watcher)` (any thread): `Terminated(urn, reason, ref)`.
- `RestartIntensity(max_restarts, window_secs, base_delay_secs=, max_delay_secs=)`;
  `.next_delay(now) -> float | None`.
- `Timers[K](clock, loop)`: `.set(key, due_ms, callback, left_ms=None)`, `.cancel(key) -> bool`,
  `.due_ms(key)`, `.callback(key)`, `.next_due_ms()`, `.fire_due(limit)`, `len()`, `in`,
  `.close()`; `.on_jump`: who hears that the wall clock was set, and what was `Moved` with it.
- `Clock` (`now_ms() -> int`, `monotonic() -> float`), `SystemClock`.
- `MailboxFullError`, `WouldBlockLoopError`, `RejectError`; from Pykka: `ActorDeadError`.

What an exception means: under `tell` it ends the actor; under `ask` it goes to the asker and, if
`ask_failures_are_crashes`, ends the actor too; a `RejectError` is an answer and ends nothing. A
`BaseException` ends the one actor; `KeyboardInterrupt` and `SystemExit` then go on to the loop.
"""

from __future__ import annotations

from pykka import ActorDeadError

from pilotage.actors.kernel.actor import DeferredReply, LoopActor, LoopRef
from pilotage.actors.kernel.clock import Clock, SystemClock
from pilotage.actors.kernel.dispatcher import DispatcherStats, LoopDispatcher
from pilotage.actors.kernel.errors import MailboxFullError, RejectError, WouldBlockLoopError
from pilotage.actors.kernel.futures import AwaitableFuture
from pilotage.actors.kernel.timers import Moved, Timers
from pilotage.actors.kernel.watch import RestartIntensity, Terminated, Watcher, unwatch, watch

__all__ = [
    "ActorDeadError",
    "AwaitableFuture",
    "Clock",
    "DeferredReply",
    "DispatcherStats",
    "LoopActor",
    "LoopDispatcher",
    "LoopRef",
    "MailboxFullError",
    "Moved",
    "RejectError",
    "RestartIntensity",
    "SystemClock",
    "Terminated",
    "Timers",
    "Watcher",
    "WouldBlockLoopError",
    "unwatch",
    "watch",
]
