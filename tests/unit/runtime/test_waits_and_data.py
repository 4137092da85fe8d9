"""Approvals, events and sleeps that wait; inputs, outputs and templates (runs.md §7 and §8)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pilotage.runtime import commands as c
from pilotage.runtime.definition import MAX_NESTING_DEPTH
from pilotage.runtime.effects import (
    CancelTimer,
    ParkEvent,
    ScheduleTimer,
    StartAttempt,
    UnparkEvent,
)
from pilotage.runtime.inputs import MAX_OUTPUT_BYTES, same_json
from pilotage.runtime.jsonvalues import MAX_OUTPUT_DEPTH
from pilotage.runtime.replies import Late
from pilotage.runtime.status import OnFailure, RunStatus
from tests.support.run_story import GO_ON, SKIP, Run, approval, event, job, sleep, sub


def given_to(run: Run) -> Any:
    return msgspec.json.decode(run.effects(StartAttempt)[-1].input)


# --- waits -----


def test_an_approval_has_no_hidden_limit() -> None:
    run = Run(approval("a"))
    assert run.waits == {"a": "approval"}
    assert run.step("a").due_ms is None
    assert not run.effects(ScheduleTimer)


@pytest.mark.parametrize("policy", list(OnFailure))
def test_an_approval_times_out_and_fails_the_step(policy: OnFailure) -> None:
    run = Run(approval("a", approval_timeout_secs=60.0, on_failure=policy), job("z"))
    run.fires("a")
    assert run.step("a").error == "approval timed out"
    assert (run.status == RunStatus.FAILED) is (policy is OnFailure.FAIL_WORKFLOW)


def test_a_decision_withdraws_the_timer() -> None:
    run = Run(approval("a", approval_timeout_secs=60.0)).does(c.ApproveStep, "a")
    assert run.effects(CancelTimer) == [CancelTimer(step=0)]


def test_an_event_step_parks_on_its_key_for_an_hour() -> None:
    run = Run(event("a", key="paid-{{ payload.id }}"), payload=b'{"id": 7}')
    assert run.effects(ParkEvent) == [ParkEvent(step=0, attempt=1, event_key="paid-7")]
    assert run.step("a").due_ms == run.now + 3_600_000


def test_the_event_completes_the_step_with_its_payload() -> None:
    run = Run(event("a"), job("b", after="a")).receives("a", b'{"sum": 3}')
    assert given_to(run) == {"parent_outputs": {"a": {"sum": 3}}}
    run.receives("a")
    assert run.last.reply == Late(superseded=False)


def test_an_event_for_an_earlier_park_is_late() -> None:
    run = Run(event("a")).does(c.ReplaySubtree, "a")
    run.give(c.EventReceived(step=0, attempt=1))
    assert run.last.reply == Late(superseded=True)
    assert run.waits == {"a": "event"}


def test_an_event_step_times_out() -> None:
    run = Run(event("a", event_timeout_secs=5.0)).fires("a")
    assert run.error == "step 'a' failed: event 'k' timed out"
    assert run.effects(UnparkEvent) == [UnparkEvent(step=0, event_key="k")]


@pytest.mark.parametrize("policy", list(OnFailure))
def test_an_event_key_that_cannot_be_made_fails_the_step(policy: OnFailure) -> None:
    run = Run(event("a", key="{{ payload.no }}", on_failure=policy), job("b", after="a"))
    assert "payload.no" in (run.step("a").error or "")
    assert run.step("a").attempt == 0
    assert run.statuses["b"] == {"continue": "running", "skip_dependents": "skipped"}.get(
        policy, "canceled"
    )


def test_a_sleep_completes_when_its_timer_fires() -> None:
    run = Run(sleep("a", secs=2.5), job("b", after="a"))
    assert (run.step("a").due_ms or 0) == run.now + 2_500
    assert run.view("a").due_at is not None
    run.fires("a")
    assert run.statuses == {"a": "completed", "b": "running"}


# --- inputs -----


def test_the_input_is_the_payload_with_the_step_s_own_over_it() -> None:
    own = {"b": {"c": "{{ payload.a }}"}, "text": "n={{ a }}"}
    run = Run(job("s", payload=own), payload=b'{"a": 1, "b": {"x": 1}, "parent_outputs": 5}')
    assert given_to(run) == {"a": 1, "b": {"c": 1}, "text": "n=1", "parent_outputs": {}}


@pytest.mark.parametrize("payload", [None, b"[1]", b'"text"', b" 7"])
def test_a_payload_that_is_no_object_gives_no_fields(payload: bytes | None) -> None:
    assert given_to(Run(job("s"), payload=payload)) == {"parent_outputs": {}}


def test_a_payload_with_leading_white_space_is_an_object_too() -> None:
    assert given_to(Run(job("s"), payload=b' {"a": 1}')) == {"a": 1, "parent_outputs": {}}


def test_parent_outputs_has_the_direct_dependencies_that_have_an_output() -> None:
    run = Run(job("a"), job("b"), job("c", after="a"), job("d", after=("c", "b")))
    run.completes("a", output=1).completes("b").completes("c", output=[3])
    assert given_to(run)["parent_outputs"] == {"c": [3]}


def test_templates_see_payload_steps_run_and_tags() -> None:
    own = {
        "out": "{{ steps.a-b.output.list[1] }}",
        "again": "{{ steps.a-b.output.list[0] }}",
        "status": "{{ steps.a-b.status }}",
        "run": "{{ run.id }}",
        "tag": "{{ run.tags.env }}",
        "default": "{{ payload.none | default: 4 }}",
    }
    run = Run(job("a-b"), job("s", after="a-b", payload=own), tags={"env": "test"})
    run.completes("a-b", output={"list": [1, "two"]})
    found = given_to(run)
    assert found.pop("parent_outputs") == {"a-b": {"list": [1, "two"]}}
    assert found == {
        "out": "two",
        "again": 1,
        "status": "completed",
        "run": run.state.id,
        "tag": "test",
        "default": 4,
    }


@pytest.mark.parametrize("path", ["payload.x", "steps.a.output", "steps.a.output.x"])
@pytest.mark.parametrize("policy", list(OnFailure))
def test_a_path_that_does_not_resolve_fails_the_step_and_is_named(
    path: str, policy: OnFailure
) -> None:
    b = job("b", "a", payload={"v": f"{{{{ {path} }}}}"}, on_failure=policy, retry_max_attempts=3)
    run = Run(job("a"), b, job("c", "b"), approval("z"), job("d", after="a")).completes("a")
    assert run.statuses["b"] == "failed"
    assert path in (run.step("b").error or "")
    assert run.step("b").attempt == 0
    assert run.statuses["c"] == {GO_ON: "running", SKIP: "skipped"}.get(policy, "canceled")


def test_an_input_that_is_too_large_fails_the_step_final() -> None:
    run = Run(*(job(f"a{i}") for i in range(8)), job("b", after=tuple(f"a{i}" for i in range(8))))
    for i in range(8):
        run.completes(f"a{i}", output="x" * (MAX_OUTPUT_BYTES - 2))
    assert run.error == (
        "step 'b' failed: payload: the input is 8388676 bytes; at most 8388608 are sent"
    )


def test_an_output_that_is_too_large_fails_the_step_final() -> None:
    run = Run(job("a", retry_max_attempts=3)).completes("a", output="x" * MAX_OUTPUT_BYTES)
    assert run.error == "step 'a' failed: output is 1048578 bytes; at most 1048576 are kept"


def nested(depth: int) -> bytes:
    """Brackets in texts do not count."""
    text = b'"[[["'
    for n in range(depth):
        text = b"[" + text + b"]" if n % 2 else b'{"[{\\"":' + text + b"}"
    return text


@pytest.mark.parametrize("depth", [MAX_OUTPUT_DEPTH - 1, MAX_OUTPUT_DEPTH])
def test_an_output_may_be_nested(depth: int) -> None:
    text = nested(depth)
    run = Run(event("a"), job("b", after="a", payload={"v": "{{ steps.a.output }}"}))
    run.receives("a", text)
    assert run.step("a").output == text
    assert run.statuses["b"] == "running"


def test_an_output_that_is_nested_too_deep_fails_the_step_final() -> None:
    run = Run(event("a", retry_max_attempts=3)).receives("a", nested(MAX_OUTPUT_DEPTH + 1))
    assert run.error == (
        "step 'a' failed: output has arrays and objects nested more than 500 deep; it cannot be"
        " kept"
    )


def test_each_generation_of_children_may_nest_its_outputs_once() -> None:
    run = Run(sub("a"))
    child_id = run.step("a").child_run_id
    assert child_id is not None
    run.world.end_child(child_id, RunStatus.COMPLETED)
    (report,) = run.world.reports
    text = nested(MAX_OUTPUT_DEPTH + MAX_NESTING_DEPTH)
    run.world.reports = [msgspec.structs.replace(report, output=text)]
    run.child_reports()
    assert run.statuses["a"] == "completed"


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (b"1", b"1.0", True),
        (b"1", b"true", False),
        (b"[0]", b"[false]", False),
        (b'{"a": [1, {"b": 2}]}', b'{"a":[1,{"b":2.0}]}', True),
        (b'"5"', b"5", False),
        (None, None, True),
        (None, b"1", False),
        (b"1", None, False),
    ],
)
def test_json_texts_compare_as_values(a: bytes | None, b: bytes | None, equal: bool) -> None:
    assert same_json(a, b) is equal


def test_the_transform_of_a_step_that_is_no_job_is_applied_to_what_it_got() -> None:
    run = Run(event("a", output_transform="order.id"), job("b", after="a"))
    run.receives("a", b'{"order":{"id":7}}')
    assert run.step("a").output == b"7"


def test_a_transform_that_fails_fails_the_step_final() -> None:
    run = Run(event("a", output_transform="length(order)")).receives("a", b'{"order":5}')
    assert run.step("a").status == "failed"
    assert str(run.step("a").error).startswith("output_transform: ")


def test_a_forced_result_is_not_transformed() -> None:
    run = Run(event("a", output_transform="order.id"))
    run.does(c.ForceCompleteStep, "a", result=b'{"order":{"id":7}}')
    assert run.step("a").output == b'{"order":{"id":7}}'
