"""What run actors are told besides commands, and what they answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from pilotage.actors.admission import JobKey, Passed
from pilotage.actors.errors import ConflictError
from pilotage.actors.executors.port import Logged, Progressed
from pilotage.actors.job_runs import Announced, JobRunRecord
from pilotage.persistence.port import IdempotencyRecord
from pilotage.runtime.commands import Command
from pilotage.runtime.machine import Transition
from pilotage.runtime.replies import Done, Reply, ResetSteps
from pilotage.runtime.rules import Rejection
from pilotage.runtime.state import RunState

MakeRecord = Callable[[RunState], IdempotencyRecord]


class Remember(msgspec.Struct, frozen=True, kw_only=True):
    """A command together with the idempotency record that its transition is stored with.

    `record` makes it from the state that the command led to; it is not stored for a refusal.
    `key`: project and key of the record.
    """

    command: Command
    record: MakeRecord
    key: tuple[str, str]


class DryRun(msgspec.Struct, frozen=True, kw_only=True):
    """What would this command do? Answered with a `Transition` or a `Rejection`; no effect."""

    command: Command


class AttemptNote(msgspec.Struct, frozen=True, kw_only=True):
    """Progress or a log line of an attempt, or that it sends heartbeats."""

    step: int
    attempt: int
    note: Progressed | Logged | Announced


class Delivered(msgspec.Struct, frozen=True, kw_only=True):
    """A message of the run's outbox has been acknowledged by its receiver."""

    message_id: str


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """Leave memory, if the run is still finished and has nothing left to do."""


class Resume(msgspec.Struct, frozen=True, kw_only=True):
    """Do again what a crash may have lost: derived effects and the messages of the outbox.

    records  stored job runs of the attempts in progress
    again    the actor was restarted in a living process: slots it had are to be set right
    """

    records: Mapping[tuple[int, int], JobRunRecord] = {}
    again: bool = False


class Granted(msgspec.Struct, frozen=True, kw_only=True):
    """A slot of the job was passed on to the step. A run takes it only if it still is its own."""

    job: JobKey
    step: int
    passed: Passed


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a command led to, and the run's stored state after it."""

    result: Reply | Rejection
    state: RunState

    @property
    def by_memory(self) -> bool:
        """Whether it changed nothing: no write has shown that the state is the newest."""
        result = self.result
        return not (isinstance(result, ResetSteps) or (isinstance(result, Done) and result.changed))


class QuarantinedError(ConflictError):
    """The run's actor failed too often, or the run cannot be read: it takes no commands."""


class AlreadyExistsError(Exception):
    """A run of this id is stored already (a creation that was done before a crash)."""


Outcome = Transition | Rejection
