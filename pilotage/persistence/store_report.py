"""What a store tells of itself, for `pilotage doctor`. Nothing is changed by asking.

It is asked over the same kind of connection as a server's, so that failures have the same words.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec
from redis.exceptions import RedisError, ResponseError

from pilotage.persistence import store_format
from pilotage.persistence.keys import Keys
from pilotage.persistence.port import NewerStoreError, UnsuitableStoreError
from pilotage.persistence.redis_link import INFO_SECTIONS, described, explanation, unsuitable
from pilotage.persistence.redis_wire import Address, Wires, packed

TIMEOUT_SECS = 5.0
NEARLY_FULL = 0.9
"""From this share of its memory on a server takes on no new runs."""


class StoreReport(msgspec.Struct, frozen=True, kw_only=True):
    """A store of a suitable kind. `problems`: why it takes no writes, or soon will not. `risks`:
    what may lose some.

    format      which releases may open it; None: it says nothing yet
    fence       how often ownership has changed; 0: no server has ever used this namespace
    holder      who has the lease, and for how many seconds more
    skew_secs   how far the store's clock is ahead of ours
    """

    version: str
    problems: list[str]
    risks: list[str]
    memory: str
    format: store_format.StoreFormat | None
    fence: int
    holder: str | None
    lease_left_secs: float
    skew_secs: float


async def look_at(url: str, namespace: str) -> StoreReport:
    """Raises a `StoreError` that says why the store cannot be asked, or is none that will do."""
    wires = Wires(Address(url), 1, timeout_secs=TIMEOUT_SECS, connect_secs=TIMEOUT_SECS)
    try:
        return await _ask(wires, Keys(namespace))
    except (RedisError, OSError) as error:
        raise explanation(error, TIMEOUT_SECS) from error
    finally:
        await wires.close()


async def _ask(wires: Wires, keys: Keys) -> StoreReport:
    info: dict[str, str] = {}
    for section in INFO_SECTIONS:
        info |= described(await wires.ask(packed("INFO", section)))
    unfit = unsuitable(info)
    if unfit:
        raise UnsuitableStoreError("; ".join(unfit))
    (seconds, micros), held, left_ms, fence, note = await wires.ask_all(
        [
            packed("TIME"),
            packed("GET", keys.lease),
            packed("PTTL", keys.lease),
            packed("GET", keys.fence),
            packed("GET", keys.format),
        ]
    )
    problems = refusals(info)
    try:
        known = store_format.noted(note)
    except NewerStoreError as error:
        known = None
        problems.append(str(error))
    name = "Valkey" if "valkey_version" in info else "Redis"
    return StoreReport(
        version=f"{name} {info.get('valkey_version', info.get('redis_version', 'unknown'))}",
        problems=problems,
        risks=risks(info, await _fsync_policy(wires)),
        memory=memory(info),
        format=known,
        fence=int(fence or 0),
        holder=None if held is None else held.decode().partition(" ")[2],
        lease_left_secs=max(left_ms, 0) / 1000,
        skew_secs=int(seconds) + int(micros) / 1e6 - time.time(),
    )


async def _fsync_policy(wires: Wires) -> str | None:
    """When it forces its append-only file to disk; None: we may not ask for that."""
    try:
        _, policy = await wires.ask(packed("CONFIG", "GET", "appendfsync"))
    except (ResponseError, ValueError):
        return None
    return str(policy, "ascii")


def refusals(info: Mapping[str, Any]) -> list[str]:
    """Why a server that describes itself like this takes no writes, or soon will not."""
    problems: list[str] = []
    if int(info.get("loading", 0)):
        problems.append("it is loading its data: wait until it has")
    if info.get("aof_last_write_status", "ok") != "ok":
        problems.append("it cannot write its append-only file: look at its disk and its log")
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        problems.append(
            "its last snapshot failed, and it refuses writes because of that unless told "
            "otherwise (stop-writes-on-bgsave-error): look at its disk and its log"
        )
    if fullness(info) >= 1:
        problems.append("its memory is full (maxmemory): give it more, or remove runs")
    return problems


def risks(info: Mapping[str, Any], fsync_policy: str | None = None) -> list[str]:
    """What works still, and should not stay as it is."""
    found: list[str] = []
    if NEARLY_FULL <= fullness(info) < 1:
        found.append(
            f"{fullness(info):.0%} of its memory is in use (maxmemory): no new run is taken on "
            "until there is room; give it more, or shorten PILOTAGE_RETENTION_*"
        )
    if not int(info.get("aof_enabled", 1)):
        found.append(
            "it has no append-only file: its restart loses what was written since its last "
            "snapshot, if it makes any; set appendonly yes"
        )
    elif fsync_policy == "everysec":
        found.append(
            "it answers before it has written while its disk is busy (appendfsync everysec): if it "
            "is killed then, up to two seconds of what it had answered are lost; set appendfsync "
            "always"
        )
    return found


def fullness(info: Mapping[str, Any]) -> float:
    """Share of its memory that is in use; 0 when it has no bound."""
    limit = int(info.get("maxmemory", 0))
    return int(info.get("used_memory", 0)) / limit if limit else 0.0


def memory(info: Mapping[str, Any]) -> str:
    limit, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    of = f" of {limit / (1 << 20):.0f}" if limit else ""
    return f"{used / (1 << 20):.0f}{of} MiB in use" + ("" if limit else ", no bound")
