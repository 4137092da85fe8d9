"""What befalls the servers during the storm, besides what befalls single requests."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING

from pilotage.actors.errors import ApplicationError, UnavailableError
from pilotage.actors.kernel import ActorDeadError, LoopRef
from pilotage.actors.principal import ADMIN
from pilotage.actors.run_actor import RunActor
from pilotage.actors.supervisor import Supervisor
from tests.simulation.verbs import call

if TYPE_CHECKING:
    from tests.simulation.world import World


class Planted:
    """A message that no run can take: its handler raises."""


async def disasters(world: World, rnd: Random) -> None:
    """All of them, at instants drawn beforehand, until the storm is over."""
    plan = world.plan
    kinds = (
        [_crash] * plan.crashes
        + [_freeze] * plan.freezes
        + [_stop] * plan.stops
        + [_outage] * plan.outages
        + [_failure] * plan.failures
        + [_jump] * plan.jumps
        + [_partition] * plan.partitions
        + [_rival] * plan.rivals
        + [_poison] * plan.poisons
    )
    at = sorted((rnd.random() * plan.storm_secs, n) for n in range(len(kinds)))
    begin = world.loop.now
    for when, n in at:
        await asyncio.sleep(max(0.0, begin + when - world.loop.now))
        await kinds[n](world, rnd)
    await asyncio.sleep(max(0.0, begin + plan.storm_secs - world.loop.now))


async def _crash(world: World, rnd: Random) -> None:
    del rnd
    if world.servers.current is not None:
        world.crash(world.servers.current, "kill -9")


async def _freeze(world: World, rnd: Random) -> None:
    """The owner stands still for longer than its lease; it is replaced, and then goes on."""
    server = world.servers.current
    if server is None or not server.alive or not server.up:
        return
    world.note("freeze", server.name)
    server.freeze()
    world.servers.current = None  # who watches over it starts another
    lease = world.plan.lease_secs
    await asyncio.sleep(rnd.random() * 3 * lease)
    world.note("thaw", server.name)
    server.thaw()


async def _stop(world: World, rnd: Random) -> None:
    del rnd
    if world.servers.current is not None:
        await world.servers.stop(world.servers.current)


async def _outage(world: World, rnd: Random) -> None:
    world.note("away")
    world.network.away = True
    await asyncio.sleep(rnd.random() * world.plan.outage_secs)
    world.network.away = False
    world.note("back")


async def _failure(world: World, rnd: Random) -> None:
    """The actor of a run fails; it is started again from what is stored."""
    server = world.servers.current
    if server is None or not server.up or not server.alive or server.frozen:
        return
    entries = server.runtime.supervisor._entries
    refs = [entry.ref for entry in entries.values() if entry.ref is not None]
    if refs:
        ref = rnd.choice(refs)
        world.note("failure", ref.actor_urn)
        world.loop.call_soon(_tell, ref, context=server.context)


def _tell(ref: LoopRef[RunActor]) -> None:
    with suppress(ActorDeadError):
        ref.tell(Planted())


def _notify(supervisor: Supervisor, run_id: str) -> None:
    with suppress(UnavailableError):  # it is stopping
        supervisor.notify(run_id, Planted())


async def _jump(world: World, rnd: Random) -> None:
    offset_ms = rnd.choice((-15_000, -2_000, 3_000, 20_000))
    world.note("jump", offset_ms)
    world.servers.clock.offset_ms += offset_ms


async def _partition(world: World, rnd: Random) -> None:
    """The owner does not reach the store; another one does and takes over."""
    server = world.servers.current
    if server is None or not server.alive or not server.up:
        return
    world.note("cut", server.name)
    world.network.cut.add(server.name)
    world.servers.current = None
    await asyncio.sleep(rnd.random() * 3 * world.plan.lease_secs)
    world.note("joined", server.name)
    world.network.cut.discard(server.name)


async def _rival(world: World, rnd: Random) -> None:
    """Somebody starts a second server on the same store."""
    del rnd
    world.servers.start(rival=True)


async def _poison(world: World, rnd: Random) -> None:
    """A run whose actor fails again and again, until it is quarantined."""
    active = [run for run in world.ledger.runs.values() if not run.vitals.status.is_terminal]
    taken = [run for run in active if any(step.accepted for step in run.steps)]
    if not active:
        return
    run_id = rnd.choice(taken or active).head.id  # what remote jobs have of it is of interest
    for _ in range(20):
        server = world.servers.current
        if server is not None and server.up and server.alive and not server.frozen:
            supervisor = server.runtime.supervisor
            if supervisor.knows(run_id) and run_id not in supervisor.quarantined:
                world.note("poison", run_id)
                world.loop.call_soon(_notify, supervisor, run_id, context=server.context)
        await asyncio.sleep(0.05 + rnd.random() * 0.15)
    await asyncio.sleep(rnd.random() * 3)
    await _decide_about(
        world, run_id, rnd.choice(("release_quarantined", "discard_quarantined", ""))
    )


async def _decide_about(world: World, run_id: str, verb: str) -> None:
    """An operator does not wait for calmer times."""
    server = world.servers.current
    if not verb or server is None or not server.up or not server.alive or server.frozen:
        return
    quarantined = server.runtime.supervisor.quarantined
    if run_id in quarantined:
        world.note(verb, run_id)
        world.ledger.note_set_apart(quarantined.keys(), world.ledger.fence)
        with suppress(ApplicationError, ConnectionError):
            await world.request(call(verb, run_id, ADMIN))
