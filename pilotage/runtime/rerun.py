"""A new run from an old one: retry run and bulk replay (runs.md §6)."""

from __future__ import annotations

import msgspec

from pilotage.runtime.commands import CreateRun
from pilotage.runtime.rules import RETRY_RUN, Rejection, refuse_run
from pilotage.runtime.state import RunHead, RunState, StepState
from pilotage.runtime.status import OnFailure, RunStatus, SkippedBy, StepStatus


def retry_of(
    state: RunState, *, run_id: str, now: int, actor: str, slot: bool
) -> CreateRun | Rejection:
    """The command that makes the retry of a failed, timed out or canceled run.

    Completed, tolerated-failed and operator-skipped steps are carried over as they are, steps
    switched off at the trigger stay off, all others start fresh.
    """
    if state.status not in RETRY_RUN.allowed:
        hint = (
            "there is nothing to retry; replay it from the beginning with bulk-replay"
            if state.status is RunStatus.COMPLETED
            else "wait for its end, or cancel it first"
        )
        return refuse_run(RETRY_RUN, state.status, hint)
    carried: list[tuple[int, StepState]] = []
    for i, old in enumerate(state.steps()):
        if _carried(state, i, old):
            carried.append((i, old))
    return CreateRun(
        actor=actor,
        head=_new_head(state.head, run_id, now, actor, "retry"),
        slot=slot,
        carried=tuple(carried),
        disabled=_disabled(state),
    )


def replay_of(state: RunState, *, run_id: str, now: int, actor: str, slot: bool) -> CreateRun:
    """The command that runs a completed run again from the beginning."""
    return CreateRun(
        actor=actor,
        head=_new_head(state.head, run_id, now, actor, "replay"),
        slot=slot,
        disabled=_disabled(state),
    )


def _carried(state: RunState, i: int, old: StepState) -> bool:
    if old.status is StepStatus.FAILED:
        return state.graph.steps[i].on_failure is OnFailure.CONTINUE
    return old.status is StepStatus.COMPLETED or (
        old.status is StepStatus.SKIPPED and old.skipped_by is SkippedBy.OPERATOR
    )


def _disabled(state: RunState) -> tuple[int, ...]:
    return tuple(i for i, old in enumerate(state.steps()) if old.skipped_by is SkippedBy.OVERRIDE)


def _new_head(head: RunHead, run_id: str, now: int, actor: str, triggered_by: str) -> RunHead:
    return msgspec.structs.replace(
        head,
        id=run_id,
        created_at_ms=now,
        created_by=actor,
        triggered_by=triggered_by,
        retry_of_run_id=head.id,
        parent_run_id=None,
        parent_step=None,
        depth=0,
        ancestor_workflows=(),
        slotless=False,
        delay_until_ms=None,
        trace=None,
    )
