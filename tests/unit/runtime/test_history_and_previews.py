"""History items, dry runs and views."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from pilotage.runtime import commands as c
from pilotage.runtime.events import StepEvent
from pilotage.runtime.history import HistoryEntry, entries
from pilotage.runtime.machine import HISTORY_LIMIT, Transition, create, decide, step
from pilotage.runtime.preview import preview
from pilotage.runtime.rerun import replay_of, retry_of
from pilotage.runtime.rules import Rejection
from pilotage.runtime.status import RunStatus
from pilotage.runtime.views import refs, run_view, step_views
from tests.support.run_story import (
    GO_ON,
    LIMITED,
    PARENT_ID,
    SKIP,
    START,
    Run,
    approval,
    event,
    job,
    sub,
)


def items(run: Run) -> list[HistoryEntry]:
    """The history of the last transition."""
    before = run.state.vitals.history_seq - len(run.last.events)
    return entries(before, run.state.graph, run.last.events)


def brief(run: Run) -> list[tuple[str, str | None, str | None, Any]]:
    return [(e.type, e.step_ref, e.reason, e.data) for e in items(run)]


# --- history -----


def test_each_event_is_an_item_with_time_actor_and_number() -> None:
    run = Run(job("a"))
    assert [e.seq for e in items(run)] == [1, 2, 3]
    run.does(c.PauseRun, actor="ann")
    (item,) = items(run)
    assert item == HistoryEntry(
        seq=4, at="2023-11-14T22:13:20.002Z", type="run_paused", actor="ann"
    )


@pytest.mark.parametrize("pinned", [True, False])
def test_pinned_and_unpinned_can_be_told_apart(pinned: bool) -> None:
    run = Run(job("a"))
    run.does(c.PinRun, pinned=not pinned)
    run.does(c.PinRun, pinned=pinned)
    assert brief(run)[-1:] == [("run_pinned", None, None, {"pinned": pinned})]


def test_items_say_what_is_particular_to_them() -> None:
    run = Run(job("a", job_id=LIMITED), approval("b", approval_timeout_secs=1.0), event("d"))
    assert brief(run) == [
        ("run_created", None, None, {"workflow_version": 1, "triggered_by": "manual"}),
        ("run_started", None, None, None),
        (
            "step_parked",
            "b",
            None,
            {"waiting_for": "approval", "due_at": "2023-11-14T22:13:21.001Z"},
        ),
        (
            "step_parked",
            "d",
            None,
            {
                "waiting_for": "event",
                "due_at": "2023-11-14T23:13:20.001Z",
                "event_key": "k",
            },
        ),
        ("slot_requested", "a", None, {"job": LIMITED}),
    ]
    run.does(c.ApproveStep, "b", comment="fine")
    assert brief(run) == [("step_completed", "b", "fine", {"resolution": "approved"})]
    run.does(c.SkipStep, "d", reason="no")
    assert brief(run) == [("step_skipped", "d", "no", {"skipped_by": "operator"})]
    run.deliver_grants()
    assert [(e.type, e.attempt) for e in items(run)] == [("step_started", 1)]
    run.fails("a", "boom", error_class="http_500", final=True)
    assert brief(run) == [
        ("step_failed", "a", "boom", {"error_class": "http_500"}),
        ("run_ended", None, "step 'a' failed: boom", {"status": "failed"}),
    ]
    run.does(c.RetryStep, "a", slot=False)
    assert brief(run) == [
        ("run_reopened", None, None, {"status": "pending"}),
        ("step_reset", "a", None, None),
        ("step_held", "a", None, {"condition_evaluated": False}),
    ]


def test_the_end_of_an_attempt_names_the_attempt() -> None:
    run = Run(job("a", retry_max_attempts=2), job("b"), job("c", "b"))
    run.fails("a").fires("a").fails("a")
    assert next((e.type, e.attempt) for e in items(run)) == ("step_failed", 2)
    run.does(c.RetryStep, "a").completes("a")
    assert [(e.type, e.attempt) for e in items(run)] == [("step_completed", 3)]
    run.does(c.ForceCompleteStep, "c", result=b"1")  # it never had one
    assert [(e.type, e.attempt) for e in items(run)] == [("step_completed", None)]


def test_a_wait_without_end_names_no_time() -> None:
    assert brief(Run(approval("a")))[-1] == ("step_parked", "a", None, {"waiting_for": "approval"})


def test_retries_and_children_are_told() -> None:
    run = Run(job("a", retry_max_attempts=2), sub("s"))
    child = run.step("s").child_run_id
    assert brief(run)[-1] == ("step_started", "s", None, {"child_workflow_run_id": child})
    run.fails("a", "flaky")
    due = run.view("a").due_at
    assert brief(run) == [
        ("step_retry_scheduled", "a", "flaky", {"due_at": due, "error_class": "error"})
    ]
    run.child_ends("s")
    assert brief(run) == [("step_completed", "s", None, None)]


@pytest.mark.parametrize(
    ("before", "kept", "truncated", "after"),
    [
        (HISTORY_LIMIT - 5, 2, False, HISTORY_LIMIT - 3),
        (HISTORY_LIMIT - 2, 2, False, HISTORY_LIMIT),
        (HISTORY_LIMIT - 1, 1, True, HISTORY_LIMIT + 1),
        (HISTORY_LIMIT, 0, True, HISTORY_LIMIT + 1),
        (HISTORY_LIMIT + 1, 0, False, HISTORY_LIMIT + 1),
    ],
)
def test_history_ends_with_one_truncated_item(
    before: int, kept: int, truncated: bool, after: int
) -> None:
    run = Run(job("a"))
    vitals = msgspec.structs.replace(run.state.vitals, history_seq=before)
    state = msgspec.structs.replace(run.state, vitals=vitals)
    done = step(state, c.AttemptCompleted(step=0, attempt=1), START)
    assert isinstance(done, Transition)
    assert len(done.events) == 2
    found = entries(before, state.graph, done.events)
    assert [e.seq for e in found] == [before + 1 + k for k in range(kept + truncated)]
    assert [e.type == "truncated" for e in found] == [False] * kept + [True] * truncated
    assert done.state.vitals.history_seq == after


# --- dry runs -----

VERBS: dict[str, Callable[[Run], c.Command | Rejection]] = {
    "retry run": lambda r: retry_of(r.state, run_id=PARENT_ID, now=r.now, actor="x", slot=True),
    "retry step": lambda _: c.RetryStep(step=0),
    "replay subtree": lambda _: c.ReplaySubtree(step=0),
    "skip": lambda _: c.SkipStep(step=0),
    "force-complete": lambda _: c.ForceCompleteStep(step=0),
    "bulk-cancel": lambda _: c.CancelRun(),
    "bulk-replay": lambda r: replay_of(r.state, run_id=PARENT_ID, now=r.now, actor="x", slot=True),
}


@pytest.mark.parametrize("verb", list(VERBS))
def test_a_dry_run_says_what_the_command_then_does(verb: str) -> None:
    run = Run(
        job("a"), job("b", after="a"), job("c"), approval("d", after="b"), job("e", after="d")
    )
    if verb != "bulk-cancel":
        run.completes("c").fails("a")
    command = VERBS[verb](run)
    assert isinstance(command, c.Command)
    graph = run.state.graph
    before = run.state
    dry = (
        create(graph, command, run.now)
        if isinstance(command, c.CreateRun)
        else step(run.state, command, run.now)
    )
    assert isinstance(dry, Transition)
    shown = preview(dry)
    assert run.state is before
    if isinstance(command, c.CreateRun):
        run = Run.from_command(graph, command, run.now)
    else:
        run.give(command)
    assert [type(e) for e in run.last.events] == [type(e) for e in dry.events]
    by_kind = {
        "reset": {"StepReset"},
        "started": {"StepStarted", "StepParked"},
        "skipped": {"StepSkipped"},
        "canceled": {"StepCanceled"},
        "completed": {"StepCompleted"},
        "held": {"StepHeld"},
        "failed": {"StepFailed"},
    }
    for field, names in by_kind.items():
        real = {
            graph.steps[e.step].step_ref
            for e in run.last.events
            if isinstance(e, StepEvent) and type(e).__name__ in names
        }
        listed = getattr(shown, field)
        assert set(listed) == real
        assert listed == [s.step_ref for s in graph.steps if s.step_ref in real]
    assert shown.run_status == run.status


def test_a_preview_names_every_kind_of_consequence() -> None:
    bad = {"x": "{{ payload.no }}"}
    run = Run(
        job("a"), job("b", "a", condition={"type": "eq", "left": 1, "right": 2}), job("c", "a"),
        job("f", after="a", payload=bad, on_failure=GO_ON), job("g", "a", on_failure=SKIP),
        job("h", "a"), max_parallel_steps=2,
    )  # fmt: skip
    dry = step(run.state, c.ForceCompleteStep(step=0), run.now)
    assert isinstance(dry, Transition)
    shown = preview(dry, reset_steps=3)
    assert shown.completed == ["a"]
    assert shown.skipped == ["b"]
    assert shown.failed == ["f"]
    assert shown.started == ["c", "g"]
    assert shown.held == ["h"]
    assert (shown.reset, shown.canceled, shown.reset_steps) == ([], [], 3)
    assert shown.run_status is RunStatus.RUNNING


def test_decide_gives_the_events_and_the_reply_alone() -> None:
    run = Run(job("a"))
    found = decide(run.state, c.PauseRun(), START)
    assert not isinstance(found, Rejection)
    assert [type(e).__name__ for e in found.events] == ["RunPaused"]
    assert isinstance(decide(run.state, c.RetryStep(step=0), START), Rejection)


# --- views -----


def test_a_run_is_shown_without_what_is_unset() -> None:
    run = Run(job("a"))
    shown = msgspec.json.decode(msgspec.json.encode(run_view(run.state.head, run.state.vitals)))
    assert set(shown) == {
        "id", "workflow_id", "project_id", "status", "triggered_by", "workflow_version",
        "started_at", "workflow_version_id", "created_at",
    }  # fmt: skip


def test_a_child_names_its_parent() -> None:
    run = Run(job("a"), parent_run_id=PARENT_ID, parent_step=4, payload=b"{}", tags={"a": "b"})
    view = run_view(run.state.head, run.state.vitals)
    assert view.parent_workflow_run_id == PARENT_ID
    assert view.parent_step_run_id is not None
    assert view.tags == {"a": "b"}
    assert view.payload == msgspec.Raw(b"{}")


def test_steps_are_shown_in_definition_order_with_their_counters() -> None:
    run = Run(job("b", after="a"), job("a"))
    shown = msgspec.json.decode(msgspec.json.encode(step_views(run.state)))
    assert [s["step_ref"] for s in shown] == ["b", "a"]
    assert [(s["attempt"], s["deps_completed"], s["deps_required"]) for s in shown] == [
        (0, 0, 1),
        (1, 0, 0),
    ]
    assert "job_run_id" not in shown[0]
    assert refs(run.state, 0b11) == ["b", "a"]
