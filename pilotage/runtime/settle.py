"""Every consequence of a change, in one pass (runs.md §4).

`settle` lets what ended reach its dependents, starts everything that may start, in definition
order, and checks for the end; it repeats that until nothing moves. Its cost follows what changed:
a step is looked at when one of its dependencies changes, never by a walk over the run.

It also holds what several commands share: how a step ends, fails, is withdrawn.
"""

from __future__ import annotations

from pilotage.runtime import inputs
from pilotage.runtime.backoff import max_attempts, policy_of, retry_delay_ms, timeout_secs
from pilotage.runtime.definition import DEFAULT_EVENT_TIMEOUT_SECS, MAX_NESTING_DEPTH
from pilotage.runtime.draft import Draft
from pilotage.runtime.effects import (
    EmitEvent,
    ParkEvent,
    ReleaseRunSlot,
    RequestSlot,
    StartAttempt,
    StartChild,
    TellChild,
    TellParent,
)
from pilotage.runtime.errors import ConditionError, TemplateError
from pilotage.runtime.events import (
    RunEnded,
    SlotRequested,
    StepCanceled,
    StepCompleted,
    StepFailed,
    StepHeld,
    StepParked,
    StepRetryScheduled,
    StepSkipped,
    StepStarted,
    StepUnready,
)
from pilotage.runtime.graph import bits
from pilotage.runtime.ids import MAX_ATTEMPT, derived_run_id, shard_of
from pilotage.runtime.state import Resolution
from pilotage.runtime.status import (
    PARKING_TYPES,
    OnFailure,
    RunStatus,
    SkippedBy,
    StepStatus,
    StepType,
    WaitingFor,
)
from pilotage.runtime.transforms import TransformError

MAX_ERROR_CHARS = 4096
"""Longest error or reason that is kept; the state of a run stays small."""


def clipped(text: str) -> str:
    return text if len(text) <= MAX_ERROR_CHARS else f"{text[: MAX_ERROR_CHARS - 1]}…"


def settle(d: Draft) -> None:
    """Bring the draft to rest: nothing ready is left standing unless a limit or a pause says so."""
    while True:
        propagate(d)
        if d.status is not RunStatus.RUNNING:
            break
        _evaluate_ready(d)
        if not _unsettled(d):
            _start_wanted(d)
        if not _unsettled(d):
            break
    for i in bits(d.want):
        d.emit(StepHeld(at_ms=d.now, actor=d.actor, step=i, checked=True))
    for i in bits(d.ready):
        d.emit(StepHeld(at_ms=d.now, actor=d.actor, step=i, checked=False))
    if not d.open and d.status in (RunStatus.RUNNING, RunStatus.PAUSED):
        _finish(d)


def _unsettled(d: Draft) -> bool:
    return bool(d.newly_satisfied or d.newly_blocking)


# --- consequences ----------------------------------------------------------------------------


def propagate(d: Draft) -> None:
    """Tell the dependents of every step that ended or was taken back."""
    while True:
        if d.newly_blocking:
            _spread_block(d, d.newly_blocking.pop(0))
        elif d.newly_unsatisfied:
            i = d.newly_unsatisfied.pop()
            if not d.satisfied >> i & 1:
                _withdraw_ready(d, i)
        elif d.newly_satisfied:
            for j in d.graph.dependents[d.newly_satisfied.pop()]:
                consider(d, j)
        else:
            return


def consider(d: Draft, i: int) -> None:
    """Note step i as ready if it waits for dependencies only and they are all satisfied."""
    step = d.step(i)
    if (
        step.status is StepStatus.WAITING
        and step.wait is None
        and not d.graph.deps_mask[i] & ~d.satisfied
    ):
        d.ready |= 1 << i


def _withdraw_ready(d: Draft, i: int) -> None:
    for j in d.graph.dependents[i]:
        if d.step(j).status is StepStatus.PENDING:
            d.emit(StepUnready(at_ms=d.now, actor=d.actor, step=j))
        else:
            d.ready &= ~(1 << j)
            d.want &= ~(1 << j)


def _spread_block(d: Draft, i: int) -> None:
    if d.status.is_terminal:
        return
    if (
        d.step(i).status is StepStatus.FAILED
        and d.graph.steps[i].on_failure is OnFailure.FAIL_WORKFLOW
    ):
        end_run(d, RunStatus.FAILED, failure_text(d, [i]))
        return
    skip_dependents(d, i)


def skip_dependents(d: Draft, i: int) -> None:
    """Skip the open direct dependents of i; each of them spreads in its turn."""
    for j in d.graph.dependents[i]:
        if d.open >> j & 1:
            d.emit(StepSkipped(at_ms=d.now, actor=d.actor, step=j, by=SkippedBy.DEPENDENCY))


def failure_text(d: Draft, failed: list[int]) -> str:
    """The run's error: the first failed step and its error, and how many more there are."""
    first = failed[0]
    text = f"step '{d.graph.steps[first].step_ref}' failed: {d.step(first).error}"
    more = len(failed) - 1
    return text if not more else f"{text} (and {more} more failed)"


# --- the end -----------------------------------------------------------------------------------


def _finish(d: Draft) -> None:
    failed = [i for i in bits(d.blocking) if d.step(i).status is StepStatus.FAILED]
    if failed:
        end_run(d, RunStatus.FAILED, failure_text(d, failed))
    else:
        end_run(d, RunStatus.COMPLETED, None)


def end_run(d: Draft, status: RunStatus, error: str | None) -> None:
    """End the run: open steps are canceled, the slot goes back, the parent is told."""
    for i in bits(d.open):
        child = d.step(i).child_run_id
        unstarted = child is not None and d.first(i).child_run_id != child
        d.emit(StepCanceled(at_ms=d.now, actor=d.actor, step=i, unstarted=unstarted))
    d.emit(RunEnded(at_ms=d.now, actor=d.actor, status=status, error=error))
    d.effects.append(ReleaseRunSlot())
    tell_parent(d)


def tell_parent(d: Draft) -> None:
    """Report the run's end to the step that waits for it, if there is one."""
    head, vitals = d.head, d.vitals
    if head.parent_run_id is None or head.parent_step is None:
        return
    output = error = None
    if vitals.status is RunStatus.COMPLETED:
        output = inputs.outputs_map(d)
        if len(output) > inputs.MAX_OUTPUT_BYTES:
            error = f"output is {len(output)} bytes; at most {inputs.MAX_OUTPUT_BYTES} are kept"
            output = None
    else:
        error = vitals.error
    d.effects.append(
        TellParent(
            parent_run_id=head.parent_run_id,
            step=head.parent_step,
            attempt=vitals.parent_attempt,
            status=vitals.status,
            output=output,
            error=error,
        )
    )


# --- starting ----------------------------------------------------------------------------------


def _evaluate_ready(d: Draft) -> None:
    """Evaluate the conditions of all ready steps, in definition order; park what parks."""
    while cand := d.ready | d.fresh:
        bit = cand & -cand
        i = bit.bit_length() - 1
        step = d.step(i)
        condition = d.graph.conditions[i]
        if condition is not None and not step.checked:
            try:
                holds = condition.evaluate(inputs.RunScope(d))
            except ConditionError as error:
                fail(d, i, f"condition: {error}", "condition_error")
                return
            if not holds:
                d.emit(StepSkipped(at_ms=d.now, actor=d.actor, step=i, by=SkippedBy.CONDITION))
                return
        d.ready &= ~bit
        d.fresh &= ~bit
        if d.graph.steps[i].step_type in PARKING_TYPES:
            _park(d, i)
            if d.newly_blocking:
                return
        else:
            d.want |= bit


def _start_wanted(d: Draft) -> None:
    """Start what wants to start and has room, in definition order."""
    limit = d.head.max_parallel_steps
    passed_over = 0
    while True:
        if limit and d.running.bit_count() >= limit:
            return
        cand = (d.want | d.held) & ~d.requested & ~passed_over
        if not cand:
            return
        i = (cand & -cand).bit_length() - 1
        spec = d.graph.steps[i]
        if spec.concurrency_key and d.graph.key_mask[spec.concurrency_key] & d.running:
            passed_over |= d.graph.key_mask[spec.concurrency_key]
            continue
        if spec.step_type is StepType.JOB and policy_of(spec, d.head.policies).limited:
            passed_over |= _request_slot(d, i, limit)
            continue
        start(d, i)
        if d.newly_blocking or d.newly_satisfied:
            return


def _request_slot(d: Draft, i: int, limit: int) -> int:
    """Ask for a job slot. The steps to pass over from now on, because no more of the job's slots
    could be used at this instant than the run has room for.
    """
    job = d.graph.steps[i].job_id or ""
    mask = d.graph.job_mask[job]
    if limit and (d.requested & mask).bit_count() >= limit - d.running.bit_count():
        return mask
    since = d.step(i).ready_since_ms
    d.emit(SlotRequested(at_ms=d.now, actor=d.actor, step=i, job=job))
    d.effects.append(RequestSlot(step=i, job=job, since_ms=since or d.now, again=since is not None))
    return 0


def has_room(d: Draft, i: int) -> bool:
    """Whether the run's own limits let step i start now."""
    limit = d.head.max_parallel_steps
    if d.status is not RunStatus.RUNNING or (limit and d.running.bit_count() >= limit):
        return False
    key = d.graph.steps[i].concurrency_key
    return not (key and d.graph.key_mask[key] & d.running)


def start(d: Draft, i: int) -> None:
    """Start an attempt of a job step, or the child of a sub-workflow step."""
    spec, step = d.graph.steps[i], d.step(i)
    attempt = step.attempt + 1
    if attempt > MAX_ATTEMPT:
        fail(d, i, f"the step has used all of its {MAX_ATTEMPT} attempts", "attempts_exhausted")
        return
    try:
        text = inputs.build_input(d, i)
    except TemplateError as error:
        fail(d, i, f"payload: {error}", "template_error")
        return
    if spec.step_type is StepType.SUB_WORKFLOW:
        _start_child(d, i, attempt, text)
        return
    policy = policy_of(spec, d.head.policies)
    timeout = timeout_secs(spec, policy)
    due = d.now + round(timeout * 1000)
    d.emit(StepStarted(at_ms=d.now, actor=d.actor, step=i, attempt=attempt, due_ms=due))
    d.effects.append(
        StartAttempt(
            step=i, attempt=attempt, job=spec.job_id or "", input=text, timeout_secs=timeout
        )
    )


def _start_child(d: Draft, i: int, attempt: int, payload: bytes) -> None:
    spec, step = d.graph.steps[i], d.step(i)
    if step.child_run_id is not None:  # its run failed and the step is retried: in place
        child = step.child_run_id
        d.emit(StepStarted(at_ms=d.now, actor=d.actor, step=i, attempt=attempt, child_run_id=child))
        d.effects.append(
            TellChild(child_run_id=child, what="reopen", parent_attempt=attempt, step=i)
        )
        return
    depth = min(spec.max_nesting_depth or MAX_NESTING_DEPTH, MAX_NESTING_DEPTH)
    if d.head.depth + 1 > depth:
        fail(d, i, f"sub-workflows may be nested {depth} deep at most", "nesting_depth")
        return
    child = derived_run_id(d.now, d.head.id, i, attempt, shard=shard_of(d.head.id))
    d.emit(StepStarted(at_ms=d.now, actor=d.actor, step=i, attempt=attempt, child_run_id=child))
    d.effects.append(
        StartChild(
            step=i,
            attempt=attempt,
            child_run_id=child,
            workflow=spec.sub_workflow_id or "",
            payload=payload,
        )
    )


def _park(d: Draft, i: int) -> None:
    spec, attempt = d.graph.steps[i], d.step(i).attempt + 1
    key: str | None = None
    if spec.step_type is StepType.APPROVAL:
        wait, secs = WaitingFor.APPROVAL, spec.approval_timeout_secs
    elif spec.step_type is StepType.SLEEP:
        wait, secs = WaitingFor.TIMER, spec.sleep_duration_secs or 0.0
    else:
        wait = WaitingFor.EVENT
        secs = spec.event_timeout_secs
        secs = DEFAULT_EVENT_TIMEOUT_SECS if secs is None else secs
        try:
            key = inputs.event_key(d, i)
        except TemplateError as error:
            fail(d, i, str(error), "template_error")
            return
    if attempt > MAX_ATTEMPT:
        fail(d, i, f"the step has used all of its {MAX_ATTEMPT} attempts", "attempts_exhausted")
        return
    d.emit(
        StepParked(
            at_ms=d.now,
            actor=d.actor,
            step=i,
            attempt=attempt,
            wait=wait,
            due_ms=None if secs is None else d.now + round(secs * 1000),
            event_key=key,
        )
    )
    if key is not None:
        d.effects.append(ParkEvent(step=i, attempt=attempt, event_key=key))


# --- how a step ends -----------------------------------------------------------------------------


def complete(
    d: Draft,
    i: int,
    output: bytes | None,
    resolution: Resolution | None = None,
    reason: str | None = None,
) -> None:
    """The step is done; a bad size, transform or event key fails it instead, final."""
    output = inputs.normal(output)
    try:
        if resolution is not Resolution.FORCED:  # the operator's result stands as it is
            output = inputs.transformed(d, i, output)
    except TransformError as error:
        fail(d, i, str(error), "output_transform")
        return
    problem = inputs.oversized(d, i, output)
    if problem is not None:
        fail(d, i, problem, "output_too_large")
        return
    try:
        key = inputs.emit_key(d, i)
    except TemplateError as error:
        fail(d, i, str(error), "template_error")
        return
    d.emit(
        StepCompleted(
            at_ms=d.now,
            actor=d.actor,
            step=i,
            attempt=d.step(i).attempt,
            output=output,
            resolution=resolution,
            reason=reason,
        )
    )
    if key is not None:
        d.effects.append(EmitEvent(event_key=key, payload=output, at_ms=d.now))


def fail(
    d: Draft, i: int, error: str, error_class: str, resolution: Resolution | None = None
) -> None:
    """The step has failed for good; its `on_failure` applies when the draft settles."""
    d.emit(
        StepFailed(
            at_ms=d.now,
            actor=d.actor,
            step=i,
            attempt=d.step(i).attempt,
            error=clipped(error),
            error_class=error_class,
            resolution=resolution,
        )
    )


def attempt_failed(
    d: Draft,
    i: int,
    error: str,
    error_class: str,
    *,
    final: bool = False,
    retry_after_secs: float | None = None,
) -> None:
    """An attempt failed: another one after a backoff while the budget lasts, else the step."""
    spec, step = d.graph.steps[i], d.step(i)
    policy = policy_of(spec, d.head.policies)
    used = step.attempt - step.budget_start
    if final or used >= max_attempts(spec, policy):
        fail(d, i, error, error_class)
        return
    delay = retry_delay_ms(
        spec,
        policy,
        used=used,
        seed=f"{d.head.id}/{spec.step_ref}/{step.attempt}",
        retry_after_secs=retry_after_secs,
    )
    d.emit(
        StepRetryScheduled(
            at_ms=d.now,
            actor=d.actor,
            step=i,
            attempt=step.attempt,
            due_ms=d.now + delay,
            error=clipped(error),
            error_class=error_class,
        )
    )
