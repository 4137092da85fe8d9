"""Random workflows: every step type, policy, limit and kind of condition, in any order."""

from __future__ import annotations

from random import Random
from typing import Any

from pilotage.runtime.definition import JobPolicy, StepSpec, WorkflowSpec
from pilotage.runtime.graph import StepGraph
from pilotage.runtime.ids import make_run_id
from pilotage.runtime.state import RunHead
from pilotage.runtime.status import Backoff, OnFailure, StepStatus, StepType

FREE_JOB, SCARCE_JOB = "free", "scarce"
PARENT = make_run_id(1_700_000_000_000, 77)
_TYPES = (StepType.JOB, StepType.JOB, StepType.JOB, *StepType)


def random_graph(rnd: Random, most: int = 8) -> StepGraph:
    """A graph of 1 to `most` steps; the definition order is not a topological one."""
    size = rnd.randint(1, most)
    order = list(range(size))
    rnd.shuffle(order)
    deps: dict[int, list[int]] = {}
    for place, i in enumerate(order):
        earlier = order[:place]
        deps[i] = rnd.sample(earlier, min(len(earlier), rnd.choice((0, 1, 1, 2, 3))))
    return StepGraph(WorkflowSpec(steps=tuple(_step(rnd, i, deps[i], size) for i in range(size))))


def _step(rnd: Random, i: int, deps: list[int], size: int) -> StepSpec:
    kind = rnd.choice(_TYPES)
    some = f"s{rnd.choice(deps) if deps else rnd.randrange(size)}"
    fields: dict[str, Any] = {
        "step_ref": f"s{i}",
        "step_type": kind,
        "depends_on": tuple(f"s{j}" for j in deps),
        "on_failure": rnd.choice(tuple(OnFailure)),
        "condition": _condition(rnd, some),
        "payload": _payload(rnd, some),
        "event_emit_key": rnd.choice(
            (None,) * 6 + (f"done-{i}", f"{{{{ steps.{some}.output.v }}}}")
        ),
    }
    if kind in {StepType.JOB, StepType.SUB_WORKFLOW}:
        fields |= {
            "concurrency_key": rnd.choice((None, None, "k1", "k2")),
            "retry_max_attempts": rnd.choice((None, 1, 2, 3)),
            "retry_initial_delay_secs": rnd.choice((None, 0.0, 2.0)),
            "retry_backoff": rnd.choice((None, *Backoff)),
        }
    return StepSpec(**fields, **_of_type(rnd, kind, some))


def _of_type(rnd: Random, kind: StepType, some: str) -> dict[str, Any]:
    if kind is StepType.JOB:
        return {
            "job_id": rnd.choice((FREE_JOB, SCARCE_JOB, "unknown")),
            "timeout_secs_override": rnd.choice((None, 0.5, 5.0)),
        }
    if kind is StepType.APPROVAL:
        return {
            "approval_approvers": rnd.choice(((), ("ops",))),
            "approval_timeout_secs": rnd.choice((None, 0.0, 3.0)),
        }
    if kind is StepType.WAIT_FOR_EVENT:
        return {
            "event_key": rnd.choice(("paid", "paid", f"paid-{{{{ steps.{some}.output.v }}}}")),
            "event_timeout_secs": rnd.choice((None, 3.0)),
        }
    if kind is StepType.SLEEP:
        return {"sleep_duration_secs": rnd.choice((0.001, 4.0))}
    return {"sub_workflow_id": "child", "max_nesting_depth": rnd.choice((None, None, None, 1))}


def _condition(rnd: Random, ref: str) -> dict[str, Any] | None:
    return rnd.choice(
        (
            None,
            None,
            None,
            None,
            {"type": "eq", "left": "{{ payload.n }}", "right": 1},
            {"type": "eq", "left": "{{ payload.n }}", "right": 2},
            {"type": "step_status", "step_ref": ref, "status": StepStatus.COMPLETED.value},
            {"type": "exists", "operand": f"{{{{ steps.{ref}.output.v }}}}"},
            {"type": "gt", "left": f"{{{{ steps.{ref}.output.v }}}}", "right": 0},
        )
    )


def _payload(rnd: Random, ref: str) -> dict[str, Any] | None:
    return rnd.choice(
        (
            None,
            None,
            {"a": "{{ payload.n }}"},
            {"a": f"{{{{ steps.{ref}.output.v | default: 3 }}}}"},
            {"a": f"{{{{ steps.{ref}.output.v }}}}"},
        )
    )


def random_head(rnd: Random, now: int) -> RunHead:
    child = rnd.random() < 0.3
    return RunHead(
        id=make_run_id(now, rnd.getrandbits(30)),
        project_id="p",
        workflow_id="w",
        workflow_slug="w",
        version=1,
        version_id="ver_1",
        created_at_ms=now,
        payload=rnd.choice((None, b'{"n": 1}', b"[1]")),
        parent_run_id=PARENT if child else None,
        parent_step=3 if child else None,
        depth=rnd.choice((1, 10)) if child else 0,
        max_parallel_steps=rnd.choice((0, 0, 1, 2)),
        timeout_secs=rnd.choice((0.0, 0.0, 30.0)),
        delay_until_ms=None if child else rnd.choice((None, None, None, now + 5_000)),
        policies={
            FREE_JOB: JobPolicy(max_attempts=2, retry_initial_delay_secs=1.0, timeout_secs=8.0),
            SCARCE_JOB: JobPolicy(max_attempts=2, retry_initial_delay_secs=0.0, limited=True),
        },
    )
