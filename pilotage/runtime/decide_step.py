"""Operators' commands about one step: approve, reject, skip, force-complete, retry, replay."""

from __future__ import annotations

import msgspec

from pilotage.runtime import inputs
from pilotage.runtime.commands import (
    ApproveStep,
    ForceCompleteStep,
    RejectStep,
    ReplaySubtree,
    RetryStep,
    SkipStep,
)
from pilotage.runtime.decide_run import can_reopen_child, reopen, repair, reset_step
from pilotage.runtime.draft import Draft
from pilotage.runtime.errors import TemplateError
from pilotage.runtime.events import StepSkipped
from pilotage.runtime.ids import MAX_ATTEMPT
from pilotage.runtime.replies import Done, Reply, ResetSteps
from pilotage.runtime.rules import (
    STEP_MOVES,
    Rejection,
    RejectionCode,
    conflict,
    refuse_step,
)
from pilotage.runtime.settle import clipped, complete, fail
from pilotage.runtime.state import BLANK, Resolution
from pilotage.runtime.status import OnFailure, SkippedBy, StepStatus, StepType, WaitingFor
from pilotage.runtime.views import rfc3339


def approve(d: Draft, c: ApproveStep) -> Reply | Rejection:
    stop = _undecidable(d, c, Resolution.APPROVED)
    if stop is not None:
        return stop
    decision = {"approved_by": c.actor, "approved_at": rfc3339(d.now)}
    if c.comment:
        decision["comment"] = c.comment
    complete(d, c.step, msgspec.json.encode(decision), Resolution.APPROVED, c.comment)
    return Done()


def reject(d: Draft, c: RejectStep) -> Reply | Rejection:
    stop = _undecidable(d, c, Resolution.REJECTED)
    if stop is not None:
        return stop
    text = f"rejected by {c.actor}"
    text = f"{text}: {c.reason}" if c.reason else text
    fail(d, c.step, text, "rejected", Resolution.REJECTED)
    return Done()


def _undecidable(
    d: Draft, c: ApproveStep | RejectStep, wanted: Resolution
) -> Reply | Rejection | None:
    """What stands against a decision by this caller; None if it may be made."""
    spec, step = d.graph.steps[c.step], d.step(c.step)
    move = STEP_MOVES[type(c)]
    if spec.step_type is not StepType.APPROVAL:
        return conflict(
            f'step "{spec.step_ref}" is of type {spec.step_type}; only an approval step can be'
            f" {move.done}",
            found=spec.step_type,
        )
    if spec.approval_approvers and c.actor not in spec.approval_approvers:
        return Rejection(
            code=RejectionCode.FORBIDDEN,
            message=f'{c.actor} may not decide about step "{spec.step_ref}"; its approvers are'
            f" {', '.join(spec.approval_approvers)}",
        )
    if step.wait is WaitingFor.APPROVAL:
        return None
    if step.resolution is wanted:
        return Done(changed=False)
    if step.resolution in (Resolution.APPROVED, Resolution.REJECTED):
        return conflict(
            f'step "{spec.step_ref}" is {step.status}, it was {step.resolution} already; only a'
            f" waiting step can be {move.done}",
            step.status,
        )
    if step.status is StepStatus.WAITING:
        return conflict(
            f'step "{spec.step_ref}" is waiting for its dependencies; it can be {move.done} once'
            " it is waiting for an approval",
            step.status,
        )
    return refuse_step(move, spec.step_ref, step.status)


def skip(d: Draft, c: SkipStep) -> Reply | Rejection:
    move = STEP_MOVES[SkipStep]
    spec, step = d.graph.steps[c.step], d.step(c.step)
    if step.status in move.already:
        return Done(changed=False)
    if step.status not in move.allowed:
        return refuse_step(move, spec.step_ref, step.status)
    if d.status.is_terminal:
        reopen(d, slot=c.slot)
    reason = clipped(c.reason) if c.reason else None
    d.emit(
        StepSkipped(at_ms=d.now, actor=c.actor, step=c.step, by=SkippedBy.OPERATOR, reason=reason)
    )
    repair(d)
    return Done()


def force_complete(d: Draft, c: ForceCompleteStep) -> Reply | Rejection:
    move = STEP_MOVES[ForceCompleteStep]
    spec, step = d.graph.steps[c.step], d.step(c.step)
    result = inputs.normal(c.result)
    if step.resolution is Resolution.FORCED:
        if inputs.same_json(step.output, result):
            return Done(changed=False)
        return conflict(
            f'step "{spec.step_ref}" is {step.status}, it was force-completed already, with another'
            " result; replay its subtree to run it again",
            step.status,
        )
    if step.status not in move.allowed:
        return refuse_step(move, spec.step_ref, step.status)
    problem = inputs.oversized(d, c.step, result)
    if problem is None:
        try:
            inputs.emit_key(d, c.step)
        except TemplateError as error:
            problem = str(error)
    if problem is not None:
        return Rejection(code=RejectionCode.INVALID, message=f"result: {problem}")
    if d.status.is_terminal:
        reopen(d, slot=c.slot)
    complete(d, c.step, result, Resolution.FORCED)
    repair(d)
    return Done()


def retry_step(d: Draft, c: RetryStep) -> Reply | Rejection:
    move = STEP_MOVES[RetryStep]
    spec, step = d.graph.steps[c.step], d.step(c.step)
    if step.status not in move.allowed:
        return refuse_step(move, spec.step_ref, step.status)
    if step.attempt >= MAX_ATTEMPT:
        return conflict(
            f'step "{spec.step_ref}" has used all of its {MAX_ATTEMPT} attempts; retry the run',
            step.status,
        )
    culprit = _unsatisfiable(d, c.step)
    if culprit is not None:
        return conflict(
            f'step "{spec.step_ref}" depends on step "{culprit}", which failed and can never be'
            f' satisfied as things stand; retry step "{culprit}" instead',
            step.status,
        )
    keep_child = can_reopen_child(d, c.step, step)
    if d.status.is_terminal:
        reopen(d, slot=c.slot)
    reset_step(d, c.step, checked=True, keep_child=keep_child)
    repair(d)
    return Done()


def _unsatisfiable(d: Draft, i: int) -> str | None:
    """The failed step upstream that keeps step i from ever becoming ready, None if none does."""
    seen: set[int] = set()
    stack = list(reversed(d.graph.deps[i]))
    while stack:
        j = stack.pop()
        if j in seen or d.satisfied >> j & 1:
            continue
        seen.add(j)
        if (
            d.step(j).status is StepStatus.FAILED
            and d.graph.steps[j].on_failure is not OnFailure.CONTINUE
        ):
            return d.graph.steps[j].step_ref
        stack.extend(reversed(d.graph.deps[j]))
    return None


def replay_subtree(d: Draft, c: ReplaySubtree) -> Reply | Rejection:
    if d.step(c.step).attempt >= MAX_ATTEMPT:
        ref = d.graph.steps[c.step].step_ref
        return conflict(f'step "{ref}" has used all of its {MAX_ATTEMPT} attempts; retry the run')
    subtree = (c.step, *d.graph.descendants(c.step))
    if d.status.is_terminal:
        reopen(d, slot=c.slot)
    for i in subtree:
        step = d.step(i)
        if step != BLANK or step.attempt:
            reset_step(d, i)
    repair(d)
    return ResetSteps(count=len(subtree))
