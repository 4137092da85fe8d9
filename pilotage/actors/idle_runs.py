"""Active runs without an actor: those that nobody moves.

A run that has been idle for some seconds is *folded*: its actor goes, what it was about to move
stays in memory, packed. A run that then waits for long (for a person, an event, a far time, a
child, its turn in a queue) is *passivated*: it stays in the store only, and here is its id.

Nothing is written for either: an idle run's state is what the store has acknowledged. What a run
has outside stays where it is, under the run's id: its timers, its subscriptions, its slots and
places in queues. Whatever concerns the run goes through the supervisor, which makes its actor
again, of the folded state at once, or of the stored one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator

import msgspec

from pilotage.actors.attempt_records import AttemptRecords
from pilotage.actors.entries import Entry
from pilotage.actors.kernel import Clock
from pilotage.runtime.graph import bits
from pilotage.runtime.state import RunState, packed, run_due_ms
from pilotage.runtime.status import StepType

FOLD_AFTER_SECS = 5.0
"""How often is looked; a run that was not moved between two looks is folded."""
LOOKED_AT_ONCE = 500
"""Runs looked at before the loop gets its turn."""


class Folded(msgspec.Struct, frozen=True, gc=False):
    """A run whose actor is gone. `since`: when that was, in seconds of the monotonic clock."""

    state: RunState
    since: float
    records: AttemptRecords | None


class IdleRuns:
    """`passivate_after_secs`: how long a run stays folded, and how far its next timer must be for
    it to leave memory; 0: none ever does.
    """

    def __init__(self) -> None:
        self.passivate_after_secs: float = 0
        self._folded: dict[str, Folded] = {}
        self._by_age: deque[tuple[float, list[str]]] = deque()
        self.away: set[str] = set()
        """The passivated ones."""
        self.folds = 0
        self.passivations = 0

    def __len__(self) -> int:
        """How many are folded."""
        return len(self._folded)

    @property
    def look_secs(self) -> float:
        """How often to look for runs that may be folded or passivated."""
        if self.passivate_after_secs:
            return min(FOLD_AFTER_SECS, self.passivate_after_secs / 2)
        return FOLD_AFTER_SECS

    @property
    def ageing(self) -> bool:
        """Whether some are to be passivated when their time comes."""
        return bool(self._by_age)

    def state(self, run_id: str) -> RunState | None:
        folded = self._folded.get(run_id)
        return None if folded is None else folded.state

    async def put_aside(self, entries: dict[str, Entry], clock: Clock) -> None:
        """One look at all `entries`: who was not moved since the look before is folded and has no
        entry any more; who has been folded for long is passivated.
        """
        now = clock.monotonic()
        for n, (run_id, entry) in enumerate(list(entries.items()), 1):
            if entries.get(run_id) is entry and self._fold_if_idle(entry, now):
                del entries[run_id]
            if n % LOOKED_AT_ONCE == 0:
                await asyncio.sleep(0)
        for n, _ in enumerate(self._passivate_due(now, clock.now_ms()), 1):
            if n % LOOKED_AT_ONCE == 0:
                await asyncio.sleep(0)

    def _fold_if_idle(self, entry: Entry, now: float) -> bool:
        actor = entry.actor
        if actor is None or entry.ref is None:
            return False
        moved, actor.moved = actor.moved, False
        if moved or not actor.at_rest:
            return False
        if entry.intensity is not None and entry.intensity.recent(now):
            return False  # how often it has failed must not be forgotten
        state = actor.published
        if state is None or not actor.retire():
            return False
        self._fold(state, actor.records or None, now)
        return True

    def _fold(self, state: RunState, records: AttemptRecords | None, now: float) -> None:
        """Keep the state of a run whose actor has nothing to do and is gone."""
        self._folded[state.id] = Folded(packed(state), now, records)
        self.folds += 1
        self._wait(state.id, now)

    def _wait(self, run_id: str, since: float) -> None:
        if not self.passivate_after_secs:
            return
        if not self._by_age or self._by_age[-1][0] != since:
            self._by_age.append((since, []))
        self._by_age[-1][1].append(run_id)

    def take(self, run_id: str) -> Folded | None:
        """Forget a folded run: it is about to have an actor again."""
        return self._folded.pop(run_id, None)

    def _passivate_due(self, now: float, now_ms: int) -> Iterator[None]:
        """Passivate what has been folded for long, one run an iteration."""
        while self._by_age and self._by_age[0][0] <= now - self.passivate_after_secs:
            since, run_ids = self._by_age.popleft()
            for run_id in run_ids:
                folded = self._folded.get(run_id)
                if folded is not None and folded.since == since:  # else it has moved since
                    self._passivate(run_id, folded, now, now_ms)
                yield

    def _passivate(self, run_id: str, folded: Folded, now: float, now_ms: int) -> None:
        if waits_long(folded, now_ms + round(self.passivate_after_secs * 1000), now_ms):
            del self._folded[run_id]
            self.away.add(run_id)
            self.passivations += 1
        else:
            self._folded[run_id] = msgspec.structs.replace(folded, since=now)
            self._wait(run_id, now)


def waits_long(folded: Folded, until_ms: int, now_ms: int) -> bool:
    """Whether the run does nothing by itself before `until_ms`, and nothing here works for it."""
    state = folded.state
    if folded.records is not None and folded.records.heartbeats:
        return False
    due_ms = run_due_ms(state.head, state.vitals, now_ms)
    if due_ms is not None and due_ms < until_ms:
        return False
    for i in bits(state.masks.open):
        step = state.step(i)
        if step.due_ms is not None and step.due_ms < until_ms:
            return False
    return not any(
        state.graph.steps[i].step_type is StepType.JOB and not state.step(i).accepted
        for i in bits(state.masks.running)
    )
