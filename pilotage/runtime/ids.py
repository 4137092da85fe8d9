"""Identifiers: every id is a UUIDv7, and the ids inside a run are derived from the run's.

Layout of the 128 bits (RFC 9562, version 7), most significant first:

    48 time (Unix ms) | 4 version | 12 random
    2 variant | 14 step | 14 attempt | 18 random | 16 shard

In a run's own id the step and attempt fields are zero. The id of step run i has step = i + 1, the
job run of its attempt n also has attempt = n. So a job run's id leads back to run, step and
attempt without an index, and the last 16 bits of every id of a run name its shard.
"""

from __future__ import annotations

import hashlib
import uuid
from typing import NamedTuple

MAX_ATTEMPT = (1 << 14) - 1
_STEP_SHIFT, _ATTEMPT_SHIFT = 48, 34
_STEP_MASK = 0x3FFF << _STEP_SHIFT
_ATTEMPT_MASK = 0x3FFF << _ATTEMPT_SHIFT
_INNER_MASK = _STEP_MASK | _ATTEMPT_MASK
RANDOM_BITS = 30


class Located(NamedTuple):
    """Where an id of ours points: `step` is None for a run, `attempt` 0 for a step run."""

    run_id: str
    step: int | None
    attempt: int


def make_run_id(time_ms: int, random_bits: int, shard: int = 0) -> str:
    """A run id of its parts: `random_bits` has 30 bits, `shard` 16."""
    value = (time_ms & 0xFFFFFFFFFFFF) << 80
    value |= 0x7 << 76 | ((random_bits >> 18) & 0xFFF) << 64
    value |= 0b10 << 62 | (random_bits & 0x3FFFF) << 16 | (shard & 0xFFFF)
    return _text(value)


def derived_run_id(time_ms: int, *parts: object, shard: int = 0) -> str:
    """The run id that `parts` always give: for child runs and for cron fire times."""
    digest = hashlib.blake2b("\x00".join(map(str, parts)).encode(), digest_size=8).digest()
    return make_run_id(time_ms, int.from_bytes(digest), shard)


def step_run_id(run_id: str, step: int) -> str:
    return _text(_int(run_id) | (step + 1) << _STEP_SHIFT)


def job_run_id(run_id: str, step: int, attempt: int) -> str:
    return _text(_int(run_id) | (step + 1) << _STEP_SHIFT | attempt << _ATTEMPT_SHIFT)


def locate(any_id: str) -> Located | None:
    """The run (step, attempt) that an id points to; None if it cannot be an id of ours."""
    if len(any_id) != 36:
        return None
    try:
        parsed = uuid.UUID(any_id)
    except ValueError:
        return None
    value = parsed.int
    if _text(value) != any_id or parsed.version != 7 or parsed.variant != uuid.RFC_4122:
        return None
    step = (value & _STEP_MASK) >> _STEP_SHIFT
    attempt = (value & _ATTEMPT_MASK) >> _ATTEMPT_SHIFT
    return Located(_text(value & ~_INNER_MASK), step - 1 if step else None, attempt)


def shard_of(run_id: str) -> int:
    """The 16 shard bits of an id of a run."""
    return int(run_id[-4:], 16)


def is_run_id(text: str) -> bool:
    found = locate(text)
    return found is not None and found.step is None and found.attempt == 0


def _int(run_id: str) -> int:
    return int(run_id.replace("-", ""), 16)


def _text(value: int) -> str:
    h = f"{value:032x}"
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"
