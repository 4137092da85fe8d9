"""W3C trace context: what is taken from a header, and what goes out."""

from __future__ import annotations

import pytest

from pilotage.runtime.tracing import parse_trace, trace_of, traceparent

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
RUN = "01a0c450-6c00-7abc-8000-0000abcd0000"


@pytest.mark.parametrize(
    ("header", "trace"),
    [
        (f"00-{TRACE}-{SPAN}-01", f"{TRACE}-01"),
        (f"00-{TRACE}-{SPAN}-00", f"{TRACE}-00"),
        (f" 00-{TRACE}-{SPAN}-03 ", f"{TRACE}-01"),  # flags that we do not know are not set
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-brings", f"{TRACE}-01"),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}", None),
        (f"cc-{TRACE}-{SPAN}-01-" + "x" * 300, None),
        ("", None),
        (None, None),
    ],
)
def test_a_header_is_taken_or_ignored(header: str | None, trace: str | None) -> None:
    assert parse_trace(header) == trace


def test_an_attempt_is_a_span_of_the_trace_that_its_run_continues() -> None:
    first, again, second = (traceparent(RUN, f"{TRACE}-00", name) for name in "aab")
    assert first == again  # the same attempt, delivered again
    assert first != second
    assert first[:36] == f"00-{TRACE}-"
    assert first[-3:] == "-00"
    assert parse_trace(first) == f"{TRACE}-00"


def test_a_run_without_a_trace_is_one_of_its_own() -> None:
    own = trace_of(RUN, None)
    assert own == f"{RUN.replace('-', '')}-01"
    assert parse_trace(traceparent(RUN, None, "a")) == own
    assert trace_of(RUN, f"{TRACE}-01") == f"{TRACE}-01"
