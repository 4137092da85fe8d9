"""The state of one run: immutable values, cheap to change in one place.

Step states live in chunks of `CHUNK`; a transition copies the chunks it touches and the spine, so
its cost does not grow with the size of the run. Everything that can be derived from the step
states (who is ready, which dependencies are satisfied) is kept as bit masks beside them; the
masks are rebuilt by `rebuild` when a run is loaded and are never stored.

A run that nobody moves is kept `packed`: its step states as encoded bytes, a fifth of the memory.
It reads as any other; `unpacked` gives it back for work.

No value here refers back to what holds it: none of them needs the garbage collector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import overload

import msgspec

from pilotage.runtime.definition import JobPolicy
from pilotage.runtime.graph import StepGraph
from pilotage.runtime.status import OnFailure, RunStatus, SkippedBy, StepStatus, WaitingFor

CHUNK = 32
MAX_PACKED = 16_384
"""Bytes of a chunk beyond which packing it saves nothing: what is large is its outputs."""
DECODED_KEPT = 256
"""Packed chunks that are kept decoded for who reads them step by step."""


class Resolution(StrEnum):
    """What a person decided about a step, for the rules about repeated commands."""

    APPROVED = "approved"
    REJECTED = "rejected"
    FORCED = "forced"


class StepState(msgspec.Struct, frozen=True, gc=False, array_like=True, omit_defaults=True):
    """One step of one run. Times are Unix milliseconds; `output` is JSON text in UTF-8.

    wait            the stored part of `waiting_for`: approval, event, timer, retry, job_limit
    budget_start    number of the last attempt before the present budget of attempts
    due_ms          when the step's one timer fires (timeout, backoff, sleep), None without
    checked         the condition is not to be evaluated (again)
    accepted        a remote job took the attempt (202) and will report by callback
    ready_since_ms  when the step last became ready and was held back
    """

    status: StepStatus = StepStatus.WAITING
    wait: WaitingFor | None = None
    attempt: int = 0
    budget_start: int = 0
    output: bytes | None = None
    error: str | None = None
    started_at_ms: int | None = None
    finished_at_ms: int | None = None
    due_ms: int | None = None
    skipped_by: SkippedBy | None = None
    checked: bool = False
    accepted: bool = False
    child_run_id: str | None = None
    event_key: str | None = None
    ready_since_ms: int | None = None
    resolution: Resolution | None = None


BLANK = StepState()
_encode_steps = msgspec.msgpack.Encoder().encode
_decode_steps = msgspec.msgpack.Decoder(tuple[StepState, ...]).decode


@lru_cache(DECODED_KEPT)
def _steps_of(data: bytes) -> tuple[StepState, ...]:
    return _decode_steps(data)


class PackedChunk(msgspec.Struct, frozen=True, gc=False):
    """The step states of a chunk as bytes; reads like the tuple that they were."""

    data: bytes

    @overload
    def __getitem__(self, i: int) -> StepState: ...

    @overload
    def __getitem__(self, i: slice) -> tuple[StepState, ...]: ...

    def __getitem__(self, i: int | slice) -> StepState | tuple[StepState, ...]:
        return _steps_of(self.data)[i]

    def __iter__(self) -> Iterator[StepState]:
        return iter(_steps_of(self.data))

    def __len__(self) -> int:
        return len(_steps_of(self.data))

    def plain(self) -> tuple[StepState, ...]:
        return _decode_steps(self.data)


Chunk = tuple[StepState, ...] | PackedChunk


class RunHead(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What never changes in a run's life. `payload` is JSON text, None without a payload.

    policies   job reference -> policy pinned at the trigger (only jobs the workflow uses)
    slotless   the run never takes one of its workflow's `max_concurrent_runs` slots because an
               ancestor holds one
    delay_until_ms   the run stays `pending` until then (`delay_secs` of the trigger)
    trace      the W3C trace that the run continues, `TRACE_ID-FLAGS`; None: one of its own
    """

    id: str
    project_id: str
    workflow_id: str
    workflow_slug: str
    version: int
    version_id: str
    created_at_ms: int
    payload: bytes | None = None
    tags: dict[str, str] = {}
    triggered_by: str = "manual"
    created_by: str | None = None
    retry_of_run_id: str | None = None
    parent_run_id: str | None = None
    parent_step: int | None = None
    depth: int = 0
    ancestor_workflows: tuple[str, ...] = ()
    slotless: bool = False
    max_parallel_steps: int = 0
    timeout_secs: float = 0.0
    delay_until_ms: int | None = None
    policies: dict[str, JobPolicy] = {}
    trace: str | None = None


class RunVitals(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The small part of a run that changes: what lists and indexes need.

    seq            rises by one with each stored transition (the version writes are checked with)
    history_seq    number of history items so far
    queued_at_ms   place in the queue of its workflow while `pending` (a delayed run: when due)
    held           a pending child of a paused parent: gets no slot until the parent resumes
    parent_attempt the attempt of the parent's step that this run now answers; negative: it was
                   reopened by hand since, and no step waits for it
    """

    status: RunStatus = RunStatus.PENDING
    seq: int = 0
    history_seq: int = 0
    started_at_ms: int | None = None
    finished_at_ms: int | None = None
    expires_at_ms: int | None = None
    error: str | None = None
    queued_at_ms: int = 0
    held: bool = False
    parent_attempt: int = 0
    pinned: bool = False


class Masks(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Derived sets of steps, as bit masks.

    satisfied  satisfies its dependents: completed, failed under `continue`, or skipped other than
               by dependency
    open       not terminal          running   status running
    fresh      pending, to be evaluated (or parked) as soon as the run runs
    held       pending, wants capacity only: condition evaluated, and no parking step
    requested  of `held`: asked for a job slot
    blocking   terminal and never satisfies: failed without `continue`, skipped by dependency,
               canceled
    """

    satisfied: int = 0
    open: int = 0
    running: int = 0
    fresh: int = 0
    held: int = 0
    requested: int = 0
    blocking: int = 0
    output_bytes: int = 0


class RunState(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A run: what never changes, what does, the steps in chunks, and what follows from them."""

    head: RunHead
    graph: StepGraph
    vitals: RunVitals
    chunks: tuple[Chunk, ...]
    masks: Masks

    @property
    def id(self) -> str:
        return self.head.id

    @property
    def status(self) -> RunStatus:
        return self.vitals.status

    def step(self, i: int) -> StepState:
        return self.chunks[i // CHUNK][i % CHUNK]

    def steps(self) -> Iterator[StepState]:
        """All step states in definition order."""
        for chunk in self.chunks:
            yield from chunk


def delay_ms(head: RunHead, vitals: RunVitals, now: int) -> int | None:
    """When the delay of the trigger ends, None if it is over; a reopen ends it too."""
    until = head.delay_until_ms
    if until is None or until <= now or vitals.queued_at_ms < until:
        return None
    return until if vitals.status is RunStatus.PENDING else None


def run_due_ms(head: RunHead, vitals: RunVitals, now: int) -> int | None:
    """When the run's own timer fires: the end of its delay, then its deadline."""
    if vitals.status.is_terminal:
        return None
    return delay_ms(head, vitals, now) or vitals.expires_at_ms


def blank_chunks(size: int) -> tuple[tuple[StepState, ...], ...]:
    full, rest = divmod(size, CHUNK)
    chunk = (BLANK,) * CHUNK
    return (chunk,) * full + (((BLANK,) * rest,) if rest else ())


def chunked(steps: list[StepState]) -> tuple[tuple[StepState, ...], ...]:
    return tuple(tuple(steps[k : k + CHUNK]) for k in range(0, len(steps), CHUNK))


def packed(state: RunState) -> RunState:
    """The same run in less memory, for as long as nobody moves it."""
    chunks = tuple(_packed(chunk) for chunk in state.chunks)
    return msgspec.structs.replace(state, chunks=chunks)


def _packed(chunk: Chunk) -> Chunk:
    if isinstance(chunk, PackedChunk):
        return chunk
    data = _encode_steps(chunk)
    return PackedChunk(data) if len(data) <= MAX_PACKED else chunk


def unpacked(state: RunState) -> RunState:
    """A run whose steps are read at no cost: for work on it."""
    if not any(isinstance(chunk, PackedChunk) for chunk in state.chunks):
        return state
    return msgspec.structs.replace(state, chunks=plain_chunks(state))


def plain_chunks(state: RunState) -> tuple[tuple[StepState, ...], ...]:
    return tuple(c.plain() if isinstance(c, PackedChunk) else c for c in state.chunks)


def satisfies(graph: StepGraph, i: int, step: StepState) -> bool:
    """Whether a dependent may count step i as done (runs.md §3)."""
    if step.status is StepStatus.COMPLETED:
        return True
    if step.status is StepStatus.SKIPPED:
        return step.skipped_by is not SkippedBy.DEPENDENCY
    return step.status is StepStatus.FAILED and graph.steps[i].on_failure is OnFailure.CONTINUE


def rebuild(
    head: RunHead,
    graph: StepGraph,
    vitals: RunVitals,
    chunks: Sequence[Chunk],
) -> RunState:
    """The state of the stored parts, with everything derived computed from the step states."""
    satisfied = open_ = running = held = requested = blocking = output_bytes = 0
    fresh = 0
    i = 0
    for chunk in chunks:
        for step in chunk:
            bit = 1 << i
            if step.output is not None:
                output_bytes += len(step.output)
            if step.status.is_terminal:
                if satisfies(graph, i, step):
                    satisfied |= bit
                else:
                    blocking |= bit
            else:
                open_ |= bit
                if step.status is StepStatus.RUNNING:
                    running |= bit
                elif step.status is StepStatus.PENDING:
                    if step.checked and not graph.parking & bit:
                        held |= bit
                    else:
                        fresh |= bit
                    if step.wait is WaitingFor.JOB_LIMIT:
                        requested |= bit
            i += 1
    masks = Masks(
        satisfied=satisfied, open=open_, running=running, fresh=fresh, held=held,
        requested=requested, blocking=blocking, output_bytes=output_bytes,
    )  # fmt: skip
    return RunState(head=head, graph=graph, vitals=vitals, chunks=tuple(chunks), masks=masks)
