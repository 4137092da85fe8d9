"""Who goes by what is stored of definitions, beyond those that ask each time."""

from __future__ import annotations

from collections.abc import Callable

from pilotage.actors.catalog_model import Workflow


class Listeners:
    """Who is told of changes of definitions, after they are stored, and after it is known that
    they may have been. Set by the runtime.
    """

    def __init__(self) -> None:
        self.workflow: Callable[[Workflow], object] = _ignore
        self.workflow_deleted: Callable[[str], object] = _ignore
        self.job_limit: Callable[[str, str, int], object] = _ignore
        """Project, job reference, `max_concurrency` (0: none); told of every change of a job."""


def _ignore(*_: object) -> None:
    return None
