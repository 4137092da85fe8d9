"""What befalls the servers during the storm, besides what befalls single requests."""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.world import World


async def disasters(world: World, rnd: Random) -> None:
    """All of them, at instants drawn beforehand, until the storm is over."""
    plan = world.plan
    kinds = (
        [_crash] * plan.crashes
        + [_freeze] * plan.freezes
        + [_stop] * plan.stops
        + [_outage] * plan.outages
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
