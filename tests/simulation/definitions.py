"""Definitions change while runs of them are under way: limits, versions, switches, removals.

The workflow with a schedule stays as it is: a change of it says that what it missed before is not
to be made up for.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

from pilotage.actors.gateway import Gateway
from pilotage.runtime.validation_jobs import parse_job_patch
from tests.simulation.workflows import LIMITED_JOBS, random_workflow

if TYPE_CHECKING:
    from tests.simulation.verbs import Sent, Work
    from tests.simulation.world import World

PROJECT = "p"


def raise_workflow_limit(world: World, sent: Sent, rnd: Random) -> Work:
    """A new version with one slot more."""
    number = _drawn(world, sent, rnd)

    async def work(gateway: Gateway) -> None:
        workflow = await gateway.catalog.workflow(PROJECT, f"w{number}")
        limit = workflow.spec.max_concurrent_runs
        if limit and workflow.spec.cron is None:
            most = world.limits.runs
            most[workflow.id] = most[workflow.id] and max(most[workflow.id], limit + 1)
            await _patch(world, gateway, f"w{number}", {"max_concurrent_runs": limit + 1})

    return work


def change_workflow(world: World, sent: Sent, rnd: Random) -> Work:
    """A new version with other steps; runs that are under way keep theirs."""
    number = _drawn(world, sent, rnd)
    raw = random_workflow(rnd, world.plan, number)
    patch = {name: raw[name] for name in ("steps", "max_parallel_steps")}

    async def work(gateway: Gateway) -> None:
        await _patch(world, gateway, f"w{number}", patch)

    return work


def switch_workflow(world: World, sent: Sent, rnd: Random) -> Work:
    """Disabled it starts no runs, children included; most of the time it is enabled again."""
    number, enabled = _drawn(world, sent, rnd), rnd.random() < 0.7

    async def work(gateway: Gateway) -> None:
        await _patch(world, gateway, f"w{number}", {"enabled": enabled})

    return work


def delete_workflow(world: World, sent: Sent, rnd: Random) -> Work:
    """Refused while runs are active; what it limited is not limited any more."""
    number = _drawn(world, sent, rnd)

    async def work(gateway: Gateway) -> None:
        workflow = await gateway.catalog.workflow(PROJECT, f"w{number}")
        if workflow.spec.cron is None:
            world.limits.runs[workflow.id] = 0
            world.unsure_limits.add(workflow.id)
            await gateway.catalog.delete_workflow(workflow)
            world.unsure_limits.discard(workflow.id)

    return work


def raise_job_limit(world: World, sent: Sent, rnd: Random) -> Work:
    slug = rnd.choice(LIMITED_JOBS)
    sent.run_id = ""

    async def work(gateway: Gateway) -> None:
        job = await gateway.catalog.job(PROJECT, slug)
        limit = (job.spec.max_concurrency or 0) + 1
        world.limits.jobs[job.id] = max(world.limits.jobs[job.id], limit)
        world.unsure_limits.add(job.id)
        await gateway.catalog.update_job(job, parse_job_patch({"max_concurrency": limit}, job))
        world.unsure_limits.discard(job.id)

    return work


def _drawn(world: World, sent: Sent, rnd: Random) -> int:
    sent.run_id = ""
    return rnd.randrange(max(1, world.plan.workflows - world.plan.cron))


async def _patch(world: World, gateway: Gateway, slug: str, patch: dict[str, Any]) -> None:
    workflow = await gateway.catalog.workflow(PROJECT, slug)
    if workflow.spec.cron is not None:
        return
    parsed = await gateway.catalog.parse_patch(workflow, patch)
    world.unsure_limits.add(workflow.id)
    await gateway.catalog.update_workflow(workflow, parsed, updated_by="simulation")
    world.unsure_limits.discard(workflow.id)
