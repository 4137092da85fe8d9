"""W3C trace context: which trace a run belongs to. Pure.

A run continues the trace of the request that triggered it, and hands it on to its attempts and
child runs; without one it is a trace of its own, named by its id. A span is derived from the
attempt's id, so that nothing about it needs to be stored.
"""

from __future__ import annotations

import re
from hashlib import blake2b

_TRACEPARENT = re.compile(
    r"(?P<version>(?!ff)[0-9a-f]{2})-(?P<trace>(?!0{32})[0-9a-f]{32})"
    r"-(?!0{16})[0-9a-f]{16}-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?\Z"
)
MAX_CHARS = 256
SAMPLED = "01"


def parse_trace(header: str | None) -> str | None:
    """`TRACE_ID-FLAGS` of a `traceparent` header; None without one or if it is not valid."""
    if header is None or len(header) > MAX_CHARS:
        return None
    found = _TRACEPARENT.match(header.strip())
    if found is None or (found["version"] == "00" and found["more"] is not None):
        return None
    sampled = int(found["flags"], 16) & 1  # the other bits mean nothing to us and are not set
    return f"{found['trace']}-{sampled:02x}"


def trace_of(run_id: str, trace: str | None) -> str:
    """The trace that the run continues, else its own."""
    return trace or f"{run_id.replace('-', '')}-{SAMPLED}"


def traceparent(run_id: str, trace: str | None, attempt_id: str) -> str:
    """What goes out with an attempt: the run's trace, with the attempt as the span."""
    trace_id, _, flags = trace_of(run_id, trace).partition("-")
    span = blake2b(attempt_id.encode(), digest_size=8).hexdigest()
    return f"00-{trace_id}-{span}-{flags}"
