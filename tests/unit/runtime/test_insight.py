from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from pilotage.runtime.definition import JobPolicy, StepSpec, WorkflowSpec
from pilotage.runtime.graph import StepGraph
from pilotage.runtime.insight import (
    critical_path,
    explain,
    longest_chain,
    run_graph,
    start_waves,
    timeline,
    workflow_graph,
)
from pilotage.runtime.insight_reasons import Note, listed
from pilotage.runtime.state import RunHead, RunState, RunVitals, StepState, chunked, rebuild
from pilotage.runtime.status import RunStatus, SkippedBy, StepStatus, StepType, WaitingFor
from pilotage.runtime.views import rfc3339

T0 = 1_700_000_000_000
RUN_ID = "018bcfe5-6800-7000-8000-000000000000"
S = StepStatus
DIAMOND = {"a": "", "b": "a", "c": "a", "d": "b c"}


def spec_of(shape: dict[str, str], **fields: dict[str, Any]) -> WorkflowSpec:
    """`{"b": "a"}`: b depends on a. Keyword arguments are further fields of a step."""
    steps = [
        StepSpec(step_ref=ref, job_id="job", depends_on=tuple(deps.split()), **fields.get(ref, {}))
        for ref, deps in shape.items()
    ]
    return WorkflowSpec(steps=tuple(steps))


def state_of(
    shape: dict[str, str],
    steps: dict[str, StepState],
    *,
    status: RunStatus = RunStatus.RUNNING,
    vitals: dict[str, Any] | None = None,
    head: dict[str, Any] | None = None,
    **fields: dict[str, Any],
) -> RunState:
    graph = StepGraph(spec_of(shape, **fields))
    started: dict[str, Any] = {"started_at_ms": T0}
    return rebuild(
        RunHead(
            id=RUN_ID, project_id="p", workflow_id="w", workflow_slug="orders", version=1,
            version_id="ver_1", created_at_ms=T0, **(head or {}),
        ),
        graph,
        RunVitals(status=status, **{**started, **(vitals or {})}),
        chunked([steps.get(ref, StepState()) for ref in shape]),
    )  # fmt: skip


def done(start: int, end: int) -> StepState:
    return StepState(
        status=S.COMPLETED, attempt=1, started_at_ms=T0 + start, finished_at_ms=T0 + end
    )


def running(start: int = 0, **more: Any) -> StepState:
    return StepState(status=S.RUNNING, attempt=1, started_at_ms=T0 + start, **more)


def reason_of(
    state: RunState, ref: str, notes: dict[int | None, Note] | None = None
) -> tuple[str, str]:
    line = next(s for s in explain(state, notes).steps if s.step_ref == ref)
    return line.waiting_for, line.reason


def test_of_a_quarantined_run_it_is_said_that_nothing_moves_it() -> None:
    state = state_of({"a": "", "b": "a"}, {"a": done(0, 5), "b": running(5, due_ms=T0 + 9)})
    (line,) = explain(state, {}, "its record is damaged").steps
    assert line.reason == "the run is quarantined, release or discard it: its record is damaged"
    assert line.until is None


def test_only_steps_that_have_not_ended_are_explained() -> None:
    state = state_of({"a": "", "b": "a"}, {"a": done(0, 5), "b": running(5)})
    told = explain(state)
    assert (told.workflow_run_id, told.status) == (RUN_ID, RunStatus.RUNNING)
    assert [s.step_ref for s in told.steps] == ["b"]


def test_a_step_says_which_dependencies_it_waits_for_and_in_what_state_they_are() -> None:
    state = state_of(
        {"a": "", "b": "", "c": "a b"},
        {
            "a": running(),
            "b": StepState(wait=WaitingFor.APPROVAL, attempt=1, started_at_ms=T0, checked=True),
        },
        b={"step_type": StepType.APPROVAL},
    )
    what, text = reason_of(state, "c")
    assert what == "dependencies"
    assert '"a" (running)' in text
    assert '"b" (waiting, for approval)' in text


def test_a_dependency_that_can_never_be_satisfied_is_named_with_the_way_out() -> None:
    failed = StepState(status=S.FAILED, attempt=1, error="x", started_at_ms=T0, finished_at_ms=T0)
    state = state_of({"a": "", "b": "a"}, {"a": failed})
    _, text = reason_of(state, "b")
    assert 'retry or replay "a"' in text
    skipped = StepState(status=S.SKIPPED, skipped_by=SkippedBy.DEPENDENCY, finished_at_ms=T0)
    _, text = reason_of(state_of({"a": "", "b": "a"}, {"a": skipped}), "b")
    assert "failed dependency" in text


def test_many_dependencies_are_counted_not_listed() -> None:
    shape = {f"d{n}": "" for n in range(9)} | {"z": " ".join(f"d{n}" for n in range(9))}
    _, text = reason_of(state_of(shape, {f"d{n}": running() for n in range(9)}), "z")
    assert '"d4" and 4 more (running)' in text
    assert listed(["a"]) == '"a"'
    assert listed(["a", "b"]) == '"a" and "b"'


@pytest.mark.parametrize(
    ("fields", "due", "said"),
    [
        ({"approval_approvers": ("anna", "ops")}, None, '"anna" and "ops" to approve'),
        ({}, T0 + 60_000, f"anyone with the scope workflows:write .* {rfc3339(T0 + 60_000)}"),
    ],
)
def test_an_approval_says_who_may_decide_and_until_when(
    fields: dict[str, Any], due: int | None, said: str
) -> None:
    parked = StepState(
        wait=WaitingFor.APPROVAL, attempt=1, started_at_ms=T0 + 7, due_ms=due, checked=True
    )
    state = state_of({"a": ""}, {"a": parked}, a={"step_type": StepType.APPROVAL, **fields})
    (line,) = explain(state).steps
    assert line.waiting_for == "approval"
    assert line.since == rfc3339(T0 + 7)
    assert line.until == (None if due is None else rfc3339(due))
    assert re.search(said, line.reason)


def test_an_event_says_how_to_send_it() -> None:
    parked = StepState(
        wait=WaitingFor.EVENT, attempt=1, started_at_ms=T0, due_ms=T0 + 1, event_key="order/42"
    )
    what, text = reason_of(state_of({"a": ""}, {"a": parked}), "a")
    assert what == "event"
    assert "POST /v1/events/order%2F42/send" in text


def test_an_event_without_a_bound_waits_for_ever() -> None:
    parked = StepState(wait=WaitingFor.EVENT, attempt=1, started_at_ms=T0, event_key="k")
    _, text = reason_of(state_of({"a": ""}, {"a": parked}), "a")
    assert text.endswith("/v1/events/k/send")


def test_a_step_that_is_ready_waits_until_now() -> None:
    held = StepState(status=S.PENDING, checked=True)
    skipped = StepState(status=S.SKIPPED, skipped_by=SkippedBy.OPERATOR, finished_at_ms=T0 + 4)
    state = state_of({"a": "", "b": "a", "c": ""}, {"a": done(0, 10), "b": held, "c": skipped})
    assert [s.wait_ms for s in timeline(state, T0 + 30).steps] == [0, 20, 4]


def test_a_sleep_and_a_retry_say_when_they_go_on() -> None:
    sleeping = StepState(wait=WaitingFor.TIMER, attempt=1, started_at_ms=T0, due_ms=T0 + 1000)
    assert rfc3339(T0 + 1000) in reason_of(state_of({"a": ""}, {"a": sleeping}), "a")[1]
    retrying = StepState(
        wait=WaitingFor.RETRY, attempt=5, budget_start=3, error="boom", started_at_ms=T0,
        due_ms=T0 + 1000,
    )  # fmt: skip
    policies = {"job": JobPolicy(max_attempts=4)}
    state = state_of({"a": ""}, {"a": retrying}, head={"policies": policies})
    assert reason_of(state, "a")[1].startswith("attempt 2 of 4 failed: boom; tries again at ")
    own = state_of({"a": ""}, {"a": retrying}, a={"retry_max_attempts": 9})
    assert "2 of 9" in reason_of(own, "a")[1]


def test_what_is_held_back_says_by_whom() -> None:
    held = StepState(status=S.PENDING, checked=True, ready_since_ms=T0 + 3)
    limited = state_of(
        {"a": "", "b": ""}, {"a": running(), "b": held}, head={"max_parallel_steps": 1}
    )
    assert reason_of(limited, "b")[0] == "parallel_limit"
    assert reason_of(limited, "b")[1] == (
        'max_parallel_steps is 1 and "a" is running; starts when it ends'
    )
    more = state_of(
        {"a": "", "b": "", "c": ""},
        {"a": running(), "b": running(), "c": held},
        head={"max_parallel_steps": 2},
    )
    assert reason_of(more, "c")[1] == (
        'max_parallel_steps is 2 and "a" and "b" are running; starts when one ends'
    )
    assert explain(limited).steps[1].since == rfc3339(T0 + 3)
    key = {"concurrency_key": "k"}
    keyed = state_of({"a": "", "b": ""}, {"a": running(), "b": held}, a=key, b=key)
    assert reason_of(keyed, "b") == (
        "concurrency_key",
        '"a" is running with the same concurrency_key "k"; starts when it ends',
    )
    wants = StepState(status=S.PENDING, wait=WaitingFor.JOB_LIMIT, checked=True)
    slots = state_of({"a": ""}, {"a": wants})
    assert "max_concurrency" in reason_of(slots, "a")[1]
    assert reason_of(slots, "a", {0: Note(text="it is number 3")})[1].endswith("; it is number 3")
    assert reason_of(slots, "a")[1].startswith('all slots of the job "job" (')
    named: dict[int | None, Note] = {0: Note(text="it is number 3", job="charge-card")}
    assert reason_of(slots, "a", named)[1].startswith('all slots of the job "charge-card" (')


def test_a_paused_run_and_a_queued_run_say_so() -> None:
    held = StepState(status=S.PENDING, checked=True)
    paused = state_of({"a": ""}, {"a": held}, status=RunStatus.PAUSED)
    assert reason_of(paused, "a") == ("paused", "the run is paused; resume it")
    parked = StepState(wait=WaitingFor.TIMER, attempt=1, started_at_ms=T0, due_ms=T0)
    paused = state_of({"a": ""}, {"a": parked}, status=RunStatus.PAUSED)
    assert "the run is paused" in reason_of(paused, "a")[1]
    vitals: dict[str, Any] = {"queued_at_ms": T0, "started_at_ms": None}
    waiting: dict[str, Any] = {"status": RunStatus.PENDING, "vitals": vitals}
    queued = state_of({"a": ""}, {"a": StepState(status=S.PENDING)}, **waiting)
    assert reason_of(queued, "a")[0] == "run_queue"
    assert '"orders"' in reason_of(queued, "a")[1]
    assert reason_of(queued, "a", {None: Note(text="it is number 2")})[1].endswith(
        "; it is number 2"
    )
    later = {"delay_until_ms": T0 + 5000}
    queued = state_of({"a": ""}, {"a": StepState(status=S.PENDING)}, head=later, **waiting)
    assert rfc3339(T0 + 5000) in reason_of(queued, "a")[1]
    vitals["queued_at_ms"] = T0 + 5000  # what a trigger with a delay makes
    delayed = state_of({"a": ""}, {"a": StepState(status=S.PENDING)}, head=later, **waiting)
    line = explain(delayed, {}).steps[0]
    assert rfc3339(T0 + 5000) in line.reason
    assert line.until == rfc3339(T0 + 5000)
    assert line.since == rfc3339(delayed.head.created_at_ms)
    assert "number 2" in reason_of(delayed, "a", {None: Note(text="it is number 2")})[1]
    vitals["held"] = True
    queued = state_of({"a": ""}, {"a": StepState(status=S.PENDING)}, **waiting)
    assert "parent run is paused" in reason_of(queued, "a")[1]


def test_what_is_in_progress_says_what_ends_it() -> None:
    plain = state_of({"a": ""}, {"a": running(due_ms=T0 + 9)})
    assert reason_of(plain, "a")[0] == "result"
    assert f"timeout at {rfc3339(T0 + 9)}" in reason_of(plain, "a")[1]
    remote = state_of({"a": ""}, {"a": running(accepted=True)})
    assert "callback" in reason_of(remote, "a")[1]
    held: dict[int | None, Note] = {
        0: Note(text="its host is away", held=True, until_ms=T0 + 9_000)
    }
    assert reason_of(plain, "a", held) == ("result", "attempt 1 is held back: its host is away")
    (line,) = explain(plain, held).steps
    assert line.until == rfc3339(T0 + 9_000)
    late = explain(plain, {0: Note(until_ms=T0 + 70_000)}).steps[0]  # it was begun late
    assert late.until == rfc3339(T0 + 70_000)
    assert rfc3339(T0 + 70_000) in late.reason
    child = state_of(
        {"a": ""},
        {"a": running(child_run_id="child-1")},
        a={"step_type": StepType.SUB_WORKFLOW},
    )
    assert reason_of(child, "a")[0] == "child_run"
    assert "child-1" in reason_of(child, "a")[1]


def test_a_step_whose_dependencies_have_ended_is_about_to_start() -> None:
    state = state_of({"a": "", "b": "a"}, {"a": done(0, 1)})
    assert "starts with the next change" in reason_of(state, "b")[1]


# --- critical path, timeline, graph --------------------------------------------------------------


def test_the_critical_path_goes_back_along_what_ended_last() -> None:
    state = state_of(
        DIAMOND,
        {"a": done(0, 10), "b": done(10, 15), "c": done(10, 90), "d": done(90, 100)},
        status=RunStatus.COMPLETED,
        vitals={"finished_at_ms": T0 + 100},
    )
    assert [state.graph.steps[i].step_ref for i in critical_path(state, T0 + 500)] == [
        "a", "c", "d",
    ]  # fmt: skip
    shown = timeline(state, T0 + 500)
    assert shown.total_ms == 100
    assert [s.on_critical_path for s in shown.steps] == [True, False, True, True]
    assert [s.duration_ms for s in shown.steps] == [10, 5, 80, 10]
    assert [s.wait_ms for s in shown.steps] == [0, 0, 0, 0]


def test_what_is_in_progress_ends_now() -> None:
    state = state_of(DIAMOND, {"a": done(0, 10), "b": done(10, 15), "c": running(20)})
    shown = run_graph(state, T0 + 50)
    assert shown.critical_path == ["a", "c"]
    nodes = {n.step_ref: n for n in shown.nodes}
    assert nodes["c"].duration_ms == 30
    assert nodes["d"].duration_ms is None
    assert timeline(state, T0 + 50).steps[2].wait_ms == 10
    assert timeline(state, T0 + 50).total_ms == 50


def test_before_anything_has_started_the_critical_path_is_the_longest_chain() -> None:
    state = state_of(DIAMOND, {}, vitals={"started_at_ms": None})
    assert run_graph(state, T0).critical_path == ["a", "b", "d"]
    assert timeline(state, T0).total_ms == 0


def test_the_graph_names_edges_roots_and_what_could_start() -> None:
    held = StepState(status=S.PENDING, checked=True)
    state = state_of(DIAMOND, {"a": done(0, 1), "b": running(1), "c": held})
    shown = run_graph(state, T0 + 5)
    assert [(e.from_, e.to) for e in shown.edges] == [
        ("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"),
    ]  # fmt: skip
    assert shown.roots == ["a"]
    assert shown.runnable == ["c"]


def test_a_workflow_shows_the_waves_in_which_its_steps_could_start() -> None:
    graph = StepGraph(spec_of({"d": "b c", "b": "a", "c": "a", "a": "", "x": ""}))
    assert start_waves(graph) == [["a", "x"], ["b", "c"], ["d"]]
    shown = workflow_graph("w", 3, graph)
    assert shown.roots == ["a", "x"]
    assert shown.critical_path == ["a", "b", "d"]
    assert longest_chain(StepGraph(WorkflowSpec(steps=()))) == []
    assert start_waves(StepGraph(WorkflowSpec(steps=()))) == []


def test_disabled_steps_are_in_no_wave_and_hold_nothing_up() -> None:
    graph = StepGraph(spec_of({"a": "", "b": "a", "c": "b", "d": "c a"}))
    assert start_waves(graph, {"b"}) == [["a", "c"], ["d"]]
    assert start_waves(graph, {"a", "b", "c", "d"}) == []


def test_a_wave_has_no_more_steps_than_may_run_at_once() -> None:
    shape = {"a": "", "b": "", "gate": "", "c": "", "d": "a"}
    steps = tuple(
        msgspec.structs.replace(s, step_type=StepType.APPROVAL) if s.step_ref == "gate" else s
        for s in spec_of(shape).steps
    )
    graph = StepGraph(WorkflowSpec(steps=steps))
    assert start_waves(graph, max_parallel=2) == [["a", "b", "gate"], ["c", "d"]]
    assert start_waves(graph, {"b"}, 1) == [["a", "gate"], ["c"], ["d"]]


def test_steps_of_one_concurrency_key_are_in_waves_of_their_own() -> None:
    steps = spec_of({"a": "", "b": "", "c": "", "d": ""}).steps
    keyed = [
        s if s.step_ref == "b" else msgspec.structs.replace(s, concurrency_key="k") for s in steps
    ]
    graph = StepGraph(WorkflowSpec(steps=tuple(keyed)))
    assert start_waves(graph) == [["a", "b"], ["c"], ["d"]]


def test_a_chain_of_ten_thousand_steps_is_explained_without_recursion() -> None:
    shape = {"s0": ""} | {f"s{n}": f"s{n - 1}" for n in range(1, 10_000)}
    state = state_of(shape, {"s0": running()})
    assert len(explain(state).steps) == 10_000
    assert len(longest_chain(state.graph)) == 10_000
    assert len(timeline(state, T0).steps) == 10_000
