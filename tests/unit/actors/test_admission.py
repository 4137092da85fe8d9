"""Admission under random schedules: never too many, nobody waits beside a free slot, in order."""

from __future__ import annotations

from hypothesis import given, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pilotage.actors.admission import Admission, JobKey, Passed

FLOW, JOB = "w", ("p", "j")
RUNS = [f"r{i}" for i in range(8)]
runs = st.sampled_from(RUNS)


def nobody(workflow_id: str, run_id: str, passed: Passed) -> None:
    """Told of a slot: of no interest."""


def nothing(job: JobKey) -> None:
    """Asked for a limit: the test says it itself."""


class RunSlots(RuleBasedStateMachine):
    """Runs of one workflow. What was passed on is told to the run later, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, Passed]] = []
        self.declining: list[tuple[str, Passed]] = []  # what was answered and is not known yet
        self.admission = Admission(
            admit=lambda _, run, passed: self.told.append((run, passed)),
            grant=lambda _j, _r, _s, _t: None,
            limit_of=nothing,
        )
        self.limit = 0
        self.holding: set[str] = set()  # runs that run
        self.queued: dict[str, tuple[int, bool]] = {}  # what they have said
        self.came: list[str] = []  # in this order they asked
        self.now = 1_000

    @initialize(limit=st.integers(0, 3))
    def begin(self, limit: int) -> None:
        self.set_limit(limit)
        self.admission.open()

    @rule(limit=st.integers(0, 4))
    def set_limit(self, limit: int) -> None:
        self.limit = limit
        self.admission.set_run_limit(FLOW, limit)

    @rule(run=runs)
    def trigger(self, run: str) -> None:
        if run in self.holding or run in self.queued:
            return
        free = self.admission.run_slot_free(FLOW)
        taken = self.admission.take_run_slot(FLOW, run)
        assert free == taken
        if taken:
            self.holding.add(run)
        else:
            self.now += 1
            self.queued[run] = (self.now, False)
            self.came = [other for other in self.came if other != run] + [run]
            self.admission.queue_run(FLOW, run, self.now, held=False)

    @rule(by_ms=st.integers(1, 100))
    def set_the_clock_back(self, by_ms: int) -> None:
        self.now -= by_ms

    @rule(run=runs)
    def hold_or_go_on(self, run: str) -> None:
        if run in self.queued:
            since, held = self.queued[run]
            self.queued[run] = (since, not held)
            self.admission.queue_run(FLOW, run, since, held=not held)

    @rule(run=runs)
    def say_again(self, run: str) -> None:
        """After a restart of its actor."""
        if run in self.queued:
            since, held = self.queued[run]
            self.admission.queue_run(FLOW, run, since, held=held)
        elif run in self.holding:
            self.admission.hold_run_slot(FLOW, run)

    @rule(run=runs)
    def end(self, run: str) -> None:
        self.holding.discard(run)
        self.queued.pop(run, None)
        self.admission.release_run(FLOW, run)

    @precondition(lambda self: self.told)
    @rule()
    def learn(self) -> None:
        """As the runtime does: a slot that is not held for the run any more is not offered."""
        run, passed = self.told.pop(0)
        if not self.admission.is_passed_on(FLOW, run, passed) or run in self.holding:
            return
        _, held = self.queued[run]
        if held:
            self.admission.decline_run(FLOW, run, passed)
        else:
            del self.queued[run]
            self.holding.add(run)

    @precondition(lambda self: self.told)
    @rule()
    def learn_too_late(self) -> None:
        """The slot went back, the run waits again: it declines a slot that is no more its own."""
        run, passed = self.told[0]
        if run in self.queued and not self.admission.is_passed_on(FLOW, run, passed):
            del self.told[0]
            self.declining.append((run, passed))

    @precondition(lambda self: self.declining)
    @rule()
    def decline(self) -> None:
        self.admission.decline_run(FLOW, *self.declining.pop(0))

    @invariant()
    def what_runs_holds_a_slot(self) -> None:
        pool = self.admission._run_pool(FLOW)
        assert self.holding <= set(pool.holders)
        assert set(pool.holders) <= self.holding | set(self.queued)
        assert set(pool.waiting) | set(pool.holders) == self.holding | set(self.queued)
        assert not set(pool.waiting) & set(pool.holders)

    @invariant()
    def nobody_waits_beside_a_free_slot(self) -> None:
        pool = self.admission._run_pool(FLOW)
        if not self.limit or len(pool.holders) < self.limit:
            assert all(self.queued[run][1] for run in pool.waiting)

    @invariant()
    def the_queue_is_in_order(self) -> None:
        pool = self.admission._run_pool(FLOW)
        assert pool.queue == sorted((slot.place, run) for run, slot in pool.waiting.items())
        assert [run for _, run in pool.queue] == [run for run in self.came if run in pool.waiting]
        for place, (_, run) in enumerate(pool.queue, 1):
            found = self.admission.run_place(FLOW, run)
            assert found is not None
            assert found.position == place


TestRunSlots = RunSlots.TestCase


@given(
    limit=st.integers(1, 4),
    actions=st.lists(st.tuples(st.sampled_from("rrrgggexc"), st.integers(0, 9)), max_size=120),
    new_limits=st.lists(st.integers(0, 4), max_size=120),
)
def test_job_slots(limit: int, actions: list[tuple[str, int]], new_limits: list[int]) -> None:
    """r: request, g: the oldest grant arrives, e: an attempt ends, x: withdrawn, c: new limit."""
    granted: list[tuple[JobKey, str, int, Passed]] = []
    admission = Admission(
        admit=nobody, grant=lambda j, r, s, t: granted.append((j, r, s, t)), limit_of=nothing
    )
    admission.open()
    since: dict[int, int] = {}
    running: set[int] = set()
    allowed = limit
    admission.request_step(JOB, "r", 99, 0)
    assert not granted  # the limit is not known yet
    admission.know_job_limit(JOB, limit)
    assert granted.pop()[:3] == (JOB, "r", 99)
    admission.release_step(JOB, "r", 99)
    order: list[tuple[int, int]] = []
    for now, (action, step) in enumerate(actions, 1):
        pool = admission._job_pool(JOB)
        if action == "r" and step not in since and step not in running:
            since[step] = now
            admission.request_step(JOB, "r", step, now)
            admission.request_step(JOB, "r", step, now)  # asked again: nothing changes
        elif action == "g" and granted:
            _, run, got, asked = granted.pop(0)
            if admission.holds_job_slot(JOB, run, got, asked):
                assert since.pop(got) == asked.since_ms
                running.add(got)
                order.append((asked.since_ms, got))
        elif action == "e" and running:
            ended = sorted(running)[step % len(running)]
            running.discard(ended)
            admission.release_step(JOB, "r", ended)
        elif action == "x" and step in since:
            del since[step]
            admission.release_step(JOB, "r", step)
        elif action == "c" and new_limits:
            allowed = new_limits.pop()
            admission.set_job_limit(JOB, allowed)
        holders = {step for _, step in pool.holders}
        assert running <= holders
        assert holders <= running | set(since)
        waiting = {step for _, step in pool.waiting}
        assert waiting | holders == running | set(since)
        if not allowed or len(holders) < allowed:
            assert not waiting
    assert order == sorted(order)


def test_more_slots_than_the_limit_are_held_only_by_who_had_them_before_it_was_lowered() -> None:
    admission = Admission(admit=nobody, grant=lambda _j, _r, _s, _t: None, limit_of=nothing)
    admission.open()
    admission.set_run_limit(FLOW, 3)
    assert all(admission.take_run_slot(FLOW, run) for run in RUNS[:3])
    admission.set_run_limit(FLOW, 1)
    for run in RUNS[:2]:
        admission.release_run(FLOW, run)
        assert not admission.take_run_slot(FLOW, "new")
    admission.release_run(FLOW, RUNS[2])
    assert admission.take_run_slot(FLOW, "new")


def test_a_limit_that_was_looked_up_does_not_undo_one_that_was_set_meanwhile() -> None:
    granted: list[int] = []
    admission = Admission(
        admit=nobody,
        grant=lambda _job, _run, step, _since: granted.append(step),
        limit_of=nothing,
    )
    admission.open()
    for step in range(3):
        admission.request_step(JOB, "r", step, step)
    admission.set_job_limit(JOB, 1)
    admission.know_job_limit(JOB, 3)
    assert granted == [0]
