"""What a workflow and a job are once validated: plain frozen values.

`StepSpec` has the fields of the API's step (definitions.md) under the same names. Nothing here
checks anything: `pilotage.runtime.validation` builds these from untrusted input and reports all
problems at once.
"""

from __future__ import annotations

from typing import Any

import msgspec

from pilotage.runtime.status import Backoff, ExecutionMode, OnFailure, StepType

DEFAULT_MAX_ATTEMPTS = 3
DEFAULT_TIMEOUT_SECS = 300.0
DEFAULT_RETRY_INITIAL_DELAY_SECS = 1.0
DEFAULT_RETRY_MAX_DELAY_SECS = 3600.0
DEFAULT_EVENT_TIMEOUT_SECS = 3600.0
MAX_NESTING_DEPTH = 10


class StepSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One step of a workflow version. Durations are seconds and may be fractional."""

    step_ref: str
    step_type: StepType = StepType.JOB
    depends_on: tuple[str, ...] = ()
    job_id: str | None = None
    condition: dict[str, Any] | None = None
    payload: dict[str, Any] | None = None
    output_transform: str | None = None
    on_failure: OnFailure = OnFailure.FAIL_WORKFLOW
    retry_max_attempts: int | None = None
    retry_backoff: Backoff | None = None
    retry_initial_delay_secs: float | None = None
    retry_max_delay_secs: float | None = None
    timeout_secs_override: float | None = None
    concurrency_key: str | None = None
    approval_approvers: tuple[str, ...] = ()
    approval_timeout_secs: float | None = None
    event_key: str | None = None
    event_timeout_secs: float | None = None
    event_emit_key: str | None = None
    sleep_duration_secs: float | None = None
    sub_workflow_id: str | None = None
    max_nesting_depth: int | None = None


class WorkflowSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What runs: everything whose change makes a new version of the workflow."""

    steps: tuple[StepSpec, ...]
    timeout_secs: float = 0.0
    max_concurrent_runs: int = 0
    max_parallel_steps: int = 0
    cron: str | None = None
    cron_timezone: str = "UTC"
    skip_if_running: bool = False


class JobPolicy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The part of a job that the run machine needs; pinned in the run when it is triggered.

    `limited` says that the job has a `max_concurrency`: its attempts wait for a slot that is
    granted across runs. Executors look up everything else (address, secret) at each attempt.
    """

    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    retry_backoff: Backoff = Backoff.EXPONENTIAL
    retry_initial_delay_secs: float = DEFAULT_RETRY_INITIAL_DELAY_SECS
    retry_max_delay_secs: float = DEFAULT_RETRY_MAX_DELAY_SECS
    timeout_secs: float = DEFAULT_TIMEOUT_SECS
    limited: bool = False


class JobSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A job as the API defines it (definitions.md), without identity and times."""

    endpoint_url: str | None = None
    execution_mode: ExecutionMode = ExecutionMode.HTTP
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    timeout_secs: float = DEFAULT_TIMEOUT_SECS
    retry_backoff: Backoff = Backoff.EXPONENTIAL
    retry_initial_delay_secs: float = DEFAULT_RETRY_INITIAL_DELAY_SECS
    retry_max_delay_secs: float = DEFAULT_RETRY_MAX_DELAY_SECS
    max_concurrency: int | None = None
    signing_secret: str | None = None
    heartbeat_timeout_secs: float | None = None

    def policy(self) -> JobPolicy:
        return JobPolicy(
            max_attempts=self.max_attempts,
            retry_backoff=self.retry_backoff,
            retry_initial_delay_secs=self.retry_initial_delay_secs,
            retry_max_delay_secs=self.retry_max_delay_secs,
            timeout_secs=self.timeout_secs,
            limited=bool(self.max_concurrency),
        )
