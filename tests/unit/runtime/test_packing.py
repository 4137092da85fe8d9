"""A packed run reads as it did, and is given back as it was."""

from __future__ import annotations

from pilotage.runtime.definition import StepSpec, WorkflowSpec
from pilotage.runtime.graph import StepGraph
from pilotage.runtime.machine import blank_run
from pilotage.runtime.state import (
    CHUNK,
    MAX_PACKED,
    PackedChunk,
    RunHead,
    RunState,
    StepState,
    chunked,
    packed,
    plain_chunks,
    rebuild,
    unpacked,
)
from pilotage.runtime.status import StepStatus


def run(outputs: list[bytes]) -> RunState:
    spec = WorkflowSpec(steps=tuple(StepSpec(step_ref=f"s{i}") for i in range(len(outputs))))
    head = RunHead(
        id="r", project_id="p", workflow_id="w", workflow_slug="w", version=1, version_id="v",
        created_at_ms=1,
    )  # fmt: skip
    blank = blank_run(head, StepGraph(spec))
    steps = [
        StepState(status=StepStatus.COMPLETED, attempt=i + 1, output=output, finished_at_ms=i)
        for i, output in enumerate(outputs)
    ]
    return rebuild(head, blank.graph, blank.vitals, chunked(steps))


def test_a_packed_run_reads_as_before_and_comes_back_equal() -> None:
    state = run([b"1"] * (CHUNK + 3))
    small = packed(state)
    assert all(isinstance(chunk, PackedChunk) for chunk in small.chunks)
    assert [len(chunk) for chunk in small.chunks] == [CHUNK, 3]
    assert list(small.steps()) == list(state.steps())
    assert [small.step(i) for i in range(CHUNK + 3)] == list(state.steps())
    assert small.chunks[1][:2] == state.chunks[1][:2]
    assert (small.masks, small.head, small.vitals) == (state.masks, state.head, state.vitals)
    assert unpacked(small) == state
    assert rebuild(small.head, small.graph, small.vitals, small.chunks).masks == state.masks


def test_packing_and_unpacking_again_change_nothing() -> None:
    state = run([b"1", b"2"])
    small = packed(state)
    assert packed(small).chunks == small.chunks
    assert unpacked(state) is state


def test_large_outputs_stay_as_they_are() -> None:
    state = run([b"1"] * CHUNK + [b'"' + b"x" * MAX_PACKED + b'"'])
    small = packed(state)
    assert [isinstance(chunk, PackedChunk) for chunk in small.chunks] == [True, False]
    assert small.chunks[1] is state.chunks[1]
    assert plain_chunks(small) == state.chunks
