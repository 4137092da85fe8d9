"""What the server has acknowledged, written down by those who were told.

A promise is a run whose trigger was acknowledged, with the end that follows from the commands that
were acknowledged since. A result counts as acknowledged when a report of it was answered with
success, or when a read has shown it.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pilotage.runtime.jsonvalues import is_object


@dataclass(kw_only=True)
class Promise:
    """What must be true of a run at the end; filled in as commands are acknowledged."""

    run_id: str
    scenario: str
    status: str = "completed"
    steps: dict[str, str] = field(default_factory=dict[str, str])
    """step -> status"""
    attempts: dict[str, int] = field(default_factory=dict[str, int])
    """step -> number of its newest attempt"""
    outputs: dict[str, Any] = field(default_factory=dict[str, Any])
    """step -> output that a command gave it"""
    commands: list[tuple[str, str | None]] = field(default_factory=list[tuple[str, str | None]])
    """(type, step) of history items that must be there, exactly as often as they are named."""
    carried: frozenset[str] = frozenset()
    """Steps that another run has done already."""


class Ledger:
    def __init__(self) -> None:
        self.promises: dict[str, Promise] = {}
        self.results: dict[tuple[str, str, int], tuple[float, Any]] = {}
        """(run, step, attempt) -> when it was first known to be acknowledged, and the output."""
        self.acknowledged: Counter[str] = Counter()
        self.problems: list[str] = []

    def promise(self, promise: Promise) -> Promise:
        self.promises[promise.run_id] = promise
        return promise

    def problem(self, text: str) -> None:
        self.problems.append(text)

    def acknowledged_result(self, run: str, ref: str, output: Any) -> None:
        """A result as it was reported with success, or as it was read."""
        if not is_object(output) or not isinstance(attempt := output.get("attempt"), int):
            return  # not a result of one of our jobs
        known = self.results.setdefault((run, ref, attempt), (time.monotonic(), output))
        if known[1] != output:
            self.problem(f"{run} {ref} attempt {attempt}: {known[1]} became {output}")

    def read(self, run: str, steps: dict[str, dict[str, Any]]) -> None:
        """What a read has shown is acknowledged as well."""
        carried = self.promises[run].carried if run in self.promises else frozenset[str]()
        for ref, step in steps.items():
            if step["status"] == "completed" and ref not in carried:
                self.acknowledged_result(run, ref, step.get("output"))
