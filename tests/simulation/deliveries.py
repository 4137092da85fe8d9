"""Messages from run to run that do not get through: not taken now, or taken and never answered."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

from pilotage.actors.errors import UnavailableError
from pilotage.actors.outside import Outside
from pilotage.runtime.effects import Effect

if TYPE_CHECKING:
    from tests.simulation.world import World


def unreliable(world: World, rnd: Random) -> Any:
    """For `Outside._deliver`, during the storm: of each kind of trouble `plan.unheard`."""
    deliver, share = Outside._deliver, world.plan.unheard

    async def unreliably(
        self: Outside, effect: Effect, message_id: str | None, *, again: bool
    ) -> None:
        draw = rnd.random() if share and world.network.stormy else 0.5
        if draw < share:
            world.note("not taken", type(effect).__name__)
            raise UnavailableError("not now")
        await deliver(self, effect, message_id, again=again)
        if draw > 1 - share:
            world.note("not answered", type(effect).__name__)
            raise UnavailableError("no answer")

    return unreliably
