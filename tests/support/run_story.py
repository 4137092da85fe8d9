"""Given a workflow, when this happens, then that: short stories about one run.

    run = Run(job("a"), job("b", after="a"))
    run.completes("a")
    assert run.statuses == {"a": "completed", "b": "running"}

Each transition is done by the simulated outside of `run_world` and held against all invariants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from pilotage.runtime import commands as c
from pilotage.runtime.definition import JobPolicy, StepSpec, WorkflowSpec
from pilotage.runtime.effects import Effect
from pilotage.runtime.events import Event
from pilotage.runtime.graph import StepGraph
from pilotage.runtime.ids import make_run_id
from pilotage.runtime.machine import Transition
from pilotage.runtime.rules import Rejection
from pilotage.runtime.state import RunHead, RunState, StepState
from pilotage.runtime.status import OnFailure, RunStatus, StepType
from pilotage.runtime.views import StepView, step_view
from tests.support.run_invariants import check_all
from tests.support.run_world import Child, World

START = 1_700_000_000_000
RUN_ID = make_run_id(START, 4711)
PARENT_ID = make_run_id(START - 1, 1)
LIMITED = "limited"
"""A job with a `max_concurrency`; its attempts need a slot."""

E = TypeVar("E", bound=Effect)
V = TypeVar("V", bound=Event)
FAIL, SKIP, GO_ON = OnFailure.FAIL_WORKFLOW, OnFailure.SKIP_DEPENDENTS, OnFailure.CONTINUE


def _step(ref: str, after: str | tuple[str, ...], fields: dict[str, Any]) -> StepSpec:
    deps = (after,) if isinstance(after, str) else after
    if "on_failure" in fields:
        fields = {**fields, "on_failure": OnFailure(fields["on_failure"])}
    return StepSpec(step_ref=ref, depends_on=tuple(d for d in deps if d), **fields)


def job(ref: str, after: str | tuple[str, ...] = (), job_id: str = "j", **fields: Any) -> StepSpec:
    """A job step with one attempt, unless it says otherwise."""
    return _step(ref, after, {"job_id": job_id, "retry_max_attempts": 1, **fields})


def approval(ref: str, after: str | tuple[str, ...] = (), **fields: Any) -> StepSpec:
    return _step(ref, after, {"step_type": StepType.APPROVAL, **fields})


def sleep(ref: str, after: str | tuple[str, ...] = (), secs: float = 5.0, **more: Any) -> StepSpec:
    return _step(ref, after, {"step_type": StepType.SLEEP, "sleep_duration_secs": secs, **more})


def event(ref: str, after: str | tuple[str, ...] = (), key: str = "k", **more: Any) -> StepSpec:
    return _step(ref, after, {"step_type": StepType.WAIT_FOR_EVENT, "event_key": key, **more})


def sub(ref: str, after: str | tuple[str, ...] = (), **fields: Any) -> StepSpec:
    return _step(
        ref,
        after,
        {"step_type": StepType.SUB_WORKFLOW, "sub_workflow_id": "child", **fields},
    )


def new_head(**fields: Any) -> RunHead:
    values: dict[str, Any] = {
        "id": RUN_ID,
        "created_at_ms": START,
        "policies": {LIMITED: JobPolicy(limited=True)},
        **fields,
    }
    return RunHead(
        project_id="p",
        workflow_id="w",
        workflow_slug="w",
        version=1,
        version_id="ver_1",
        **values,
    )


class Run:
    """A run and its outside. `slot`, `held`, `disabled`: as in `CreateRun`; the rest: its head."""

    def __init__(
        self,
        *steps: StepSpec,
        slot: bool = True,
        held: bool = False,
        disabled: tuple[str, ...] = (),
        **head: Any,
    ) -> None:
        graph = StepGraph(WorkflowSpec(steps=steps))
        command = c.CreateRun(
            head=new_head(**head),
            slot=slot,
            held=held,
            disabled=tuple(graph.index[ref] for ref in disabled),
            parent_attempt=1 if "parent_run_id" in head else 0,
        )
        self._begin(graph, command)

    @classmethod
    def from_command(cls, graph: StepGraph, command: c.CreateRun, now: int) -> Run:
        """A run as another one asks for it (retry run, replay)."""
        run = cls.__new__(cls)
        run._begin(graph, command, now, tuple(i for i, _ in command.carried))
        return run

    def _begin(
        self, graph: StepGraph, command: c.CreateRun, now: int = START, carried: Any = ()
    ) -> None:
        self.world = World(graph, command, now)
        for i in carried:
            child = dict(command.carried)[i].child_run_id
            if child is not None:
                self.world.children[child] = Child(i, 0)
                self.world.children[child].active = False
        self.world.checks.append(check_all)
        self.last: Transition
        self.give(command)

    # --- what happens --------------------------------------------------------------------------

    def give(self, command: c.Command) -> Transition:
        result = self.world.give(command)
        assert isinstance(result, Transition), result
        self.last = result
        return result

    def refuses(self, command: c.Command) -> Rejection:
        result = self.world.give(command)
        assert isinstance(result, Rejection), f"{command} was not refused"
        return result

    def i(self, ref: str) -> int:
        return self.state.graph.index[ref]

    def at(self, ref: str) -> dict[str, Any]:
        return {"step": self.i(ref), "attempt": self.step(ref).attempt}

    def completes(self, *refs: str, output: Any = None) -> Run:
        text = None if output is None else msgspec.json.encode(output)
        for ref in refs:
            self.give(c.AttemptCompleted(**self.at(ref), output=text))
        return self

    def fails(self, ref: str, error: str = "boom", **more: Any) -> Run:
        self.give(c.AttemptFailed(**self.at(ref), error=error, **more))
        return self

    def fires(self, ref: str | None = None, *, late_ms: int = 0) -> Run:
        """The timer of a step (None: of the run) fires when it is due."""
        key = None if ref is None else self.i(ref)
        self.world.now = max(self.world.now, self.world.timers.pop(key) - 1 + late_ms)
        self.give(self.world.fired(key))
        return self

    def after_secs(self, secs: float) -> Run:
        self.world.now += round(secs * 1000)
        return self

    def deliver_grants(self) -> Run:
        while self.world.grants:
            self.give(self.world.grants.pop(0))
        return self

    def receives(self, ref: str, payload: bytes | None = None) -> Run:
        self.give(c.EventReceived(**self.at(ref), payload=payload))
        return self

    def child_ends(self, ref: str, status: RunStatus = RunStatus.COMPLETED) -> Run:
        child_id = self.step(ref).child_run_id
        assert child_id is not None
        self.world.end_child(child_id, status)
        return self.child_reports()

    def child_reports(self) -> Run:
        while self.world.reports:
            self.give(self.world.reports.pop(0))
        return self

    def does(self, kind: Callable[..., c.Command], ref: str | None = None, **more: Any) -> Run:
        """An operator's command; with `ref` about that step."""
        more = {"actor": "ops", **more}
        self.give(kind(**more) if ref is None else kind(step=self.i(ref), **more))
        return self

    def refused(self, kind: Callable[..., c.Command], ref: str | None = None, **more: Any) -> str:
        """The message with which a command is refused; nothing changes."""
        more = {"actor": "ops", **more}
        before = self.state
        found = self.refuses(kind(**more) if ref is None else kind(step=self.i(ref), **more))
        assert self.state is before
        return found.message

    # --- what is then --------------------------------------------------------------------------

    @property
    def state(self) -> RunState:
        return self.world.state

    @property
    def status(self) -> str:
        return self.state.status

    @property
    def error(self) -> str | None:
        return self.state.vitals.error

    @property
    def now(self) -> int:
        return self.world.now

    def step(self, ref: str) -> StepState:
        return self.state.step(self.i(ref))

    def view(self, ref: str) -> StepView:
        return step_view(self.state, self.i(ref))

    @property
    def statuses(self) -> dict[str, str]:
        return {
            spec.step_ref: step.status.value
            for spec, step in zip(self.state.graph.steps, self.state.steps(), strict=True)
        }

    @property
    def waits(self) -> dict[str, str]:
        """`waiting_for` of the steps that have one."""
        found = {s.step_ref: self.view(s.step_ref).waiting_for for s in self.state.graph.steps}
        return {ref: wait.value for ref, wait in found.items() if wait is not None}

    @property
    def events(self) -> list[str]:
        """Names of the last transition's events, steps by reference: `StepStarted a`."""
        names: list[str] = []
        for e in self.last.events:
            i: int | None = getattr(e, "step", None)
            ref = "" if i is None else f" {self.state.graph.steps[i].step_ref}"
            names.append(type(e).__name__ + ref)
        return names

    def effects(self, kind: type[E]) -> list[E]:
        return [e for e in self.last.effects if isinstance(e, kind)]

    def happened(self, kind: type[V]) -> list[V]:
        return [e for e in self.last.events if isinstance(e, kind)]
