"""A store that will not do is named at the start: one line, what it is and what to do, status 1.
One that is away or loading is not waited for here; `test_start_waits` does that.

The same words come from `pilotage doctor`.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from pilotage.cli.errors import FAILED
from pilotage.cli.root import invoke
from tests.chaos.impostors import HTTP, LOADING, Impostor, info

OLD = info(redis_version="5.0.14", role="master", maxmemory=0)
CLUSTER = info(redis_version="7.2.0", role="master", cluster_enabled=1)


@contextmanager
def configured(url: str, **settings: str) -> Generator[None]:
    """The server with other settings, for a while."""
    with redis.Redis.from_url(url, decode_responses=True) as client:
        old = {name: str(client.config_get(name)[name]) for name in settings}
        try:
            for name, value in settings.items():
                client.config_set(name, value)
            yield
        finally:
            for name, value in reversed(old.items()):
                client.config_set(name, value)


@contextmanager
def replica(url: str) -> Generator[None]:
    with redis.Redis.from_url(url) as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        try:
            yield
        finally:
            client.execute_command("REPLICAOF", "NO", "ONE")


@contextmanager
def state(name: str, url: str) -> Generator[str]:
    """The store in that state, and the URL to give."""
    impostors = {"http": HTTP, "loading": LOADING, "old": OLD, "cluster": CLUSTER}
    if name in impostors:
        with Impostor(impostors[name]) as impostor:
            yield f"redis://127.0.0.1:{impostor.port}/0"
    elif name == "away":
        yield "redis://127.0.0.1:9/0"
    elif name == "replica":
        with replica(url):
            yield url
    elif name == "evicts":
        with configured(url, maxmemory="1000000000", **{"maxmemory-policy": "allkeys-lru"}):
            yield url
    elif name == "no password":
        with configured(url, requirepass="secret"):
            yield url
    else:
        with configured(url, requirepass="secret"):
            yield url.replace("unix://", "unix://:not-it@")


STATES = [
    ("away", "the store cannot be reached"),
    ("http", "not a Redis or Valkey server"),
    ("loading", "it is loading its data"),
    ("old", "version 5.0.14 is too old: Redis 6.2 or Valkey 7.2 is needed"),
    ("cluster", "name a server that stands alone"),
    ("replica", "it is a replica: name its master, 127.0.0.1:1"),
    ("evicts", "set maxmemory-policy noeviction"),
    ("no password", "the store refuses our credentials or rights"),
    ("wrong password", "the store refuses our credentials or rights"),
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PILOTAGE_LOG_LEVEL", "error")
    monkeypatch.setenv("PILOTAGE_STORE_WAIT_SECS", "0")


@pytest.mark.parametrize(("name", "words"), STATES, ids=[name for name, _ in STATES])
def test_a_store_that_will_not_do_is_named(
    name: str,
    words: str,
    valkey_url: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with state(name, valkey_url) as url:
        assert invoke(["serve", "--port", "0", "--redis-url", url]) == FAILED
        said = capsys.readouterr()
        assert words in said.err
        assert said.err.count("\n") == 1, said.err
        monkeypatch.setenv("PILOTAGE_REDIS_URL", url)
        assert invoke(["doctor", "--url", "http://127.0.0.1:9"]) == FAILED
        findings = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (store,) = [finding for finding in findings if finding["check"] == "store"]
    assert store["result"] == "failed"
    assert words in store["found"]
    assert "not-it" not in said.err + store["found"]
