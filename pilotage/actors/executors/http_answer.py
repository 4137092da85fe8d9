"""What an endpoint's answer means for the attempt: one status and one body in, one report out."""

from __future__ import annotations

import codecs
import math
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import msgspec

from pilotage.actors.executors.faithful import TOO_DEEP, faithful_copy
from pilotage.actors.executors.invoke import (
    bounded_error,
    outcome_of,
    too_large,
    transformed_output,
)
from pilotage.actors.executors.port import MAX_OUTPUT_BYTES, Accepted, Completed, Failed

RETRYABLE_4XX = frozenset({408, 409, 425, 429})
RETRY_AFTER_STATUSES = frozenset({429, 503})
EXCERPT_BYTES = 512
_NO_CHARSETS = frozenset({"idna", "punycode", "raw-unicode-escape", "unicode-escape", "undefined"})
"""Codecs of Python's that no document is written in; some take the square of the time."""

HttpOutcome = Accepted | Completed | Failed


class Answer(NamedTuple):
    """`media_type` without parameters, lower case, empty if not given. `body` is not all of it
    when it is too large; `size` is the size of all of it, None if unknown.
    """

    status: int
    media_type: str
    charset: str | None
    retry_after: str | None
    body: bytes
    size: int | None


def outcome_of_answer(answer: Answer, transform: str | None, now_secs: float) -> HttpOutcome:
    """`now_secs` is Unix time, for a `Retry-After` that is a date."""
    if answer.status == 202:
        return Accepted()
    if 200 <= answer.status < 300:
        return _success(answer, transform)
    return _failure(answer, now_secs)


# --- 2xx ------------------------------------------------------------------------------------------


def _success(answer: Answer, transform: str | None) -> Completed | Failed:
    if answer.size is None or answer.size > MAX_OUTPUT_BYTES:
        return too_large(answer.size)
    if not answer.body.strip():
        output: bytes | Failed = b"null"
    elif _is_json(answer.media_type):
        output = _json(answer.body)
    elif answer.media_type:
        output = _text(answer)
    else:  # not said what it is: JSON if it can be read as JSON
        parsed = _json(answer.body)
        output = _text(answer) if isinstance(parsed, Failed) else parsed
    if isinstance(output, bytes) and transform is not None:
        output = transformed_output(output, transform)
    if isinstance(output, Failed):
        return output
    if len(output) > MAX_OUTPUT_BYTES:
        return too_large(len(output))
    return Completed(None if output == b"null" else output)


def _is_json(media_type: str) -> bool:
    return media_type in {"application/json", "text/json"} or media_type.endswith("+json")


def _json(body: bytes) -> bytes | Failed:
    """The body in the one spelling that is stored."""
    try:
        return faithful_copy(body)
    except RecursionError:
        return Failed(TOO_DEEP, "bad_answer", final=True)
    except (msgspec.DecodeError, ValueError) as error:
        return Failed(
            bounded_error(f"the answer is not the JSON it claims to be: {error}"),
            "bad_answer",
            final=True,
        )


def _text(answer: Answer) -> bytes | Failed:
    text = _decoded(answer.body, answer.charset or "utf-8")
    if text is None:
        return Failed(
            f"the answer ({answer.media_type or 'no content type'}) is neither JSON nor text",
            "bad_answer",
            final=True,
        )
    outcome = outcome_of(text, None)
    return outcome if isinstance(outcome, Failed) else outcome.output or b"null"


def _decoded(body: bytes, charset: str) -> str | None:
    try:
        name = codecs.lookup(charset).name
        return None if name in _NO_CHARSETS else body.decode(name)
    except (ValueError, LookupError):  # `ValueError`: of Unicode, and of names that cannot be one
        return None


# --- the rest -------------------------------------------------------------------------------------


def _failure(answer: Answer, now_secs: float) -> Failed:
    status = answer.status
    if 300 <= status < 400:
        return Failed(
            f"the endpoint answered {status}: redirects are not followed; "
            "set endpoint_url to where it leads",
            f"http_{status}",
            final=True,
        )
    final = 400 <= status < 500 and status not in RETRYABLE_4XX
    delay = None
    if status in RETRY_AFTER_STATUSES and answer.retry_after is not None:
        delay = retry_after_secs(answer.retry_after, now_secs)
    excerpt = answer.body[:EXCERPT_BYTES].decode("utf-8", "replace").strip()
    text = f"the endpoint answered {status}" + (f": {excerpt}" if excerpt else "")
    return Failed(bounded_error(text), f"http_{status}", final=final, retry_after_secs=delay)


def retry_after_secs(value: str, now_secs: float) -> float | None:
    """Both forms of RFC 9110: seconds or a date. None for anything else."""
    value = value.strip()
    try:
        if value.isascii() and value.replace(".", "", 1).isdigit():
            delay = float(value)
        else:
            delay = parsedate_to_datetime(value).timestamp() - now_secs
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, delay) if math.isfinite(delay) else None
