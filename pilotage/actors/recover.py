"""Recovery: every active run is taken in again before the first one moves.

Two passes. First all runs are loaded, earliest due first, in batches; slots that attempts and runs
hold are noted. Then every run does again what a crash may have lost. Admission is opened by the
caller afterwards, so no slot is granted before everybody who holds one is known.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from pilotage.actors.services import Services
from pilotage.actors.supervisor import Supervisor
from pilotage.persistence.port import Store, StoredRun, StoreUnavailableError
from pilotage.runtime.backoff import policy_of
from pilotage.runtime.graph import bits
from pilotage.runtime.state import RunState
from pilotage.runtime.status import RunStatus, StepType

logger = logging.getLogger(__name__)

BATCH = 500


async def recover(
    store: Store,
    supervisor: Supervisor,
    services: Services,
    run_limit: Callable[[str], Awaitable[int]],
) -> int:
    """How many runs were taken in. A run that cannot be read is quarantined, alone."""
    ids = await store.active_run_ids()
    workflows: set[str] = set()
    loaded: list[str] = []
    for k in range(0, len(ids), BATCH):
        for stored in await store.load_runs(ids[k : k + BATCH]):
            if stored is None:
                continue
            state = await _read(supervisor, stored)
            if state is not None:
                _note_slots(services, state)
                workflows.add(state.head.workflow_id)
                supervisor.adopt(state, stored.outbox)
                loaded.append(state.id)
    for workflow_id in workflows:
        services.admission.set_run_limit(workflow_id, await run_limit(workflow_id))
    for n, run_id in enumerate(loaded):
        supervisor.resume(run_id)
        if n % BATCH == BATCH - 1:
            await asyncio.sleep(0)
    return len(loaded)


async def _read(supervisor: Supervisor, stored: StoredRun) -> RunState | None:
    try:
        return await supervisor.decode(stored)
    except StoreUnavailableError:
        raise
    except Exception as error:  # whatever is wrong with it: it must not keep others down
        supervisor.quarantine_unreadable(stored.run_id, error)
        return None


def _note_slots(services: Services, state: RunState) -> None:
    head = state.head
    if state.status in (RunStatus.RUNNING, RunStatus.PAUSED) and not head.slotless:
        services.admission.hold_run_slot(head.workflow_id, head.id)
    for i in bits(state.masks.running):
        spec = state.graph.steps[i]
        if spec.step_type is StepType.JOB and policy_of(spec, head.policies).limited:
            services.admission.hold_job_slot((head.project_id, spec.job_id or ""), head.id, i)
