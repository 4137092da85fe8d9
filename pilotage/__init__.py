"""Pilotage: an actor-model workflow runtime. Every workflow run gets its own pilot.

Importing this package loads nothing else: the public names are resolved at their first use, so
that `import pilotage` costs next to nothing in a program that only wants the version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pilotage.actors.executors.job_context import Fail, JobContext, Retry
    from pilotage.app import Pilotage, Workflow
    from pilotage.local import LocalRuntime, Run, RunResult
    from pilotage.runtime.errors import DefinitionError, PilotageError
    from pilotage.steps import Step, approval, sleep, step, sub_workflow, wait_for_event

__version__ = "0.1.0"

__all__ = [
    "DefinitionError",
    "Fail",
    "JobContext",
    "LocalRuntime",
    "Pilotage",
    "PilotageError",
    "Retry",
    "Run",
    "RunResult",
    "Step",
    "Workflow",
    "__version__",
    "approval",
    "sleep",
    "step",
    "sub_workflow",
    "wait_for_event",
]

_HOMES = {
    "pilotage.actors.executors.job_context": ("Fail", "JobContext", "Retry"),
    "pilotage.app": ("Pilotage", "Workflow"),
    "pilotage.local": ("LocalRuntime", "Run", "RunResult"),
    "pilotage.runtime.errors": ("DefinitionError", "PilotageError"),
    "pilotage.steps": ("Step", "approval", "sleep", "step", "sub_workflow", "wait_for_event"),
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    for module, names in _HOMES.items():
        if name in names:
            value: object = getattr(import_module(module), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'pilotage' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
