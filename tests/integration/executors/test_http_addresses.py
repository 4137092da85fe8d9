"""Endpoints that must not be reached, under all their names."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.integration.executors.http_client import Client
from tests.integration.executors.peers import Peer
from tests.unit.executors.test_addresses import Names


@pytest.fixture
async def guarded() -> AsyncIterator[Client]:
    client = Client(
        allow_private_endpoints=False,
        names=Names(inside=["127.0.0.1"], **{"mixed.test": ["127.0.0.1", "::1"]}),
    )
    yield client
    await client.executor.aclose()


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "inside",
        "mixed.test",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::127.0.0.1]",
        "169.254.169.254",
        "0.0.0.0",
        "10.0.0.1",
    ],
)
async def test_private_addresses_are_refused_before_anything_is_sent(
    guarded: Client, peer: Peer, host: str
) -> None:
    failed = await guarded.post(f"http://{host}:{peer.port}/").failed()
    assert (failed.final, failed.error_class) == (True, "address_refused")
    assert "PILOTAGE_ALLOW_PRIVATE_ENDPOINTS" in failed.error
    assert not peer.connections


@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0", "localhost", "localhost."]
)
async def test_unusual_spellings_reach_nothing_either(peer: Peer, host: str) -> None:
    client = Client(allow_private_endpoints=False)
    await client.post(f"http://{host}:{peer.port}/").failed()
    assert not peer.connections
    await client.executor.aclose()


async def test_the_peer_of_a_connection_is_looked_at_before_it_is_used(
    guarded: Client, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should resolver and socket ever be fooled, the connection itself is not."""
    module = "pilotage.actors.executors.addresses"

    def credulous(_address: str) -> None: ...

    monkeypatch.setattr(f"{module}.check", credulous)
    failed = await guarded.post(f"http://127.0.0.1:{peer.port}/").failed()
    assert (failed.final, failed.error_class) == (True, "address_refused")
    assert not peer.requests


async def test_what_the_rules_allow_is_reached_through_all_guards(
    guarded: Client, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[str] = []

    def allow(address: str) -> None:
        looked_at.append(address)

    monkeypatch.setattr("pilotage.actors.executors.addresses.refusal", allow)
    for _ in range(2):
        assert await guarded.post(f"http://inside:{peer.port}/").output() == b'{"ok":true}'
    assert len(peer.connections) == 1
    # Name, socket and connection; and for the second request the pooled connection again.
    assert looked_at == ["127.0.0.1"] * 4
