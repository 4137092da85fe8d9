from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import msgspec
from hypothesis import given, strategies as st

from pilotage.runtime.errors import DefinitionError
from pilotage.runtime.graph import StepGraph
from pilotage.runtime.validation import (
    parse_job,
    parse_job_patch,
    parse_trigger,
    parse_workflow,
    parse_workflow_patch,
)
from pilotage.runtime.validation_fields import FieldTable
from pilotage.runtime.validation_jobs import JOB_FIELDS
from pilotage.runtime.validation_steps import STEP_FIELDS
from tests.support.definitions import FakeResolver, job_step, problems_of, workflow
from tests.support.strategies import GARBAGE, JSON, TEMPLATE_TEXT

PROBLEM = re.compile(r".+?: .+|stopped after \d+ problems; there may be more", re.DOTALL)
RESOLVER = FakeResolver(jobs=("j",), workflows=("w",))

LIKELY: st.SearchStrategy[Any] = (
    st.sampled_from(
        ["a", "b", "j", "w", "job", "approval", "sleep", "sub_workflow", "wait_for_event", "fixed",
         "continue", "http", "python", "queue", "https://example.com", "* * * * *", "UTC", ["a"],
         ["a", "b"], ["b", "b"], 0, 1, 5, 1.5, True, False, None, "{{ steps.a.output }}",
         {"x": "{{ y }}"}, {"type": "exists", "operand": "{{ x }}"}]
    )
    | TEMPLATE_TEXT
    | GARBAGE
)  # fmt: skip


def objects(table: FieldTable) -> st.SearchStrategy[Any]:
    names = [*table.readers, *table.aliases]
    return st.dictionaries(st.sampled_from(names) | st.text(max_size=5), LIKELY, max_size=8)


def more_or_less(fields: dict[str, Any]) -> dict[str, Any]:
    return {**job_step("a"), **fields}


STEPS: st.SearchStrategy[Any] = st.lists(
    objects(STEP_FIELDS) | objects(STEP_FIELDS).map(more_or_less), max_size=4
)
WORKFLOWS: st.SearchStrategy[Any] = GARBAGE | st.fixed_dictionaries(
    {"steps": STEPS | GARBAGE},
    optional={
        "name": LIKELY, "slug": LIKELY, "tags": LIKELY, "cron": LIKELY, "timezone": LIKELY,
        "timeout_secs": LIKELY, "max_parallel_steps": LIKELY, "enabled": LIKELY, "nope": LIKELY,
    },
)  # fmt: skip


def check_problems(error: DefinitionError) -> None:
    assert error.problems
    for problem in error.problems:
        assert PROBLEM.fullmatch(problem), problem


@given(WORKFLOWS)
def test_any_input_is_a_workflow_or_all_its_problems(raw: Any) -> None:
    try:
        found = parse_workflow(raw, resolve=RESOLVER)
    except DefinitionError as error:
        check_problems(error)
        return
    graph = StepGraph(found.spec)
    assert len(graph.order) == graph.size
    encoded = msgspec.msgpack.encode(found.spec)
    assert msgspec.msgpack.decode(encoded, type=type(found.spec)) == found.spec
    again = parse_workflow_patch({}, found, resolve=RESOLVER)
    assert again == found


@given(GARBAGE | objects(JOB_FIELDS))
def test_any_input_is_a_job_or_all_its_problems(raw: Any) -> None:
    try:
        found = parse_job(raw)
    except DefinitionError as error:
        check_problems(error)
        return
    assert parse_job_patch({}, found) == found


@given(GARBAGE | objects(JOB_FIELDS))
def test_any_patch_is_applied_or_refused(raw: Any) -> None:
    current_job = parse_job({"slug": "x", "endpoint_url": "http://h", "project_id": "p"})
    current = parse_workflow(workflow(job_step("a"), project_id="p"), resolve=RESOLVER)
    for patch in (
        lambda: parse_job_patch(raw, current_job),
        lambda: parse_workflow_patch(raw, current, resolve=RESOLVER),
    ):
        try:
            found = patch()
        except DefinitionError as error:
            check_problems(error)
        else:
            assert found.project_id == "p"


@given(
    GARBAGE
    | st.fixed_dictionaries(
        {},
        optional={
            "payload": JSON | GARBAGE,
            "tags": LIKELY,
            "triggered_by": LIKELY,
            "delay_secs": LIKELY,
            "step_overrides": st.lists(
                st.fixed_dictionaries({"step_ref": LIKELY, "enabled": LIKELY}) | GARBAGE, max_size=3
            ),
        },
    )
)
def test_any_input_is_a_trigger_or_all_its_problems(raw: Any) -> None:
    try:
        found = parse_trigger(raw, {"a", "b"})
    except DefinitionError as error:
        check_problems(error)
        return
    assert found.disabled <= {"a", "b"}
    msgspec.json.encode(found.payload)


@st.composite
def dags(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Steps in any order, each depending on earlier ones of a hidden order."""
    steps: list[dict[str, Any]] = []
    for i in range(draw(st.integers(1, 30))):
        earlier = draw(st.sets(st.integers(0, i - 1), max_size=5)) if i else set[int]()
        steps.append(job_step(f"s{i}", *(f"s{k}" for k in earlier)))
    return draw(st.permutations(steps))


@given(dags())
def test_every_acyclic_graph_is_taken(steps: list[dict[str, Any]]) -> None:
    found = parse_workflow(workflow(*steps), resolve=RESOLVER)
    graph = StepGraph(found.spec)
    place = {step: i for i, step in enumerate(graph.order)}
    assert len(place) == len(steps)
    for i, deps in enumerate(graph.deps):
        assert all(place[dep] < place[i] for dep in deps)


@given(dags(), st.data())
def test_an_injected_cycle_is_found_and_shown(
    steps: list[dict[str, Any]], data: st.DataObject
) -> None:
    waits_for: dict[str, list[str]] = {
        step["step_ref"]: list(step.get("depends_on", ())) for step in steps
    }
    # A chain through some steps, closed: each waits for the one before it.
    if len(steps) < 2:
        return
    refs = st.sampled_from(sorted(waits_for))
    chain = data.draw(st.lists(refs, min_size=2, max_size=6, unique=True))
    for before, after in zip(chain, [*chain[1:], chain[0]], strict=True):
        if before not in waits_for[after]:
            waits_for[after].append(before)
    raw = workflow(*(job_step(step["step_ref"], *waits_for[step["step_ref"]]) for step in steps))
    found = problems_of(lambda: parse_workflow(raw, resolve=RESOLVER))
    assert found
    shown = [re.fullmatch(r"steps\[\d+\]\.depends_on: cycle: (.+)", line) for line in found]
    for match in shown:
        assert match is not None
        cycle = match.group(1).split(" → ")
        assert cycle[0] == cycle[-1]
        assert all(before in waits_for[after] for before, after in pairwise(cycle))
