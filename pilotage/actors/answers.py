"""How callers are given what the machine answers: refusals as errors, previews, bulk items."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec

from pilotage.actors.errors import ApplicationError, ConflictError, ForbiddenError, InvalidError
from pilotage.runtime.machine import Transition
from pilotage.runtime.preview import Preview, preview
from pilotage.runtime.replies import ResetSteps
from pilotage.runtime.rules import Rejection, RejectionCode

T = TypeVar("T")


class BulkItem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one run of a bulk command: `canceled`, `replayed` or `failed`."""

    workflow_run_id: str
    status: str
    new_workflow_run_id: str | None = None
    error: str | None = None


async def each(run_ids: Sequence[str], one: Callable[[str], Awaitable[BulkItem]]) -> list[BulkItem]:
    """Each run once, side by side, failures as items of their own."""

    async def safely(run_id: str) -> BulkItem:
        try:
            return await one(run_id)
        except ApplicationError as error:
            return BulkItem(workflow_run_id=run_id, status="failed", error=error.message)

    return list(await asyncio.gather(*map(safely, dict.fromkeys(run_ids))))


def previewed(transition: Transition) -> Preview:
    reply = transition.reply
    return preview(transition, reply.count if isinstance(reply, ResetSteps) else None)


def rejected(rejection: Rejection) -> ApplicationError:
    """The error that stands for a refusal of the machine."""
    if rejection.code is RejectionCode.FORBIDDEN:
        return ForbiddenError(rejection.message)
    if rejection.code is RejectionCode.INVALID:
        return InvalidError("the request is not valid", [rejection.message])
    return ConflictError(rejection.message)


def raise_rejection(result: T | Rejection) -> T:
    if isinstance(result, Rejection):
        raise rejected(result)
    return result
