"""What the store in memory keeps of one run, and of one event."""

from __future__ import annotations

from typing import Final

from pilotage.persistence.port import HistoryItem, RunIndex, RunWrite

MAX_JOB_RUNS: Final = 100


class MemoryRun:
    """Everything the server has of one run."""

    __slots__ = (
        "blob",
        "fence",
        "head",
        "history",
        "index",
        "job_runs",
        "outbox",
        "seq",
        "steps",
        "vitals",
    )

    def __init__(self, write: RunWrite, fence: int) -> None:
        self.head: bytes = write.head or b""
        self.index: RunIndex = write.index
        self.seq, self.fence = write.seq, fence
        self.vitals = write.vitals
        self.blob: bytes | None = None
        self.steps: dict[int, bytes] = {}
        self.history: list[HistoryItem] = []
        self.job_runs: dict[tuple[int, int], bytes] = {}
        self.outbox: dict[str, bytes] = {}

    def apply(self, write: RunWrite, fence: int) -> None:
        self.seq, self.fence = write.seq, fence
        self.index, self.vitals = write.index, write.vitals
        self.head = write.head or self.head
        if write.finished:
            self.blob = write.blob or self.blob
            self.steps = {}
        else:
            self.blob = None
            self.steps |= write.steps
        self.history += [item for item in write.history if item.seq > len(self.history)]
        for (step, attempt), data in write.job_runs.items():
            self._keep_job_run(step, attempt, data)
        for message_id in write.outbox_done:
            self.outbox.pop(message_id, None)
        self.outbox |= write.outbox_add

    def _keep_job_run(self, step: int, attempt: int, data: bytes) -> None:
        self.job_runs[step, attempt] = data
        newest = max(a for s, a in self.job_runs if s == step)
        for key in [k for k in self.job_runs if k[0] == step and k[1] <= newest - MAX_JOB_RUNS]:
            del self.job_runs[key]

    def fits(self, write: RunWrite) -> bool:
        """Whether the write has the parts that a change from what is stored needs."""
        if write.finished and self.blob is None and write.blob is None:
            return False
        if not write.finished and self.blob is not None and write.head is None:
            return False
        return not write.history or write.history[0].seq <= len(self.history) + 1

    @property
    def active(self) -> bool:
        return self.blob is None or bool(self.outbox)


class MemoryEvent:
    __slots__ = ("data", "event_id", "expires_at_ms")

    def __init__(self, event_id: str, data: bytes, expires_at_ms: int) -> None:
        self.event_id, self.data, self.expires_at_ms = event_id, data, expires_at_ms
