"""The store in Redis or Valkey: ownership here, the rest from its parts.

One server-side script call a batch; everything else is one call as well, or harmless to repeat.
The fence decides safety (each script that writes compares it), the lease only liveness.

Restarts of the server, lost replies and lost connections come out as `StoreUnavailableError`; the
next call connects again by itself. An instance belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from pilotage.persistence import scripts, store_format
from pilotage.persistence.keys import Keys
from pilotage.persistence.port import FencedError, LeaseHeldError, StoreError
from pilotage.persistence.redis_link import RedisLink
from pilotage.persistence.redis_records import RedisRecords
from pilotage.persistence.redis_repair import RedisRepair
from pilotage.persistence.redis_runs import RedisRuns

_log = logging.getLogger("pilotage.store")

DEFAULT_NAMESPACE: Final = "pilotage"
_POLL_SECS: Final = 0.25
_FORGO_SECS: Final = 2.0
_SAME_MS: Final = 5
"""The end of a lease is computed as time + rest on the server, each cut to milliseconds."""


class RedisStore(RedisRuns, RedisRecords, RedisRepair):
    """One namespace of a server: an implementation of `pilotage.persistence.port.Store`.

    `url`: redis://, rediss:// or unix://. `timeout_secs` bounds every answer.
    """

    def __init__(
        self, url: str, *, namespace: str = DEFAULT_NAMESPACE, timeout_secs: float = 5.0
    ) -> None:
        self.keys: Final = Keys(namespace)
        self.link: Final = RedisLink(url, timeout_secs=timeout_secs)
        RedisRuns.__init__(self, self.link, self.keys)

    async def open(self) -> None:
        """Connect; refuses what is no store for us, or that of a newer release."""
        await self.link.open()
        try:
            store_format.noted(await self.link.command("GET", self.keys.format))
        except BaseException:
            await self.link.close()
            raise

    async def close(self) -> None:
        await self.link.close()

    async def ping(self) -> None:
        await self.link.command("PING")

    async def acquire(self, owner: str, lease_secs: float) -> int:
        """Take the lease, after waiting for one that is there to run out.

        `LeaseHeldError` as soon as it is renewed or taken by somebody else meanwhile.
        """
        first_end: int | None = None
        while True:
            fence, held, left_ms, end = await self._acquire(owner, lease_secs)
            if fence < 0:
                store_format.noted(held)  # raises: a newer release came between opening and now
            if fence:
                return int(fence)
            end_ms, holder = int(end), held.decode().partition(" ")[2]
            if first_end is None:
                first_end = end_ms
                _log.info(
                    "waiting for the lease of %s, which ends in %.1f s if it is not renewed",
                    holder,
                    left_ms / 1000,
                )
            elif abs(end_ms - first_end) > _SAME_MS:
                raise LeaseHeldError(holder)
            await asyncio.sleep(min(_POLL_SECS, max(left_ms, 1) / 1000))

    async def _acquire(self, owner: str, lease_secs: float) -> tuple[int, bytes, int, bytes]:
        """Who gives up while the answer is on its way leaves no lease that nobody renews."""
        keys = [self.keys.lease, self.keys.fence, self.keys.format]
        asked = asyncio.ensure_future(
            self.link.write(scripts.ACQUIRE, keys, [owner, _ms(lease_secs), store_format.note()])
        )
        try:
            fence, held, left_ms, end = await asyncio.shield(asked)
        except asyncio.CancelledError:
            await self._forgo(asked, owner)
            raise
        return fence, held, left_ms, end

    async def _forgo(self, asked: asyncio.Future[Any], owner: str) -> None:
        """Give back what may have been acquired; a store that is silent is not waited for."""
        try:
            async with asyncio.timeout(_FORGO_SECS):
                fence, *_ = await asked
                if fence > 0:
                    await self.release(owner, fence)
        except (StoreError, TimeoutError):
            _log.info("a lease that may have been taken was not given back; it ends by itself")

    async def forget_lease(self) -> None:
        """Remove a lease whoever has it. Only for a server that a lock file gives to us alone:
        its last owner is known to be gone.
        """
        await self.link.command("DEL", self.keys.lease)

    async def renew(self, owner: str, fence: int, lease_secs: float) -> None:
        letter = await self.link.write(
            scripts.RENEW, [self.keys.lease, self.keys.fence], [fence, owner, _ms(lease_secs)]
        )
        if letter == b"f":
            raise FencedError(f"fencing token {fence} is not the newest: the lease is lost")

    async def release(self, owner: str, fence: int) -> None:
        await self.link.write(scripts.RELEASE, [self.keys.lease], [f"{fence} {owner}"])

    async def fence(self) -> int:
        return int(await self.link.command("GET", self.keys.fence) or 0)


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
