"""Quarantine: what an operator can do about runs that failed too often or cannot be read.

`release` loads such a run again. `discard` ends it: canceled, as if an operator had canceled it,
written past its actor because that is what does not work; what it owes others (its end to its
parent, the cancellation to its children) is delivered all the same. A run that cannot be read is
removed instead, with its indexes and its place in queues; its parent is told, if the run's head
still says who that is. One that a newer version wrote is left for that version.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager

import msgspec

from pilotage.actors.damaged import readable_head
from pilotage.actors.errors import ConflictError, NotFoundError, UnavailableError
from pilotage.actors.run_write import Batch, run_write
from pilotage.actors.services import Services
from pilotage.actors.supervisor import Supervisor
from pilotage.persistence import codec
from pilotage.persistence.codec import SnapshotError, SnapshotVersionError
from pilotage.persistence.port import (
    FencedError,
    RunWrite,
    Store,
    StoredRun,
    StoreError,
    StoreUnavailableError,
    Verdict,
)
from pilotage.runtime.commands import CancelRun, ChildEnded
from pilotage.runtime.effects import Message, TellChild, TellParent
from pilotage.runtime.errors import PilotageError
from pilotage.runtime.machine import step
from pilotage.runtime.rules import Rejection
from pilotage.runtime.state import RunHead, RunState, StepState, chunked, rebuild
from pilotage.runtime.status import RunStatus, StepStatus


class _Found(msgspec.Struct, frozen=True, kw_only=True):
    """What the store has: nothing, or the run, or something that cannot be read (`error`)."""

    stored: StoredRun | None = None
    state: RunState | None = None
    error: Exception | None = None


class Quarantine:
    """Run id -> why, in `runs`."""

    def __init__(
        self, *, store: Store, supervisor: Supervisor, services: Services, fence: Callable[[], int]
    ) -> None:
        self._store = store
        self._supervisor = supervisor
        self._services = services
        self._fence = fence
        self._one_at_a_time = asyncio.Lock()  # what is read must not be moved before it is written
        self._undecided: dict[str, RunWrite] = {}
        """Ends that may or may not have been stored."""

    @property
    def runs(self) -> Mapping[str, str]:
        return self._supervisor.quarantined

    async def release(self, run_id: str) -> None:
        """Load it again; if it fails again it comes back. `ConflictError` if it cannot be read."""
        async with self._one_at_a_time:
            await self._release(run_id)

    async def _release(self, run_id: str) -> None:
        self._why(run_id)
        await self._settle(run_id)
        found = await self._read(run_id)
        if found.error is not None:
            self._supervisor.quarantine_unreadable(run_id, found.error)
            raise ConflictError(
                f'run "{run_id}" still cannot be read ({found.error}); restore its record, or'
                " discard it"
            )
        if found.state is None or found.state.status.is_terminal:
            self._supervisor.set_apart.forget(run_id)
        else:
            self._supervisor.set_apart.come_back(run_id)
        self._go_on(found)

    async def discard(self, run_id: str, actor: str) -> None:
        """End it as canceled; remove it if it cannot be read. `ConflictError` if it can be, by a
        newer version.
        """
        async with self._one_at_a_time:
            await self._discard(run_id, actor)

    async def _discard(self, run_id: str, actor: str) -> None:
        reason = f"discarded from quarantine ({self._why(run_id)})"
        await self._settle(run_id)
        found = await self._read(run_id)
        if isinstance(found.error, SnapshotVersionError):
            raise ConflictError(
                f'run "{run_id}" cannot be read ({found.error}); it stays in the store as it is,'
                " for a version that can"
            )
        if found.state is not None and not found.state.status.is_terminal:
            await self._cancel(found.state, actor, reason)
        elif found.error is not None:
            await self._remove(run_id, found.stored, f"canceled by {actor}: {reason}")
        self._supervisor.set_apart.forget(run_id)
        if found.state is not None:
            self._supervisor.wake(run_id)  # what it owes others is in its outbox now

    async def _read(self, run_id: str) -> _Found:
        stored: StoredRun | None = None
        try:
            (stored,) = await self._store.load_runs([run_id])
            if stored is None:
                return _Found()
            for data in stored.outbox.values():
                codec.decode_message(data)
            return _Found(stored=stored, state=await self._supervisor.decode(stored))
        except (StoreUnavailableError, FencedError, UnavailableError) as error:
            raise UnavailableError(f"the store is away: {error}") from None
        except Exception as error:  # noqa: BLE001  whatever is wrong with it
            return _Found(stored=stored, error=error)

    def _go_on(self, found: _Found) -> None:
        """Load the run if it has anything to do."""
        if found.stored is None or found.state is None:
            return
        if found.stored.outbox or not found.state.status.is_terminal:
            self._supervisor.wake(found.stored.run_id)

    async def _remove(self, run_id: str, stored: StoredRun | None, error: str) -> None:
        """Its parent first: what is interrupted can be repeated as long as the run is there."""
        head = None if stored is None else readable_head(stored)
        if head is not None:
            await self._tell_parent(head, error)
        with _store_away():
            await self._store.purge_runs([run_id], self._fence())

    async def _tell_parent(self, head: RunHead, error: str) -> None:
        parent_run_id, i = head.parent_run_id, head.parent_step
        if parent_run_id is None or i is None:
            return
        try:
            parent = await self._supervisor.state(parent_run_id)
        except SnapshotError:
            return  # nobody to be told
        if parent is None or parent.step(i).child_run_id != head.id:
            return
        await self._supervisor.command(
            parent_run_id,
            ChildEnded(
                step=i,
                attempt=parent.step(i).attempt,
                child_run_id=head.id,
                status=RunStatus.CANCELED,
                error=error,
            ),
        )

    def _why(self, run_id: str) -> str:
        why = self._supervisor.quarantined.get(run_id)
        if why is None:
            raise NotFoundError(f'no run "{run_id}" is quarantined')
        return why

    async def _cancel(self, state: RunState, actor: str, reason: str) -> None:
        write = self._canceled(state, CancelRun(actor=actor, reason=reason))
        verdict = await self._commit(write)
        if verdict is not Verdict.OK:
            raise UnavailableError(f"the run could not be ended: the store says {verdict}", 5)

    async def _settle(self, run_id: str) -> None:
        """If an end was sent and not answered it is sent again, the very same: until it is known
        to be stored or refused it may still arrive, and would be taken for the next write.
        """
        write = self._undecided.get(run_id)
        if write is not None:
            await self._commit(write)

    async def _commit(self, write: RunWrite) -> Verdict:
        self._undecided[write.run_id] = write
        with _store_away():
            (verdict,) = await self._store.commit([write], self._fence())
        self._undecided.pop(write.run_id, None)
        return verdict

    def _canceled(self, state: RunState, command: CancelRun) -> RunWrite:
        now = self._services.clock.now_ms()
        batch = Batch()
        try:
            result = step(state, command, now)
        except PilotageError:
            result = None
        if result is None or isinstance(result, Rejection):  # the machine itself cannot end it
            after = _ended(state, command, now)
            batch.changed.update(range(state.graph.size))
            for n, message in enumerate(_owed(state, after)):
                batch.outbox[f"{after.vitals.seq}.{n}"] = message
        else:
            after = result.state
            batch.add(state, result)
        return run_write(
            stored=state,
            state=after,
            batch=batch,
            outbox_done=[],
            keep_secs=self._services.retention_secs.get(RunStatus.CANCELED, 0),
        )


@contextmanager
def _store_away() -> Generator[None]:
    try:
        yield
    except StoreError as error:
        raise UnavailableError(f"the store is away: {error}") from None


def _ended(state: RunState, command: CancelRun, now: int) -> RunState:
    """The run as canceled, by force."""
    steps: list[StepState] = [
        one
        if one.status.is_terminal
        else msgspec.structs.replace(
            one, status=StepStatus.CANCELED, wait=None, due_ms=None, finished_at_ms=now
        )
        for one in state.steps()
    ]
    vitals = msgspec.structs.replace(
        state.vitals,
        status=RunStatus.CANCELED,
        seq=state.vitals.seq + 1,
        error=f"canceled by {command.actor}: {command.reason}",
        finished_at_ms=now,
        held=False,
    )
    return rebuild(state.head, state.graph, vitals, chunked(steps))


def _owed(before: RunState, after: RunState) -> Iterator[Message]:
    """What the machine would have said: its end to the parent, the cancellation to children."""
    head, vitals = after.head, after.vitals
    if head.parent_run_id is not None and head.parent_step is not None:
        yield TellParent(
            parent_run_id=head.parent_run_id,
            step=head.parent_step,
            attempt=vitals.parent_attempt,
            status=vitals.status,
            error=vitals.error,
        )
    for one in before.steps():
        if one.child_run_id is not None and not one.status.is_terminal:
            yield TellChild(child_run_id=one.child_run_id, what="cancel")
