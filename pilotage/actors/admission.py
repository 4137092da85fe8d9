"""Admission: what is limited across runs. Slots of workflows and of jobs.

A workflow with `max_concurrent_runs` has that many slots; runs without one queue first-in
first-out. A job with `max_concurrency` has that many attempts in progress at any instant; steps
that want one queue by (ready since, run id, index). Everything here is in memory and is rebuilt
from the runs when the process starts, before the first slot is granted (`open`).

All on the actors' loop; nothing here waits. A slot is never given twice and never left unused
while somebody waits for it: each release and each change of a limit passes slots on at once.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable

import msgspec

StepKey = tuple[str, int]
"""(run id, step index)."""
JobKey = tuple[str, str]
"""(project id, job reference)."""


class _RunPool:
    """Slots of one workflow."""

    __slots__ = ("held", "holders", "limit", "queue", "since")

    def __init__(self) -> None:
        self.limit = 0
        self.holders: set[str] = set()
        self.queue: list[tuple[int, str]] = []
        self.since: dict[str, int] = {}
        self.held: set[str] = set()

    @property
    def room(self) -> bool:
        return self.limit <= 0 or len(self.holders) < self.limit


class _JobPool:
    """Slots of one job."""

    __slots__ = ("holders", "limit", "queue", "since")

    def __init__(self) -> None:
        self.limit: int | None = None
        self.holders: set[StepKey] = set()
        self.queue: list[tuple[int, str, int]] = []
        self.since: dict[StepKey, int] = {}


class QueuePlace(msgspec.Struct, frozen=True):
    """Where somebody stands in a queue: 1-based position, slots in use, slots there are."""

    position: int
    used: int
    limit: int


class Admission:
    """`admit(run_id)` and `grant(run_id, step)` tell the run; it answers through `run_ended`,
    `decline_run`, `release_step`. `limit_of(job)` looks a job's limit up and calls `set_job_limit`.
    """

    def __init__(
        self,
        *,
        admit: Callable[[str], None],
        grant: Callable[[str, int], None],
        limit_of: Callable[[JobKey], None],
    ) -> None:
        self._admit = admit
        self._grant = grant
        self._limit_of = limit_of
        self._runs: dict[str, _RunPool] = {}
        self._jobs: dict[JobKey, _JobPool] = {}
        self._open = False

    def open(self) -> None:
        """Everything is rebuilt: grant what is free from now on."""
        self._open = True
        for workflow_id in list(self._runs):
            self._pump_runs(workflow_id)
        for job in list(self._jobs):
            self._pump_job(job)

    # --- slots of workflows --------------------------------------------------------------------

    def set_run_limit(self, workflow_id: str, limit: int) -> None:
        pool = self._runs.get(workflow_id)
        if pool is None:
            if limit <= 0:
                return
            pool = self._runs[workflow_id] = _RunPool()
        pool.limit = limit
        self._pump_runs(workflow_id)

    def take_run_slot(self, workflow_id: str, run_id: str) -> bool:
        """Take a slot now if one is free and nobody waits for it. Holding one already is True."""
        pool = self._runs.get(workflow_id)
        if pool is None:
            pool = self._runs[workflow_id] = _RunPool()
        if run_id in pool.holders:
            return True
        if not pool.room or len(pool.since) > len(pool.held) or not self._open:
            return False
        pool.holders.add(run_id)
        return True

    def run_slot_free(self, workflow_id: str) -> bool:
        """Whether `take_run_slot` would succeed (for previews)."""
        pool = self._runs.get(workflow_id)
        return pool is None or (pool.room and len(pool.since) <= len(pool.held))

    def hold_run_slot(self, workflow_id: str, run_id: str) -> None:
        """The run holds a slot, whatever the limit says now (rebuilding)."""
        self._runs.setdefault(workflow_id, _RunPool()).holders.add(run_id)

    def queue_run(self, workflow_id: str, run_id: str, since_ms: int, *, held: bool) -> None:
        """Wait for a slot; `held` keeps the place without being admitted."""
        pool = self._runs.setdefault(workflow_id, _RunPool())
        self._leave_queue(pool, run_id)
        if run_id in pool.holders:
            pool.holders.discard(run_id)
        pool.since[run_id] = since_ms
        insort(pool.queue, (since_ms, run_id))
        if held:
            pool.held.add(run_id)
        self._pump_runs(workflow_id)

    def release_run(self, workflow_id: str, run_id: str) -> None:
        """The run needs neither slot nor place any more."""
        pool = self._runs.get(workflow_id)
        if pool is None:
            return
        pool.holders.discard(run_id)
        self._leave_queue(pool, run_id)
        self._pump_runs(workflow_id)

    def run_place(self, workflow_id: str, run_id: str) -> QueuePlace | None:
        pool = self._runs.get(workflow_id)
        since = None if pool is None else pool.since.get(run_id)
        if pool is None or since is None:
            return None
        position = pool.queue.index((since, run_id)) + 1
        return QueuePlace(position, len(pool.holders), pool.limit)

    def _leave_queue(self, pool: _RunPool, run_id: str) -> None:
        since = pool.since.pop(run_id, None)
        pool.held.discard(run_id)
        if since is not None:
            pool.queue.remove((since, run_id))

    def _pump_runs(self, workflow_id: str) -> None:
        pool = self._runs[workflow_id]
        while self._open and pool.room:
            following = next((r for _, r in pool.queue if r not in pool.held), None)
            if following is None:
                break
            self._leave_queue(pool, following)
            pool.holders.add(following)
            self._admit(following)
        if not pool.holders and not pool.queue and pool.limit <= 0:
            self._runs.pop(workflow_id, None)

    # --- slots of jobs -------------------------------------------------------------------------

    def set_job_limit(self, job: JobKey, limit: int) -> None:
        """0 means no limit."""
        pool = self._jobs.get(job)
        if pool is not None:
            pool.limit = limit
            self._pump_job(job)

    def hold_job_slot(self, job: JobKey, run_id: str, step: int) -> None:
        """The attempt in progress holds a slot (rebuilding)."""
        self._job_pool(job).holders.add((run_id, step))

    def request_step(self, job: JobKey, run_id: str, step: int, since_ms: int) -> None:
        pool = self._job_pool(job)
        key = (run_id, step)
        if key in pool.since:
            return
        pool.holders.discard(key)  # a grant that was declined comes back with this request
        pool.since[key] = since_ms
        insort(pool.queue, (since_ms, run_id, step))
        self._pump_job(job)

    def release_step(self, job: JobKey, run_id: str, step: int) -> None:
        """Give the slot back, or withdraw the request."""
        pool = self._jobs.get(job)
        if pool is None:
            return
        key = (run_id, step)
        pool.holders.discard(key)
        since = pool.since.pop(key, None)
        if since is not None:
            pool.queue.remove((since, run_id, step))
        self._pump_job(job)
        if not pool.holders and not pool.queue:
            self._jobs.pop(job, None)

    def return_grant(self, job: JobKey, run_id: str, step: int) -> None:
        """A granted slot was not taken: it goes to the next. The run asks again when it has room;
        if it has asked already, its new place in the queue stays.
        """
        pool = self._jobs.get(job)
        if pool is not None:
            pool.holders.discard((run_id, step))
            self._pump_job(job)

    def step_place(self, job: JobKey, run_id: str, step: int) -> QueuePlace | None:
        pool = self._jobs.get(job)
        since = None if pool is None else pool.since.get((run_id, step))
        if pool is None or since is None:
            return None
        position = pool.queue.index((since, run_id, step)) + 1
        return QueuePlace(position, len(pool.holders), pool.limit or 0)

    def _job_pool(self, job: JobKey) -> _JobPool:
        pool = self._jobs.get(job)
        if pool is None:
            pool = self._jobs[job] = _JobPool()
            self._limit_of(job)
        return pool

    def _pump_job(self, job: JobKey) -> None:
        pool = self._jobs.get(job)
        if pool is None or not self._open or pool.limit is None:
            return
        while pool.queue and (pool.limit <= 0 or len(pool.holders) < pool.limit):
            _, run_id, step = pool.queue.pop(0)
            pool.since.pop((run_id, step), None)
            pool.holders.add((run_id, step))
            self._grant(run_id, step)
