"""Connections to a Redis or Valkey server: how commands travel and what their failures mean.

Two pools. Writes are never repeated by the client library (its default would apply a write twice
when a reply is lost); the caller repeats them, they are made for it. Reads are repeated a few
times. Whatever goes wrong comes out as a `StoreError`:

    away, loading, read-only, out of memory, disk error, too few replicas   StoreUnavailableError
    not a Redis, too old, evicts, a replica, wrong credentials              UnsuitableStoreError
    anything else the server refuses                                        StoreError

All methods belong to the event loop on which the first of them ran.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, cast

import hiredis
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError as RedisConnectionError,
    InvalidResponse,
    MasterDownError,
    MaxConnectionsError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError as RedisTimeoutError,
    TryAgainError,
)

from pilotage.persistence.port import StoreError, StoreUnavailableError, UnsuitableStoreError
from pilotage.persistence.scripts import Script

_log = logging.getLogger("pilotage.store")

MIN_VERSION: Final = (6, 2)
Argument = str | bytes | int
INFO_SECTIONS: Final = ("server", "replication", "memory", "persistence", "cluster")

_CAUSES: Final = {
    "OOM": "it is out of memory (maxmemory): give it more or remove runs",
    "READONLY": "it has become a replica and takes no writes",
    "MISCONF": "it cannot save to its disk and refuses writes: look at its log",
    "NOREPLICAS": "too few replicas are connected (min-replicas-to-write)",
    "LOADING": "it is loading its data",
    "BUSY": "it is busy with a long script",
    "MASTERDOWN": "its master is away",
    "CLUSTERDOWN": "its cluster is down",
    "TRYAGAIN": "its cluster moves slots",
}
# Inside a script Redis 6.2 wraps the words of the error in its own.
_CODE: Final = re.compile(rf"\b({'|'.join(_CAUSES)})\b")
_CODES: Final[dict[type[Exception], str]] = {
    OutOfMemoryError: "OOM",
    ReadOnlyError: "READONLY",
    BusyLoadingError: "LOADING",
    MasterDownError: "MASTERDOWN",
    ClusterDownError: "CLUSTERDOWN",
    TryAgainError: "TRYAGAIN",
}
_NOT_ALLOWED: Final = (AuthenticationError, AuthorizationError, NoPermissionError)
_NOT_ALLOWED_CODES: Final = ("NOAUTH", "WRONGPASS", "NOPERM")

_WRITER_CONNECTIONS: Final = 4
_READER_CONNECTIONS: Final = 32
_CONNECT_TIMEOUT_SECS: Final = 2.0
_READ_RETRIES: Final = 3


class RedisLink:
    """One server. `url`: redis://, rediss:// or unix://, with credentials and database."""

    def __init__(self, url: str, *, timeout_secs: float = 5.0) -> None:
        if not url.startswith(("redis://", "rediss://", "unix://")):
            raise UnsuitableStoreError(
                f"store URL {_masked(url)!r}: it must start with redis://, rediss:// or unix://"
            )
        self.url: Final = url
        self._timeout_secs = timeout_secs
        self._writer: Redis | None = None
        self._reader: Redis | None = None

    def __repr__(self) -> str:
        return f"RedisLink({_masked(self.url)})"

    async def open(self) -> None:
        """Connect and look whether this server can be trusted with runs."""
        if self._writer is not None:
            return
        self._writer = self._client(_WRITER_CONNECTIONS, Retry(NoBackoff(), 0))
        backoff = ExponentialWithJitterBackoff(base=0.05, cap=1.0)
        self._reader = self._client(
            _READER_CONNECTIONS, Retry(backoff, _READ_RETRIES), (ReadOnlyError, BusyLoadingError)
        )
        try:
            await self._check()
        except BaseException:
            await self.close()
            raise

    def _client(
        self, size: int, retry: Retry, retry_on_error: Sequence[type[Exception]] = ()
    ) -> Redis:
        pool: BlockingConnectionPool = BlockingConnectionPool.from_url(
            self.url,
            max_connections=size,
            timeout=self._timeout_secs,
            socket_timeout=self._timeout_secs,
            socket_connect_timeout=_CONNECT_TIMEOUT_SECS,
            retry=retry,
            retry_on_error=list(retry_on_error),
            protocol=2,
        )
        pool.connection_class = _packing(pool.connection_class)
        return Redis.from_pool(pool)

    async def close(self) -> None:
        clients, self._writer, self._reader = (self._writer, self._reader), None, None
        for client in clients:
            if client is not None:
                await client.aclose()

    async def write(
        self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]
    ) -> Any:
        """Run a script that writes. After a `StoreUnavailableError` it may have been applied."""
        return await self._evaluate(self._writer, script, keys, arguments)

    async def read(
        self, script: Script, keys: Sequence[str], arguments: Sequence[Argument] = ()
    ) -> Any:
        return await self._evaluate(self._reader, script, keys, arguments)

    async def _evaluate(
        self, client: Redis | None, script: Script, keys: Sequence[str], args: Sequence[Argument]
    ) -> Any:
        with self._explained():
            execute = _execute(client)
            try:
                return await execute("EVALSHA", script.sha, len(keys), *keys, *args)
            except NoScriptError:
                return await execute("EVAL", script.text, len(keys), *keys, *args)

    async def command(self, *words: Argument) -> Any:
        """One command that may be repeated: a read, or a write of an absolute value."""
        with self._explained():
            return await _execute(self._reader)(*words)

    async def commands(self, *commands: Sequence[Argument]) -> list[Any]:
        """Several of them in one round trip, not atomic."""
        with self._explained():
            pipeline = _opened(self._reader).pipeline(transaction=False)
            for words in commands:
                pipeline.execute_command(*words)
            return list(await pipeline.execute())

    @contextmanager
    def _explained(self) -> Generator[None]:
        try:
            yield
        except (RedisError, OSError) as error:
            raise explanation(error, self._timeout_secs) from error

    async def _check(self) -> None:
        try:
            with self._explained():
                client = _opened(self._writer)
                info: dict[str, Any] = {}
                for section in INFO_SECTIONS:
                    info |= await client.info(section)
        except StoreUnavailableError:
            raise
        except UnsuitableStoreError:
            raise
        except StoreError as error:
            raise UnsuitableStoreError(f"not a Redis or Valkey server: {error}") from error
        problems = unsuitable(info)
        if problems:
            raise UnsuitableStoreError(f"store {_masked(self.url)}: " + "; ".join(problems))
        if not int(info.get("aof_enabled", 1)):
            _log.warning(
                "store %s has no append-only file: its restart loses what was written since its "
                "last snapshot, if it makes any; set appendonly yes",
                _masked(self.url),
            )


def _packing(connection_class: Any) -> Any:
    """The same connection, with commands encoded by hiredis: 2.5 µs instead of 17 for a commit
    of one run. The asyncio client does it in Python.
    """

    class Packing(connection_class):  # type: ignore[misc]
        def pack_command(self, *words: Argument | float) -> list[bytes]:
            name = words[0]
            if isinstance(name, str) and " " in name:  # such as CLIENT SETINFO
                words = (*name.split(), *words[1:])
            return [hiredis.pack_command(words)]  # type: ignore[arg-type]

    return Packing


def unsuitable(info: Mapping[str, Any]) -> list[str]:
    """What is wrong with a server that describes itself like this, and what to do."""
    version_text = str(info.get("redis_version", ""))
    version = tuple(int(part) for part in version_text.split(".")[:2] if part.isdigit())
    if not version:
        return ["not a Redis or Valkey server: it does not tell its version"]
    problems: list[str] = []
    if version < MIN_VERSION:
        problems.append(f"version {version_text} is too old: Redis 6.2 or Valkey 7.2 is needed")
    if info.get("role") == "slave":
        master = f"{info.get('master_host')}:{info.get('master_port')}"
        problems.append(f"it is a replica: name its master, {master}")
    policy = info.get("maxmemory_policy", "noeviction")
    if int(info.get("maxmemory", 0)) > 0 and policy != "noeviction":
        problems.append(
            f"it evicts keys when memory is short (maxmemory-policy {policy}), that is, it would "
            "delete runs: set maxmemory-policy noeviction"
        )
    if int(info.get("cluster_enabled", 0)):
        problems.append("it is a node of a Redis Cluster: name a server that stands alone")
    return problems


def _execute(client: Redis | None) -> Callable[..., Awaitable[Any]]:
    """`execute_command` with a type; the library has none for it."""
    execute: Callable[..., Awaitable[Any]] = cast("Any", _opened(client)).execute_command
    return execute


def _opened(client: Redis | None) -> Redis:
    if client is None:
        raise StoreUnavailableError("the store is not open")
    return client


def explanation(error: Exception, timeout_secs: float) -> StoreError:
    """The store error that says what a client error means."""
    # What fails while a connection is made arrives wrapped, the reason is its cause.
    while isinstance(error, RedisConnectionError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    text = str(error) or type(error).__name__
    code = _code(error, text)
    if code is not None:
        return StoreUnavailableError(f"the store is not available: {_CAUSES[code]}")
    if isinstance(error, MaxConnectionsError):
        return StoreUnavailableError("all connections to the store are in use")
    if isinstance(error, (RedisTimeoutError, TimeoutError)):
        return StoreUnavailableError(f"the store did not answer within {timeout_secs:g} s")
    return _unsuitable_or_wrong(error, text)


def _unsuitable_or_wrong(error: Exception, text: str) -> StoreError:
    if isinstance(error, _NOT_ALLOWED) or text.startswith(_NOT_ALLOWED_CODES):
        return UnsuitableStoreError(
            f"the store refuses our credentials or rights: {text}; correct user, password or "
            "access rules (all commands on our keys, and INFO)"
        )
    if isinstance(error, InvalidResponse):
        return UnsuitableStoreError(f"this is not a Redis or Valkey server: {text}")
    if isinstance(error, ResponseError):
        if text.startswith(("MOVED", "ASK", "CROSSSLOT")):
            return UnsuitableStoreError(f"the store is a cluster that moves our keys: {text}")
        return StoreError(f"the store refused a command: {text}")
    return StoreUnavailableError(f"the store cannot be reached: {text}")


def _code(error: Exception, text: str) -> str | None:
    """The server's word for a refusal that will pass; the client has cut it off for some."""
    for kind, code in _CODES.items():
        if isinstance(error, kind):
            return code
    found = _CODE.search(text) if isinstance(error, ResponseError) else None
    return None if found is None else found[1]


def _masked(url: str) -> str:
    """The URL without its password, wherever that stands."""
    masked = re.sub(r"(://[^:/?#@]*:).*@", r"\1***@", url)
    return re.sub(r"([?&]password=)[^&]*", r"\1***", masked)
