"""The commands that serve, run in the test's own process and ended by a real signal."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from pilotage.actors.errors import UnavailableError
from pilotage.actors.runtime import Runtime
from pilotage.app import Pilotage
from pilotage.cli import server_process
from pilotage.cli.connect import client_settings
from pilotage.cli.errors import FAILED, CommandError
from pilotage.cli.root import invoke
from pilotage.cli.server_process import StoppedError, port_is_free, serving
from pilotage.local import put_app
from pilotage.persistence.redis_store import RedisStore
from pilotage.settings import Settings
from tests.cli.flows import app
from tests.cli.server import ROOT
from tests.support.waiting import wait_until_sync


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PILOTAGE_DATA_DIR", str(tmp_path / "data"))


def meanwhile(work: Callable[[], None]) -> tuple[threading.Thread, list[BaseException]]:
    """Run `work` beside a command that has the main thread, then press Ctrl-C."""
    problems: list[BaseException] = []

    def do() -> None:
        try:
            work()
        except BaseException as problem:  # noqa: BLE001 - told by the test
            problems.append(problem)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=do)
    thread.start()
    return thread, problems


def test_dev_serves_an_app_until_a_signal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url_file = tmp_path / "data" / "dev-url"

    def look() -> None:
        wait_until_sync(url_file.exists, "the server is up")
        found = client_settings()
        assert found.api_key is not None
        request = urllib.request.Request(
            f"{found.url}/v1/workflows?project_id=default",
            headers={"Authorization": f"Bearer {found.api_key}"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            slugs = {item["slug"] for item in json.load(answer)}
        assert slugs == {flow.slug for flow in app.workflows}

    thread, problems = meanwhile(look)
    assert invoke(["dev", "tests.cli.flows:app", "--no-reload", "--port", "0"]) == 0
    thread.join()
    assert problems == []
    assert "serving tests.cli.flows:app: 3 job(s), 5 workflow(s)" in capsys.readouterr().out
    assert not url_file.exists()


def test_serve_prints_where_it_listens_and_its_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = tmp_path / "data" / "owner.lock"
    said: list[str] = []

    def look() -> None:
        wait_until_sync(lock.exists, "the store is up")

        def has_listened() -> bool:
            said.append(capsys.readouterr().out)
            return "admin key" in "".join(said)

        wait_until_sync(has_listened, "it listens")

    thread, problems = meanwhile(look)
    assert invoke(["serve", "--port", "0"]) == 0
    thread.join()
    assert problems == []
    assert "listening on http://127.0.0.1:" in "".join(said)


@pytest.mark.slow
def test_the_demo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CI", "1")
    assert invoke(["demo", "--port", "0"]) == 0
    assert "is completed" in capsys.readouterr().out.splitlines()[-1]


def lock_is_free(data_dir: Path) -> bool:
    with (data_dir / "owner.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


async def test_a_start_that_comes_up_although_it_was_ended_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store's client loses a cancellation that comes together with an answer."""
    reached, ended = asyncio.Event(), asyncio.Event()
    acquire = RedisStore.acquire

    async def acquire_whatever_comes(store: RedisStore, owner: str, lease_secs: float) -> int:
        reached.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.set()
        return await acquire(store, owner, lease_secs)

    monkeypatch.setattr(RedisStore, "acquire", acquire_whatever_comes)
    settings = Settings(data_dir=tmp_path / "data", port=0)
    starting = asyncio.create_task(serving(settings).__aenter__())
    await reached.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert ended.is_set()
    assert lock_is_free(tmp_path / "data")


async def test_a_stop_during_the_start_ends_the_start(tmp_path: Path) -> None:
    stop = asyncio.Event()
    stop.set()
    settings = Settings(data_dir=tmp_path / "data", port=0)
    with pytest.raises(StoppedError):
        async with serving(settings, stop=stop):
            pass
    assert lock_is_free(tmp_path / "data")
    async with serving(settings) as server:  # everything was left in order
        assert server.url.startswith("http://127.0.0.1:")
        with pytest.raises(CommandError) as refused:
            async with serving(Settings(data_dir=tmp_path / "other", port=server.http.port)):
                pass
        assert refused.value.exit_status == FAILED
        assert not port_is_free("127.0.0.1", server.http.port)
        assert ("health", "/health") in server.links()
    assert not port_is_free("no.such.host.invalid", 80)


async def test_a_store_that_goes_away_while_the_app_is_put_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[str] = []

    async def put_when_it_is_back(runtime: Runtime, app: Pilotage, *, by: str) -> None:
        tries.append(by)
        if len(tries) == 1:
            raise UnavailableError("the store is away")
        await put_app(runtime, app, by=by)

    monkeypatch.setattr("pilotage.cli.server_process.put_app", put_when_it_is_back)
    monkeypatch.setattr(server_process, "PUT_AGAIN_SECS", 0.01)
    async with serving(Settings(data_dir=tmp_path / "data", port=0), app) as server:
        flow = await server.runtime.catalog.workflow("default", app.workflows[0].slug)
        assert flow.slug == app.workflows[0].slug
    assert "cannot be stored yet: the store is away" in caplog.text
