"""Worker threads for plain functions: bounded, and honest about those that cannot be stopped.

A thread cannot be killed. When an attempt is stopped while its function runs, the thread is
*abandoned*: its result is ignored, it still counts against its job, and the pool gets another
thread in its place, up to `max_abandoned`. Beyond that a job with abandoned threads is held back
until one of them ends, and each further one leaves the pool a thread short.

All bookkeeping happens on the actors' loop; the threads only take work and post what came out.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from queue import SimpleQueue
from typing import TypeVar

from pilotage.actors.executors.invoke import call
from pilotage.actors.executors.port import Completed, Failed
from pilotage.actors.executors.running import Running

MAX_THREADS = 32
MAX_ABANDONED = 32

KeyT = TypeVar("KeyT")

_NEVER_BEGUN = Completed()


class ThreadPool:
    """Threads start when they are needed and stay. `ended` must be told of every result."""

    def __init__(
        self, *, max_threads: int = MAX_THREADS, max_abandoned: int = MAX_ABANDONED
    ) -> None:
        self._max_threads = max_threads
        self._max_abandoned = max_abandoned
        self._work: SimpleQueue[Running | None] = SimpleQueue()
        self._queue: OrderedDict[Running, None] = OrderedDict()
        self._held: dict[str, dict[Running, None]] = {}
        self._busy: set[Running] = set()
        self._abandoned: set[Running] = set()
        self._occupied: Counter[tuple[str, str]] = Counter()
        self._guilty: Counter[str] = Counter()
        self._threads = 0

    @property
    def abandoned(self) -> int:
        return len(self._abandoned)

    def start(self, running: Running) -> None:
        self._queue[running] = None
        self._dispatch()
        running.queued = running not in self._busy and not running.over

    def stop(self, running: Running) -> None:
        """The attempt is over for the run; its thread, if it has one, is abandoned."""
        if running in self._busy:
            self._busy.remove(running)
            self._abandoned.add(running)
            self._occupied[_slot(running)] += 1
            self._guilty[running.attempt.job] += 1
            self._dispatch()
            return
        self._queue.pop(running, None)
        self._held.get(running.attempt.job, {}).pop(running, None)

    def ended(self, running: Running) -> None:
        """The function has returned, whether anybody still waits for it or not."""
        if running in self._abandoned:
            self._abandoned.remove(running)
            _take_one(self._occupied, _slot(running))
            _take_one(self._guilty, running.attempt.job)
            self._release_held()
        else:
            self._busy.discard(running)
        self._dispatch()
        if self._threads > self._allowed + len(self._abandoned):
            self._threads -= 1
            self._work.put(None)

    def occupied(self, project_id: str, job: str) -> int:
        """Abandoned threads that still run this job for the project."""
        return self._occupied[project_id, job]

    def held_back(self, job: str) -> str | None:
        """Why no attempt of the job is begun at present."""
        if len(self._abandoned) >= self._max_abandoned and self._guilty[job]:
            return (
                f"{len(self._abandoned)} threads did not stop at their timeout and are still busy, "
                f"{self._guilty[job]} of them with this job; it goes on when one of them ends"
            )
        if self._allowed <= 0:
            return f"all worker threads are stuck in {len(self._abandoned)} stopped attempts"
        return None

    def why_waiting(self, running: Running) -> str | None:
        if running in self._busy or running.over:
            return None
        reason = self.held_back(running.attempt.job)
        return reason or f"all {self._allowed} worker threads are busy"

    def close(self) -> None:
        """Idle threads end; busy ones are daemons and end with the process."""
        self._queue.clear()
        self._held.clear()
        for _ in range(self._threads):
            self._work.put(None)
        self._threads = 0

    @property
    def _allowed(self) -> int:
        """Attempts that may run at the same time besides those that were abandoned."""
        return self._max_threads - max(0, len(self._abandoned) - self._max_abandoned)

    def _dispatch(self) -> None:
        while self._queue and len(self._busy) < self._allowed:
            running, _ = self._queue.popitem(last=False)
            if self.held_back(running.attempt.job) is not None:
                self._held.setdefault(running.attempt.job, {})[running] = None
                continue
            self._busy.add(running)
            running.leave_queue()
            wanted = len(self._busy) + len(self._abandoned)
            if self._threads >= wanted or self._add_thread():
                self._work.put(running)
            elif self._threads > len(self._abandoned):
                self._work.put(running)  # one of those that there are takes it later
            else:
                self._busy.remove(running)
                running.emit(Failed("no worker thread can be started", "no_resources"))

    def _add_thread(self) -> bool:
        """False when the system gives us no more."""
        name = f"pilotage-worker-{self._threads + 1}"
        try:
            threading.Thread(target=self._serve, name=name, daemon=True).start()
        except RuntimeError:
            return False
        self._threads += 1
        return True

    def _release_held(self) -> None:
        """Back to the head of the queue, in their order, whose job may go on."""
        for job in [job for job in self._held if self.held_back(job) is None]:
            for running in reversed(self._held.pop(job)):
                self._queue[running] = None
                self._queue.move_to_end(running, last=False)

    def _serve(self) -> None:
        while (running := self._work.get()) is not None:
            if running.context.cancelled:  # stopped before it was begun
                running.emit(_NEVER_BEGUN)
                continue
            running.emit(call(running.job, running.attempt, running.context))


def _slot(running: Running) -> tuple[str, str]:
    return (running.attempt.project_id, running.attempt.job)


def _take_one(counter: Counter[KeyT], key: KeyT) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]
