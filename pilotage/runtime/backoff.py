"""When the next attempt may start (runs.md §5)."""

from __future__ import annotations

import zlib

from pilotage.runtime.definition import JobPolicy, StepSpec
from pilotage.runtime.status import Backoff, StepType

JITTER = 0.2
"""Share of the delay by which it is moved up or down, so that retries spread."""

_UNKNOWN_JOB = JobPolicy()


def policy_of(spec: StepSpec, policies: dict[str, JobPolicy]) -> JobPolicy:
    """The job's pinned policy; the defaults for a step without a job."""
    return policies.get(spec.job_id or "", _UNKNOWN_JOB)


def max_attempts(spec: StepSpec, policy: JobPolicy) -> int:
    """Attempts a step has before it fails; sub-workflows are not retried unless they say so."""
    if spec.retry_max_attempts is not None:
        return spec.retry_max_attempts
    return policy.max_attempts if spec.step_type is StepType.JOB else 1


def timeout_secs(spec: StepSpec, policy: JobPolicy) -> float:
    if spec.timeout_secs_override is not None:
        return spec.timeout_secs_override
    return policy.timeout_secs


def seconds(secs: float) -> str:
    """A duration for people: `300`, `0.25`, never an exponent."""
    return f"{secs:.3f}".rstrip("0").rstrip(".")


def retry_delay_ms(
    spec: StepSpec,
    policy: JobPolicy,
    *,
    used: int,
    seed: str,
    retry_after_secs: float | None = None,
) -> int:
    """Milliseconds from the failure of the `used`-th attempt of a budget to the next start.

    exponential: initial * 2^(n-1); linear: initial * n; fixed: initial; jitter of +-20 % before
    the cap, drawn from a hash of `seed` so that the same inputs give the same delay. What the job
    asked for (`Retry-After`) is honoured up to the cap.
    """
    initial = _first(spec.retry_initial_delay_secs, policy.retry_initial_delay_secs)
    cap = _first(spec.retry_max_delay_secs, policy.retry_max_delay_secs)
    if retry_after_secs is not None:
        return round(min(max(retry_after_secs, 0.0), cap) * 1000)
    backoff = spec.retry_backoff or policy.retry_backoff
    if backoff is Backoff.EXPONENTIAL:
        delay = initial * 2.0 ** (used - 1)
    elif backoff is Backoff.LINEAR:
        delay = initial * used
    else:
        delay = initial
    share = zlib.crc32(seed.encode()) / 0xFFFFFFFF
    delay *= 1.0 - JITTER + 2.0 * JITTER * share
    return round(min(delay, cap) * 1000)


def _first(override: float | None, value: float) -> float:
    return value if override is None else override
