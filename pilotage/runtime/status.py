"""The words a run is described with: every closed set of values is an enum here.

Values are the strings of the REST contract, so that encoding needs no mapping.
"""

from __future__ import annotations

from enum import StrEnum


class RunStatus(StrEnum):
    """Status of a run. `pending`, `running` and `paused` are active, the rest terminal."""

    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELED = "canceled"

    @property
    def is_terminal(self) -> bool:
        return self in TERMINAL_RUN


TERMINAL_RUN = frozenset(
    {RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.TIMED_OUT, RunStatus.CANCELED}
)
ACTIVE_RUN = frozenset(set(RunStatus) - TERMINAL_RUN)


class StepStatus(StrEnum):
    """Status of a step run. The last four are terminal."""

    WAITING = "waiting"
    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELED = "canceled"

    @property
    def is_terminal(self) -> bool:
        return self in TERMINAL_STEP


TERMINAL_STEP = frozenset(
    {StepStatus.COMPLETED, StepStatus.FAILED, StepStatus.SKIPPED, StepStatus.CANCELED}
)


class StepType(StrEnum):
    JOB = "job"
    APPROVAL = "approval"
    WAIT_FOR_EVENT = "wait_for_event"
    SLEEP = "sleep"
    SUB_WORKFLOW = "sub_workflow"


PARKING_TYPES = frozenset({StepType.APPROVAL, StepType.WAIT_FOR_EVENT, StepType.SLEEP})


class OnFailure(StrEnum):
    """What a step's failure does to the run once its attempts are used up."""

    FAIL_WORKFLOW = "fail_workflow"
    SKIP_DEPENDENTS = "skip_dependents"
    CONTINUE = "continue"


class Backoff(StrEnum):
    EXPONENTIAL = "exponential"
    LINEAR = "linear"
    FIXED = "fixed"


class WaitingFor(StrEnum):
    """Why a step that is not running has not ended (`waiting_for` of the API)."""

    DEPENDENCIES = "dependencies"
    APPROVAL = "approval"
    EVENT = "event"
    TIMER = "timer"
    RETRY = "retry"
    PARALLEL_LIMIT = "parallel_limit"
    CONCURRENCY_KEY = "concurrency_key"
    PAUSED = "paused"
    JOB_LIMIT = "job_limit"
    RUN_QUEUE = "run_queue"


class SkippedBy(StrEnum):
    OPERATOR = "operator"
    CONDITION = "condition"
    DEPENDENCY = "dependency"
    OVERRIDE = "override"


class ExecutionMode(StrEnum):
    HTTP = "http"
    PYTHON = "python"
    QUEUE = "queue"


class JobRunStatus(StrEnum):
    QUEUED = "queued"
    EXECUTING = "executing"
    WAITING = "waiting"
    COMPLETED = "completed"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELED = "canceled"
