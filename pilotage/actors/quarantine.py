"""Quarantine: what an operator can do about runs that failed too often or cannot be read.

`release` loads such a run again. `discard` ends it: canceled, as if an operator had canceled it,
written past its actor because that is what does not work; what it owes others (its end to its
parent, the cancellation to its children) is delivered all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from pilotage.actors.errors import ConflictError, NotFoundError, UnavailableError
from pilotage.actors.run_write import Batch, run_write
from pilotage.actors.services import Services
from pilotage.actors.supervisor import Supervisor
from pilotage.persistence.port import RunWrite, Store, StoreError, Verdict
from pilotage.runtime.commands import CancelRun
from pilotage.runtime.errors import PilotageError
from pilotage.runtime.machine import step
from pilotage.runtime.rules import Rejection
from pilotage.runtime.state import RunState, StepState, chunked, rebuild
from pilotage.runtime.status import RunStatus, StepStatus


class Quarantine:
    """Run id -> why, in `runs`."""

    def __init__(
        self, *, store: Store, supervisor: Supervisor, services: Services, fence: Callable[[], int]
    ) -> None:
        self._store = store
        self._supervisor = supervisor
        self._services = services
        self._fence = fence

    @property
    def runs(self) -> Mapping[str, str]:
        return self._supervisor.quarantined

    def release(self, run_id: str) -> None:
        """Load it again; if it fails again it comes back."""
        self._why(run_id)
        del self._supervisor.quarantined[run_id]
        self._supervisor.wake(run_id)

    async def discard(self, run_id: str, actor: str) -> None:
        """End it as canceled. `ConflictError` if it cannot even be read."""
        why = self._why(run_id)
        try:
            state = await self._supervisor.state(run_id)
        except (StoreError, UnavailableError) as error:
            raise UnavailableError(f"the store is away: {error}") from None
        except Exception as error:  # noqa: BLE001  whatever is wrong with it
            raise ConflictError(
                f'run "{run_id}" cannot be read ({error}); it stays in the store as it is, for a'
                " version that can"
            ) from None
        if state is not None and not state.status.is_terminal:
            await self._cancel(state, actor, f"discarded from quarantine ({why})")
        self._supervisor.quarantined.pop(run_id, None)
        if state is not None:
            self._services.admission.release_run(state.head.workflow_id, run_id)
            self._supervisor.wake(run_id)

    def _why(self, run_id: str) -> str:
        why = self._supervisor.quarantined.get(run_id)
        if why is None:
            raise NotFoundError(f'no run "{run_id}" is quarantined')
        return why

    async def _cancel(self, state: RunState, actor: str, reason: str) -> None:
        write = self._canceled(state, CancelRun(actor=actor, reason=reason))
        try:
            (verdict,) = await self._store.commit([write], self._fence())
        except StoreError as error:
            raise UnavailableError(f"the store is away: {error}") from None
        if verdict is not Verdict.OK:
            raise UnavailableError(f"the run could not be ended: the store says {verdict}", 5)

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


def _ended(state: RunState, command: CancelRun, now: int) -> RunState:
    """The run as canceled, by force: nothing is said to parents or children."""
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
