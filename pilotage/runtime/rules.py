"""The table of legal moves: which command is allowed in which status (runs.md §6 and §10).

A row has the statuses in which the command acts, those in which it already holds (a success
without effect), and the words for the refusal. Every status of every row is a test case.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

import msgspec

from pilotage.runtime.commands import (
    ApproveStep,
    CancelRun,
    Command,
    ForceCompleteStep,
    PauseRun,
    RejectStep,
    ReplaySubtree,
    ResumeRun,
    RetryStep,
    SkipStep,
)
from pilotage.runtime.status import ACTIVE_RUN, TERMINAL_STEP, RunStatus, StepStatus


class RejectionCode(StrEnum):
    CONFLICT = "conflict"
    FORBIDDEN = "forbidden"
    INVALID = "invalid"


class Rejection(msgspec.Struct, frozen=True, kw_only=True):
    """Why a command was refused: the status found and the statuses allowed, as data and text."""

    code: RejectionCode
    message: str
    found: str | None = None
    allowed: tuple[str, ...] = ()


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """One row: `done` is what the command does to its subject, as a participle."""

    allowed: frozenset[str]
    already: frozenset[str] = frozenset()
    done: str
    hint: str = ""


_R, _S = RunStatus, StepStatus

RUN_MOVES: dict[type[Command], Move] = {
    CancelRun: Move(
        allowed=frozenset(ACTIVE_RUN), already=frozenset({_R.CANCELED}), done="canceled"
    ),
    PauseRun: Move(allowed=frozenset({_R.RUNNING}), already=frozenset({_R.PAUSED}), done="paused"),
    ResumeRun: Move(
        allowed=frozenset({_R.PAUSED}), already=frozenset({_R.RUNNING}), done="resumed"
    ),
}

STEP_MOVES: dict[type[Command], Move] = {
    ApproveStep: Move(
        allowed=frozenset({_S.WAITING}), done="approved", hint="it must wait for an approval"
    ),
    RejectStep: Move(
        allowed=frozenset({_S.WAITING}), done="rejected", hint="it must wait for an approval"
    ),
    SkipStep: Move(
        allowed=frozenset({_S.PENDING, _S.WAITING, _S.RUNNING, _S.FAILED}),
        already=frozenset({_S.SKIPPED}),
        done="skipped",
        hint="retry the step or replay its subtree to run it again",
    ),
    ForceCompleteStep: Move(
        allowed=frozenset({_S.PENDING, _S.WAITING, _S.RUNNING, _S.FAILED}),
        done="force-completed",
        hint="retry the step or replay its subtree to run it again",
    ),
    RetryStep: Move(
        allowed=frozenset(TERMINAL_STEP),
        done="retried",
        hint="wait for it to end, or replay its subtree",
    ),
    ReplaySubtree: Move(allowed=frozenset(StepStatus), done="replayed"),
}

RETRY_RUN = Move(
    allowed=frozenset({_R.FAILED, _R.TIMED_OUT, _R.CANCELED}),
    done="retried",
)


def words(statuses: Iterable[str], order: Iterable[str]) -> str:
    """`a, b or c`, in the order given."""
    wanted = set(statuses)
    texts = [str(status) for status in order if status in wanted]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"


def refuse_run(move: Move, status: RunStatus, hint: str = "") -> Rejection:
    allowed = words(move.allowed, _R)
    text = f"run is {status}; only a {allowed} run can be {move.done}"
    hint = hint or move.hint
    return Rejection(
        code=RejectionCode.CONFLICT,
        message=f"{text}; {hint}" if hint else text,
        found=status,
        allowed=tuple(sorted(move.allowed)),
    )


def refuse_step(move: Move, ref: str, status: StepStatus, hint: str = "") -> Rejection:
    allowed = words(move.allowed, _S)
    text = f'step "{ref}" is {status}; only a {allowed} step can be {move.done}'
    hint = hint or move.hint
    return Rejection(
        code=RejectionCode.CONFLICT,
        message=f"{text}; {hint}" if hint else text,
        found=status,
        allowed=tuple(sorted(move.allowed)),
    )


def conflict(message: str, found: str | None = None) -> Rejection:
    return Rejection(code=RejectionCode.CONFLICT, message=message, found=found)
