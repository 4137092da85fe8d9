"""Who is using a workflow at this moment, so that none is deleted while a run of it is being made.

Before a workflow is deleted the store is asked for its active runs. One that is about to be made is
not there yet: the deletion waits for it, and what would be made meanwhile waits for the deletion.
All on the actors' loop; either takes no longer than a command may.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from pilotage.actors.errors import NotFoundError

GONE_KEPT = 10_000
"""Deleted workflows remembered, for requests that have found one just before it was deleted."""


class _Use:
    """Of one workflow: how many runs are being made; set while it is being deleted: `over` at the
    end of that, `unused` when the last of those runs has been made.
    """

    __slots__ = ("makers", "over", "unused")

    def __init__(self) -> None:
        self.makers = 0
        self.over: asyncio.Event | None = None
        self.unused: asyncio.Event | None = None


class WorkflowUses:
    """By workflow id; a workflow that nobody uses takes no memory."""

    def __init__(self) -> None:
        self._uses: dict[str, _Use] = {}
        self._gone: dict[str, None] = {}

    def __len__(self) -> int:
        """How many workflows are in use."""
        return len(self._uses)

    @asynccontextmanager
    async def making(self, workflow_id: str, slug: str) -> AsyncGenerator[None]:
        """While a run of it is made. `NotFoundError` if it has been deleted."""
        use = self._uses.get(workflow_id)
        while use is not None and use.over is not None:
            await use.over.wait()
            use = self._uses.get(workflow_id)
        if workflow_id in self._gone:
            raise NotFoundError(f'unknown workflow "{slug}"; it has just been deleted')
        if use is None:
            use = self._uses[workflow_id] = _Use()
        use.makers += 1
        try:
            yield
        finally:
            use.makers -= 1
            if not use.makers and use.unused is not None:
                use.unused.set()
            self._drop_unused(workflow_id, use)

    @asynccontextmanager
    async def deleting(self, workflow_id: str) -> AsyncGenerator[None]:
        """While it is deleted, one at a time; it is gone if nothing is raised."""
        use = self._uses.setdefault(workflow_id, _Use())
        over = use.over = asyncio.Event()
        try:
            if use.makers:
                use.unused = asyncio.Event()
                await use.unused.wait()
            yield
            self._gone[workflow_id] = None
            if len(self._gone) > GONE_KEPT:
                del self._gone[next(iter(self._gone))]
        finally:
            over.set()
            use.over = use.unused = None
            self._drop_unused(workflow_id, use)

    def _drop_unused(self, workflow_id: str, use: _Use) -> None:
        if not use.makers and use.over is None:
            self._uses.pop(workflow_id, None)
