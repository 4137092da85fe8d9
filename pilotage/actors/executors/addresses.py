"""Which network addresses an HTTP attempt may reach, checked where it cannot be talked round.

Names, redirects and spellings do not matter: what counts is the address. It is checked when a name
has been resolved, again on the very address a socket is about to connect to (a literal address is
never resolved), and once more on the peer of the connection before a request goes out on it.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

from aiohttp import ClientTimeout
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.tracing import Trace

from pilotage.actors.executors.connector import CleanConnector

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Public by number, yet served by the cloud's own host to the machines on it.
_METADATA = frozenset(map(ipaddress.ip_address, ("168.63.129.16", "100.100.100.200")))
# What the IANA registries call special; older versions of `ipaddress` do not know all of it.
_SPECIAL = tuple(
    map(
        ipaddress.ip_network,
        (
            "100.64.0.0/10",
            "192.0.0.0/24",
            "192.88.99.0/24",
            "198.18.0.0/15",
            "2001::/23",  # Teredo among others: tunnels to any IPv4 address
            "2001:db8::/32",
            "2002::/16",  # 6to4: likewise
            "3fff::/20",
        ),
    )
)
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_KINDS = (
    ("is_loopback", "a loopback address"),
    ("is_link_local", "a link-local address"),
    ("is_unspecified", "the unspecified address"),
    ("is_multicast", "a multicast address"),
    ("is_private", "a private address"),
    ("is_reserved", "a reserved address"),
)


class AddressRefusedError(OSError):
    """The endpoint's address is one that must not be reached from here."""

    def __init__(self, kind: str) -> None:
        super().__init__(f"it leads to {kind}")
        self.kind = kind


def refusal(address: str) -> str | None:
    """What kind of forbidden address this is; None if it may be reached."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "something that is not an address"
    return _kind(_target(parsed))


def _target(address: Address) -> Address:
    """What is really reached: IPv4 addresses have spellings in IPv6."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def _kind(address: Address) -> str | None:
    if address in _METADATA:
        return "a metadata service"
    for attribute, kind in _KINDS:
        if getattr(address, attribute):
            return kind
    if address.version == 6 and address not in _GLOBAL_UNICAST:
        return "an address that is not public"
    if any(address in network for network in _SPECIAL) or not address.is_global:
        return "an address that is not public"
    return None


def check(address: str) -> None:
    """Raises `AddressRefusedError`."""
    kind = refusal(address)
    if kind is not None:
        raise AddressRefusedError(kind)


class GuardedResolver(AbstractResolver):
    """Leaves out what may not be reached; refuses when nothing else is left."""

    def __init__(self, inner: AbstractResolver) -> None:
        self._inner = inner

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        allowed = [result for result in found if refusal(result["host"]) is None]
        if not allowed:
            kinds = [kind for result in found if (kind := refusal(result["host"])) is not None]
            raise AddressRefusedError(kinds[0]) if kinds else OSError("the name has no address")
        return allowed

    async def close(self) -> None:
        await self._inner.close()


def guarded_socket(info: tuple[Any, ...]) -> socket.socket:
    """The connector's socket factory: looks at the address that is about to be connected to."""
    family, kind, protocol, _, address = info
    check(str(address[0]))
    return socket.socket(family, kind, protocol)


class GuardedConnector(CleanConnector):
    """Looks at the other end of every connection, pooled ones too, before it is used."""

    async def connect(
        self,
        req: ClientRequest,
        traces: list[Trace],
        timeout: ClientTimeout,  # noqa: ASYNC109 - aiohttp's signature
    ) -> Connection:
        connection = await super().connect(req, traces, timeout)
        transport = connection.transport
        peer = None if transport is None else transport.get_extra_info("peername")
        # A lost connection has no peer any more; the request on it fails as it would anyway.
        kind = refusal(str(peer[0])) if peer else None
        if kind is not None:
            connection.close()
            raise AddressRefusedError(kind)
        return connection
