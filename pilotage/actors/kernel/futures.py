"""`AwaitableFuture`: a `pykka.Future` for both worlds, threads and event loops.

Guarantees:

- `await` suspends only the awaiting task; the loop goes on. Any loop may await, several at once,
  and cancelling a waiting task leaves the future untouched.
- `get(timeout=...)` blocks only its thread. On a thread that runs an event loop a wait that would
  block raises `WouldBlockLoopError` at once: what would have been a frozen loop is an error.
- It is completed exactly once, from any thread; a second completion raises.
- `map`, `filter`, `reduce` and `join` push: the function runs in the thread that completes the
  future, so keep it tiny. They stay awaitable.

An idle future is one small object: no lock, condition or event of its own (one module lock guards
the few instructions of each state change).
"""

from __future__ import annotations

import asyncio
import functools
import logging
import queue
import sys
from _thread import allocate_lock
from collections.abc import Callable, Generator, Iterable, Sequence
from types import TracebackType
from typing import Any, TypeAlias, TypeVar, cast

import pykka

from pilotage.actors.kernel.errors import WouldBlockLoopError

T = TypeVar("T")
J = TypeVar("J")
M = TypeVar("M")
R = TypeVar("R")

ExcInfo: TypeAlias = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]
_Waiter: TypeAlias = Callable[[], object]

logger = logging.getLogger("pilotage.actors")

_LOCK = allocate_lock()
_PENDING, _VALUE, _ERROR, _HOOK = range(4)


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The loop that runs on this thread, if one does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _settle(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)


def _wake(loop: asyncio.AbstractEventLoop, sleeper: asyncio.Future[None]) -> None:
    """Wake what sleeps on `loop`, from any thread."""
    if loop is running_loop():
        _settle(sleeper)
        return
    try:
        loop.call_soon_threadsafe(_settle, sleeper)
    except RuntimeError:  # that loop has been closed, and its tasks with it
        logger.debug("The loop that awaited a reply is closed")


def _notify(waiters: Iterable[_Waiter]) -> None:
    """Wake everybody who waited. One broken callback must not keep the others asleep."""
    for waiter in waiters:
        try:
            waiter()
        except Exception:
            logger.exception("A done callback of a future failed")


class AwaitableFuture(pykka.Future[T]):
    """A reply that will come: `await` it on a loop, `get()` it on a thread."""

    # Class-level defaults keep the untouched future small.
    _state: int = _PENDING
    _content: Any = None  # a value, an exc_info triple or a get hook, as _state says
    _waiters: list[_Waiter] | None = None

    def __init__(self) -> None:
        """Make a pending future. Does not call the base: its two attributes are not used here."""

    def __repr__(self) -> str:
        return f"<AwaitableFuture {('pending', 'value', 'error', 'hook')[self._state]}>"

    def _complete(self, state: int, content: object) -> None:
        with _LOCK:
            if self._state != _PENDING:
                raise queue.Full("this future has been completed already")
            self._content = content
            self._state = state
            waiters = self._waiters
            self._waiters = None
        if waiters is not None:
            _notify(waiters)

    def set(self, value: T | None = None) -> None:
        """Complete with a value. Raises `queue.Full` when completed already."""
        self._complete(_VALUE, value)

    def set_exception(self, exc_info: ExcInfo | None = None) -> None:
        """Complete with an exception, by default the one being handled."""
        if exc_info is None:
            exc_info = sys.exc_info()
        self._complete(_ERROR, exc_info)

    def fail(self, exc: BaseException) -> None:
        """Complete with `exc`."""
        self._complete(_ERROR, (type(exc), exc, exc.__traceback__))

    def set_get_hook(self, func: Callable[[float | None], T]) -> None:
        """Complete with a function that `get` calls, once, with its timeout."""
        self._complete(_HOOK, func)

    def done(self) -> bool:
        """Whether a value, an error or a hook is there."""
        return self._state != _PENDING

    def hooked(self) -> bool:
        """Whether the value is still to be computed by `get`."""
        return self._state == _HOOK

    def add_done_callback(self, callback: Callable[[], object]) -> None:
        """Call `callback()` once when completed, in the completing thread; now if it is."""
        if not self._register(callback):
            callback()

    def _register(self, waiter: _Waiter) -> bool:
        with _LOCK:
            if self._state != _PENDING:
                return False
            if self._waiters is None:
                self._waiters = [waiter]
            else:
                self._waiters.append(waiter)
            return True

    def _forget(self, waiter: _Waiter) -> None:
        with _LOCK:
            if self._waiters is not None and waiter in self._waiters:
                self._waiters.remove(waiter)

    def _result(self, timeout: float | None = None) -> T:
        state, content = self._state, self._content
        if state == _VALUE:
            return cast("T", content)
        if state == _ERROR:
            kind, exc, traceback = cast("ExcInfo", content)
            if exc is None:
                exc = kind() if kind is not None else RuntimeError("failed without an exception")
            # Reset, or the traceback would grow with every reader.
            raise exc.with_traceback(traceback)
        value = cast("Callable[[float | None], T]", content)(timeout)
        self._content, self._state = value, _VALUE
        return value

    def get(self, *, timeout: float | None = None) -> T:
        """The value, waiting for it up to `timeout` seconds on this thread.

        Raises `pykka.Timeout`, the stored exception, or `WouldBlockLoopError` when it is pending
        and this thread runs an event loop.
        """
        if self._state == _PENDING:
            if running_loop() is not None:
                raise WouldBlockLoopError(
                    "get() of a pending future on an event-loop thread; await the future"
                )
            lock = allocate_lock()
            lock.acquire()
            release: _Waiter = lock.release
            if self._register(release) and not lock.acquire(
                True, -1 if timeout is None else max(0.0, timeout)
            ):
                self._forget(release)
                if self._state == _PENDING:
                    raise pykka.Timeout(f"no reply within {timeout} seconds")
        return self._result(timeout)

    def __await__(self) -> Generator[Any, None, T]:
        if self._state == _PENDING:
            loop = asyncio.get_running_loop()
            sleeper: asyncio.Future[None] = loop.create_future()
            waiter = functools.partial(_wake, loop, sleeper)
            if self._register(waiter):
                try:
                    yield from sleeper
                except BaseException:
                    self._forget(waiter)
                    raise
        if self._state == _HOOK:  # the hook may block: not on this loop
            return (
                yield from asyncio.get_running_loop()
                .run_in_executor(None, self._result)
                .__await__()
            )
        return self._result()

    __iter__ = __await__

    def map(self, func: Callable[[T], M]) -> AwaitableFuture[M]:
        """A future of `func(value)`."""
        return _derive([self], lambda timeout: func(self.get(timeout=timeout)))

    def filter(
        self: pykka.Future[Iterable[J]], func: Callable[[J], bool]
    ) -> AwaitableFuture[Iterable[J]]:
        """A future of the items for which `func(item)` is true."""
        return _derive([self], lambda timeout: list(filter(func, self.get(timeout=timeout))))

    def reduce(
        self: pykka.Future[Iterable[J]], func: Callable[[R, J], R], *args: R
    ) -> AwaitableFuture[R]:
        """A future of the items folded from the left, as by `functools.reduce`."""
        return _derive(
            [self], lambda timeout: functools.reduce(func, self.get(timeout=timeout), *args)
        )

    def join(
        self: pykka.Future[Any], *futures: pykka.Future[Any]
    ) -> AwaitableFuture[Iterable[Any]]:
        """A future of the list of the values of this and of `futures`, in order."""
        parts = [self, *futures]
        return _derive(parts, lambda timeout: [part.get(timeout=timeout) for part in parts])


def _derive(
    sources: Sequence[pykka.Future[Any]], compute: Callable[[float | None], M]
) -> AwaitableFuture[M]:
    """A future of `compute()` as soon as every source is complete.

    A source of another class, or one with a get hook, cannot push: then the result is computed by
    whoever asks for it, as Pykka does.
    """
    out: AwaitableFuture[M] = AwaitableFuture()
    own = [s for s in sources if isinstance(s, AwaitableFuture) and not s.hooked()]
    if len(own) != len(sources):
        out.set_get_hook(compute)
        return out
    left = len(own)

    def one_done() -> None:
        nonlocal left
        with _LOCK:
            left -= 1
            if left:
                return
        try:
            value = compute(None)
        except BaseException:  # noqa: BLE001  it belongs to whoever reads the result
            out.set_exception()
        else:
            out.set(value)

    for source in own:
        source.add_done_callback(one_done)
    return out
