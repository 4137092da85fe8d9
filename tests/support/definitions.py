"""Small definitions and a resolver for tests of validation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from pilotage.runtime.errors import DefinitionError

_T = TypeVar("_T")
_E = TypeVar("_E", bound=Exception)


class FakeResolver:
    """Knows some jobs and workflows by id and slug; counts the questions."""

    def __init__(self, *, jobs: tuple[str, ...] = ("j",), workflows: tuple[str, ...] = ()) -> None:
        self._jobs = jobs
        self._workflows = workflows
        self.asked: Counter[str] = Counter()

    def job(self, id_or_slug: str) -> str | None:
        self.asked[f"job {id_or_slug}"] += 1
        return f"job:{id_or_slug}" if id_or_slug in self._jobs else None

    def workflow(self, id_or_slug: str) -> str | None:
        self.asked[f"workflow {id_or_slug}"] += 1
        return f"workflow:{id_or_slug}" if id_or_slug in self._workflows else None


def job_step(ref: str, *depends_on: str, **fields: Any) -> dict[str, Any]:
    step: dict[str, Any] = {"step_ref": ref, "job_id": "j", **fields}
    if depends_on:
        step["depends_on"] = list(depends_on)
    return step


def workflow(*steps: Any, **fields: Any) -> dict[str, Any]:
    return {"name": "orders", "steps": list(steps), **fields}


def problems_of(parse: Callable[[], object]) -> list[str]:
    """What the parsing complains about; it must."""
    with pytest.raises(DefinitionError) as caught:
        parse()
    return list(caught.value.problems)


def outcome(call: Callable[[], _T], kind: type[_E]) -> _T | _E:
    """What the call answers, or the error of that kind that it ends in."""
    try:
        return call()
    except kind as error:
        return error
