"""`serve`, `dev` and `demo` as processes: started, asked, stopped, killed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pilotage.cli.errors import FAILED, USAGE
from tests.cli.server import ROOT, CliProcess, Server
from tests.cli.test_root import run_cli
from tests.support.waiting import wait_until_sync


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Server]:
    """A server that the test may kill."""
    server = Server(tmp_path)
    yield server
    if server.running:
        server.stop(signal.SIGKILL)


def get(url: str, key: str = "") -> int:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- serve ---------------------------------------------------------------------------------------


def test_a_generated_key_is_printed_once_and_never_written_down(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = CliProcess("serve", "--port", "0", "--data-dir", str(tmp_path / "data"), log=log)
    url = process.read_until("listening on ").split()[-1]
    key = process.read_until("admin key").split()[-1]
    assert get(f"{url}/v1/workflow-runs?project_id=p", key) == 200
    assert get(f"{url}/v1/workflow-runs?project_id=p", "plt_other") == 401
    assert process.stop() == 0
    assert "\n".join(process.lines).count(key) == 1
    assert key not in log.read_text()
    for file in (tmp_path / "data").rglob("*"):
        assert not file.is_file() or key.encode() not in file.read_bytes(), file


def test_a_key_that_was_set_is_not_printed(own: Server) -> None:
    own.start()
    assert own.stop() == 0
    assert not [line for line in own.lines if "plt_" in line]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_in_order(own: Server, number: signal.Signals) -> None:
    own.start()
    assert own.stop(number) == 0
    assert "stopped" in own.log.read_text()
    server_pid = (own.data_dir / "server.lock").read_text().split()
    assert not server_pid or not Path("/proc", server_pid[0]).exists(), "the store ended too"


def test_a_second_signal_ends_it_at_once(own: Server, tmp_path: Path) -> None:
    own.start()
    run_id = own.trigger("held", gate=str(tmp_path / "never"))
    own.send(signal.SIGTERM)
    wait_until_sync(lambda: "once more ends at once" in own.log.read_text(), "it is stopping")
    assert own.stop(signal.SIGTERM) == 128 + signal.SIGTERM
    (tmp_path / "never").touch()
    own.start()
    own.wait_for(run_id, "completed")
    assert own.stop() == 0


def test_what_was_acknowledged_survives_kill_9(own: Server, tmp_path: Path) -> None:
    """Killed in the middle of an attempt; started again, the run finishes, nothing runs twice."""
    gate = tmp_path / "gate"
    own.start()
    run_id = own.trigger("held", gate=str(gate))
    wait_until_sync(lambda: own.step(run_id, "gate")["status"] == "running", "the gate runs")
    before = own.ask("runs", "show", run_id)
    own.stop(signal.SIGKILL)
    own.start()
    after = own.ask("runs", "show", run_id)
    assert (after["id"], after["payload"]) == (before["id"], before["payload"])
    gate.touch()
    own.wait_for(run_id, "completed")
    assert own.step(run_id, "gate")["output"] == "attempt 1", "the same attempt, delivered again"
    types = [item["type"] for item in own.ask_all("runs", "events", run_id)]
    assert types.count("step_completed") == 2
    assert own.stop() == 0


def test_the_app_of_before_makes_no_new_version(own: Server) -> None:
    for _ in range(2):
        own.start()
        assert own.ask("workflows", "show", "greet")["version"] == 1
        own.stop()


def test_print_config_says_what_holds_and_masks_secrets(tmp_path: Path) -> None:
    (tmp_path / "pilotage.toml").write_text('port = 9001\ngrace_secs = "5s"\n')
    done = run_cli(
        "serve", "--print-config", "--port", "9002", cwd=tmp_path,
        env={"PILOTAGE_ADMIN_KEY": "plt_very_secret_key", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0
    assert re.search(r"PILOTAGE_PORT += 9002 +# flag --port", done.stdout)
    assert re.search(r"PILOTAGE_GRACE_SECS += 5s +# file pilotage.toml", done.stdout)
    assert "very_secret" not in done.stdout


@pytest.mark.parametrize(
    ("args", "env", "status", "word"),
    [
        (["--host", "0.0.0.0"], {}, USAGE, "PILOTAGE_ADMIN_KEY"),
        ([], {"PILOTAGE_PROT": "1"}, USAGE, "did you mean PILOTAGE_PORT"),
        (["--port", "http"], {}, USAGE, "port"),
        (["--app", "no_such_module:app"], {}, USAGE, "no_such_module"),
        (["--app", "tests.cli.flows:nothing"], {}, USAGE, "it has app"),
        (["--app", "tests.cli.broken_module:app"], {}, FAILED, "broken_module.py:3"),
        (
            ["--redis-url", "redis://127.0.0.1:9/0", "--store-wait-secs", "0"],
            {},
            FAILED,
            "127.0.0.1:9",
        ),
    ],
)
def test_what_keeps_it_from_starting_is_one_line(
    tmp_path: Path, args: list[str], env: dict[str, str], status: int, word: str
) -> None:
    done = run_cli(
        "serve", "--port", "0", "--data-dir", str(tmp_path / "d"), *args,
        env={"PILOTAGE_LOG_LEVEL": "error", **env},
    )  # fmt: skip
    assert done.returncode == status, done
    assert word in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_taken_port_is_told_before_anything_is_started(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run_cli("serve", "--port", port, "--data-dir", str(tmp_path / "data"))
    assert done.returncode == FAILED
    assert "--port" in done.stderr
    assert not (tmp_path / "data").exists()


def test_a_data_directory_has_one_server(own: Server) -> None:
    own.start()
    done = run_cli("serve", "--port", "0", "--data-dir", str(own.data_dir))
    assert done.returncode == FAILED
    assert "in use by process" in done.stderr
    assert own.stop() == 0


def test_a_store_of_ones_own_has_one_server_and_is_taken_over_when_it_is_killed(
    tmp_path: Path, valkey_url: str
) -> None:
    redis = ("--redis-url", valkey_url, "--lease-secs", "1")
    first = Server(tmp_path, *redis)
    first.start()
    try:
        run_id = first.trigger("held", gate=str(tmp_path / "gate"))
        refused = run_cli("serve", "--port", "0", *redis)
        assert refused.returncode == FAILED
        assert "another server owns this store" in refused.stderr.splitlines()[-1]
        first.stop(signal.SIGKILL)
        first.start()
        (tmp_path / "gate").touch()
        first.wait_for(run_id, "completed")
        assert first.stop() == 0
    finally:
        if first.running:
            first.stop(signal.SIGKILL)
    assert not (tmp_path / "data").exists(), "nothing is kept here"


# --- dev -----------------------------------------------------------------------------------------

MODULE = """
from pilotage import Pilotage, step
app = Pilotage()
@app.job
async def work(given: dict) -> str:
    return {word!r}
app.workflow("flow", steps=[step("a", job=work)])
"""


def test_dev_keeps_its_key_where_the_cli_finds_it_and_reloads(tmp_path: Path) -> None:
    module = tmp_path / "mine.py"
    module.write_text(MODULE.format(word="one"))
    env = {"PYTHONPATH": str(ROOT)}
    log = tmp_path / "log"
    process = CliProcess("dev", "mine:app", "--port", "0", cwd=tmp_path, env=env, log=log)
    try:
        process.read_until("serving mine:app: 1 job(s), 1 workflow(s)")
        key_file = tmp_path / ".pilotage" / "dev-key"
        assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
        key = key_file.read_text()
        # Neither URL nor key is set: both are found in the data directory.
        done = run_cli("trigger", "flow", "--watch", cwd=tmp_path, env=env)
        assert done.returncode == 0, done
        module.write_text(MODULE.format(word="two"))
        process.read_until("serving mine:app")
        runs = run_cli("runs", "list", cwd=tmp_path, env=env)
        assert len(runs.stdout.splitlines()) == 1, "runs are kept over a reload"
        run_id = json.loads(run_cli("trigger", "flow", cwd=tmp_path, env=env).stdout)["id"]
        assert run_cli("runs", "watch", run_id, cwd=tmp_path, env=env).returncode == 0
        shown = json.loads(run_cli("runs", "show", run_id, cwd=tmp_path, env=env).stdout)
        assert shown["steps"][0]["output"] == "two"
        assert key_file.read_text() == key
    finally:
        assert process.stop() == 0
    assert not (tmp_path / ".pilotage" / "dev-url").exists()
    away = run_cli("runs", "list", cwd=tmp_path, env={**env, "PILOTAGE_URL": "http://127.0.0.1:9"})
    assert away.returncode == 5


def test_a_reloader_that_is_killed_leaves_no_server_behind(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODULE.format(word="one"))
    process = CliProcess(
        "dev", "mine:app", "--port", "0",
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, log=tmp_path / "log",
    )  # fmt: skip
    process.read_until("serving mine:app")
    url_file = tmp_path / ".pilotage" / "dev-url"
    assert url_file.exists()
    process.process.kill()
    wait_until_sync(lambda: not url_file.exists(), "the server has ended")
    process.stop()


def test_dev_waits_for_a_module_to_be_mended(tmp_path: Path) -> None:
    module = tmp_path / "mine.py"
    module.write_text("this is not Python\n")
    log = tmp_path / "log"
    process = CliProcess(
        "dev", "mine:app", "--port", "0", cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, log=log
    )
    try:
        wait_until_sync(lambda: "waiting for a change" in log.read_text(), "it waits")
        assert "mine.py:1" in log.read_text()
        module.write_text(MODULE.format(word="one"))
        process.read_until("serving mine:app")
    finally:
        process.stop()


# --- demo ----------------------------------------------------------------------------------------


def demo_env(tmp_path: Path, **more: str) -> dict[str, str]:
    return {"CI": "1", "PILOTAGE_DATA_DIR": str(tmp_path / "data"), **more}


@pytest.mark.slow
def test_a_demo_beside_another_server_and_two_on_the_same_directory(tmp_path: Path) -> None:
    env, port = demo_env(tmp_path), str(free_port())
    holder = CliProcess("dev", "--port", port, env=env, log=tmp_path / "log")
    try:
        holder.read_until("http://")
        beside = run_cli("demo", "--port", port, env=env)
    finally:
        assert holder.stop() == 0
    assert beside.returncode == 0, beside
    assert f"port {port} is taken" in beside.stdout
    assert "in use by another server" in beside.stdout
    assert "is completed" in beside.stdout.splitlines()[-1]

    first = run_cli("demo", "--port", port, env=env)
    assert first.returncode == 0, first
    assert "is completed" in first.stdout.splitlines()[-1]
    assert "tries again" in first.stdout
    assert "\x1b" not in first.stdout

    again = run_cli("demo", "--port", port, env=env)
    assert again.returncode == 0, again
    assert "brought up to date" in again.stdout


def test_the_demo_says_why_it_cannot_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run_cli("demo", env=demo_env(tmp_path, PILOTAGE_DATA_DIR=str(tmp_path / "file")))
    assert done.returncode == FAILED
    assert str(tmp_path / "file") in done.stderr
    assert os.linesep not in done.stderr.strip()
