"""What runs that are set apart (quarantined) still have outside.

Such a run is moved by nobody: its timers and subscriptions go, its attempts are told to stop, what
it waited for is withdrawn. It keeps its place or slot in its workflow. An attempt that a remote job
has taken (202) cannot be told: it may be worked on until its time is up, and so long it keeps its
job's slot, or others would be given one that is in use. Not longer: a run that nobody looks after
must not stand in the way of others. The time is measured by the clock that never jumps.
"""

from __future__ import annotations

import asyncio
import logging

from pilotage.actors.admission import JobKey, StepKey
from pilotage.actors.services import RUN_TIMER, Services
from pilotage.runtime.backoff import policy_of
from pilotage.runtime.graph import bits
from pilotage.runtime.state import RunState
from pilotage.runtime.status import RunStatus, StepStatus, WaitingFor

logger = logging.getLogger(__name__)


class SetApart:
    """All on the actors' loop. `runs`: run id -> why."""

    def __init__(self, services: Services) -> None:
        self.runs: dict[str, str] = {}
        self._services = services
        self._kept: dict[StepKey, asyncio.Handle] = {}

    def add(self, run_id: str, error: BaseException) -> bool:
        """False: it is known already. A damaged run is met at each reading."""
        known, text = self.runs.get(run_id), f"{type(error).__name__}: {error}"
        if known != text:
            logger.error("run %s is quarantined: %s", run_id, text)
        self.runs[run_id] = text
        return known is None

    def withdraw(self, state: RunState) -> None:
        """Take back what a run has outside that is set apart, as far as it can be taken back."""
        self._keep_accepted(state)
        withdraw(self._services, state, keep=True)

    def count(self, state: RunState) -> None:
        """One that is set apart at the start, though its state can be read, has what it would have
        if it had been before.
        """
        head = state.head
        holds = state.status in (RunStatus.RUNNING, RunStatus.PAUSED)
        if holds and not head.slotless:
            self._services.admission.hold_run_slot(head.workflow_id, head.id)
        self._keep_accepted(state)

    def leave(self, run_id: str) -> None:
        """As `withdraw`, of a run whose state cannot be read: only its timers say for how long the
        slots are in use that it has.
        """
        admission, timers = self._services.admission, self._services.timers
        for job, step in admission.job_slots_of(run_id):
            due_ms = timers.due_ms((run_id, step))
            if due_ms is not None and admission.has_job_slot(job, run_id, step):
                self._keep(job, run_id, step, due_ms)
            else:
                admission.release_step(job, run_id, step)

    def come_back(self, run_id: str) -> None:
        """It is about to be loaded: what it has then is decided by its state."""
        self.runs.pop(run_id, None)
        for key in [key for key in self._kept if key[0] == run_id]:
            self._kept.pop(key).cancel()

    def forget(self, run_id: str) -> None:
        """It is over: everything goes back."""
        self.come_back(run_id)
        self._services.admission.forget_run(run_id)

    def close(self) -> None:
        for handle in self._kept.values():
            handle.cancel()
        self._kept.clear()

    def _keep_accepted(self, state: RunState) -> None:
        head = state.head
        for i in bits(state.masks.running):
            step, spec = state.step(i), state.graph.steps[i]
            limited = spec.job_id is not None and policy_of(spec, head.policies).limited
            due_ms = self._services.timers.due_ms((head.id, i)) or step.due_ms
            if limited and step.accepted and due_ms is not None:
                self._keep((head.project_id, spec.job_id or ""), head.id, i, due_ms)

    def _keep(self, job: JobKey, run_id: str, step: int, until_ms: int) -> None:
        self._services.admission.keep_step(job, run_id, step, until_ms)
        key = (run_id, step)
        if (known := self._kept.pop(key, None)) is not None:
            known.cancel()
        left_secs = max(0, until_ms - self._services.clock.now_ms()) / 1000
        loop = asyncio.get_running_loop()
        self._kept[key] = loop.call_later(left_secs, self._lapse, key)

    def _lapse(self, key: StepKey) -> None:
        del self._kept[key]
        self._services.admission.lapse_step(*key)


def withdraw(services: Services, state: RunState, *, keep: bool = False) -> None:
    """Take back what an active run has outside, but for its workflow's slot. `keep`: the slots of
    attempts that a remote job has taken stay, too.
    """
    head = state.head
    services.timers.cancel((head.id, RUN_TIMER))
    for i in bits(state.masks.open):
        step, spec = state.step(i), state.graph.steps[i]
        services.timers.cancel((head.id, i))
        if step.wait is WaitingFor.EVENT and step.event_key is not None:
            services.hub.unpark(head.project_id, step.event_key, head.id, i)
        if step.status is StepStatus.RUNNING:
            services.executors.stop(head.id, i, step.attempt)
        if spec.job_id is not None and not (keep and step.accepted):
            services.admission.release_step((head.project_id, spec.job_id), head.id, i)
