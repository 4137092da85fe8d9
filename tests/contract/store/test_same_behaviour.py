"""The implementations against each other: the same calls, the same answers."""

from __future__ import annotations

import random

import pytest

from pilotage.persistence.memory import MemoryServer
from pilotage.persistence.port import RunQuery, RunWrite
from pilotage.runtime.status import RunStatus
from tests.contract.store.building import NOW_MS, Life, changed, history_item, step
from tests.contract.store.worlds import MemoryWorld, RedisWorld, World

ROUNDS = 250


class Player:
    """Makes writes, most of them right, and remembers them to send them again."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.lives: list[Life] = []
        self.sent: list[RunWrite] = []

    def life(self) -> Life:
        if len(self.lives) < 4 or self.dice.random() < 0.05:
            number = len(self.lives)
            workflow_id = self.dice.choice(["w1", "w2"])
            self.lives.append(
                Life(
                    number,
                    workflow_id=workflow_id,
                    created_at_ms=NOW_MS + number // 3,
                    tags={"third": str(number % 3)},
                )
            )
        return self.dice.choice(self.lives)

    def write(self) -> RunWrite:
        dice = self.dice
        if self.sent and dice.random() < 0.15:
            return dice.choice(self.sent[-6:])
        life = self.life()
        write = life.write(
            dice.choice([*RunStatus, RunStatus.RUNNING, RunStatus.RUNNING]),
            due_ms=dice.choice([None, dice.randrange(100)]),
            keep_until_ms=dice.choice([None, dice.randrange(100)]),
            steps={i: step(dice.randrange(1_000)) for i in dice.sample(range(20), 2)},
            history=dice.randrange(3),
            job_runs={(dice.randrange(3), dice.randrange(1, 400)): b"%d" % dice.randrange(9)},
            outbox_add={f"m{dice.randrange(5)}": b"message"} if dice.random() < 0.3 else {},
            outbox_done=[f"m{i}" for i in range(5)] if dice.random() < 0.4 else [],
        )
        self.sent.append(write)
        spoiled = dice.random()
        if spoiled < 0.05:
            return changed(write, follows=write.follows + 1, seq=write.seq + 1)
        if spoiled < 0.08:
            return changed(write, head=None, blob=None)
        if spoiled < 0.11:
            return changed(write, history=[history_item(dice.randrange(1, 60))])
        return write

    def batch(self) -> list[RunWrite]:
        size = self.dice.randrange(1, 8)
        return list({write.run_id: write for write in (self.write() for _ in range(size))}.values())


async def seen(world: World, lives: list[Life], dice: random.Random) -> object:
    """What the store says about these runs, through every way of asking."""
    store, ids = world.store, [life.id for life in lives]
    query = RunQuery(
        project_id="project",
        limit=1_000,
        status=dice.choice([None, *RunStatus]),
        workflow_id=dice.choice([None, "w1"]),
        tags=dice.choice([(), ("third:1",)]),
    )
    asked = dice.choice(ids)
    return (
        await store.load_runs(ids),
        await store.active_run_ids(),
        await store.list_runs(query),
        await store.count_runs("project"),
        await store.active_count("w1"),
        await store.history(asked, dice.randrange(3), 20),
        await store.job_runs(asked),
        await store.expired_run_ids(50, 10),
    )


@pytest.mark.parametrize("seed", range(4))
async def test_memory_and_redis_answer_alike(valkey_url: str, seed: int) -> None:
    worlds: list[World] = [MemoryWorld(MemoryServer()), RedisWorld(valkey_url)]
    for world in worlds:
        await world.begin()
    player = Player(seed)
    for turn in range(ROUNDS):
        batch = player.batch()
        fence = worlds[0].fence + (player.dice.random() < 0.05)
        verdicts = [await world.store.commit(batch, fence) for world in worlds]
        assert verdicts[0] == verdicts[1], f"seed {seed}, turn {turn}"
        dying = [life.id for life in player.lives if player.dice.random() < 0.02]
        deleted = [await world.store.delete_runs(dying, worlds[0].fence) for world in worlds]
        assert deleted[0] == deleted[1], f"seed {seed}, turn {turn}"
        look = player.dice.randrange(1 << 30)
        views = [await seen(world, player.lives, random.Random(look)) for world in worlds]
        assert views[0] == views[1], f"seed {seed}, turn {turn}"
    for world in worlds:
        await world.end()
