"""What the doctor finds, and that it fails only for what is broken."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis

import pilotage
from pilotage.cli import connect, doctor
from pilotage.cli.errors import AWAY, FAILED
from pilotage.cli.root import invoke
from pilotage.persistence.embedded import EmbeddedServer
from pilotage.persistence.redis_store import RedisStore
from pilotage.persistence.store_report import refusals
from pilotage.settings import Settings
from tests.cli.peer import Peer, Reply
from tests.support.programs import fake_program


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer() as peer:
        yield peer


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def examine(
    capsys: pytest.CaptureFixture[str], *args: str, status: int = 0
) -> dict[str, dict[str, Any]]:
    assert invoke(["doctor", *args]) == status
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {item["check"]: item for item in found}


class Usage(NamedTuple):
    total: int
    used: int
    free: int


HEALTHY = Reply(200, {"status": "ok", "version": pilotage.__version__})
READY = Reply(200, {"status": "ready"})
EMPTY: dict[str, Any] = {"data": [], "has_more": False}


NO_SERVER = "http://127.0.0.1:9"


def test_no_server_where_none_was_named_is_a_warning(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PILOTAGE_URL", raising=False)
    monkeypatch.setattr(connect, "DEFAULT_URL", NO_SERVER)
    found = examine(capsys)
    assert found["server"]["result"] == "warning"
    assert found["embedded store"]["result"] == "ok"


@pytest.mark.parametrize("by", ["option", "environment"])
def test_no_server_where_one_was_named_is_a_server_that_is_away(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.setenv("PILOTAGE_URL", NO_SERVER if by == "environment" else "http://other")
    assert invoke(["doctor", *(["--url", NO_SERVER] if by == "option" else [])]) == AWAY
    said = capsys.readouterr()
    found = {item["check"]: item for item in map(json.loads, said.out.splitlines())}
    assert found["server"]["result"] == "failed"
    assert found["embedded store"]["result"] == "ok"
    assert said.err.startswith(f"pilotage: server: no answer from {NO_SERVER} (")
    assert said.err.count("\n") == 1


def test_what_has_failed_on_this_machine_weighs_more_than_a_server_that_is_away(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PILOTAGE_PORT", "many")
    assert invoke(["doctor", "--url", NO_SERVER]) == FAILED
    assert capsys.readouterr().err == "pilotage: 2 checks failed: settings, server\n"


def test_a_date_that_is_none_is_not_looked_at(
    peer: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    peer.replies = [HEALTHY._replace(headers={"Date": "tomorrow"}), READY]
    assert examine(capsys, "--url", peer.url)["ready"]["result"] == "ok"


def test_another_version_and_another_clock(peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    other = Reply(
        200, {"status": "ok", "version": "0.0.1"}, {"Date": "Sat, 31 Jan 2015 12:00:00 GMT"}
    )
    peer.replies = [other, Reply(200, {"status": "ready"})]
    found = examine(capsys, "--url", peer.url)
    assert "0.0.1" in found["server"]["found"]
    assert found["clock"]["result"] == "warning"
    assert (found["ready"]["result"], found["key"]["result"]) == ("ok", "warning")


def test_a_server_that_is_not_ready_fails(peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    refused = {"error": {"code": "service_unavailable", "message": "not ready: it recovers"}}
    peer.replies = [HEALTHY, Reply(503, refused)]
    found = examine(capsys, "--url", peer.url, status=FAILED)
    assert found["ready"]["result"] == "failed"
    assert found["ready"]["found"] == "not ready: it recovers"


def test_a_server_that_goes_away_while_it_is_looked_at_fails(
    peer: Peer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PILOTAGE_API_KEY", "plt_x")
    peer.replies = [HEALTHY, *[Reply(hang_up=True)] * 4]
    found = examine(capsys, "--url", peer.url, status=FAILED)
    assert (found["server"]["result"], found["ready"]["result"]) == ("ok", "failed")
    assert "no answer from" in found["key"]["found"]


@pytest.mark.parametrize(
    ("status", "result"), [(200, "ok"), (422, "ok"), (401, "failed"), (403, "failed")]
)
def test_the_key_is_tried(
    peer: Peer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    result: str,
) -> None:
    monkeypatch.setenv("PILOTAGE_API_KEY", "plt_x")
    error = {"error": {"code": "c", "message": "so it is"}}
    peer.replies = [HEALTHY, READY, Reply(status, EMPTY if status == 200 else error)]
    peer.replies.append(Reply(200, EMPTY))
    found = examine(capsys, "--url", peer.url, status=FAILED if result == "failed" else 0)
    assert found["key"]["result"] == result


@pytest.mark.parametrize("more", [False, True])
def test_quarantined_runs_are_listed(
    peer: Peer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, more: bool
) -> None:
    monkeypatch.setenv("PILOTAGE_API_KEY", "plt_x")
    rows = [{"workflow_run_id": f"id-{n}", "reason": "SnapshotCorruptError"} for n in range(2)]
    page = Reply(200, {"data": rows, "has_more": more})
    peer.replies = [HEALTHY, READY, Reply(200, EMPTY), page]
    assert invoke(["doctor", "--url", peer.url]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    told = [item for item in found if item["check"] == "quarantine"]
    assert [item["result"] for item in told] == ["warning"] * (2 + more)
    assert "id-0" in told[0]["found"]
    assert "release" in told[0]["found"]
    assert peer.asked[-1].path.startswith("/v1/quarantine?")


def test_a_quarantine_that_may_not_be_read_is_a_warning(
    peer: Peer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PILOTAGE_API_KEY", "plt_x")
    refused = Reply(403, {"error": {"code": "c", "message": "no"}})
    peer.replies = [HEALTHY, READY, Reply(200, EMPTY), refused]
    assert examine(capsys, "--url", peer.url)["quarantine"]["result"] == "warning"


def test_a_degraded_server_is_a_warning(peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    peer.replies = [HEALTHY, Reply(200, {"status": "degraded", "reason": "the store is full"})]
    found = examine(capsys, "--url", peer.url)
    assert found["ready"] == {
        "check": "ready", "result": "warning", "found": "degraded: the store is full"
    }  # fmt: skip


def test_settings_that_are_wrong_fail(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PILOTAGE_PORT", "many")
    found = examine(capsys, "--url", "http://127.0.0.1:9", status=FAILED)
    assert "port" in found["settings"]["found"]
    assert "data directory" not in found


def test_a_full_disk_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nearly_full(_: Path) -> Usage:
        return Usage(10, 5, 5)

    monkeypatch.setattr("shutil.disk_usage", nearly_full)
    (finding,) = doctor.check_disk(Settings(data_dir=tmp_path / "not" / "there"))
    assert finding.result == "warning"


def test_a_directory_that_cannot_be_written_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(path: Path, mode: int) -> bool:
        return False

    monkeypatch.setattr("os.access", refused)
    (finding,) = doctor.check_disk(Settings(data_dir=tmp_path))
    assert finding.result == "failed"


def test_the_owner_of_the_directory_is_named_while_it_lives(tmp_path: Path) -> None:
    (tmp_path / "owner.lock").write_text(f"{os.getpid()}\n")
    assert str(os.getpid()) in list(doctor.check_disk(Settings(data_dir=tmp_path)))[1].found
    (tmp_path / "owner.lock").write_text("4194304\n")  # beyond the largest pid
    assert len(list(doctor.check_disk(Settings(data_dir=tmp_path)))) == 1


def test_an_embedded_program_that_does_not_run_fails(tmp_path: Path) -> None:
    broken = fake_program(tmp_path, "exit 3")
    (finding,) = doctor.check_embedded(Settings(server_binary=broken))
    assert finding.result == "failed"
    (finding,) = doctor.check_embedded(Settings(server_binary=tmp_path / "none"))
    assert finding.result == "failed"


def by_check(found: Iterable[doctor.Finding]) -> dict[str, doctor.Finding]:
    return {finding.check: finding for finding in found}


def test_a_store_of_ones_own_is_asked(valkey_url: str) -> None:
    settings = Settings(redis_url=valkey_url)
    with redis.Redis.from_url(valkey_url) as client:
        client.config_set("appendonly", "yes")
        client.config_set("appendfsync", "always")
        try:
            found = by_check(doctor.check_store(settings))
            client.config_set("appendfsync", "everysec")
            at_risk = list(doctor.check_store(settings))
        finally:
            client.config_set("appendonly", "no")
    assert [f.result for f in at_risk if "appendfsync everysec" in f.found] == ["warning"]
    assert {finding.result for finding in found.values()} == {"ok"}, found
    assert "Valkey" in found["store"].found
    assert "takes writes" in found["store"].found
    assert found["fence"].found.startswith("0: no server has used")
    (finding,) = doctor.check_store(Settings(redis_url="redis://:secret@127.0.0.1:9/0"))
    assert finding.result == "failed"
    assert "secret" not in finding.found


def test_a_store_that_keeps_nothing_over_a_restart_is_a_warning(valkey_url: str) -> None:
    found = list(doctor.check_store(Settings(redis_url=valkey_url)))
    assert [f.result for f in found if "append-only" in f.found] == ["warning"]


def test_a_store_that_does_not_tell_its_configuration_is_asked_all_the_same(
    valkey_url: str,
) -> None:
    with redis.Redis.from_url(valkey_url) as client:
        client.acl_setuser(
            "few", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", "-config"]
        )
        try:
            url = valkey_url.replace("unix://", "unix://few:pw@")
            found = list(doctor.check_store(Settings(redis_url=url)))
        finally:
            client.acl_deluser("few")
    assert {finding.result for finding in found} == {"ok", "warning"}


def test_a_store_that_is_nearly_full_is_a_warning(valkey_url: str) -> None:
    with redis.Redis.from_url(valkey_url) as client:
        client.config_set("maxmemory", str(int(client.info("memory")["used_memory"] * 1.05)))
        try:
            found = list(doctor.check_store(Settings(redis_url=valkey_url)))
        finally:
            client.config_set("maxmemory", "0")
    assert [f.result for f in found if "no new run is taken on" in f.found] == ["warning"]


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"loading": 1}, "loading its data"),
        ({"aof_last_write_status": "err"}, "cannot write its append-only file"),
        ({"rdb_last_bgsave_status": "err"}, "its last snapshot failed"),
        ({"maxmemory": 100, "used_memory": 101}, "its memory is full"),
    ],
)
def test_what_keeps_a_store_from_taking_writes_is_said(told: dict[str, Any], words: str) -> None:
    (problem,) = refusals(told)
    assert words in problem
    assert refusals({}) == []


async def test_the_embedded_store_of_a_running_server_is_asked_and_its_owner_named(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(data_dir=data_dir)
    assert list(doctor.check_running_embedded(settings)) == []
    server = EmbeddedServer(data_dir)
    store = RedisStore(await server.start())
    await store.open()
    try:
        await store.acquire("host pid 7", 60)

        def look() -> dict[str, doctor.Finding]:
            return by_check(doctor.check_running_embedded(settings))

        found = await asyncio.to_thread(look)
        assert {finding.result for finding in found.values()} == {"ok"}, found
        assert "1, held by host pid 7, " in found["fence"].found
        await store.forget_lease()
        real = time.time
        monkeypatch.setattr("time.time", lambda: real() - 3600)
        found = await asyncio.to_thread(look)
        assert "held by nobody" in found["fence"].found
        assert found["store clock"].result == "warning"
        assert "3600 s ahead of this machine's" in found["store clock"].found
    finally:
        await store.close()
        await server.stop()


def test_a_deep_look_tells_of_every_problem(
    valkey_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PILOTAGE_REDIS_URL", valkey_url)
    found = examine(capsys, "--deep", "--url", "http://127.0.0.1:9", status=AWAY)
    assert found["contents"]["found"].startswith("0 runs and 0 records looked at, everything")
    with redis.Redis.from_url(valkey_url) as client:
        client.zadd("pilotage:{s0}:active", {"0" * 12 + "gone": 1})
    found = examine(capsys, "--deep", "--url", "http://127.0.0.1:9", status=FAILED)
    assert found["contents"]["found"] == "0 runs and 0 records looked at, 1 problems"
    monkeypatch.setenv("PILOTAGE_REDIS_URL", "redis://127.0.0.1:9/0")
    found = examine(capsys, "--deep", "--url", "http://127.0.0.1:9", status=FAILED)
    assert "cannot be looked through" in found["contents"]["found"]
