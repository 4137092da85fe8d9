from __future__ import annotations

import time
from types import MappingProxyType
from typing import Any

import pytest

from pilotage.runtime.definition import StepSpec, WorkflowSpec
from pilotage.runtime.graph import StepGraph
from pilotage.runtime.status import Backoff, OnFailure, StepType
from pilotage.runtime.validation import ParsedWorkflow, parse_workflow, parse_workflow_patch
from pilotage.runtime.validation_identity import make_slug
from pilotage.runtime.validation_steps import STEP_FIELDS
from tests.support.definitions import FakeResolver, job_step, problems_of, workflow


def parse(raw: Any, resolve: FakeResolver | None = None) -> ParsedWorkflow:
    return parse_workflow(raw, resolve=resolve or FakeResolver(workflows=("child",)))


# --- what is accepted -----------------------------------------------------------------------------


def test_a_minimal_workflow_gets_the_defaults() -> None:
    found = parse({"name": "Order pipeline", "steps": [{"step_ref": "a", "job_id": "j"}]})
    assert found == ParsedWorkflow(
        name="Order pipeline",
        slug="order-pipeline",
        spec=WorkflowSpec(steps=(StepSpec(step_ref="a", job_id="job:j"),)),
    )
    assert found.enabled
    assert found.tags == {}
    assert found.description is None
    assert found.project_id is None


def test_every_field_of_a_workflow_is_taken() -> None:
    found = parse(
        workflow(
            job_step("a"),
            slug="Orders_1.0",
            description="",
            tags={"team": "ops", "empty": ""},
            enabled=False,
            project_id="p-1",
            timeout_secs=1.5,
            max_concurrent_runs=2,
            max_parallel_steps=3,
            cron="*/5 * * * MON",
            cron_timezone="Europe/Berlin",
            skip_if_running=True,
        )
    )
    assert (found.name, found.slug, found.description) == ("orders", "Orders_1.0", "")
    assert (found.tags, found.enabled) == ({"team": "ops", "empty": ""}, False)
    assert found.project_id == "p-1"
    assert found.spec == WorkflowSpec(
        steps=(StepSpec(step_ref="a", job_id="job:j"),),
        timeout_secs=1.5,
        max_concurrent_runs=2,
        max_parallel_steps=3,
        cron="*/5 * * * MON",
        cron_timezone="Europe/Berlin",
        skip_if_running=True,
    )


def test_every_field_of_a_job_step_is_taken() -> None:
    step = job_step(
        "a",
        step_type="job",
        condition={"type": "exists", "operand": "{{ payload.x }}"},
        payload={"order": "{{ order.id }}"},
        output_transform="a.b",
        on_failure="continue",
        retry_max_attempts=5,
        retry_backoff="linear",
        retry_initial_delay_secs=0,
        retry_max_delay_secs=2.5,
        timeout_secs_override=30,
        concurrency_key="k",
        event_emit_key="done.{{ steps.a.output.id }}",
    )
    assert parse(workflow(step)).spec.steps[0] == StepSpec(
        step_ref="a",
        job_id="job:j",
        condition={"type": "exists", "operand": "{{ payload.x }}"},
        payload={"order": "{{ order.id }}"},
        output_transform="a.b",
        on_failure=OnFailure.CONTINUE,
        retry_max_attempts=5,
        retry_backoff=Backoff.LINEAR,
        retry_initial_delay_secs=0.0,
        retry_max_delay_secs=2.5,
        timeout_secs_override=30.0,
        concurrency_key="k",
        event_emit_key="done.{{ steps.a.output.id }}",
    )


def test_every_field_of_the_other_types_is_taken() -> None:
    steps = [
        {"step_ref": "b", "step_type": "approval", "depends_on": ["c"],
         "approval_approvers": ["ann", "bob"], "approval_timeout_secs": 60},
        {"step_ref": "c", "step_type": "wait_for_event", "event_key": "{{ order.id }}",
         "event_timeout_secs": 0.5},
        {"step_ref": "d", "step_type": "sleep", "sleep_duration_secs": 0.25},
        {"step_ref": "e", "step_type": "sub_workflow", "sub_workflow_id": "child",
         "max_nesting_depth": 3, "retry_max_attempts": 2},
    ]  # fmt: skip
    assert parse(workflow(*steps)).spec.steps == (
        StepSpec(
            step_ref="b",
            step_type=StepType.APPROVAL,
            depends_on=("c",),
            approval_approvers=("ann", "bob"),
            approval_timeout_secs=60.0,
        ),
        StepSpec(
            step_ref="c",
            step_type=StepType.WAIT_FOR_EVENT,
            event_key="{{ order.id }}",
            event_timeout_secs=0.5,
        ),
        StepSpec(step_ref="d", step_type=StepType.SLEEP, sleep_duration_secs=0.25),
        StepSpec(
            step_ref="e",
            step_type=StepType.SUB_WORKFLOW,
            sub_workflow_id="workflow:child",
            max_nesting_depth=3,
            retry_max_attempts=2,
        ),
    )


def test_aliases_mean_their_fields() -> None:
    found = parse(
        workflow(
            job_step("a", type="job", max_attempts=7, retry_strategy="fixed"),
            {"step_ref": "b", "type": "approval", "approvers": ["ann"]},
            timezone="Asia/Tokyo",
        )
    )
    assert found.spec.cron_timezone == "Asia/Tokyo"
    a, b = found.spec.steps
    assert (a.retry_max_attempts, a.retry_backoff) == (7, Backoff.FIXED)
    assert (b.step_type, b.approval_approvers) == (StepType.APPROVAL, ("ann",))


def test_an_alias_may_stand_beside_its_field_with_the_same_value() -> None:
    step = {"step_ref": "a", "type": "approval", "step_type": "approval", "approvers": None,
            "approval_approvers": ["x"]}  # fmt: skip
    assert parse(workflow(step)).spec.steps[0].approval_approvers == ("x",)


def test_null_counts_as_absent() -> None:
    nulls = dict.fromkeys(STEP_FIELDS.readers) | dict.fromkeys(STEP_FIELDS.aliases)
    found = parse(
        workflow(
            {**nulls, "step_ref": "a", "job_id": "j"},
            slug=None,
            description=None,
            tags=None,
            enabled=None,
            project_id=None,
            timeout_secs=None,
            cron=None,
            timezone=None,
        )
    )
    assert found == parse(workflow(job_step("a")))


def test_integers_may_be_written_as_floats() -> None:
    found = parse(workflow(job_step("a"), max_parallel_steps=4.0))
    assert found.spec.max_parallel_steps == 4
    assert isinstance(found.spec.max_parallel_steps, int)


def test_the_input_may_be_any_mapping() -> None:
    raw = MappingProxyType(workflow(MappingProxyType(job_step("a"))))
    assert parse(raw).slug == "orders"


def test_each_reference_is_looked_up_once() -> None:
    resolve = FakeResolver(workflows=("child",))
    steps = [job_step(f"s{i}") for i in range(5)]
    steps += [
        {"step_ref": f"w{i}", "type": "sub_workflow", "sub_workflow_id": "child"} for i in range(3)
    ]
    parse(workflow(*steps), resolve)
    assert resolve.asked == {"job j": 1, "workflow child": 1}


def test_a_new_workflow_may_start_itself_by_its_slug() -> None:
    step = {"step_ref": "again", "type": "sub_workflow", "sub_workflow_id": "my-orders"}
    assert parse(workflow(step, name="My orders")).spec.steps[0].sub_workflow_id == "my-orders"
    known = FakeResolver(workflows=("my-orders",))
    found = parse(workflow(step, slug="my-orders"), known)
    assert found.spec.steps[0].sub_workflow_id == "workflow:my-orders"


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Order pipeline", "order-pipeline"),
        ("  Größe & Co. №2 ", "groe-co-no2"),
        ("Crème brûlée", "creme-brulee"),
        ("a" * 255, "a" * 255),
        ("日本", ""),
        ("---", ""),
    ],
)
def test_slugs_are_made_of_names(name: str, slug: str) -> None:
    assert make_slug(name) == slug


def test_the_name_defaults_to_the_slug() -> None:
    found = parse({"slug": "x.1", "steps": [job_step("a")]})
    assert (found.name, found.slug) == ("x.1", "x.1")


def test_ten_thousand_steps_are_checked_in_linear_time() -> None:
    steps = [
        job_step(
            f"s{i}",
            *(f"s{k}" for k in range(max(0, i - 3), i)),
            payload={"a": "{{ x }}", "b": {"c": [1, 2]}},
            condition={"type": "eq", "left": "{{ x | default: 1 }}", "right": 1},
        )
        for i in range(10_000)
    ]
    start = time.process_time()
    found = parse(workflow(*steps))
    assert time.process_time() - start < 6  # 0.3 s on an idle machine; quadratic would be minutes
    assert StepGraph(found.spec).size == 10_000


# --- patches --------------------------------------------------------------------------------------

CURRENT = parse_workflow(
    workflow(
        job_step("a"),
        description="old",
        tags={"k": "v"},
        enabled=False,
        project_id="p",
        cron="0 0 * * *",
        cron_timezone="Asia/Tokyo",
        max_parallel_steps=4,
    ),
    resolve=FakeResolver(),
)


def patched(raw: Any, resolve: FakeResolver | None = None) -> ParsedWorkflow:
    return parse_workflow_patch(raw, CURRENT, resolve=resolve or FakeResolver())


def test_an_empty_patch_changes_nothing() -> None:
    assert patched({}) == CURRENT


def test_given_fields_replace_and_null_resets() -> None:
    found = patched(
        {"name": "new", "description": None, "tags": None, "enabled": True, "timezone": None,
         "max_parallel_steps": 5}
    )  # fmt: skip
    assert (found.name, found.slug) == ("new", "orders")
    assert (found.description, found.tags, found.enabled) == (None, {}, True)
    assert found.spec.cron == "0 0 * * *"
    assert found.spec.cron_timezone == "UTC"
    assert found.spec.max_parallel_steps == 5
    assert found.spec.steps is CURRENT.spec.steps


def test_an_alias_replaces_its_field() -> None:
    assert patched({"timezone": "Europe/Berlin"}).spec.cron_timezone == "Europe/Berlin"


def test_a_name_of_null_falls_back_to_the_slug() -> None:
    assert patched({"name": None}).name == "orders"


def test_a_slug_of_null_is_made_of_the_name() -> None:
    assert patched({"name": "New name", "slug": None}).slug == "new-name"


def test_steps_that_are_not_given_are_not_looked_up_again() -> None:
    gone = FakeResolver(jobs=())
    assert patched({"enabled": True}, gone).spec.steps == CURRENT.spec.steps
    assert not gone.asked
    assert problems_of(lambda: patched({"steps": [job_step("b")]}, gone)) == [
        'steps[0].job_id: unknown job "j"'
    ]


def test_given_steps_replace_all_steps() -> None:
    found = patched({"steps": [job_step("x"), job_step("y", "x")]})
    assert [step.step_ref for step in found.spec.steps] == ["x", "y"]
    assert found.spec.cron == "0 0 * * *"
    assert found.project_id == "p"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (5, ["workflow: must be an object, not a number"]),
        ({"steps": None}, ["steps: is required"]),
        ({"nope": 1, "cron": "x"}, ["nope: unknown field",
                                    "cron: a cron expression has 5 fields, this one has 1"]),
        ({"project_id": "other"}, ['project_id: cannot be changed, it is "p"']),
        ({"name": None, "slug": None}, ["name: is required (or a slug)"]),
    ],
)  # fmt: skip
def test_a_bad_patch_is_refused_with_all_problems(raw: Any, expected: list[str]) -> None:
    assert problems_of(lambda: patched(raw)) == expected


def test_the_project_stays() -> None:
    assert patched({"project_id": "p"}).project_id == "p"
    assert patched({"project_id": None}).project_id == "p"
    nowhere = parse_workflow(workflow(job_step("a")), resolve=FakeResolver())
    moved = parse_workflow_patch({"project_id": "p2"}, nowhere, resolve=FakeResolver())
    assert moved.project_id == "p2"
