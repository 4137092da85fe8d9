"""Whole stores as servers of each schema version left them when they were killed.

`python -m tests.golden.stores` writes the one of the present version (a minute or two); a file that
exists stays as it is for good. `story.py` has what is in it, `server.py` is the server.
"""

from __future__ import annotations

import time
import zlib
from pathlib import Path
from typing import Any

import msgspec
from redis import Redis

FOLDER = Path(__file__).parent
BY_EXPIRY = {b"evx", b"evc", b"idemx"}
"""Their scores are times of the store's own clock."""


class StoredKey(msgspec.Struct, frozen=True, array_like=True):
    """`content` is a string, or the flat list that the server answers with."""

    name: bytes
    type: str
    left_ms: int
    content: bytes | list[bytes]


class GoldenStore(msgspec.Struct, frozen=True, kw_only=True):
    """`made_ms` is when; `notes` name the runs and keys in it."""

    made_ms: int
    notes: dict[str, Any]
    keys: list[StoredKey]


def contents(client: Any) -> list[StoredKey]:
    """Every key, in order; a lease is nothing that stays."""
    found: list[StoredKey] = []
    for name in sorted(client.keys("*")):
        if name.endswith(b":lease"):
            continue
        kind = client.type(name).decode()
        found.append(StoredKey(name, kind, int(client.pttl(name)), _content(client, kind, name)))
    return found


def _content(client: Any, kind: str, name: bytes) -> bytes | list[bytes]:
    ask: dict[str, tuple[Any, ...]] = {
        "string": ("GET", name),
        "hash": ("HGETALL", name),
        "list": ("LRANGE", name, 0, -1),
        "set": ("SMEMBERS", name),
        "zset": ("ZRANGE", name, 0, -1, "WITHSCORES"),
    }
    plain: Any = Redis(connection_pool=client.connection_pool)
    plain.response_callbacks.clear()
    answer: Any = plain.execute_command(*ask[kind])
    if kind == "set":
        return sorted(answer)
    if kind == "hash":
        pairs = sorted(zip(answer[0::2], answer[1::2], strict=True))
        return [part for pair in pairs for part in pair]
    kept: bytes | list[bytes] = answer
    return kept


def restore(client: Any, store: GoldenStore) -> None:
    """Into an empty server, as if no time had passed by its clock."""
    passed_ms = time.time_ns() // 1_000_000 - store.made_ms
    for key in store.keys:
        content = key.content
        if isinstance(content, bytes):
            client.set(key.name, content)
        elif key.type == "hash":
            client.execute_command("HSET", key.name, *content)
        elif key.type == "zset":
            later = passed_ms if key.name.split(b":")[2] in BY_EXPIRY else 0
            for member, score in zip(content[0::2], content[1::2], strict=True):
                client.execute_command("ZADD", key.name, float(score) + later, member)
        else:
            client.execute_command("RPUSH" if key.type == "list" else "SADD", key.name, *content)
        if key.left_ms >= 0:
            client.pexpire(key.name, key.left_ms)


def path(version: int) -> Path:
    return FOLDER / f"v{version}.bin"


def read(version: int) -> GoldenStore:
    packed = zlib.decompress(path(version).read_bytes())
    return msgspec.msgpack.decode(packed, type=GoldenStore)


def write(version: int, store: GoldenStore) -> None:
    path(version).write_bytes(zlib.compress(msgspec.msgpack.encode(store), 9))
