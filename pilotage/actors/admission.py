"""Admission: what is limited across runs. Slots of workflows and of jobs.

A workflow with `max_concurrent_runs` has that many slots; runs without one queue first-in
first-out. A job with `max_concurrency` has that many attempts in progress at any instant; steps
that want one queue by (ready since, run id, index). Everything here is in memory and is rebuilt
from the runs when the process starts, before the first slot is granted (`open`).

A clock that is set back lets nobody pass: what is asked for the first time goes behind everybody
who has asked before, whatever its time says. Only what is `again` asked for has the place of its
time: after a start, when nobody is there yet, and what was ready long ago.

All on the actors' loop; nothing here waits. A slot is never given twice and never left unused
while somebody waits for it: each release and each change of a limit passes slots on at once.

A slot that was passed on is held from that instant, though the run learns of it later. What a run
says meanwhile (the same request again after a restart, a withdrawal) is told apart by the time
since which it waits, which names the request. What a run answers late concerns the slot
it was told of (`Passed`), and it starts with one only that is still its own.

A remote job works on for a run that is set apart (quarantined): the attempts that it has taken keep
their slots (`keep_step`) until their time is up (`lapse_step`), or the run has them back.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable

import msgspec

StepKey = tuple[str, int]
"""(run id, step index)."""
JobKey = tuple[str, str]
"""(project id, job reference)."""


Place = tuple[int, int]
"""In a queue: by time, and of what came when the clock had been set back behind that, by number."""


def _behind(newest: Place, since_ms: int) -> Place:
    """The place of a new request: never before that of the newest."""
    return max((since_ms, 0), (newest[0], newest[1] + (since_ms < newest[0])))


class Passed:
    """A slot that was passed on to a run, or to one of its steps, which had waited since
    `since_ms` at `place`. It is told from every other one, of the same run and time too.
    """

    __slots__ = ("place", "since_ms")

    def __init__(self, since_ms: int, place: Place) -> None:
        self.since_ms = since_ms
        self.place = place


class _RunPool:
    """Slots of one workflow. `holders`: run id -> what was passed on to it, None if it had not
    waited.

    `limit` None: not known yet, as if there were none.
    """

    __slots__ = ("held", "holders", "limit", "newest", "queue", "waiting")

    def __init__(self) -> None:
        self.limit: int | None = None
        self.holders: dict[str, Passed | None] = {}
        self.queue: list[tuple[Place, str]] = []
        self.waiting: dict[str, Passed] = {}  # what is to be passed on to whom
        self.held: set[str] = set()
        self.newest: Place = (0, 0)

    @property
    def room(self) -> bool:
        return not self.limit or len(self.holders) < self.limit

    @property
    def wanted(self) -> bool:
        """Whether somebody waits who could start."""
        return len(self.waiting) > len(self.held)

    def leave_queue(self, run_id: str) -> Passed | None:
        waited = self.waiting.pop(run_id, None)
        self.held.discard(run_id)
        if waited is not None:
            del self.queue[bisect_left(self.queue, (waited.place, run_id))]
        return waited


class _JobPool:
    """Slots of one job. `holders`: (run, step) -> what was passed on to it, None if that is not
    known. `kept`: the holders that are set apart -> when their time is up.

    `limit` None: not known yet; nobody is granted anything.
    """

    __slots__ = ("holders", "kept", "limit", "newest", "queue", "waiting")

    def __init__(self) -> None:
        self.limit: int | None = None
        self.holders: dict[StepKey, Passed | None] = {}
        self.kept: dict[StepKey, int] = {}
        self.queue: list[tuple[Place, str, int]] = []
        self.waiting: dict[StepKey, Passed] = {}
        self.newest: Place = (0, 0)

    def leave_queue(self, key: StepKey) -> None:
        waited = self.waiting.pop(key, None)
        if waited is not None:
            del self.queue[bisect_left(self.queue, (waited.place, *key))]

    def leave(self, key: StepKey) -> None:
        """It has neither slot nor place any more."""
        self.holders.pop(key, None)
        self.kept.pop(key, None)
        self.leave_queue(key)


class QueuePlace(msgspec.Struct, frozen=True):
    """Where somebody stands in a queue: 1-based position, slots in use, slots there are; how many
    of those in use are `occupied` by what no run owns any more, and how many are `kept` for runs
    that are set apart, the first of them until `kept_until_ms`.
    """

    position: int
    used: int
    limit: int
    occupied: int = 0
    kept: int = 0
    kept_until_ms: int | None = None


class Admission:
    """`admit(workflow_id, run_id, passed)` and `grant(job, run_id, step, passed)` tell the run;
    `limit_of(job)` looks a job's limit up and calls `know_job_limit`; `occupied(job)` says how many
    of its slots are taken by what no run owns any more (threads that did not stop), and
    `job_vacated` tells that it has become less.
    """

    def __init__(
        self,
        *,
        admit: Callable[[str, str, Passed], None],
        grant: Callable[[JobKey, str, int, Passed], None],
        limit_of: Callable[[JobKey], None],
        occupied: Callable[[JobKey], int] = lambda _: 0,
    ) -> None:
        self._admit = admit
        self._grant = grant
        self._limit_of = limit_of
        self._occupied = occupied
        self._runs: dict[str, _RunPool] = {}
        self._jobs: dict[JobKey, _JobPool] = {}
        self._lapsed: set[StepKey] = set()
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
        if not pool.room or pool.wanted or not self._open:
            return False
        pool.leave_queue(run_id)
        pool.holders[run_id] = None
        return True

    def run_slot_free(self, workflow_id: str) -> bool:
        """Whether `take_run_slot` would succeed (for previews)."""
        pool = self._runs.get(workflow_id)
        return pool is None or (pool.room and not pool.wanted)

    def holds_run_slot(self, workflow_id: str, run_id: str) -> bool:
        pool = self._runs.get(workflow_id)
        return pool is not None and run_id in pool.holders

    def hold_run_slot(self, workflow_id: str, run_id: str) -> None:
        """The run holds a slot, whatever the limit says now (rebuilding)."""
        pool = self._run_pool(workflow_id)
        pool.leave_queue(run_id)
        pool.holders.setdefault(run_id, None)

    def queue_run(
        self, workflow_id: str, run_id: str, since_ms: int, *, held: bool, again: bool = False
    ) -> None:
        """Wait for a slot; `held` keeps the place without being admitted. The same request once
        more has its place already.
        """
        pool = self._run_pool(workflow_id)
        passed = pool.holders.get(run_id)
        if passed is not None and passed.since_ms == since_ms and not held:
            return  # passed on to it already; it is about to learn of it
        pool.holders.pop(run_id, None)
        known = pool.leave_queue(run_id) or passed
        if known is None or known.since_ms != since_ms:
            place = (since_ms, 0) if again else _behind(pool.newest, since_ms)
            known = Passed(since_ms, place)
        pool.newest = max(pool.newest, known.place)
        pool.waiting[run_id] = known
        insort(pool.queue, (known.place, run_id))
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
        """Everything of a run goes back, of which nobody can tell any more what it had."""
        for workflow_id, pool in list(self._runs.items()):
            if run_id in pool.holders or run_id in pool.waiting:
                self.release_run(workflow_id, run_id)
        for job, step in self.job_slots_of(run_id):
            self.release_step(job, run_id, step)
        self._lapsed = {key for key in self._lapsed if key[0] != run_id}

    def run_place(self, workflow_id: str, run_id: str) -> QueuePlace | None:
        pool = self._runs.get(workflow_id)
        waits = None if pool is None else pool.waiting.get(run_id)
        if pool is None or waits is None:
            return None
        position = bisect_left(pool.queue, (waits.place, run_id)) + 1
        return QueuePlace(position, len(pool.holders), pool.limit or 0)

    def _run_pool(self, workflow_id: str) -> _RunPool:
        pool = self._runs.get(workflow_id)
        if pool is None:
            pool = self._runs[workflow_id] = _RunPool()
        return pool

    def _pump_runs(self, workflow_id: str) -> None:
        pool = self._runs[workflow_id]
        while self._open and pool.room and pool.wanted:
            following = next(run_id for _, run_id in pool.queue if run_id not in pool.held)
            waited = pool.waiting[following]
            pool.leave_queue(following)
            passed = pool.holders[following] = Passed(waited.since_ms, waited.place)
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
        """The attempt in progress holds a slot (rebuilding, or the run has come back)."""
        pool, key = self._job_pool(job), (run_id, step)
        pool.leave_queue(key)
        pool.kept.pop(key, None)
        pool.holders.setdefault(key, None)

    @property
    def jobs(self) -> list[JobKey]:
        """Those whose slots somebody has or wants."""
        return list(self._jobs)

    def excess(self, job: JobKey) -> int:
        """How many hold a slot beyond the job's limit."""
        pool = self._jobs[job]
        return max(0, len(pool.holders) - pool.limit) if pool.limit else 0

    def wants_job_slot(self, job: JobKey, run_id: str, step: int) -> bool:
        """Whether the step waits for a slot."""
        pool = self._jobs.get(job)
        return pool is not None and (run_id, step) in pool.waiting

    def keep_step(self, job: JobKey, run_id: str, step: int, until_ms: int) -> None:
        """The run is set apart, and a remote job works on: the attempt has its slot until then,
        when `lapse_step` is to be called.
        """
        self.hold_job_slot(job, run_id, step)
        self._jobs[job].kept[run_id, step] = until_ms

    def lapse_step(self, run_id: str, step: int) -> None:
        """The time of an attempt is up whose slot was kept; that is remembered until its run comes
        back or is forgotten, whatever the clock says then.
        """
        key = (run_id, step)
        for job, pool in self._jobs.items():
            if key in pool.kept:
                self._lapsed.add(key)
                self.release_step(job, run_id, step)

    def lapsed(self, run_id: str, step: int) -> bool:
        """Whether it has; told once."""
        lapsed = (run_id, step) in self._lapsed
        self._lapsed.discard((run_id, step))
        return lapsed

    def job_slots_of(self, run_id: str) -> list[tuple[JobKey, int]]:
        """Everything that steps of the run have or want: job, step."""
        return [
            (job, step)
            for job, pool in self._jobs.items()
            for owner, step in (*pool.holders, *pool.waiting)
            if owner == run_id
        ]

    def has_job_slot(self, job: JobKey, run_id: str, step: int) -> bool:
        """Whether the step holds a slot, whatever it was given for."""
        pool = self._jobs.get(job)
        return pool is not None and (run_id, step) in pool.holders

    def holds_job_slot(self, job: JobKey, run_id: str, step: int, passed: Passed) -> bool:
        """Whether that slot is still held by the step."""
        pool = self._jobs.get(job)
        return pool is not None and pool.holders.get((run_id, step)) is passed

    def request_step(
        self, job: JobKey, run_id: str, step: int, since_ms: int, *, again: bool = False
    ) -> None:
        """Wait for a slot. `again`: it has been ready since then, and others may have come later
        and asked before.
        """
        pool, key = self._job_pool(job), (run_id, step)
        known = pool.waiting.get(key) or pool.holders.get(key)
        if known is not None and known.since_ms == since_ms:
            return  # asked again after a restart
        pool.leave(key)
        place = (since_ms, 0) if again else _behind(pool.newest, since_ms)
        pool.newest = max(pool.newest, place)
        pool.waiting[key] = Passed(since_ms, place)
        insort(pool.queue, (place, run_id, step))
        self._pump_job(job)

    def release_step(self, job: JobKey, run_id: str, step: int) -> None:
        """Give the slot back, or withdraw the request."""
        pool = self._jobs.get(job)
        if pool is not None:
            pool.leave((run_id, step))
            self._pump_job(job)

    def job_vacated(self, job: JobKey) -> None:
        """Something that occupied one of the job's slots has ended."""
        if job in self._jobs:
            self._pump_job(job)

    def step_place(self, job: JobKey, run_id: str, step: int) -> QueuePlace | None:
        pool = self._jobs.get(job)
        waits = None if pool is None else pool.waiting.get((run_id, step))
        if pool is None or waits is None:
            return None
        occupied, kept = self._occupied(job), pool.kept
        return QueuePlace(
            position=bisect_left(pool.queue, (waits.place, run_id, step)) + 1,
            used=len(pool.holders) + occupied,
            limit=pool.limit or 0,
            occupied=occupied,
            kept=len(kept),
            kept_until_ms=min(kept.values(), default=None),
        )

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
            _, run_id, step = pool.queue.pop(0)
            passed = pool.holders[run_id, step] = pool.waiting.pop((run_id, step))
            self._grant(job, run_id, step, passed)
