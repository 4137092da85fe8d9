"""The server that tests are given."""

from __future__ import annotations

import pytest
import redis


@pytest.mark.parametrize("turn", [1, 2])
def test_every_test_gets_an_empty_server_that_never_evicts(valkey_url: str, turn: int) -> None:
    with redis.Redis.from_url(valkey_url, decode_responses=True) as client:
        assert client.dbsize() == 0
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        client.set("left-behind", turn)
