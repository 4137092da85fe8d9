"""Idempotency keys whose first command may still be carried out, though nobody waits for it.

A caller is answered after some seconds in any case. What it asked for may be stored later, when the
store is back: until that is known a repeat with the same key must neither be done nor be told that
nothing was done. In memory only: what a process has not stored when it ends is never done.
"""

from __future__ import annotations

from collections import Counter

from pilotage.actors.errors import UnavailableError
from pilotage.actors.kernel.futures import AwaitableFuture

ProjectKey = tuple[str, str]
"""(project id, idempotency key)."""


class Unresolved:
    """On the actors' loop."""

    def __init__(self) -> None:
        self._keys: Counter[ProjectKey] = Counter()

    def __len__(self) -> int:
        """How many keys there are."""
        return len(self._keys)

    def watch(self, key: ProjectKey, reply: AwaitableFuture[object]) -> None:
        """`reply` comes when it is known what became of the command."""
        self._keys[key] += 1
        reply.add_done_callback(lambda: self._known(key))

    def refuse(self, project_id: str, key: str) -> None:
        """`UnavailableError` as long as nobody knows."""
        if (project_id, key) in self._keys:
            raise UnavailableError(
                "the first request with this Idempotency-Key is still being carried out; try again"
            )

    def _known(self, key: ProjectKey) -> None:
        self._keys[key] -= 1
        if not self._keys[key]:
            del self._keys[key]
