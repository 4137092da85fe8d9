"""Why a step does not move, in words that say what would unblock it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from urllib.parse import quote

import msgspec

from pilotage.runtime.definition import DEFAULT_MAX_ATTEMPTS, StepSpec
from pilotage.runtime.graph import bits
from pilotage.runtime.state import RunState, StepState
from pilotage.runtime.status import RunStatus, SkippedBy, StepStatus, StepType, WaitingFor
from pilotage.runtime.views import rfc3339, waiting_for

SHOWN = 5
"""Steps named in one sentence; the others are counted."""


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """`waiting_for` is the API's word, or `result` and `child_run` for what is in progress."""

    waiting_for: str
    text: str
    since_ms: int
    until_ms: int | None = None


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What is known beyond the state of why a step does not move.

    job       what people call the job whose slot it waits for
    held      its attempt was dispatched and is held back: it has not begun
    until_ms  when that ends; of an attempt that was begun late: when it times out
    """

    text: str = ""
    job: str = ""
    held: bool = False
    until_ms: int | None = None


def listed(refs: Iterable[str]) -> str:
    """`"a", "b" and 3 more`, at most `SHOWN` of them by name."""
    named = [f'"{ref}"' for ref in refs]
    more = len(named) - SHOWN
    if more > 0:
        return f"{', '.join(named[:SHOWN])} and {more} more"
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"


class Reasons:
    """Explains the steps of one run."""

    def __init__(self, state: RunState, notes: Mapping[int | None, Note]) -> None:
        self._state = state
        self._notes = notes
        self._texts: Mapping[WaitingFor, Callable[[int, StepState, StepSpec], str]] = {
            WaitingFor.DEPENDENCIES: self._dependencies,
            WaitingFor.APPROVAL: self._approval,
            WaitingFor.EVENT: self._event,
            WaitingFor.TIMER: self._timer,
            WaitingFor.RETRY: self._retry,
            WaitingFor.PARALLEL_LIMIT: self._parallel_limit,
            WaitingFor.CONCURRENCY_KEY: self._concurrency_key,
            WaitingFor.PAUSED: self._paused,
            WaitingFor.JOB_LIMIT: self._job_limit,
            WaitingFor.RUN_QUEUE: self._run_queue,
        }

    def of(self, i: int, step: StepState) -> Reason:
        spec = self._state.graph.steps[i]
        waits = waiting_for(self._state, i, step)
        if waits is None:
            return self._running(i, step, spec)
        text = self._texts[waits](i, step, spec)
        if self._state.status is RunStatus.PAUSED and waits not in {
            WaitingFor.PAUSED,
            WaitingFor.DEPENDENCIES,
        }:
            text += "; the run is paused, so that what follows waits for its resume"
        until = self._delayed_until() if waits is WaitingFor.RUN_QUEUE else step.due_ms
        return Reason(
            waiting_for=waits, text=text, since_ms=self._since(step, waits), until_ms=until
        )

    # --- since ---------------------------------------------------------------------------------

    def _since(self, step: StepState, waits: WaitingFor) -> int:
        head, vitals = self._state.head, self._state.vitals
        if waits is WaitingFor.RUN_QUEUE:
            delayed = self._delayed_until() is not None
            return head.created_at_ms if delayed else vitals.queued_at_ms or head.created_at_ms
        if step.ready_since_ms is not None:
            return step.ready_since_ms
        if waits is not WaitingFor.DEPENDENCIES and step.started_at_ms is not None:
            return step.started_at_ms
        return vitals.started_at_ms or head.created_at_ms

    # --- in progress ---------------------------------------------------------------------------

    def _running(self, i: int, step: StepState, spec: StepSpec) -> Reason:
        since = step.started_at_ms or self._state.head.created_at_ms
        if spec.step_type is StepType.SUB_WORKFLOW:
            return Reason(
                waiting_for="child_run",
                text=f"child run {step.child_run_id} has not ended; explain that one",
                since_ms=since,
                until_ms=step.due_ms,
            )
        note = self._notes.get(i) or Note()
        if note.held:
            text = f"attempt {step.attempt} is held back: {note.text}"
            return Reason(waiting_for="result", text=text, since_ms=since, until_ms=note.until_ms)
        if step.accepted:
            text = f"the job took attempt {step.attempt} and reports its end by callback"
        else:
            text = f"attempt {step.attempt} is in progress"
        due_ms = step.due_ms if note.until_ms is None else note.until_ms
        if due_ms is not None:
            text += f"; it fails with a timeout at {rfc3339(due_ms)}"
        return Reason(waiting_for="result", text=text, since_ms=since, until_ms=due_ms)

    # --- waiting ---------------------------------------------------------------------------------

    def _dependencies(self, i: int, _step: StepState, _spec: StepSpec) -> str:
        state = self._state
        missing = state.graph.deps_mask[i] & ~state.masks.satisfied
        if not missing:
            return "its dependencies have ended; it starts with the next change of the run"
        never = missing & state.masks.blocking
        parts: list[str] = []
        for status in StepStatus:
            found = [j for j in bits(missing) if state.step(j).status is status]
            if found:
                refs = listed(state.graph.steps[j].step_ref for j in found)
                parts.append(f"{refs} ({self._state_of(found)})")
        text = "waits for " + ", ".join(parts)
        if never:
            refs = listed(state.graph.steps[j].step_ref for j in bits(never))
            text += f"; retry or replay {refs}, or skip or force-complete this step"
        return text

    def _state_of(self, steps: list[int]) -> str:
        step = self._state.step(steps[0])
        if len(steps) == 1 and not step.status.is_terminal:
            waits = waiting_for(self._state, steps[0], step)
            if waits is not None:
                return f"{step.status}, for {waits.replace('_', ' ')}"
        if step.skipped_by is SkippedBy.DEPENDENCY:
            return "skipped because of a failed dependency"
        return str(step.status)

    @staticmethod
    def _approval(_i: int, step: StepState, spec: StepSpec) -> str:
        who = "anyone with the scope workflows:write"
        if spec.approval_approvers:
            who = listed(spec.approval_approvers)
        text = f"waits for {who} to approve or reject it"
        if step.due_ms is not None:
            text += f"; it fails at {rfc3339(step.due_ms)}"
        return text

    @staticmethod
    def _event(_i: int, step: StepState, _spec: StepSpec) -> str:
        key = step.event_key or ""
        text = f'waits for the event "{key}"; send it: POST /v1/events/{quote(key, safe="")}/send'
        if step.due_ms is not None:
            text += f"; it fails at {rfc3339(step.due_ms)}"
        return text

    @staticmethod
    def _timer(_i: int, step: StepState, _spec: StepSpec) -> str:
        until = "" if step.due_ms is None else f" until {rfc3339(step.due_ms)}"
        return f"sleeps{until}; skip or force-complete it to go on at once"

    def _retry(self, _i: int, step: StepState, spec: StepSpec) -> str:
        limit = spec.retry_max_attempts
        if limit is None:
            policy = self._state.head.policies.get(spec.job_id or "")
            limit = DEFAULT_MAX_ATTEMPTS if policy is None else policy.max_attempts
        tried = step.attempt - step.budget_start
        when = "soon" if step.due_ms is None else f"at {rfc3339(step.due_ms)}"
        error = step.error or "no error given"
        return (
            f"attempt {tried} of {limit} failed: {error}; tries again {when}; "
            "skip or force-complete it to go on without"
        )

    # --- held back -------------------------------------------------------------------------------

    def _parallel_limit(self, _i: int, _step: StepState, _spec: StepSpec) -> str:
        state = self._state
        users = state.masks.running
        running = listed(state.graph.steps[j].step_ref for j in bits(users))
        limit = state.head.max_parallel_steps
        goes_on = "is running; starts when it ends"
        if users.bit_count() > 1:
            goes_on = "are running; starts when one ends"
        return f"max_parallel_steps is {limit} and {running} {goes_on}"

    def _concurrency_key(self, _i: int, _step: StepState, spec: StepSpec) -> str:
        state, key = self._state, spec.concurrency_key or ""
        users = state.graph.key_mask[key] & state.masks.running
        running = listed(state.graph.steps[j].step_ref for j in bits(users))
        return f'{running} is running with the same concurrency_key "{key}"; starts when it ends'

    @staticmethod
    def _paused(_i: int, _step: StepState, _spec: StepSpec) -> str:
        return "the run is paused; resume it"

    def _job_limit(self, i: int, _step: StepState, spec: StepSpec) -> str:
        note = self._notes.get(i)
        job = note.job if note is not None and note.job else spec.job_id
        return (
            f'all slots of the job "{job}" (its max_concurrency, over all runs) are taken; '
            f"starts in its turn when one comes free{self._note(i)}"
        )

    def _run_queue(self, _i: int, _step: StepState, _spec: StepSpec) -> str:
        head, vitals = self._state.head, self._state.vitals
        if vitals.held:
            return "the parent run is paused; resume that one"
        delayed_until = self._delayed_until()
        if delayed_until is not None:
            return f"the run was triggered to start at {rfc3339(delayed_until)}"
        return (
            f'the workflow "{head.workflow_slug}" has max_concurrent_runs runs in progress; '
            f"starts in its turn when one ends{self._note(None)}"
        )

    def _delayed_until(self) -> int | None:
        """When the run is due that was triggered with a delay.

        Its place in the queue counts from then on; a run that is in the queue already has a note.
        """
        head, vitals = self._state.head, self._state.vitals
        if head.delay_until_ms is None or vitals.held or None in self._notes:
            return None
        return head.delay_until_ms if vitals.queued_at_ms <= head.delay_until_ms else None

    def _note(self, i: int | None) -> str:
        note = self._notes.get(i)
        return "" if note is None else f"; {note.text}"
