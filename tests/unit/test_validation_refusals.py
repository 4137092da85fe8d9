from __future__ import annotations

import json
from typing import Any

import pytest

from pilotage.runtime.status import StepType
from pilotage.runtime.validation import parse_workflow
from pilotage.runtime.validation_fields import MAX_PROBLEMS
from pilotage.runtime.validation_steps import ONLY_FOR
from tests.support.definitions import FakeResolver, job_step, problems_of, workflow


def parse(raw: Any) -> object:
    return parse_workflow(raw, resolve=FakeResolver(workflows=("child",)))


def problems(raw: Any) -> list[str]:
    return problems_of(lambda: parse(raw))


def step_problems(**fields: Any) -> list[str]:
    return problems(workflow({"step_ref": "a", "job_id": "j", **fields}))


MINIMAL: dict[StepType, dict[str, Any]] = {
    StepType.JOB: {"job_id": "j"},
    StepType.APPROVAL: {},
    StepType.WAIT_FOR_EVENT: {"event_key": "k"},
    StepType.SLEEP: {"sleep_duration_secs": 1},
    StepType.SUB_WORKFLOW: {"sub_workflow_id": "child"},
}


WHOLE: list[tuple[Any, list[str]]] = [
    (None, ["workflow: must be an object, not null"]),
    ([], ["workflow: must be an object, not an array"]),
    ("x", ["workflow: must be an object, not a string"]),
    ({}, ["name: is required (or a slug)", "steps: is required"]),
    ({"name": "a", "steps": None}, ["steps: is required"]),
    ({"name": "a", "steps": {}}, ["steps: must be an array of steps, not an object"]),
    ({"name": "a", "steps": []}, ["steps: must have 1 to 10000 steps, not 0"]),
    ({"name": "a", "steps": [{}] * 10_001}, ["steps: must have 1 to 10000 steps, not 10001"]),
    (
        {"name": "a", "steps": ["x", job_step("a"), None]},
        ["steps[0]: must be an object, not a string", "steps[2]: must be an object, not null"],
    ),
    (
        {"name": "日本", "steps": [job_step("a")]},
        ['slug: is required: none can be made of the name "日本"'],
    ),
]


@pytest.mark.parametrize(("raw", "expected"), WHOLE)
def test_what_is_no_workflow_is_refused(raw: Any, expected: list[str]) -> None:
    assert problems(raw) == expected


FIELDS: list[tuple[str, Any, str]] = [
    ("name", 5, "must be a string, not a number"),
    ("name", "", "must not be empty"),
    ("name", "x" * 256, "must be at most 255 characters long, not 256"),
    ("name", "a\0", "must not contain NUL characters"),
    ("name", "a\ud800", "must be valid Unicode, without lone surrogates"),
    ("slug", "a b", '"a b" does not match [A-Za-z0-9][A-Za-z0-9_.-]{0,254}'),
    ("slug", "-a", '"-a" does not match [A-Za-z0-9][A-Za-z0-9_.-]{0,254}'),
    ("slug", "a\n", '"a\\n" does not match [A-Za-z0-9][A-Za-z0-9_.-]{0,254}'),
    ("slug", "", "must not be empty"),
    ("description", "x" * 2001, "must be at most 2000 characters long, not 2001"),
    ("tags", [], "must be an object of strings, not an array"),
    ("tags", {str(i): "" for i in range(21)}, "must have at most 20 tags, not 21"),
    ("enabled", 1, "must be true or false, not a number"),
    ("enabled", "true", "must be true or false, not a string"),
    ("project_id", "a/b", '"a/b" does not match [A-Za-z0-9_.-]{1,128}'),
    ("timeout_secs", "5", "must be a number of seconds, not a string"),
    ("timeout_secs", True, "must be a number of seconds, not a boolean"),
    ("timeout_secs", -1, "must be from 0 to 315,360,000 seconds, not -1"),
    ("timeout_secs", 1e9, "must be from 0 to 315,360,000 seconds, not 1000000000.0"),
    ("timeout_secs", float("nan"), "must be a finite number of seconds"),
    ("timeout_secs", float("inf"), "must be a finite number of seconds"),
    ("timeout_secs", 10**400, "must be from 0 to 315,360,000 seconds, not a number beyond 64 bits"),
    ("max_concurrent_runs", -1, "must be from 0 to 1000000, not -1"),
    ("max_concurrent_runs", 1.5, "must be an integer, not 1.5"),
    ("max_concurrent_runs", float("nan"), "must be an integer, not NaN"),
    ("max_concurrent_runs", True, "must be an integer, not a boolean"),
    ("max_parallel_steps", 10**7, "must be from 0 to 1000000, not 10000000"),
    ("max_parallel_steps", "1", "must be an integer, not a string"),
    ("cron", 5, "must be a string, not a number"),
    ("cron", "* * * *", "a cron expression has 5 fields, this one has 4"),
    ("cron", "60 * * * *", "bad cron expression: Bad minute"),
    ("cron_timezone", 5, "must be a string, not a number"),
    ("cron_timezone", "Mars/X", '"Mars/X" is no IANA time zone (like "Europe/Berlin")'),
    ("timezone", "Mars/X", '"Mars/X" is no IANA time zone (like "Europe/Berlin")'),
    ("skip_if_running", 0, "must be true or false, not a number"),
    ("descripton", "x", 'unknown field (did you mean "description"?)'),
    ("zzzzzzzz", "x", "unknown field"),
    ("version", 3, "is set by the server and cannot be given"),
    ("webhook_url", "x", "webhooks are not supported yet"),
    ("onWebhook", "x", "webhooks are not supported yet"),
]


@pytest.mark.parametrize(("field", "value", "problem"), FIELDS)
def test_a_bad_field_of_a_workflow_is_named(field: str, value: Any, problem: str) -> None:
    assert problems(workflow(job_step("a"), **{"slug": "s", field: value})) == [
        f"{field}: {problem}"
    ]


def test_bad_tags_are_named_one_by_one() -> None:
    tags: dict[Any, Any] = {"": "x", "k" * 65: "x", 5: "x", "a": 5, "b": "v" * 257, "ok": "x"}
    assert problems(workflow(job_step("a"), tags=tags)) == [
        'tags[""]: must not be empty',
        f"tags.{'k' * 65}: must be at most 64 characters long, not 65",
        "tags[5]: must be a string, not a number",
        "tags.a: must be a string, not a number",
        "tags.b: must be at most 256 characters long, not 257",
    ]


def test_a_field_name_that_is_no_string_is_named() -> None:
    raw: dict[Any, Any] = {**workflow(job_step("a")), 5: 1, True: 2}
    assert problems(raw) == [
        "[5]: field names must be strings, not a number",
        "[true]: field names must be strings, not a boolean",
    ]


NESTED: Any = json.loads("[" * 200 + "]" * 200)

STEP_CASES: list[tuple[str, Any, str]] = [
    ("step_ref", 5, "must be a string, not a number"),
    ("step_ref", "", "must not be empty"),
    ("step_ref", "a b", '"a b" does not match [A-Za-z0-9_-]{1,128}'),
    ("step_ref", "ä", '"ä" does not match [A-Za-z0-9_-]{1,128}'),
    ("step_ref", "a" * 129, "must be at most 128 characters long, not 129"),
    ("step_type", "jobs",
     'must be one of job, approval, wait_for_event, sleep, sub_workflow, not "jobs"'),
    ("type", 5, "must be one of job, approval, wait_for_event, sleep, sub_workflow, not 5"),
    ("job_id", "other", 'unknown job "other"'),
    ("job_id", "", "must not be empty"),
    ("job_id", ["j"], "must be a string, not an array"),
    ("depends_on", "a", "must be an array, not a string"),
    ("depends_on", ["b"] * 10_001, "must have at most 10000 items, not 10001"),
    ("condition", "x", "a condition must be an object, not a string"),
    ("payload", "{{ x }}", "must be an object, not a string"),
    ("payload", [1], "must be an object, not an array"),
    ("payload", {"x": "y" * (1 << 20)}, "must be at most 1048576 bytes of JSON, not 1048584"),
    ("output_transform", 5, "must be a string, not a number"),
    ("output_transform", "nope(@)", 'bad JMESPath: unknown function "nope()"'),
    ("on_failure", "explode",
     'must be one of fail_workflow, skip_dependents, continue, not "explode"'),
    ("retry_max_attempts", 0, "must be from 1 to 100, not 0"),
    ("max_attempts", 101, "must be from 1 to 100, not 101"),
    ("retry_backoff", "cubic", 'must be one of exponential, linear, fixed, not "cubic"'),
    ("retry_strategy", 5, "must be one of exponential, linear, fixed, not 5"),
    ("retry_initial_delay_secs", -0.5, "must be from 0 to 2,592,000 seconds, not -0.5"),
    ("retry_max_delay_secs", 2_592_001, "must be from 0 to 2,592,000 seconds, not 2592001"),
    ("timeout_secs_override", 0, "must be from 0.001 to 86,400 seconds, not 0"),
    ("timeout_secs_override", 86_401, "must be from 0.001 to 86,400 seconds, not 86401"),
    ("concurrency_key", "k" * 129, "must be at most 128 characters long, not 129"),
    ("event_emit_key", "k" * 513, "must be at most 512 characters long"),
    ("event_emit_key", "{{ x }}" + "k" * 2000, "must be at most 2000 characters long, not 2007"),
    ("event_emit_key", "", "must not be empty"),
    ("dependson", ["b"], 'unknown field (did you mean "depends_on"?)'),
    ("created_at", "x", "is set by the server and cannot be given"),
    ("webhook", "x", "webhooks are not supported yet"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value", "problem"), STEP_CASES)
def test_a_bad_field_of_a_step_is_named(field: str, value: Any, problem: str) -> None:
    assert step_problems(**{field: value}) == [f"steps[0].{field}: {problem}"]


@pytest.mark.parametrize(
    ("step_type", "field", "value", "problem"),
    [
        ("approval", "approvers", "ann", "must be an array, not a string"),
        ("approval", "approval_timeout_secs", 0,
         "must be from 0.001 to 315,360,000 seconds, not 0"),
        ("wait_for_event", "event_key", "k" * 513, "must be at most 512 characters long"),
        ("wait_for_event", "event_timeout_secs", 2_592_001,
         "must be from 0.001 to 2,592,000 seconds, not 2592001"),
        ("sleep", "sleep_duration_secs", 0, "must be from 0.001 to 2,592,000 seconds, not 0"),
        ("sub_workflow", "max_nesting_depth", 11, "must be from 1 to 10, not 11"),
        ("sub_workflow", "sub_workflow_id", "none", 'unknown workflow "none"'),
    ],
)  # fmt: skip
def test_a_bad_field_of_a_certain_type_is_named(
    step_type: StepType, field: str, value: Any, problem: str
) -> None:
    step = {"step_ref": "a", "type": step_type, **MINIMAL[StepType(step_type)], field: value}
    assert problems(workflow(step)) == [f"steps[0].{field}: {problem}"]


def test_bad_and_repeated_items_of_a_list_are_named() -> None:
    step = {"step_ref": "a", "type": "approval", "approvers": ["x", 5, "x", ""]}
    assert problems(workflow(step)) == [
        "steps[0].approvers[1]: must be a string, not a number",
        'steps[0].approvers[2]: "x" is listed twice',
        "steps[0].approvers[3]: must not be empty",
    ]


@pytest.mark.parametrize(
    ("step_type", "required"),
    [
        ("job", "job_id"),
        ("wait_for_event", "event_key"),
        ("sleep", "sleep_duration_secs"),
        ("sub_workflow", "sub_workflow_id"),
    ],
)
def test_each_type_has_its_required_field(step_type: str, required: str) -> None:
    assert problems(workflow({"step_ref": "a", "type": step_type})) == [
        f"steps[0].{required}: is required for a step of type {step_type}"
    ]


SAMPLES: dict[str, Any] = {
    "job_id": "j",
    "retry_max_attempts": 1,
    "retry_backoff": "fixed",
    "retry_initial_delay_secs": 1,
    "retry_max_delay_secs": 1,
    "timeout_secs_override": 1,
    "approval_approvers": ["x"],
    "approval_timeout_secs": 1,
    "event_key": "k",
    "event_timeout_secs": 1,
    "sleep_duration_secs": 1,
    "sub_workflow_id": "child",
    "max_nesting_depth": 1,
}


@pytest.mark.parametrize("field", ONLY_FOR)
@pytest.mark.parametrize("step_type", StepType)
def test_fields_of_other_types_are_refused(step_type: StepType, field: str) -> None:
    raw = workflow(
        {"step_ref": "a", "type": str(step_type), **MINIMAL[step_type], field: SAMPLES[field]}
    )
    if step_type in ONLY_FOR[field]:
        parse(raw)
    else:
        wanted = " or ".join(sorted(ONLY_FOR[field]))
        assert problems(raw) == [
            f"steps[0].{field}: belongs to steps of type {wanted}, this one is {step_type}"
        ]


def test_a_foreign_field_is_named_as_it_was_given() -> None:
    assert step_problems(approvers=["x"]) == [
        "steps[0].approvers: belongs to steps of type approval, this one is job"
    ]


def test_an_alias_that_says_something_else_is_a_problem() -> None:
    found = step_problems(max_attempts=2, retry_max_attempts=3)
    assert found == [
        'steps[0].retry_max_attempts: differs from "max_attempts", which means the same'
    ]
    found = problems(workflow(job_step("a"), cron_timezone="UTC", timezone="Asia/Tokyo"))
    assert found == ['timezone: differs from "cron_timezone", which means the same']


def test_refs_are_required_and_unique() -> None:
    assert problems(workflow({"job_id": "j"}, job_step("a"), job_step("b"), job_step("a"))) == [
        "steps[0].step_ref: is required",
        'steps[3].step_ref: "a" is also that of steps[1]',
    ]


def test_dependencies_must_exist_and_be_others() -> None:
    found = problems(
        workflow(job_step("a", "a"), job_step("b", "a", "nope", "a", "b"), job_step("c", "x y"))
    )
    assert found == [
        'steps[1].depends_on[2]: "a" is listed twice',
        'steps[2].depends_on[0]: "x y" does not match [A-Za-z0-9_-]{1,128}',
        "steps[0].depends_on[0]: a step cannot depend on itself",
        'steps[1].depends_on[1]: unknown step "nope"',
        "steps[1].depends_on[3]: a step cannot depend on itself",
    ]


def test_a_cycle_is_shown_in_the_order_of_execution() -> None:
    found = problems(workflow(job_step("a", "c"), job_step("b", "a"), job_step("c", "b")))
    assert found == ["steps[0].depends_on: cycle: a → b → c → a"]


def test_every_cycle_is_shown() -> None:
    found = problems(
        workflow(
            job_step("start"),
            job_step("b1", "start", "b2"),
            job_step("b2", "b1"),
            job_step("c1", "c2", "b2"),
            job_step("c2", "c1"),
            job_step("end", "c2"),
        )
    )
    assert found == [
        "steps[1].depends_on: cycle: b1 → b2 → b1",
        "steps[3].depends_on: cycle: c1 → c2 → c1",
    ]


def test_templates_and_conditions_are_checked_deep_inside() -> None:
    found = problems(
        workflow(
            job_step("a", payload={"x": [{"y": "{{"}], "z": "{{ steps.no.output }}"}),
            job_step("b", condition={"type": "not", "condition": {"type": "eq", "left": 1}}),
            job_step("c", condition={"type": "step_status", "step_ref": "no", "status": "failed"}),
            job_step("d", event_emit_key="{{ steps.no.status }}"),
            {"step_ref": "e", "type": "wait_for_event", "event_key": "{{ steps.x }}"},
            job_step("f", payload={"deep": NESTED}),
        )
    )
    assert [line.split(": ")[0] for line in found] == [
        "steps[0].payload.x[0].y",
        "steps[0].payload.z",
        "steps[1].condition.condition.right",
        "steps[2].condition.step_ref",
        "steps[3].event_emit_key",
        "steps[4].event_key",
        "steps[5].payload.deep" + "[0]" * 99,
    ]
    assert found[1] == 'steps[0].payload.z: unknown step "no"'
    assert found[3] == 'steps[2].condition.step_ref: unknown step "no"'


def test_an_unknown_step_is_told_at_every_place_that_names_it() -> None:
    deep = {
        "x": {"y": ["{{ steps.no.output }} {{ steps.no.status }}"]},
        "z": "{{ steps.no.output }}",
    }
    condition = {
        "type": "all_of",
        "conditions": [
            {"type": "eq", "left": "{{ steps.no.status }}", "right": {"step_ref": "nor"}},
        ],
    }
    assert problems(workflow(job_step("a", payload=deep, condition=condition))) == [
        'steps[0].payload.x.y[0]: unknown step "no"',
        'steps[0].payload.z: unknown step "no"',
        'steps[0].condition.conditions[0].left: unknown step "no"',
        'steps[0].condition.conditions[0].right.step_ref: unknown step "nor"',
    ]


def test_all_problems_are_listed_at_once() -> None:
    found = problems(
        {
            "name": "",
            "cron": "x",
            "foo": 1,
            "steps": [
                {"step_ref": "a", "depends_on": ["b"]},
                {"step_ref": "b", "type": "sleep", "depends_on": ["a"], "bar": 1},
                {"step_ref": "b", "type": "nope"},
            ],
        }
    )
    assert sorted(line.split(": ")[0] for line in found) == sorted(
        [
            "name",
            "cron",
            "foo",
            "steps[1].bar",
            "steps[2].type",
            "steps[2].step_ref",
            "steps[0].job_id",
            "steps[1].sleep_duration_secs",
            "steps[0].depends_on",
        ]
    )


def test_the_list_of_problems_is_bounded() -> None:
    found = problems(workflow(*[{"nope": 1}] * 10_000))
    assert len(found) == MAX_PROBLEMS + 1
    assert found[-1] == "stopped after 1000 problems; there may be more"


def test_the_number_of_dependencies_is_bounded() -> None:
    firsts = [job_step(f"a{i}") for i in range(1_001)]
    seconds = [job_step(f"b{i}", *(f"a{k}" for k in range(1_001))) for i in range(1_000)]
    assert problems(workflow(*firsts, *seconds)) == [
        "steps: have more than 1000000 dependencies in all"
    ]


def test_a_chain_of_ten_thousand_steps_that_bites_its_tail_is_shown_short() -> None:
    steps = [job_step(f"s{i}", f"s{(i - 1) % 10_000}") for i in range(10_000)]
    (found,) = problems(workflow(*steps))
    assert found.startswith("steps[0].depends_on: cycle: s0 → s1 → s2 →")
    assert "… (9980 more)" in found
    assert found.endswith("→ s9999 → s0")
