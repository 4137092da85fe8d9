"""Runs to put into a store: `Life` keeps what the owner of a run would know of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from pilotage.persistence import codec
from pilotage.persistence.port import HistoryItem, RunIndex, RunWrite
from pilotage.runtime.ids import make_run_id
from pilotage.runtime.state import RunHead, RunVitals, StepState
from pilotage.runtime.status import RunStatus, StepStatus

NOW_MS = 1_790_000_000_000


def step(number: int) -> bytes:
    """Some encoded step, another for each number."""
    return codec.encode_step(StepState(status=StepStatus.COMPLETED, output=str(number).encode()))


class Life:
    """One run, in step with the store as long as every write it makes is committed."""

    def __init__(
        self,
        number: int,
        *,
        project_id: str = "project",
        workflow_id: str = "workflow",
        created_at_ms: int | None = None,
        tags: Mapping[str, str] | None = None,
        payload: bytes | None = None,
    ) -> None:
        created = NOW_MS + number if created_at_ms is None else created_at_ms
        self.id = make_run_id(created, number)
        self.head = RunHead(
            id=self.id,
            project_id=project_id,
            workflow_id=workflow_id,
            workflow_slug="slug",
            version=1,
            version_id="version",
            created_at_ms=created,
            tags=dict(tags or {}),
            payload=payload,
        )
        self.seq = 0
        self.history_seq = 0
        self.status = RunStatus.PENDING
        self.steps: dict[int, bytes] = {}

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(f"{name}:{value}" for name, value in self.head.tags.items())

    @property
    def encoded_head(self) -> bytes:
        return codec.encode_head(self.head)

    @property
    def vitals(self) -> bytes:
        return codec.encode_vitals(RunVitals(status=self.status, seq=self.seq))

    @property
    def position(self) -> tuple[int, str]:
        return self.head.created_at_ms, self.id

    def blob(self) -> bytes:
        steps = tuple(codec.decode_step(data) for data in self.steps.values())
        vitals = RunVitals(status=self.status, seq=self.seq)
        return codec.encode_finished(self.head, vitals, (steps,) if steps else ())

    def write(
        self,
        status: RunStatus | None = None,
        *,
        due_ms: int | None = None,
        keep_until_ms: int | None = None,
        steps: Mapping[int, bytes] | None = None,
        history: int = 0,
        **others: Any,
    ) -> RunWrite:
        """The next write; the first creates. `history`: so many items more."""
        follows, self.seq = self.seq, self.seq + 1
        was_finished, self.status = self.status.is_terminal, status or self.status
        self.steps |= steps or {}
        finished = self.status.is_terminal
        if finished and not was_finished:
            others.setdefault("blob", self.blob())
        if follows == 0 or (was_finished and not finished):
            others.setdefault("head", self.encoded_head)
            steps = self.steps
        return RunWrite(
            run_id=self.id,
            follows=follows,
            seq=self.seq,
            index=self.index(due_ms=due_ms, keep_until_ms=keep_until_ms),
            vitals=self.vitals,
            steps={} if finished else (steps or {}),
            history=self.items(history),
            finished=finished,
            **others,
        )

    def index(self, *, due_ms: int | None = None, keep_until_ms: int | None = None) -> RunIndex:
        return RunIndex(
            project_id=self.head.project_id,
            workflow_id=self.head.workflow_id,
            created_at_ms=self.head.created_at_ms,
            status=self.status,
            tags=self.tags,
            due_ms=due_ms,
            keep_until_ms=keep_until_ms,
        )

    def items(self, count: int) -> Sequence[HistoryItem]:
        first = self.history_seq + 1
        self.history_seq += count
        return [history_item(seq) for seq in range(first, first + count)]


def history_item(seq: int) -> HistoryItem:
    return HistoryItem(seq=seq, data=f"item {seq}".encode())


def changed(write: RunWrite, **fields: Any) -> RunWrite:
    return msgspec.structs.replace(write, **fields)
