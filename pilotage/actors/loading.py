"""From what the store has of a run to what can be moved: its state, messages, open records.

Equal parts of runs of the same workflow version are shared: a hundred thousand runs that were
loaded hold their project's id and their jobs' policies once.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import msgspec

from pilotage.actors.job_runs import JobRunRecord
from pilotage.persistence import codec
from pilotage.persistence.port import Store, StoredRun
from pilotage.runtime.definition import JobPolicy
from pilotage.runtime.effects import Effect
from pilotage.runtime.graph import StepGraph, bits
from pilotage.runtime.state import RunHead, RunState, blank_chunks, chunked, rebuild
from pilotage.runtime.status import StepType

logger = logging.getLogger(__name__)

T = TypeVar("T")

SINGLE_RECORDS = 8
HEADS_KEPT = 4_096

GraphOf = Callable[[str], Awaitable[StepGraph]]
Records = Mapping[tuple[int, int], JobRunRecord]
Loaded = tuple[RunState, dict[str, Effect], Records]


class SharedHeads:
    """What the heads of one version's runs have in common, as one object each."""

    def __init__(self) -> None:
        self._first: dict[str, RunHead] = {}
        self._policies: dict[str, dict[str, JobPolicy]] = {}

    def share(self, head: RunHead) -> RunHead:
        """The same head, its parts those of the runs before it where they are equal."""
        first = self._known(head)
        if first is None:
            return head
        return msgspec.structs.replace(
            head,
            project_id=first.project_id,
            workflow_id=first.workflow_id,
            workflow_slug=first.workflow_slug,
            version_id=first.version_id,
            triggered_by=_either(first.triggered_by, head.triggered_by),
            created_by=_either(first.created_by, head.created_by),
            policies=self.policies(head.version_id, head.policies),
        )

    def policies(self, version_id: str, policies: dict[str, JobPolicy]) -> dict[str, JobPolicy]:
        """The same policies, as the run before holds them."""
        known = self._policies.get(version_id)
        if known is not None and known == policies:
            return known
        if len(self._policies) >= HEADS_KEPT:
            self._policies.clear()
        self._policies[version_id] = policies
        return policies

    def _known(self, head: RunHead) -> RunHead | None:
        """The first head of the version, if it is of the same workflow; else this is the first."""
        first = self._first.get(head.version_id)
        if first is not None and (first.project_id, first.workflow_id, first.workflow_slug) == (
            head.project_id,
            head.workflow_id,
            head.workflow_slug,
        ):
            return first
        if len(self._first) >= HEADS_KEPT:
            self._first.clear()
        self._first[head.version_id] = msgspec.structs.replace(head, payload=None, tags={})
        return None


class Loader:
    """`graph_of(version_id)` gives the shared step graph of a workflow version."""

    def __init__(self, store: Store, graph_of: GraphOf) -> None:
        self._store = store
        self._graph_of = graph_of
        self.heads = SharedHeads()

    async def decode(self, stored: StoredRun) -> RunState:
        """The state of what the store has; raises what the codec or the catalog raises."""
        vitals = codec.decode_vitals(stored.vitals)
        if stored.blob is not None:
            finished = codec.decode_finished(stored.blob)
            graph = await self._graph_of(finished.head.version_id)
            return rebuild(finished.head, graph, vitals, finished.chunks)
        assert stored.head is not None  # a run is stored with one of the two
        head = self.heads.share(codec.decode_head(stored.head))
        graph = await self._graph_of(head.version_id)
        if not stored.steps:
            return rebuild(head, graph, vitals, blank_chunks(graph.size))
        steps = [s for chunk in blank_chunks(graph.size) for s in chunk]
        for i, data in stored.steps.items():
            steps[i] = codec.decode_step(data)
        return rebuild(head, graph, vitals, chunked(steps))

    async def load(self, run_id: str) -> Loaded | None:
        """The run as it is stored; None if it is not."""
        stored = (await self._store.load_runs([run_id]))[0]
        if stored is None:
            return None
        state = await self.decode(stored)
        return state, outbox_of(stored.outbox), await open_records(self._store, state)


async def open_records(store: Store, state: RunState) -> Records:
    """The stored job runs of the attempts in progress: what they logged so far is kept."""
    wanted = [
        (i, state.step(i).attempt)
        for i in bits(state.masks.running)
        if state.graph.steps[i].step_type is StepType.JOB
    ]
    if not wanted or state.status.is_terminal:
        return {}
    if len(wanted) > SINGLE_RECORDS:
        found: Mapping[tuple[int, int], bytes | None] = await store.job_runs(state.id)
    else:
        found = {key: await store.job_run(state.id, *key) for key in wanted}
    records: dict[tuple[int, int], JobRunRecord] = {}
    for key in wanted:
        data = found.get(key)
        if data is not None:
            try:
                records[key] = codec.decode_record(data, JobRunRecord)
            except codec.SnapshotError as error:  # what was logged is lost, the run is not
                logger.error("run %s, attempt %s: %s", state.id, key, error)  # noqa: TRY400
    return records


def outbox_of(stored: Mapping[str, bytes]) -> dict[str, Effect]:
    return {key: codec.decode_message(data) for key, data in stored.items()}


def _either(first: T, second: T) -> T:
    return first if first == second else second
