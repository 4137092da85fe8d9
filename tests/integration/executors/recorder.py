"""Attempts for tests, and somebody to report to."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from pilotage.actors.executors.port import (
    Accepted,
    Attempt,
    Begun,
    Completed,
    Failed,
    ModeReport,
    Report,
)

_NUMBERS = iter(range(1, 1_000_000))


def attempt(job: str = "job", data: bytes = b"{}", **fields: Any) -> Attempt:
    """An attempt of its own run."""
    run_id = fields.pop("run_id", f"run-{next(_NUMBERS)}")
    defaults: dict[str, Any] = {
        "project_id": "p",
        "run_id": run_id,
        "step": 0,
        "step_ref": "charge",
        "attempt": 1,
        "job": job,
        "job_run_id": f"{run_id}-job",
        "input": data,
        "timeout_secs": 30.0,
    }
    return Attempt(**{**defaults, **fields})


class Recorder:
    """Keeps what one attempt reports; `over` ends with its last report. `begun`: how often it was
    begun after having been held back.
    """

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.begun = 0
        self.threads: set[int] = set()
        self._over: asyncio.Future[Completed | Failed | Accepted] = (
            asyncio.get_running_loop().create_future()
        )

    def __call__(self, report: ModeReport) -> None:
        if isinstance(report, Begun):
            self.begun += 1
            return
        assert not self._over.done(), f"a report after the last: {report}"
        self.reports.append(report)
        self.threads.add(threading.get_ident())
        if isinstance(report, (Completed, Failed, Accepted)):
            self._over.set_result(report)

    @property
    def is_over(self) -> bool:
        return self._over.done()

    async def over(self) -> Completed | Failed | Accepted:
        async with asyncio.timeout(20):
            return await asyncio.shield(self._over)

    async def failed(self) -> Failed:
        report = await self.over()
        assert isinstance(report, Failed), report
        return report

    async def output(self) -> bytes | None:
        report = await self.over()
        assert isinstance(report, Completed), report
        return report.output
