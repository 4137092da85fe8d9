"""Idempotency keys: what a request is remembered by, and what is remembered of its answer.

The record is written in the same atomic step as the run, transition or definition it belongs to;
"in progress" is known only in memory, so that a crash leaves nothing behind that refuses a repeat.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import msgspec

from pilotage.persistence import codec
from pilotage.persistence.port import IdempotencyRecord
from pilotage.runtime.state import RunState

KEPT_SECS = 86_400
MAX_BODY = 4096
"""Bytes of an answer kept as it was; a larger one is made again from its reference."""


class Remembered(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The first answer: its status, and its small body or the id of what it shows.

    `begun` is the plan of a request that has no answer yet: a repeat does what is left of it.
    """

    request_hash: str
    status: int
    reference: str | None = None
    body: bytes | None = None
    begun: bytes | None = None


class Idempotency(msgspec.Struct, frozen=True, kw_only=True):
    """`key` is method, path and the client's key; `request_hash` the SHA-256 of the request.

    `project_id` is the project whose records this one is counted with; `begun` the plan of an
    earlier request with the key that was not answered.
    """

    key: str
    request_hash: str
    project_id: str = "*"
    begun: bytes | None = None

    @property
    def place(self) -> tuple[str, str]:
        """Where it is remembered: project and key."""
        return self.project_id, self.key

    def item(self, name: str) -> Idempotency:
        """The key of one item of a bulk request; its own request is the item itself."""
        key = hashlib.sha256(f"{self.key}\0{name}".encode()).hexdigest()
        return Idempotency(key=f"item {key}", request_hash=name, project_id=self.project_id)

    def record(
        self, *, status: int, reference: str | None = None, body: bytes | None = None
    ) -> IdempotencyRecord:
        """What to store beside the change that the answer reports."""
        return self._kept(
            Remembered(
                request_hash=self.request_hash,
                status=status,
                reference=reference,
                body=body if body is not None and len(body) <= MAX_BODY else None,
            )
        )

    def recorder(
        self, body: Callable[[RunState], bytes | None] | None
    ) -> Callable[[RunState], IdempotencyRecord]:
        """Makes the record of the run that a command led to; `body`: how the answer shows it."""

        def record(state: RunState) -> IdempotencyRecord:
            shown = None if body is None else body(state)
            return self.record(status=200, reference=state.id, body=shown)

        return record

    def plan(self, begun: bytes) -> IdempotencyRecord:
        """What to store before anything is done that cannot be stored together with its answer."""
        return self._kept(Remembered(request_hash=self.request_hash, status=0, begun=begun))

    def _kept(self, remembered: Remembered) -> IdempotencyRecord:
        return IdempotencyRecord(
            project_id=self.project_id,
            key=self.key,
            data=codec.encode_record(remembered),
            ttl_secs=KEPT_SECS,
        )


def recall(data: bytes) -> Remembered:
    """The first answer, from what the store kept of it; raises `SnapshotError`."""
    return codec.decode_record(data, Remembered)
