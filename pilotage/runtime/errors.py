"""The one error root. Errors carry data; the message is made from it."""

from __future__ import annotations

from collections.abc import Sequence


class PilotageError(Exception):
    """Root of everything this package raises on purpose."""


class DefinitionError(PilotageError):
    """A definition is wrong. `problems` lists all of it, each as `path: what is wrong`."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems: tuple[str, ...] = tuple(problems)


class TemplateError(PilotageError):
    """A template could not be rendered; the message names the path."""


class ConditionError(PilotageError):
    """A condition could not be evaluated; the message says where and why."""


class IllegalEventError(PilotageError):
    """An event does not fit the state it is applied to: a bug, the run is quarantined."""
