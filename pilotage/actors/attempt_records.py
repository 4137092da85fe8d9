"""Job runs of one run in memory: the records of the attempts in progress, kept from the events."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from pilotage.actors.executors.port import Logged, Progressed
from pilotage.actors.job_runs import (
    Announced,
    JobRunRecord,
    LogLine,
    Progress,
    add_log,
    shown_input,
)
from pilotage.runtime.effects import StartAttempt
from pilotage.runtime.events import (
    Event,
    StepAccepted,
    StepCanceled,
    StepCompleted,
    StepEvent,
    StepFailed,
    StepReset,
    StepRetryScheduled,
    StepSkipped,
)
from pilotage.runtime.state import Resolution
from pilotage.runtime.status import JobRunStatus

Changed = dict[tuple[int, int], JobRunRecord]


class AttemptRecords:
    """step -> (attempt, record) of the attempts in progress."""

    __slots__ = ("_open",)

    def __init__(self) -> None:
        # an emptied dict keeps its size: a run that waits for long must hold none
        self._open: dict[int, tuple[int, JobRunRecord]] | None = None

    def __bool__(self) -> bool:
        """Whether an attempt is in progress."""
        return self._open is not None

    @property
    def heartbeats(self) -> bool:
        """Whether an attempt has announced heartbeats."""
        in_progress = self._open or {}
        return any(record.heartbeat_secs is not None for _, record in in_progress.values())

    def begin(
        self, effect: StartAttempt, now: int, kept: JobRunRecord | None = None
    ) -> JobRunRecord:
        """`kept`: what the store has of the attempt (it was in progress at a crash)."""
        record = kept or JobRunRecord(
            job=effect.job,
            status=JobRunStatus.EXECUTING,
            payload=shown_input(effect.input),
            started_at_ms=now,
            created_at_ms=now,
        )
        if self._open is None:
            self._open = {}
        self._open[effect.step] = (effect.attempt, record)
        return record

    def follow(self, events: Iterable[Event], into: Changed) -> None:
        """Close the records that the events end; what changed goes `into`."""
        in_progress = self._open
        if in_progress is None:
            return
        for event in events:
            if isinstance(event, StepEvent) and event.step in in_progress:
                attempt, record = in_progress[event.step]
                ended = _ended(event, record)
                if ended is not None:
                    into[event.step, attempt] = ended
                    if isinstance(event, StepAccepted):
                        in_progress[event.step] = (attempt, ended)
                    else:
                        del in_progress[event.step]
        if not in_progress:
            self._open = None

    def note(
        self,
        step: int,
        attempt: int,
        note: Progressed | Logged | Announced,
        now: int,
        into: Changed,
    ) -> bool:
        """Add progress, a log line or the promise of heartbeats; False if the attempt is over."""
        in_progress = self._open
        found = None if in_progress is None else in_progress.get(step)
        if in_progress is None or found is None or found[0] != attempt:
            return False
        record = found[1]
        if isinstance(note, Progressed):
            progress = Progress(note.percent, note.message)
            record = msgspec.structs.replace(record, progress=progress)
        elif isinstance(note, Announced):
            record = msgspec.structs.replace(record, heartbeat_secs=note.secs)
        else:
            record = add_log(record, LogLine(now, note.level, note.message, note.data))
        in_progress[step] = (attempt, record)
        into[step, attempt] = record
        return True


def _ended(event: StepEvent, record: JobRunRecord) -> JobRunRecord | None:
    """The record after the event; None if the event says nothing about the attempt."""
    if isinstance(event, StepAccepted):
        return msgspec.structs.replace(record, status=JobRunStatus.WAITING)
    if isinstance(event, StepCompleted) and event.resolution is not Resolution.FORCED:
        return msgspec.structs.replace(
            record,
            status=JobRunStatus.COMPLETED,
            result=event.output,
            finished_at_ms=event.at_ms,
        )
    if isinstance(event, StepRetryScheduled | StepFailed):
        timed_out = event.error_class == "timeout"
        return msgspec.structs.replace(
            record,
            status=JobRunStatus.TIMED_OUT if timed_out else JobRunStatus.FAILED,
            error=event.error,
            error_class=event.error_class,
            finished_at_ms=event.at_ms,
            next_retry_at_ms=event.due_ms if isinstance(event, StepRetryScheduled) else None,
        )
    if isinstance(event, StepCompleted | StepSkipped | StepCanceled | StepReset):
        return msgspec.structs.replace(
            record, status=JobRunStatus.CANCELED, finished_at_ms=event.at_ms
        )
    return None
