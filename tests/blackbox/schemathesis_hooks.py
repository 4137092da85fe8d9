"""What Schemathesis cannot know of a request that fits our document: changed before it is sent.

Loaded by it through SCHEMATHESIS_HOOKS. A cursor is one of ours (here: none yet), an
Idempotency-Key belongs to one request, overrides name steps of the workflow, and an integer in free
JSON has at most 64 bits. What is meant to be wrong stays as it is, but for a body that is null:
where it may be left out, null is the same.
"""

from __future__ import annotations

from itertools import count
from typing import Any

import schemathesis
from schemathesis.core.parameters import ParameterLocation

from pilotage.http.call import MAX_KEY
from pilotage.runtime.jsonvalues import MAX_INTEGER, MIN_INTEGER, is_array, is_object

PROJECT = "acme"
"""The one that the examples name."""
_numbers = count()


@schemathesis.hook
def before_call(_context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    meta = case.meta
    if meta is not None and meta.generation.mode.is_negative:
        if "X-Project-Id" not in case.headers and not _is_about_headers(meta):
            kwargs["auth"] = _Headers({"X-Project-Id": PROJECT})
        if case.body is None:
            case.body = []
        return
    headers = {"X-Project-Id": PROJECT}
    if case.headers.get("Idempotency-Key"):
        headers["Idempotency-Key"] = f"{case.headers['Idempotency-Key']}{next(_numbers)}"[-MAX_KEY:]
    kwargs["auth"] = _Headers(headers)
    if "cursor" in (case.query or ()):
        case.query["cursor"] = ""
    kept = _kept(case.body)
    if is_object(kept) and "step_overrides" in kept:
        kept["step_overrides"] = []
    if kept != case.body:
        case.body = kept


def _is_about_headers(meta: Any) -> bool:
    return bool(meta.phase.data.parameter_location is ParameterLocation.HEADER)


class _Headers:
    """Set on the way out: a changed case would be judged anew."""

    def __init__(self, headers: dict[str, str]) -> None:
        self._headers = headers

    def __call__(self, request: Any) -> Any:
        request.headers.update(self._headers)
        return request


def _kept(value: Any) -> Any:
    """The value with integers that can be stored."""
    if is_object(value):
        return {name: _kept(member) for name, member in value.items()}
    if is_array(value):
        return [_kept(member) for member in value]
    too_large = isinstance(value, int) and not MIN_INTEGER <= value <= MAX_INTEGER
    return 0 if too_large else value
