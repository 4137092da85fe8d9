"""What a server says of itself and what its errors mean."""

from __future__ import annotations

from typing import Any

import pytest
from redis import exceptions as errors

from pilotage.persistence.port import (
    StoreError,
    StoreFullError,
    StoreLoadingError,
    StoreUnavailableError,
    UnsuitableStoreError,
)
from pilotage.persistence.redis_link import RedisLink, explanation, loading, unsuitable

GOOD: dict[str, Any] = {
    "redis_version": "6.2.0",
    "role": "master",
    "maxmemory": 0,
    "maxmemory_policy": "allkeys-lru",
    "cluster_enabled": 0,
}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"redis_version": "7.2.4", "valkey_version": "9.1.2"},
        {"redis_version": 8.2},
        {"maxmemory": 100, "maxmemory_policy": "noeviction"},
        {"redis_version": "10.0.1"},
    ],
)
def test_servers_that_will_do(more: dict[str, Any]) -> None:
    assert unsuitable(GOOD | more) == []


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"redis_version": "6.0.16"}, "6.0.16 is too old"),
        ({"redis_version": "5.9"}, "too old"),
        ({"role": "slave", "master_host": "a", "master_port": 1}, "name its master, a:1"),
        ({"maxmemory": 1, "maxmemory_policy": "volatile-ttl"}, "maxmemory-policy noeviction"),
        ({"cluster_enabled": 1}, "Redis Cluster"),
        ({"redis_version": ""}, "does not tell its version"),
    ],
)
def test_servers_that_will_not(more: dict[str, Any], problem: str) -> None:
    (found,) = unsuitable(GOOD | more)
    assert problem in found


def test_all_that_is_wrong_is_said_at_once() -> None:
    everything = {"redis_version": "5.0", "role": "slave", "maxmemory": 1, "cluster_enabled": 1}
    assert len(unsuitable(GOOD | everything)) == 4


def test_a_server_that_loads_says_how_far_it_is() -> None:
    told = loading(
        {
            "loading_loaded_bytes": "4096",
            "loading_loaded_perc": "40.00",
            "loading_eta_seconds": "6",
        }
    )
    assert told.loaded == 4096
    assert str(told).endswith("it is loading its data (40.00 %, about 6 s left)")
    silent = loading({})
    assert silent.loaded is None
    assert str(silent).endswith("it is loading its data")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (errors.ConnectionError("gone"), StoreUnavailableError, "cannot be reached: gone"),
        (ConnectionResetError("reset"), StoreUnavailableError, "cannot be reached: reset"),
        (errors.TimeoutError("x"), StoreUnavailableError, "did not answer within 3 s"),
        (TimeoutError(), StoreUnavailableError, "did not answer within 3 s"),
        (errors.MaxConnectionsError("x"), StoreUnavailableError, "connections"),
        (errors.ResponseError("LOADING x"), StoreLoadingError, "loading its data"),
        (errors.ResponseError("OOM command not allowed"), StoreFullError, "out of memory"),
        (errors.ResponseError("READONLY x"), StoreUnavailableError, "become a replica"),
        (errors.ResponseError("MASTERDOWN x"), StoreUnavailableError, "master is away"),
        (errors.ResponseError("CLUSTERDOWN x"), StoreUnavailableError, "cluster is down"),
        (errors.ResponseError("TRYAGAIN x"), StoreUnavailableError, "moves slots"),
        (
            errors.ResponseError(
                "Error running script (call to f_1): @user_script:9: @user_script: 9: "
                "-OOM command not allowed when used memory > 'maxmemory'."
            ),
            StoreFullError,
            "out of memory",
        ),
        (
            errors.ResponseError("MISCONF Redis is configured to save RDB snapshots, but"),
            StoreUnavailableError,
            "cannot save to its disk",
        ),
        (
            errors.ResponseError("NOREPLICAS Not enough good replicas to write."),
            StoreUnavailableError,
            "too few replicas",
        ),
        (
            errors.ResponseError("BUSY Redis is busy running a script."),
            StoreUnavailableError,
            "busy with a long script",
        ),
        (errors.AuthenticationError("x"), UnsuitableStoreError, "credentials or rights: x"),
        (errors.ResponseError("NOPERM x"), UnsuitableStoreError, "credentials or rights"),
        (errors.ResponseError("WRONGPASS x"), UnsuitableStoreError, "credentials or rights"),
        (errors.InvalidResponse("x"), UnsuitableStoreError, "not a Redis or Valkey server"),
        (errors.ResponseError("MOVED 1 a:1"), UnsuitableStoreError, "is a cluster"),
        (errors.ResponseError("WRONGTYPE x"), StoreError, "refused a command: WRONGTYPE x"),
    ],
)
def test_each_failure_is_named(error: Exception, kind: type[StoreError], words: str) -> None:
    found = explanation(error, 3.0)
    assert type(found) is kind
    assert words in str(found)


@pytest.mark.parametrize("url", ["http://host", "host:6379", "", "redis:/x", "mysql://u:pw@h"])
def test_a_url_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(UnsuitableStoreError, match="must start with redis://") as caught:
        RedisLink(url)
    assert "pw" not in str(caught.value)


def test_passwords_are_never_shown() -> None:
    link = RedisLink("rediss://user:s3cr:et@host:6380/2")
    assert "s3cr" not in repr(link)
    assert "host:6380/2" in repr(link)
    assert "s3cret" not in repr(RedisLink("redis://:s3cret@host"))
