"""Random jobs and workflows, as a client would send them."""

from __future__ import annotations

from random import Random
from typing import Any

from tests.simulation.plan import Plan

Json = dict[str, Any]

EVENTS = ("paid", "shipped", "signed")
APPROVER = "ops"
LIMITED_JOBS = ("scarce", "single")
_TYPES = ("job",) * 5 + ("approval", "wait_for_event", "sleep", "sub_workflow", "sub_workflow")


def random_jobs(rnd: Random) -> list[Json]:
    """`free` has no limit, `scarce` and `single` have one, `beats` must send heartbeats."""
    policy = {
        "max_attempts": rnd.choice((1, 2, 3)),
        "timeout_secs": rnd.choice((1.5, 4, 8)),
        "retry_initial_delay_secs": rnd.choice((0, 0.2, 1)),
        "retry_max_delay_secs": 3,
        "retry_backoff": rnd.choice(("exponential", "linear", "fixed")),
    }
    url = {"endpoint_url": "http://jobs.test/", "execution_mode": "http"}
    return [
        {"name": "free", "slug": "free", **url, **policy},
        {"name": "scarce", "slug": "scarce", "max_concurrency": 2, **url, **policy},
        {"name": "single", "slug": "single", "max_concurrency": 1, **url, **policy},
        {"name": "beats", "slug": "beats", "heartbeat_timeout_secs": 1.2, **url, **policy},
    ]


def random_workflow(rnd: Random, plan: Plan, number: int) -> Json:
    """Number 0 has no sub-workflows; the others may start those before them."""
    size = rnd.randint(1, plan.max_steps)
    order = list(range(size))
    rnd.shuffle(order)
    deps: dict[int, list[int]] = {}
    for place, i in enumerate(order):
        earlier = order[:place]
        deps[i] = rnd.sample(earlier, min(len(earlier), rnd.choice((0, 1, 1, 2, 3))))
    made: Json = {
        "name": f"w{number}",
        "slug": f"w{number}",
        "steps": [_step(rnd, i, deps[i], size, number) for i in range(size)],
        "max_parallel_steps": rnd.choice((0, 0, 1, 2, 3)),
        "max_concurrent_runs": rnd.choice((0, 0, 1, 2, 3)),
    }
    if plan.cron and number == plan.workflows - 1:
        made["cron"] = "* * * * *"
    if rnd.random() < 0.25:
        made["timeout_secs"] = rnd.choice((3, 10, 30))
    return made


def _step(rnd: Random, i: int, deps: list[int], size: int, number: int) -> Json:
    kind = rnd.choice(_TYPES)
    if kind == "sub_workflow" and number == 0:
        kind = rnd.choice(("job", "wait_for_event"))
    some = f"s{rnd.choice(deps)}" if deps else None
    step: Json = {
        "step_ref": f"s{i}",
        "step_type": kind,
        "depends_on": [f"s{j}" for j in deps],
        "on_failure": rnd.choice(("fail_workflow", "skip_dependents", "continue")),
    }
    condition = _condition(rnd, some)
    if condition is not None:
        step["condition"] = condition
    if rnd.random() < 0.12:
        step["event_emit_key"] = rnd.choice(EVENTS)
    if kind in {"job", "sub_workflow"}:
        payload = _payload(rnd, some)
        if payload is not None:
            step["payload"] = payload
        step |= _retries(rnd)
    return step | _of_type(rnd, kind, number)


def _retries(rnd: Random) -> Json:
    step: Json = {}
    if rnd.random() < 0.3:
        step["concurrency_key"] = rnd.choice(("k1", "k2"))
    if rnd.random() < 0.4:
        step["retry_max_attempts"] = rnd.choice((1, 2, 3))
        step["retry_initial_delay_secs"] = rnd.choice((0, 0.5))
    return step


def _of_type(rnd: Random, kind: str, number: int) -> Json:
    step: Json = {}
    if kind == "job":
        step["job_id"] = rnd.choice(("free", "free", "scarce", "single", "beats"))
        if rnd.random() < 0.2:
            step["timeout_secs_override"] = rnd.choice((0.5, 3))
    elif kind == "approval":
        if rnd.random() < 0.5:
            step["approval_approvers"] = [APPROVER]
        if rnd.random() < 0.7:
            step["approval_timeout_secs"] = rnd.choice((1, 6, 20))
    elif kind == "wait_for_event":
        step["event_key"] = rnd.choice((*EVENTS, "paid-{{ payload.n }}"))
        step["event_timeout_secs"] = rnd.choice((2, 8, 20))
    elif kind == "sleep":
        step["sleep_duration_secs"] = rnd.choice((0.05, 1, 5))
    else:
        step["sub_workflow_id"] = f"w{rnd.randrange(number)}"
    return step


def _condition(rnd: Random, ref: str | None) -> Json | None:
    if rnd.random() < 0.8:
        return None
    if ref is None or rnd.random() < 0.4:
        return {"type": "eq", "left": "{{ payload.n }}", "right": rnd.choice((0, 1))}
    return rnd.choice(
        (
            {"type": "step_status", "step_ref": ref, "status": "completed"},
            {"type": "exists", "operand": f"{{{{ steps.{ref}.output.v }}}}"},
            {"type": "gt", "left": f"{{{{ steps.{ref}.output.v }}}}", "right": 0},
        )
    )


def _payload(rnd: Random, ref: str | None) -> Json | None:
    draw = rnd.random()
    if draw < 0.5:
        return None
    if ref is None or draw < 0.8:
        return {"a": "{{ payload.n }}"}
    if draw < 0.9:
        return {"a": f"{{{{ steps.{ref}.output.v | default: 3 }}}}"}
    return {"a": f"{{{{ steps.{ref}.output.v }}}}"}
