"""The key table of `pilotage.persistence.keys` as a check: no key without an owner or a TTL."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from redis.asyncio import Redis

ID: Final = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
# name pattern -> types; True: has a TTL, False: has none
TABLE: Final[list[tuple[str, set[str], bool]]] = [
    (r"fence", {"string"}, False),
    (r"lease", {"string"}, True),
    (r"format", {"string"}, False),
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
    found = [
        (text(key), text(await client.type(key)), await client.pttl(key))
        for key in await client.keys()
    ]
    found = [key for key in found if key[1] != "none"]  # its time was up between two questions
    found = [key for key in found if key[1] != "none"]  # its time was up between two questions
    assert list(check_key_names(found)) == []


def check_key_names(found: Sequence[tuple[str, str, int]]) -> Iterator[str]:
    """What is wrong with these keys, given as (name, type, milliseconds to live or less than 0)."""
    names = {name for name, _, _ in found}
    for name, kind, ttl in found:
        tail = name.removeprefix("pilotage:{s0}:")
        rows = [row for row in TABLE if re.fullmatch(row[0], tail)]
        if len(rows) != 1:
            yield f"{name}: {len(rows)} rows in the key table"
            continue
        _, kinds, mortal = rows[0]
        if kind not in kinds:
            yield f"{name} is a {kind}"
        if (ttl >= 0) is not mortal:
            yield f"{name}: TTL {ttl}"
        if tail.startswith(("out:", "hist:", "jobs:")):
            owner = "pilotage:{s0}:run:" + tail.partition(":")[2]
            if owner not in names:
                yield f"{name} has no run"


def text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
