"""Values that are stored or sent keep their form; ids lead back to what they name."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any, Union

import msgspec
import pytest
from hypothesis import given, strategies as st

from pilotage.runtime import commands, effects, events, ids
from pilotage.runtime.definition import JobPolicy, StepSpec, WorkflowSpec
from pilotage.runtime.graph import StepGraph
from pilotage.runtime.state import Resolution, StepState
from pilotage.runtime.status import RunStatus, SkippedBy, StepStatus, WaitingFor
from tests.support.run_story import PARENT_ID, RUN_ID, START, new_head

FULL_STEP = StepState(
    status=StepStatus.FAILED,
    wait=WaitingFor.RETRY,
    attempt=3,
    budget_start=1,
    output=b'{"x": 1}',
    error="boom",
    started_at_ms=1,
    finished_at_ms=2,
    due_ms=3,
    skipped_by=SkippedBy.OPERATOR,
    checked=True,
    accepted=True,
    child_run_id=PARENT_ID,
    event_key="k",
    ready_since_ms=4,
    resolution=Resolution.REJECTED,
)
HEAD = new_head(
    payload=b'{"a": 1}',
    tags={"k": "v"},
    parent_run_id=PARENT_ID,
    parent_step=3,
    ancestor_workflows=("w1",),
    policies={"j": JobPolicy(limited=True, timeout_secs=2.5)},
)
SAMPLES: dict[str, Any] = {
    "actor": "ann", "again": True, "at_ms": START, "attempt": 2, "by": SkippedBy.CONDITION,
    "carried": ((0, FULL_STEP),), "checked": True, "child_run_id": RUN_ID, "comment": "fine",
    "disabled": (1, 2),
    "due_ms": 7, "error": "boom", "error_class": "http_500", "event_key": "k", "expires_at_ms": 8,
    "final": True, "head": HEAD, "held": True, "input": b"{}", "job": "j", "keep_child": True,
    "left_ms": 5, "lost": "why",
    "output": b'{"x":1}', "parent_attempt": 4, "parent_run_id": PARENT_ID, "payload": b"[1]",
    "pinned": True, "reason": "why", "resolution": Resolution.FORCED, "result": b"1",
    "retry_after_secs": 1.5, "since_ms": 9, "slot": False, "status": RunStatus.FAILED, "step": 6,
    "reported": True, "timed_out": True, "timeout_secs": 2.5, "unstarted": True,
    "wait": WaitingFor.EVENT,
    "what": "reopen", "workflow": "child",
}  # fmt: skip


def kinds(module: ModuleType, base: type) -> list[type[Any]]:
    return [
        kind
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, base) and kind.__module__ == module.__name__
    ]


ALL = {
    "commands": kinds(commands, commands.Command),
    "events": kinds(events, events.Event),
    "effects": kinds(effects, effects.Effect),
}


@pytest.mark.parametrize("family", list(ALL))
def test_every_struct_comes_back_from_msgpack_as_it_was(family: str) -> None:
    union: Any = Union[tuple(ALL[family])]  # noqa: UP007  made of a list
    decoder = msgspec.msgpack.Decoder(union)
    for kind in ALL[family]:
        names = [f.name for f in msgspec.structs.fields(kind)]
        value = kind(**{name: SAMPLES[name] for name in names})
        found = decoder.decode(msgspec.msgpack.encode(value))
        assert found == value
        assert type(found) is kind


@pytest.mark.parametrize("family", list(ALL))
def test_tags_are_the_names_of_the_structs_which_stored_values_rely_on(family: str) -> None:
    for kind in ALL[family]:
        assert kind.__struct_config__.tag == kind.__name__
        assert kind.__struct_config__.frozen


def test_the_stored_form_of_a_step_is_an_array_in_this_order() -> None:
    assert StepState.__struct_fields__ == (
        "status", "wait", "attempt", "budget_start", "output", "error", "started_at_ms",
        "finished_at_ms", "due_ms", "skipped_by", "checked", "accepted", "child_run_id",
        "event_key", "ready_since_ms", "resolution",
    )  # fmt: skip
    packed = msgspec.msgpack.encode(FULL_STEP)
    assert packed.hex() == (
        "dc0010a66661696c6564a572657472790301c4087b2278223a20317da4626f6f6d010203a86f70657261746f72"
        f"c3c3d924{PARENT_ID.encode().hex()}a16b04a872656a6563746564"
    )
    assert msgspec.msgpack.decode(packed, type=StepState) == FULL_STEP


# --- ids -----


@given(
    time_ms=st.integers(0, 2**48 - 1),
    random_bits=st.integers(0, 2**30 - 1),
    shard=st.integers(0, 2**16 - 1),
    step=st.integers(0, 9_999),
    attempt=st.integers(1, ids.MAX_ATTEMPT),
)
def test_ids_of_steps_and_job_runs_lead_back_to_the_run(
    time_ms: int, random_bits: int, shard: int, step: int, attempt: int
) -> None:
    run_id = ids.make_run_id(time_ms, random_bits, shard)
    assert ids.is_run_id(run_id)
    assert ids.shard_of(run_id) == shard
    assert ids.locate(run_id) == (run_id, None, 0)
    step_id, job_id = ids.step_run_id(run_id, step), ids.job_run_id(run_id, step, attempt)
    assert ids.locate(step_id) == (run_id, step, 0)
    assert ids.locate(job_id) == (run_id, step, attempt)
    assert not ids.is_run_id(step_id)
    assert ids.shard_of(job_id) == shard


@pytest.mark.parametrize(
    "text",
    ["", "x" * 36, RUN_ID.upper(), RUN_ID[:-1], "018bcfe5-6800-4bec-8000-00013ccd0000",
     "018bcfe5-6800-7bec-c000-00013ccd0000"],
)  # fmt: skip
def test_what_is_no_id_of_ours_leads_nowhere(text: str) -> None:
    assert ids.locate(text) is None
    assert not ids.is_run_id(text)


def test_derived_ids_are_the_same_for_the_same_parts_and_differ_else() -> None:
    found = {ids.derived_run_id(START, RUN_ID, i, n, shard=7) for i in range(50) for n in range(50)}
    assert len(found) == 2_500
    assert ids.derived_run_id(START, "a", 1) == ids.derived_run_id(START, "a", 1)
    assert ids.derived_run_id(START, "a", 11) != ids.derived_run_id(START, "a1", 1)
    assert {ids.shard_of(i) for i in found} == {7}


# --- graph -----


def graph_of(**deps: tuple[str, ...]) -> StepGraph:
    steps = tuple(StepSpec(step_ref=r, depends_on=d, job_id="j") for r, d in deps.items())
    return StepGraph(WorkflowSpec(steps=steps))


def test_a_graph_knows_its_order_and_descendants() -> None:
    graph = graph_of(d=("b", "c"), b=("a",), c=("a",), a=(), alone=())
    refs = [s.step_ref for s in graph.steps]
    assert [refs[i] for i in graph.order] == ["a", "alone", "b", "c", "d"]
    assert [refs[i] for i in graph.descendants(graph.index["a"])] == ["b", "c", "d"]
    assert [refs[i] for i in graph.descendants(graph.index["b"])] == ["d"]
    assert graph.descendants(graph.index["alone"]) == ()
    assert graph.roots == 1 << graph.index["a"] | 1 << graph.index["alone"]
