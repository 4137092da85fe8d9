"""From transitions to one write: what a run actor gathers until the writer takes it."""

from __future__ import annotations

import msgspec

from pilotage.actors.job_runs import JobRunRecord
from pilotage.actors.kernel.actor import DeferredReply
from pilotage.actors.messages import MakeRecord
from pilotage.persistence import codec
from pilotage.persistence.port import HistoryItem, RunIndex, RunWrite
from pilotage.runtime.effects import MESSAGE_TYPES, Effect, ReleaseSlot
from pilotage.runtime.history import entries
from pilotage.runtime.machine import Transition
from pilotage.runtime.replies import Reply
from pilotage.runtime.rules import Rejection
from pilotage.runtime.state import RunState, plain_chunks


class Batch:
    """Everything since the last stored state: one or more transitions, not stored yet.

    remembering  who gets the answer that the idempotency record of this batch is about
    forgotten    the store had no room for that record
    """

    __slots__ = (
        "_given_back", "_seen", "changed", "effects", "forgotten", "history", "job_runs",
        "outbox", "remember", "remembering", "replies",
    )  # fmt: skip

    def __init__(self) -> None:
        self.changed: set[int] = set()
        self.history: list[HistoryItem] = []
        self.job_runs: dict[tuple[int, int], JobRunRecord] = {}
        self.outbox: dict[str, Effect] = {}
        self.effects: list[Effect] = []
        self.replies: list[tuple[DeferredReply, Reply | Rejection]] = []
        self.remember: MakeRecord | None = None
        self.remembering: DeferredReply | None = None
        self.forgotten = False
        self._seen = 0
        self._given_back: set[int] | None = None

    def add(self, before: RunState, transition: Transition) -> None:
        """Take in a transition. Messages get their ids: (sequence, number) of this run."""
        state = transition.state
        self.changed.update(transition.changed)
        for entry in entries(before.vitals.history_seq, state.graph, transition.events):
            self.history.append(HistoryItem(seq=entry.seq, data=codec.encode_history(entry)))
        for n, effect in enumerate(transition.effects):
            if isinstance(effect, MESSAGE_TYPES):
                self.outbox[f"{state.vitals.seq}.{n}"] = effect
        self.effects.extend(transition.effects)

    def gives_back(self, step: int) -> bool:
        """Whether the job slot that the step has, or wants, goes back when this is stored."""
        given = self._given_back = self._given_back or set()
        for effect in self.effects[self._seen :]:
            if isinstance(effect, ReleaseSlot):
                given.add(effect.step)
        self._seen = len(self.effects)
        return step in given


def run_write(
    *,
    stored: RunState | None,
    state: RunState,
    batch: Batch,
    outbox_done: list[str],
    keep_secs: int,
) -> RunWrite:
    """The write that takes the store from `stored` (None: absent) to `state`."""
    head, vitals = state.head, state.vitals
    finished = vitals.status.is_terminal
    was_finished = stored is not None and stored.status.is_terminal
    encoded_head: bytes | None = None
    steps: dict[int, bytes] = {}
    blob: bytes | None = None
    if stored is None or (was_finished and not finished):
        encoded_head = codec.encode_head(head)
    if finished:
        if not was_finished or batch.changed:
            blob = codec.encode_finished(head, vitals, plain_chunks(state))
    elif was_finished:
        steps = {i: codec.encode_step(s) for i, s in enumerate(state.steps())}
    else:
        steps = {i: codec.encode_step(state.step(i)) for i in sorted(batch.changed)}
    keep_until = None
    if finished and not vitals.pinned and vitals.finished_at_ms is not None:
        keep_until = vitals.finished_at_ms + keep_secs * 1000
    return RunWrite(
        run_id=head.id,
        follows=0 if stored is None else stored.vitals.seq,
        seq=vitals.seq,
        index=RunIndex(
            project_id=head.project_id,
            workflow_id=head.workflow_id,
            created_at_ms=head.created_at_ms,
            status=vitals.status,
            tags=tuple([f"{k}:{v}" for k, v in head.tags.items()]) if head.tags else (),
            due_ms=vitals.expires_at_ms,
            parent_run_id=head.parent_run_id,
            keep_until_ms=keep_until,
        ),
        vitals=codec.encode_vitals(vitals),
        head=encoded_head,
        steps=steps,
        history=batch.history,
        job_runs={k: codec.encode_record(r) for k, r in batch.job_runs.items()},
        outbox_add={k: codec.encode_message(m) for k, m in batch.outbox.items()},  # type: ignore[arg-type]
        outbox_done=outbox_done,
        idempotency=None if batch.remember is None else batch.remember(state),
        finished=finished,
        blob=blob,
    )


def touched(state: RunState) -> RunState:
    """The same run one sequence on: for writes that change records, not the run."""
    vitals = msgspec.structs.replace(state.vitals, seq=state.vitals.seq + 1)
    return msgspec.structs.replace(state, vitals=vitals)
