"""Which server program is embedded."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from pilotage.persistence import server_process
from pilotage.persistence.embedded import EmbeddedServerError
from pilotage.persistence.server_process import bundled_server_binary, find_server_binary
from tests.support.programs import fake_program


def no_package(name: str) -> None:
    """As importlib.util.find_spec answers for a package that is not installed."""


def only_the_arm_program(path: object, mode: int) -> bool:
    return "darwin-arm64" in str(path)


def test_the_bundled_one_is_there_and_runs() -> None:
    path = bundled_server_binary()
    assert path is not None
    assert path == find_server_binary()
    shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
    assert "v=9." in shown.stdout


def test_a_named_one_wins(tmp_path: Path) -> None:
    named = fake_program(tmp_path, "echo v=7.2.4")
    assert find_server_binary(named) == named


def test_a_named_one_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedServerError, match="cannot be run"):
        find_server_binary(tmp_path / "nothing")


def test_a_named_one_that_is_something_else_is_an_error() -> None:
    with pytest.raises(EmbeddedServerError, match="not a Valkey or Redis server"):
        find_server_binary(Path("/bin/echo"))


def test_one_that_is_too_old_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedServerError, match=r"version 6\.0; 6\.2 or newer"):
        find_server_binary(fake_program(tmp_path, "echo v=6.0.16"))


def test_one_on_the_path_is_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_process, "bundled_server_binary", lambda: None)
    fake_program(tmp_path, "echo v=7.2.4").rename(tmp_path / "redis-server")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server_binary() == tmp_path / "redis-server"


def test_none_at_all_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", no_package)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmbeddedServerError, match="PILOTAGE_REDIS_URL"):
        find_server_binary()


def test_a_system_that_the_package_does_not_know_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    monkeypatch.setattr("os.access", only_the_arm_program)
    path = bundled_server_binary()
    assert path is not None
    assert path.parent.name == "darwin-arm64"


def test_signalling_a_group_that_is_gone_is_nothing() -> None:
    child = subprocess.Popen(["/bin/sh", "-c", "exit 0"], start_new_session=True)
    child.wait()
    server_process.kill_group(child.pid, signal.SIGTERM)
