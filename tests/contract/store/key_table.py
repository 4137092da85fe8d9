"""The key table of `pilotage.persistence.keys` as a check: no key without an owner or a TTL."""

from __future__ import annotations

import re
from typing import Final

from redis.asyncio import Redis

ID: Final = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
# name pattern -> types; True: has a TTL, False: has none
TABLE: Final[list[tuple[str, set[str], bool]]] = [
    (r"fence", {"string"}, False),
    (r"lease", {"string"}, True),
    (r"active", {"zset"}, False),
    (r"expire", {"zset"}, False),
    (rf"run:{ID}", {"hash", "string"}, False),
    (rf"out:{ID}", {"hash"}, False),
    (rf"hist:{ID}", {"list"}, False),
    (rf"jobs:{ID}", {"hash"}, False),
    (r"ix:[^:]+", {"zset"}, False),
    (r"ixw:[^:]+:[^:]+", {"zset"}, False),
    (r"ixt:[^:]+:.+", {"zset"}, False),
    (r"busy:[^:]+", {"set"}, False),
    (r"idem:[^:]+:[0-9a-f]{32}", {"string"}, True),
    (r"idemx:[^:]+", {"zset"}, True),
    (r"rec:[^:]+:.+", {"hash"}, False),
    (r"slug:[^:]+:[^:]+", {"hash"}, False),
    (r"recs:[^:]+(:[^:]+)?", {"zset"}, False),
    (r"ev:[^:]+", {"hash"}, True),
    (r"ev[qxc]:[^:]+", {"zset"}, True),
    (r"secret:.+", {"string"}, False),
]


async def check_keys(client: Redis) -> None:
    """Every key is in the table, and whatever hangs on a run has its run."""
    names = {text(key) for key in await client.keys()}
    for name in names:
        tail = name.removeprefix("pilotage:{s0}:")
        kind = text(await client.type(name))
        rows = [row for row in TABLE if re.fullmatch(row[0], tail)]
        assert len(rows) == 1, f"{name}: {len(rows)} rows in the key table"
        _, kinds, mortal = rows[0]
        assert kind in kinds, f"{name} is a {kind}"
        assert (await client.pttl(name) >= 0) is mortal, f"{name}: TTL {await client.pttl(name)}"
        if tail.startswith(("out:", "hist:", "jobs:")):
            owner = "pilotage:{s0}:run:" + tail.partition(":")[2]
            assert owner in names, f"{name} has no run"


def text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
