from __future__ import annotations

import socket

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from pilotage.actors.executors.addresses import (
    AddressRefusedError,
    GuardedResolver,
    guarded_socket,
    refusal,
)

FORBIDDEN = [
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "168.63.129.16",
    "100.100.100.200",
    "192.0.0.192",
    "192.0.2.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "fc00::1",
    "fd00:ec2::254",
    "ff02::1",
    "2001:db8::1",
    "::ffff:127.0.0.1",
    "::ffff:7f00:1",
    "::ffff:10.0.0.1",
    "::127.0.0.1",
    "64:ff9b::127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::10.0.0.1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2001:0:7f00:1::",
    "not an address",
    "",
]
ALLOWED = [
    "1.1.1.1",
    "8.8.8.8",
    "172.32.0.1",
    "192.169.0.1",
    "100.128.0.1",
    "2606:4700:4700::1111",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
]


class Names(AbstractResolver):
    """A resolver that answers what the test says."""

    def __init__(self, **addresses: list[str]) -> None:
        self.addresses = addresses
        self.closed = False

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=0,
            )
            for address in self.addresses[host]
        ]

    async def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("address", FORBIDDEN)
def test_addresses_that_are_not_on_the_public_internet_are_refused(address: str) -> None:
    assert refusal(address) is not None


@pytest.mark.parametrize("address", ALLOWED)
def test_public_addresses_may_be_reached(address: str) -> None:
    assert refusal(address) is None


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("127.0.0.1", "a loopback address"),
        ("169.254.169.254", "a link-local address"),
        ("10.1.2.3", "a private address"),
        ("168.63.129.16", "a metadata service"),
        ("::ffff:127.0.0.1", "a loopback address"),
        ("100.64.0.1", "an address that is not public"),
    ],
)
def test_a_refusal_says_what_kind_of_address_it_is(address: str, kind: str) -> None:
    assert refusal(address) == kind


async def test_a_name_with_only_forbidden_addresses_is_refused() -> None:
    resolver = GuardedResolver(Names(inside=["10.0.0.1", "127.0.0.1"]))
    with pytest.raises(AddressRefusedError, match="it leads to a private address"):
        await resolver.resolve("inside", 80)


async def test_a_name_with_mixed_addresses_keeps_the_public_ones() -> None:
    resolver = GuardedResolver(Names(mixed=["127.0.0.1", "8.8.8.8", "::1"]))
    assert [result["host"] for result in await resolver.resolve("mixed", 80)] == ["8.8.8.8"]


async def test_a_name_without_addresses_is_no_refusal() -> None:
    with pytest.raises(OSError, match="no address") as raised:
        await GuardedResolver(Names(nothing=[])).resolve("nothing")
    assert not isinstance(raised.value, AddressRefusedError)


async def test_closing_closes_the_resolver_inside() -> None:
    inner = Names()
    await GuardedResolver(inner).close()
    assert inner.closed


def test_no_socket_is_made_for_a_forbidden_address() -> None:
    with pytest.raises(AddressRefusedError):
        guarded_socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80)))


def test_a_socket_is_made_for_a_public_address() -> None:
    with guarded_socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", 80))) as made:
        assert made.family is socket.AF_INET
