"""One Redis or Valkey server: how commands reach it and what their failures mean.

Writes are never repeated here (one would be applied twice when a reply is lost); the caller
repeats them, they are made for it. Reads are repeated a few times. Whatever goes wrong comes out
as a `StoreError`:

    away, loading, read-only, out of memory, disk error, too few replicas   StoreUnavailableError
    not a Redis, too old, evicts, a replica, wrong credentials, not trusted UnsuitableStoreError
    anything else the server refuses                                        StoreError

All methods belong to the event loop on which the first of them ran.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import (
    AuthenticationError,
    ConnectionError as RedisConnectionError,
    InvalidResponse,
    MaxConnectionsError,
    RedisError,
    ResponseError,
    TimeoutError as RedisTimeoutError,
)

from pilotage.persistence.port import (
    StoreError,
    StoreFullError,
    StoreLoadingError,
    StoreUnavailableError,
    UnsuitableStoreError,
)
from pilotage.persistence.redis_wire import Address, Argument, Wires, packed
from pilotage.persistence.scripts import Script

_log = logging.getLogger("pilotage.store")

MIN_VERSION: Final = (6, 2)
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
_KINDS: Final[Mapping[str, type[StoreUnavailableError]]] = {
    "OOM": StoreFullError,
    "LOADING": StoreLoadingError,
}
# Inside a script Redis 6.2 wraps the words of the error in its own.
_CODE: Final = re.compile(rf"\b({'|'.join(_CAUSES)})\b")
_NOT_ALLOWED: Final = ("NOAUTH", "WRONGPASS", "NOPERM")
_REPEATED: Final = ("LOADING", "READONLY")
"""Refusals of a read that pass soon, or on another connection."""

_WRITER_CONNECTIONS: Final = 4
_READER_CONNECTIONS: Final = 4
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
        self._writer: Wires | None = None
        self._reader: Wires | None = None
        self._backoff = ExponentialWithJitterBackoff(base=0.05, cap=1.0)

    def __repr__(self) -> str:
        return f"RedisLink({_masked(self.url)})"

    async def open(self) -> None:
        """Connect and look whether this server can be trusted with runs."""
        if self._writer is not None:
            return
        with self._explained():
            try:
                address = Address(self.url)
            except (ValueError, TypeError, OSError) as error:  # also of the files of its `ssl_...`
                raise UnsuitableStoreError(f"store URL {_masked(self.url)!r}: {error}") from error
        # A write leaves at once: whoever waits for it is mostly alone. Reads travel together.
        self._writer = self._wires(address, _WRITER_CONNECTIONS, eager=True)
        self._reader = self._wires(address, _READER_CONNECTIONS)
        try:
            await self._check()
        except BaseException:
            await self.close()
            raise

    def _wires(self, address: Address, size: int, *, eager: bool = False) -> Wires:
        return Wires(
            address,
            size,
            timeout_secs=self._timeout_secs,
            connect_secs=_CONNECT_TIMEOUT_SECS,
            eager=eager,
        )

    async def close(self) -> None:
        both, self._writer, self._reader = (self._writer, self._reader), None, None
        for wires in both:
            if wires is not None:
                await wires.close()

    async def write(
        self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]
    ) -> Any:
        """Run a script that writes. After a `StoreUnavailableError` it may have been applied."""
        writer = _opened(self._writer)
        with self._explained():
            try:
                return await writer.ask(packed("EVALSHA", script.sha, len(keys), *keys, *arguments))
            except ResponseError as error:
                if not str(error).startswith("NOSCRIPT"):
                    raise
            return await writer.ask(packed("EVAL", script.text, len(keys), *keys, *arguments))

    async def read(
        self, script: Script, keys: Sequence[str], arguments: Sequence[Argument] = ()
    ) -> Any:
        with self._explained():
            try:
                command = packed("EVALSHA", script.sha, len(keys), *keys, *arguments)
                return (await self._repeated(command))[0]
            except ResponseError as error:
                if not str(error).startswith("NOSCRIPT"):
                    raise
            command = packed("EVAL", script.text, len(keys), *keys, *arguments)
            return (await self._repeated(command))[0]

    async def command(self, *words: Argument) -> Any:
        """One command that may be repeated: a read, or a write of an absolute value."""
        with self._explained():
            return (await self._repeated(packed(*words)))[0]

    async def commands(self, *commands: Sequence[Argument]) -> list[Any]:
        """Several of them in this order, together but not atomic."""
        with self._explained():
            return await self._repeated(*[packed(*words) for words in commands])

    async def _repeated(self, *commands: bytes) -> list[Any]:
        failures = 0
        while True:
            try:
                return await _opened(self._reader).ask_all(commands)
            except (RedisError, OSError) as error:
                if failures == _READ_RETRIES or not _passes(error):
                    raise
            failures += 1
            await asyncio.sleep(self._backoff.compute(failures))

    @contextmanager
    def _explained(self) -> Generator[None]:
        try:
            yield
        except (RedisError, OSError) as error:
            raise explanation(error, self._timeout_secs) from error

    async def _check(self) -> None:
        try:
            with self._explained():
                info: dict[str, str] = {}
                for section in INFO_SECTIONS:
                    info |= described(await _opened(self._writer).ask(packed("INFO", section)))
        except StoreUnavailableError:
            raise
        except UnsuitableStoreError:
            raise
        except StoreError as error:
            raise UnsuitableStoreError(f"not a Redis or Valkey server: {error}") from error
        problems = unsuitable(info)
        if problems:
            raise UnsuitableStoreError(f"store {_masked(self.url)}: " + "; ".join(problems))
        if int(info.get("loading", 0)):
            raise loading(info)
        if not int(info.get("aof_enabled", 1)):
            _log.warning(
                "store %s has no append-only file: its restart loses what was written since its "
                "last snapshot, if it makes any; set appendonly yes",
                _masked(self.url),
            )


def described(text: object) -> dict[str, str]:
    """What INFO says; of no Redis, nothing."""
    if not isinstance(text, bytes):
        return {}
    lines = (line.partition(":") for line in text.decode(errors="replace").splitlines())
    return {name: value for name, colon, value in lines if colon}


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


def loading(info: Mapping[str, str]) -> StoreLoadingError:
    """How far a server is that loads its data, as far as it tells."""
    text = f"the store is not available: {_CAUSES['LOADING']}"
    loaded = info.get("loading_loaded_bytes", "")
    if not loaded.isdigit():
        return StoreLoadingError(text)
    part, left = info.get("loading_loaded_perc", "?"), info.get("loading_eta_seconds", "?")
    return StoreLoadingError(f"{text} ({part} %, about {left} s left)", int(loaded))


def _opened(wires: Wires | None) -> Wires:
    if wires is None:
        raise StoreUnavailableError("the store is not open")
    return wires


def _passes(error: Exception) -> bool:
    """Whether a read may succeed when it is repeated."""
    if isinstance(error, ResponseError):
        return str(error).startswith(_REPEATED)
    return isinstance(error, (RedisConnectionError, RedisTimeoutError, OSError)) and not isinstance(
        error, (AuthenticationError, MaxConnectionsError)
    )


def explanation(error: Exception, timeout_secs: float) -> StoreError:
    """The store error that says what a client error means."""
    text = str(error) or type(error).__name__
    found = _CODE.search(text) if isinstance(error, ResponseError) else None
    if found is not None:
        kind = _KINDS.get(found[1], StoreUnavailableError)
        return kind(f"the store is not available: {_CAUSES[found[1]]}")
    if isinstance(error, MaxConnectionsError):
        return StoreUnavailableError("all connections to the store are in use")
    if isinstance(error, (RedisTimeoutError, TimeoutError)):
        return StoreUnavailableError(f"the store did not answer within {timeout_secs:g} s")
    return _unsuitable_or_wrong(error, text)


def _unsuitable_or_wrong(error: Exception, text: str) -> StoreError:
    if isinstance(error, AuthenticationError) or text.startswith(_NOT_ALLOWED):
        return UnsuitableStoreError(
            f"the store refuses our credentials or rights: {text}; correct user, password or "
            "access rules (all commands on our keys, and INFO)"
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        return UnsuitableStoreError(
            f"the certificate of the store is not trusted: {error.verify_message}; name the host "
            "as the certificate has it, and who has signed it with ?ssl_ca_certs=FILE in the URL"
        )
    if isinstance(error, InvalidResponse):
        return UnsuitableStoreError(f"this is not a Redis or Valkey server: {text}")
    if isinstance(error, ResponseError):
        if text.startswith(("MOVED", "ASK", "CROSSSLOT")):
            return UnsuitableStoreError(f"the store is a cluster that moves our keys: {text}")
        return StoreError(f"the store refused a command: {text}")
    return StoreUnavailableError(f"the store cannot be reached: {text}")


def _masked(url: str) -> str:
    """The URL without its password, wherever that stands."""
    masked = re.sub(r"(://[^:/?#@]*:).*@", r"\1***@", url)
    return re.sub(r"([?&]password=)[^&]*", r"\1***", masked)
