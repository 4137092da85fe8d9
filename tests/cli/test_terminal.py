"""What a person sees: the same commands with a real terminal (a pty) as standard output."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.server import ROOT, Server

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def on_terminal(
    *args: str, env: dict[str, str] | None = None, interrupt_at: str | None = None
) -> tuple[int, str]:
    """Exit status and everything written to the terminal, escapes removed.

    `interrupt_at`: press Ctrl-C once this was written.
    """
    outside = {name: value for name, value in os.environ.items() if name != "CI"}
    leader, follower = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "pilotage.cli", *args],
            cwd=ROOT,
            env={**outside, "TERM": "xterm", "COLUMNS": "120", "LINES": "40", **(env or {})},
            stdout=follower,
            stderr=follower,
            stdin=subprocess.DEVNULL,
        )
    finally:
        os.close(follower)
    chunks: list[bytes] = []
    while True:
        try:
            chunk = os.read(leader, 65_536)
        except OSError:  # Linux: the other side is closed
            break
        if not chunk:
            break
        chunks.append(chunk)
        if interrupt_at is not None and interrupt_at.encode() in b"".join(chunks):
            interrupt_at = None
            process.send_signal(signal.SIGINT)
    os.close(leader)
    return process.wait(30), _ESCAPES.sub("", b"".join(chunks).decode())


def test_lists_and_pages_are_tables(server: Server) -> None:
    status, shown = on_terminal("trigger", "greet", "--payload", '{"say": "hi"}', "--watch",
                                env=server.env)  # fmt: skip
    assert status == 0
    assert "2/2 steps" in shown
    assert "is completed" in shown
    status, shown = on_terminal("runs", "list", "--workflow", "greet", env=server.env)
    assert status == 0
    heading, first = shown.splitlines()[:2]
    assert heading.split()[:3] == ["RUN", "WORKFLOW", "STATUS"]
    assert first.split()[1:3] == ["greet", "completed"]
    run_id = first.split()[0]
    status, shown = on_terminal("runs", "show", run_id, env=server.env)
    assert "greet (version 1)" in shown
    assert re.search(r"second +completed +1", shown)
    status, shown = on_terminal("runs", "events", run_id, env=server.env)
    assert re.search(r"first +started", shown)
    status, shown = on_terminal("runs", "explain", run_id, env=server.env)
    assert "every step has ended" in shown
    status, shown = on_terminal("runs", "replay", run_id, "first", "--dry-run", env=server.env)
    assert "would be reset: first, second" in shown
    status, shown = on_terminal("runs", "replay", run_id, "first", env=server.env)
    assert "2 step(s)" in shown
    assert status == 0


def test_definitions_and_keys_are_tables(server: Server) -> None:
    _, shown = on_terminal("workflows", "list", env=server.env)
    assert re.search(r"greet +greet +1 +2 +yes", shown)
    _, shown = on_terminal("workflows", "show", "review", env=server.env)
    assert re.search(r"decide +approval +mira, ops", shown)
    _, shown = on_terminal("jobs", "list", env=server.env)
    assert "no jobs" in shown or "SLUG" in shown
    status, shown = on_terminal("keys", "create", "k", "--scope", "jobs:read", env=server.env)
    assert status == 0
    assert shown.startswith("plt_")
    _, shown = on_terminal("keys", "list", env=server.env)
    assert "jobs:read" in shown
    _, shown = on_terminal("doctor", env=server.env)
    assert re.search(r"ready +ok", shown)


def test_a_failed_run_is_red_and_status_1(server: Server, tmp_path: Path) -> None:
    payload = f'{{"mended": "{tmp_path / "no"}"}}'
    status, shown = on_terminal(
        "trigger", "broken", "--payload", payload, "--watch", env=server.env
    )
    assert status == 1
    assert "it is broken" in shown
    assert re.search(r"strong +canceled", shown)


def test_run_file_is_live_too() -> None:
    status, shown = on_terminal(
        "run", "examples/order_fulfilment.yaml", "--app", "examples.order_fulfilment:app",
        "--payload", "@examples/order.json",
    )  # fmt: skip
    assert status == 0
    assert "13/13 steps" in shown
    assert re.search(r"charge +completed +attempt 2", shown)


@pytest.mark.slow
def test_the_demo_stays_up_with_links_until_ctrl_c(tmp_path: Path) -> None:
    env = {"PILOTAGE_DATA_DIR": str(tmp_path / "data")}
    status, shown = on_terminal(
        "demo", "--port", "0", env=env, interrupt_at="Ctrl-C ends the server."
    )
    assert status == 0
    url = re.search(r"is up on (http://127\.0\.0\.1:\d+)", shown)
    assert url is not None
    key = (tmp_path / "data" / "dev-key").read_text().strip()
    assert f"curl -H 'Authorization: Bearer {key}'" in shown
    assert f"{url[1]}/v1/workflow-runs/" in shown
    assert re.search(rf"API docs +{url[1]}/reference", shown)
    assert re.search(r"charge +completed +attempt 2", shown)
