"""The plan of one seed: which faults there are and how many, drawn before anything happens.

Each seed has some kinds of fault and not others: a bug that shows only when replies are lost and
nothing else goes wrong would drown where everything goes wrong at once.
"""

from __future__ import annotations

from random import Random

import msgspec

from tests.simulation.outside import Habits
from tests.simulation.store import Fate, FaultRates


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Rates are per second of the storm unless they say otherwise.

    runs, commands, events   how much clients send during the storm
    crashes          kill -9 at a random instant
    freezes          SIGSTOP for longer than the lease; another server takes over meanwhile
    stops            orderly stops
    outages          the store is away for up to `outage_secs`
    failures         the actor of a run raises
    jumps            the wall clock is set forward or back
    partitions       the owner does not reach the store, others do
    rivals           a second server is started
    poisons          the actor of one run raises until the run is quarantined
    unheard          share of messages to other runs that are not taken, and not answered
    cron             a workflow is started every minute
    retention_secs   how long finished runs are kept
    slow_turns       share of the turns of actors after which others get the loop
    fold_secs, passivate_secs   after which an idle run loses its actor, and leaves memory
    start_ms         the wall clock at the beginning
    """

    workflows: int
    max_steps: int
    runs: int
    commands: int
    events: int
    storm_secs: float
    rates: FaultRates
    habits: Habits
    crashes: int
    freezes: int
    stops: int
    outages: int
    outage_secs: float
    failures: int
    jumps: int
    partitions: int
    rivals: int
    poisons: int
    unheard: float
    cron: bool
    retention_secs: int
    slow_turns: float
    fold_secs: float
    passivate_secs: int
    start_ms: int
    lease_secs: int = 3


FULL_MINUTE_MS = 1_700_000_100_000
_KILLS = (Fate.KILLED_BEFORE, Fate.KILLED_ARRIVED, Fate.KILLED_AFTER, Fate.KILLED_TOLD)


def plan_of(seed: int) -> Plan:
    rnd = Random(f"{seed}/plan")

    def perhaps(share: float, value: float) -> float:
        return value if rnd.random() < share else 0.0

    fates = {
        Fate.REFUSED: perhaps(0.3, 0.05),
        Fate.LOST: perhaps(0.3, 0.03),
        Fate.UNANSWERED: perhaps(0.4, 0.05),
        Fate.LATE: perhaps(0.3, 0.03),
    }
    kill = perhaps(0.5, 0.008)
    fates |= dict.fromkeys(_KILLS, kill)
    slow = perhaps(0.4, 0.1)
    # a minute begins at any instant, or while workflows are defined and in the storm
    until_minute_ms = rnd.choice((rnd.randrange(60_000), rnd.randrange(16_000)))
    return Plan(
        workflows=rnd.choice((1, 2, 2, 3)),
        max_steps=rnd.choice((2, 4, 6, 8)),
        runs=rnd.choice((1, 3, 6, 12)),
        commands=rnd.choice((0, 5, 12, 24)),
        events=rnd.choice((0, 4, 12)),
        storm_secs=rnd.choice((4.0, 8.0, 12.0)),
        rates=FaultRates(
            fates={fate: share for fate, share in fates.items() if share},
            latency_secs=rnd.choice((0.0005, 0.005, 0.05)),
            slow_share=slow,
        ),
        habits=Habits(
            fail=perhaps(0.7, 0.15),
            fail_for_good=perhaps(0.5, 0.05),
            never=perhaps(0.5, 0.06),
            accept=perhaps(0.5, 0.4),
            slow_secs=rnd.choice((0.02, 1.0, 4.0)),
            crash_at_dispatch=perhaps(0.2, 0.03),
        ),
        crashes=rnd.choice((0, 0, 1, 2)),
        freezes=rnd.choice((0, 0, 1)),
        stops=rnd.choice((0, 0, 1)),
        outages=rnd.choice((0, 0, 1, 2)),
        outage_secs=rnd.choice((1.0, 4.0, 16.0)),
        failures=rnd.choice((0, 0, 1, 3)),
        jumps=rnd.choice((0, 0, 0, 0, 1, 2)),
        partitions=rnd.choice((0, 0, 0, 1)),
        rivals=rnd.choice((0, 0, 0, 1)),
        poisons=rnd.choice((0, 0, 0, 0, 1)),
        unheard=perhaps(0.4, 0.2),
        cron=rnd.random() < 0.2,
        retention_secs=rnd.choice((86_400, 86_400, 3)),
        slow_turns=perhaps(0.4, 0.2),
        fold_secs=rnd.choice((0.1, 0.5, 5.0)),
        passivate_secs=rnd.choice((0, 1, 600)),
        start_ms=FULL_MINUTE_MS - until_minute_ms,
    )
