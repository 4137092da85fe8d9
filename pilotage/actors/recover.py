"""Recovery: every active run is taken in again before the first one moves.

Two passes. First all runs are loaded, earliest due first, in batches; slots that attempts and runs
hold, places in queues and the events that steps wait for are noted. Then every run is told to do
again what a crash may have lost. Commands and events are taken after that, so none is decided
before everybody it concerns is known, nor reaches a run before it has gone on. Admission is opened
by the caller afterwards, so no slot is granted before everybody who holds or wants one is known.

There may be more attempts in progress than slots of their job: the limit was lowered, or others got
the slots of a run that was quarantined. Those that a remote job has taken are in progress whatever
is done here; of the rest, which are about to be dispatched again, the latest wait for their turn.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from pilotage.actors.admission import Admission, JobKey
from pilotage.actors.errors import UnavailableError
from pilotage.actors.loading import Records, open_records
from pilotage.actors.services import Services
from pilotage.actors.supervisor import Supervisor
from pilotage.persistence import codec
from pilotage.persistence.port import Store, StoredRun, StoreUnavailableError
from pilotage.runtime.backoff import policy_of
from pilotage.runtime.graph import bits
from pilotage.runtime.state import RunState, delay_ms
from pilotage.runtime.status import RunStatus, StepType, WaitingFor

logger = logging.getLogger(__name__)

BATCH = 500

Again = tuple[int, str, int, JobKey, int]
"""An attempt that is dispatched again: started at, run, step, its job, ready since."""


async def recover(
    store: Store,
    supervisor: Supervisor,
    services: Services,
    run_limit: Callable[[str], Awaitable[int]],
    job_limit: Callable[[JobKey], Awaitable[int]],
) -> int:
    """How many runs were taken in. A run that cannot be read is quarantined, alone."""
    ids = await store.active_run_ids()
    now = services.clock.now_ms()
    workflows: set[str] = set()
    loaded: dict[str, Records] = {}
    again: list[Again] = []
    for k in range(0, len(ids), BATCH):
        for stored in await store.load_runs(ids[k : k + BATCH]):
            state = None if stored is None else await _read(supervisor, stored)
            if stored is None or state is None:
                continue
            loaded[state.id] = await open_records(store, state)
            again += note_slots(services, state, now)
            note_subscriptions(services, state)
            workflows.add(state.head.workflow_id)
            supervisor.adopt(state, stored.outbox)
    for workflow_id in workflows:
        services.admission.know_run_limit(workflow_id, await run_limit(workflow_id))
    for job in services.admission.jobs:
        services.admission.know_job_limit(job, await job_limit(job))
    hold_back(services.admission, again)
    for n, (run_id, records) in enumerate(loaded.items(), 1):
        supervisor.resume(run_id, records)
        if n % BATCH == 0:
            await asyncio.sleep(0)
    supervisor.open()
    return len(loaded)


async def _read(supervisor: Supervisor, stored: StoredRun) -> RunState | None:
    state: RunState | None = None
    try:
        state = await supervisor.decode(stored)
        for data in stored.outbox.values():
            codec.decode_message(data)
    except (StoreUnavailableError, UnavailableError):
        raise
    except Exception as error:  # noqa: BLE001  whatever is wrong with it: it must not keep others down
        supervisor.quarantine_unreadable(stored.run_id, error)
        if state is not None:
            supervisor.set_apart.count(state)
        return None
    return state


def note_slots(services: Services, state: RunState, now: int) -> list[Again]:
    """The slots that the run and its attempts hold, and its places in queues. Gives the attempts
    that are dispatched again.
    """
    again: list[Again] = []
    head, admission = state.head, services.admission
    status = state.status
    if status in (RunStatus.RUNNING, RunStatus.PAUSED) and not head.slotless:
        admission.hold_run_slot(head.workflow_id, head.id)
    elif (
        status is RunStatus.PENDING
        and not head.slotless
        and delay_ms(head, state.vitals, now) is None
    ):
        vitals = state.vitals
        admission.queue_run(
            head.workflow_id, head.id, vitals.queued_at_ms, held=vitals.held, again=True
        )
    for i in bits(state.masks.running):
        spec = state.graph.steps[i]
        if spec.step_type is StepType.JOB and policy_of(spec, head.policies).limited:
            job, step = (head.project_id, spec.job_id or ""), state.step(i)
            admission.hold_job_slot(job, head.id, i)
            if not step.accepted:
                again.append((step.started_at_ms or 0, head.id, i, job, step.ready_since_ms or 0))
    for i in bits(state.masks.requested):
        job = (head.project_id, state.graph.steps[i].job_id or "")
        admission.request_step(job, head.id, i, state.step(i).ready_since_ms or 0, again=True)
    return again


def hold_back(admission: Admission, again: list[Again]) -> None:
    """Of more attempts than there are slots the latest queue for one; their runs find out."""
    for _, run_id, i, job, since_ms in sorted(again, reverse=True):
        if admission.excess(job):
            admission.release_step(job, run_id, i)
            admission.request_step(job, run_id, i, since_ms, again=True)


def note_subscriptions(services: Services, state: RunState) -> None:
    """The events that the run's steps wait for."""
    for i in bits(state.masks.open):
        step = state.step(i)
        if step.wait is WaitingFor.EVENT and step.event_key is not None:
            services.hub.park(
                state.head.project_id,
                step.event_key,
                state.id,
                i,
                step.attempt,
                step.started_at_ms or 0,
            )
