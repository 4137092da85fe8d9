"""Admission: what is limited across runs. Slots of workflows and of jobs.

A workflow with `max_concurrent_runs` has that many slots; runs without one queue first-in
first-out. A job with `max_concurrency` has that many attempts in progress at any instant; steps
that want one queue by (ready since, run id, index). Everything here is in memory and is rebuilt
from the runs when the process starts, before the first slot is granted (`open`).

All on the actors' loop; nothing here waits. A slot is never given twice and never left unused
while somebody waits for it: each release and each change of a limit passes slots on at once.

A slot that was passed on is held from that instant, though the run learns of it later. What a run
says meanwhile (the same request again after a restart, a withdrawal) is told apart by the time
since which it waits, which names the request. What a run answers late concerns the slot
it was told of (`Passed`), and it starts with one only that is still its own.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable

import msgspec

StepKey = tuple[str, int]
"""(run id, step index)."""
JobKey = tuple[str, str]
"""(project id, job reference)."""


class Passed:
    """A slot of a workflow that was passed on to a run, which had waited since `since_ms`. It is
    told from every other one, of the same run and the same time too.
    """

    __slots__ = ("since_ms",)

    def __init__(self, since_ms: int) -> None:
        self.since_ms = since_ms


class _RunPool:
    """Slots of one workflow. `holders`: run id -> what was passed on to it, None if it had not
    waited.

    `limit` None: not known yet, as if there were none.
    """

    __slots__ = ("held", "holders", "limit", "queue", "since")

    def __init__(self) -> None:
        self.limit: int | None = None
        self.holders: dict[str, Passed | None] = {}
        self.queue: list[tuple[int, str]] = []
        self.since: dict[str, int] = {}
        self.held: set[str] = set()

    @property
    def room(self) -> bool:
        return not self.limit or len(self.holders) < self.limit

    def leave_queue(self, run_id: str) -> None:
        since = self.since.pop(run_id, None)
        self.held.discard(run_id)
        if since is not None:
            del self.queue[bisect_left(self.queue, (since, run_id))]


class _JobPool:
    """Slots of one job. `holders`: (run, step) -> since when it had waited, None if unknown.

    `limit` None: not known yet; nobody is granted anything.
    """

    __slots__ = ("holders", "limit", "queue", "since")

    def __init__(self) -> None:
        self.limit: int | None = None
        self.holders: dict[StepKey, int | None] = {}
        self.queue: list[tuple[int, str, int]] = []
        self.since: dict[StepKey, int] = {}

    def leave_queue(self, key: StepKey) -> None:
        since = self.since.pop(key, None)
        if since is not None:
            del self.queue[bisect_left(self.queue, (since, *key))]


class QueuePlace(msgspec.Struct, frozen=True):
    """Where somebody stands in a queue: 1-based position, slots in use, slots there are; how many
    of those in use are `occupied` by what no run owns any more.
    """

    position: int
    used: int
    limit: int
    occupied: int = 0


class Admission:
    """`admit(workflow_id, run_id, passed)` and `grant(job, run_id, step, since_ms)` tell the run;
    `limit_of(job)` looks a job's limit up and calls `know_job_limit`; `occupied(job)` says how many
    of its slots are taken by what no run owns any more (threads that did not stop), and
    `job_vacated` tells that it has become less.
    """

    def __init__(
        self,
        *,
        admit: Callable[[str, str, Passed], None],
        grant: Callable[[JobKey, str, int, int], None],
        limit_of: Callable[[JobKey], None],
        occupied: Callable[[JobKey], int] = lambda _: 0,
    ) -> None:
        self._admit = admit
        self._grant = grant
        self._limit_of = limit_of
        self._occupied = occupied
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

    def knows_run_limit(self, workflow_id: str) -> bool:
        pool = self._runs.get(workflow_id)
        return pool is not None and pool.limit is not None

    def know_run_limit(self, workflow_id: str, limit: int) -> None:
        """What was looked up; a limit that was set meanwhile is newer and stays."""
        if not self.knows_run_limit(workflow_id):
            self.set_run_limit(workflow_id, limit)

    def set_run_limit(self, workflow_id: str, limit: int) -> None:
        """0 means no limit."""
        self._run_pool(workflow_id).limit = limit
        self._pump_runs(workflow_id)

    def take_run_slot(self, workflow_id: str, run_id: str) -> bool:
        """Take a slot now if one is free and nobody waits for it. Holding one already is True."""
        pool = self._run_pool(workflow_id)
        if run_id in pool.holders:
            return True
        if not pool.room or len(pool.since) > len(pool.held) or not self._open:
            return False
        pool.leave_queue(run_id)
        pool.holders[run_id] = None
        return True

    def run_slot_free(self, workflow_id: str) -> bool:
        """Whether `take_run_slot` would succeed (for previews)."""
        pool = self._runs.get(workflow_id)
        return pool is None or (pool.room and len(pool.since) <= len(pool.held))

    def holds_run_slot(self, workflow_id: str, run_id: str) -> bool:
        pool = self._runs.get(workflow_id)
        return pool is not None and run_id in pool.holders

    def hold_run_slot(self, workflow_id: str, run_id: str) -> None:
        """The run holds a slot, whatever the limit says now (rebuilding)."""
        pool = self._run_pool(workflow_id)
        pool.leave_queue(run_id)
        pool.holders.setdefault(run_id, None)

    def queue_run(self, workflow_id: str, run_id: str, since_ms: int, *, held: bool) -> None:
        """Wait for a slot; `held` keeps the place without being admitted."""
        pool = self._run_pool(workflow_id)
        if run_id in pool.holders:
            passed = pool.holders[run_id]
            if passed is not None and passed.since_ms == since_ms and not held:
                return  # passed on to it already; it is about to learn of it
            del pool.holders[run_id]
        pool.leave_queue(run_id)
        pool.since[run_id] = since_ms
        insort(pool.queue, (since_ms, run_id))
        if held:
            pool.held.add(run_id)
        self._pump_runs(workflow_id)

    def is_passed_on(self, workflow_id: str, run_id: str, passed: Passed) -> bool:
        """Whether that slot is still held by the run."""
        pool = self._runs.get(workflow_id)
        return pool is not None and pool.holders.get(run_id) is passed

    def decline_run(self, workflow_id: str, run_id: str, passed: Passed) -> None:
        """The run has no use for that slot; one that was passed on to it since is another."""
        if self.is_passed_on(workflow_id, run_id, passed):
            del self._runs[workflow_id].holders[run_id]
            self._pump_runs(workflow_id)

    def release_run(self, workflow_id: str, run_id: str) -> None:
        """The run needs neither slot nor place any more."""
        pool = self._runs.get(workflow_id)
        if pool is None:
            return
        pool.holders.pop(run_id, None)
        pool.leave_queue(run_id)
        self._pump_runs(workflow_id)

    def forget_run(self, run_id: str) -> None:
        """`release_run` of a run whose workflow nobody can tell any more."""
        for workflow_id, pool in list(self._runs.items()):
            if run_id in pool.holders or run_id in pool.since:
                self.release_run(workflow_id, run_id)

    def run_place(self, workflow_id: str, run_id: str) -> QueuePlace | None:
        pool = self._runs.get(workflow_id)
        since = None if pool is None else pool.since.get(run_id)
        if pool is None or since is None:
            return None
        position = bisect_left(pool.queue, (since, run_id)) + 1
        return QueuePlace(position, len(pool.holders), pool.limit or 0)

    def _run_pool(self, workflow_id: str) -> _RunPool:
        pool = self._runs.get(workflow_id)
        if pool is None:
            pool = self._runs[workflow_id] = _RunPool()
        return pool

    def _pump_runs(self, workflow_id: str) -> None:
        pool = self._runs[workflow_id]
        while self._open and pool.room and len(pool.since) > len(pool.held):
            since, following = next(entry for entry in pool.queue if entry[1] not in pool.held)
            pool.leave_queue(following)
            passed = pool.holders[following] = Passed(since)
            self._admit(workflow_id, following, passed)

    # --- slots of jobs -------------------------------------------------------------------------

    def know_job_limit(self, job: JobKey, limit: int) -> None:
        """What was looked up; a limit that was set meanwhile is newer and stays."""
        if self._job_pool(job).limit is None:
            self.set_job_limit(job, limit)

    def set_job_limit(self, job: JobKey, limit: int) -> None:
        """0 means no limit. For a job nobody asked about yet it is looked up when needed."""
        pool = self._jobs.get(job)
        if pool is not None:
            pool.limit = limit
            self._pump_job(job)

    def hold_job_slot(self, job: JobKey, run_id: str, step: int) -> None:
        """The attempt in progress holds a slot (rebuilding)."""
        pool = self._job_pool(job)
        pool.leave_queue((run_id, step))
        pool.holders.setdefault((run_id, step), None)

    def has_job_slot(self, job: JobKey, run_id: str, step: int) -> bool:
        """Whether the step holds a slot, whatever it was given for."""
        pool = self._jobs.get(job)
        return pool is not None and (run_id, step) in pool.holders

    def holds_job_slot(self, job: JobKey, run_id: str, step: int, since_ms: int) -> bool:
        """Whether the slot passed on to the request of `since_ms` is still held for it."""
        pool = self._jobs.get(job)
        return pool is not None and pool.holders.get((run_id, step)) == since_ms

    def request_step(self, job: JobKey, run_id: str, step: int, since_ms: int) -> None:
        pool = self._job_pool(job)
        key = (run_id, step)
        if pool.since.get(key) == since_ms or pool.holders.get(key) == since_ms:
            return  # asked again after a restart
        pool.holders.pop(key, None)
        pool.leave_queue(key)
        pool.since[key] = since_ms
        insort(pool.queue, (since_ms, run_id, step))
        self._pump_job(job)

    def release_step(self, job: JobKey, run_id: str, step: int) -> None:
        """Give the slot back, or withdraw the request."""
        pool = self._jobs.get(job)
        if pool is None:
            return
        pool.holders.pop((run_id, step), None)
        pool.leave_queue((run_id, step))
        self._pump_job(job)

    def job_vacated(self, job: JobKey) -> None:
        """Something that occupied one of the job's slots has ended."""
        if job in self._jobs:
            self._pump_job(job)

    def step_place(self, job: JobKey, run_id: str, step: int) -> QueuePlace | None:
        pool = self._jobs.get(job)
        since = None if pool is None else pool.since.get((run_id, step))
        if pool is None or since is None:
            return None
        position = bisect_left(pool.queue, (since, run_id, step)) + 1
        occupied = self._occupied(job)
        return QueuePlace(position, len(pool.holders) + occupied, pool.limit or 0, occupied)

    def _job_pool(self, job: JobKey) -> _JobPool:
        pool = self._jobs.get(job)
        if pool is None:
            pool = self._jobs[job] = _JobPool()
            self._limit_of(job)
        return pool

    def _pump_job(self, job: JobKey) -> None:
        pool = self._jobs[job]
        if not self._open or pool.limit is None:
            return
        while pool.queue and (
            pool.limit <= 0 or len(pool.holders) + self._occupied(job) < pool.limit
        ):
            since, run_id, step = pool.queue.pop(0)
            del pool.since[run_id, step]
            pool.holders[run_id, step] = since
            self._grant(job, run_id, step, since)
