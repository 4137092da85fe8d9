"""What the store is asked about itself, and runs that cannot be read.

`purge_runs` removes a run without knowing what is in it: it looks through all indexes of the
namespace for the run's id. That reads every key's name, in small steps between which the server
serves others; it is for the rare run that is damaged, never for what can be read.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from typing import Final

from pilotage.persistence import scripts, scripts_runs
from pilotage.persistence.keys import TIME_DIGITS, Keys
from pilotage.persistence.port import FencedError, MemoryUse
from pilotage.persistence.redis_link import RedisLink

_NAMES_AT_ONCE: Final = 1_000
_KEYS_AT_ONCE: Final = 500
"""Index keys that one script call looks at: bounds how long the server is busy with it."""


class RedisRepair:
    """The part of the store that looks after it."""

    def __init__(self, link: RedisLink, keys: Keys) -> None:
        self._link = link
        self._keys = keys

    async def memory_use(self) -> MemoryUse | None:
        told: bytes = await self._link.read(scripts.MEMORY, [])
        known = dict(line.split(":", 1) for line in told.decode().splitlines() if ":" in line)
        limit = int(known.get("maxmemory", 0))
        used = int(known["used_memory"]) - int(known.get("mem_not_counted_for_evict", 0))
        return MemoryUse(used, limit) if limit > 0 else None

    async def purge_runs(self, run_ids: Sequence[str], fence: int) -> int:
        wanted = list(dict.fromkeys(run_ids))
        if not wanted:
            return 0
        sort_keys = await self._sort_keys(wanted)
        # The indexes first and the record last: an interrupted purge can be repeated.
        async for names in self.index_names():
            if sort_keys:
                await self._forget(names, sort_keys, fence)
        return await self._unlink(wanted, sort_keys, fence)

    async def _sort_keys(self, run_ids: Sequence[str]) -> list[str]:
        """What the indexes call these runs; a run that none names is not among them."""
        found: dict[str, str] = {}
        for run_id in run_ids:
            pattern = "?" * TIME_DIGITS + run_id
            for name in (self._keys.active, self._keys.expire):
                async for member in self.members(name, pattern):
                    found[run_id] = member
        missing = [run_id for run_id in run_ids if run_id not in found]
        if missing:  # pinned: only the lists of its project know it
            async for names in self.index_names(self._keys.index("")):
                for name in names:
                    for run_id in missing:
                        async for member in self.members(name, "?" * (TIME_DIGITS + 1) + run_id):
                            found[run_id] = member[1:]
        return list(found.values())

    async def members(self, name: str, pattern: str = "*") -> AsyncIterator[str]:
        """The members of a sorted set that fit the pattern, while others change it."""
        cursor = b"0"
        while True:
            cursor, found = await self._link.read(
                scripts_runs.MEMBERS, [name], [cursor, pattern, _NAMES_AT_ONCE]
            )
            for member in found[0::2]:
                yield member.decode()
            if cursor == b"0":
                return

    async def index_names(self, prefix: str | None = None) -> AsyncIterator[list[str]]:
        """The names of all keys that list runs, some at a time."""
        pattern = literal(self._keys.prefix) + "[ib][xu]*"
        if prefix is not None:
            pattern = literal(prefix) + "*"
        wanted = re.compile(re.escape(self._keys.prefix) + r"(ix|ixw|ixt|busy):", re.ASCII)
        async for found in self.names(pattern):
            names = [name for name in found if wanted.match(name)]
            if names:
                yield names

    async def names(self, pattern: str) -> AsyncIterator[list[str]]:
        """The keys that fit the pattern, each at least once, some at a time."""
        cursor = b"0"
        while True:
            cursor, found = await self._link.read(
                scripts_runs.NAMES, [], [cursor, pattern, _NAMES_AT_ONCE]
            )
            names = list(map(bytes.decode, found))
            for start in range(0, len(names), _KEYS_AT_ONCE):
                yield names[start : start + _KEYS_AT_ONCE]
            if cursor == b"0":
                return

    async def _forget(self, names: list[str], sort_keys: list[str], fence: int) -> None:
        busy = self._keys.busy("")
        sets = [name for name in names if name.startswith(busy)]
        zsets = [name for name in names if not name.startswith(busy)]
        arguments: list[str | int] = [fence, len(zsets), *sort_keys]
        keys = [self._keys.fence, *zsets, *sets]
        if int(await self._link.write(scripts_runs.FORGET_RUNS, keys, arguments)) < 0:
            raise FencedError(f"fencing token {fence} is not the newest")

    async def _unlink(self, run_ids: list[str], sort_keys: list[str], fence: int) -> int:
        names = self._keys
        keys = [names.fence, names.active, names.expire]
        for run_id in run_ids:
            keys += (names.run(run_id), names.outbox(run_id))
            keys += (names.history(run_id), names.job_runs(run_id))
        known = {key[TIME_DIGITS:]: key for key in sort_keys}
        arguments: list[str | int] = [fence, *(known.get(run_id, "") for run_id in run_ids)]
        removed = int(await self._link.write(scripts_runs.UNLINK_RUNS, keys, arguments))
        if removed < 0:
            raise FencedError(f"fencing token {fence} is not the newest")
        return removed


def literal(text: str) -> str:
    """The text as a pattern of the server that means just that."""
    return re.sub(r"([][?*^\\-])", r"\\\1", text)
