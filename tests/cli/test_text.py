"""Small texts, where the server is, how logs and tables look."""

from __future__ import annotations

import io
import json
import logging
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pilotage.cli.connect import (
    client_settings,
    data_dir,
    forget_dev_server,
    is_loopback,
    remember_dev_server,
)
from pilotage.cli.drawings import event_words, step_note
from pilotage.cli.errors import CommandError
from pilotage.cli.logs import set_up_logging
from pilotage.cli.output import Column, Output, key
from pilotage.cli.progress import LiveProgress, worth_showing
from pilotage.cli.session import key_values, parse_json
from pilotage.cli.text import ago, between, clean, duration, shorten

NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("secs", "text"),
    [(-1, "0.00 s"), (0.42, "0.42 s"), (12.34, "12.3 s"), (59.97, "1 min 00 s"),
     (245, "4 min 05 s"), (12_000, "3 h 20 min"), (187_200, "2 d 4 h")],
)  # fmt: skip
def test_durations(secs: float, text: str) -> None:
    assert duration(secs) == text


def test_times_relative_to_now() -> None:
    assert ago("2026-01-31T11:59:00.000Z", NOW) == "1 min 00 s ago"
    assert ago("2026-01-31T12:00:10.000Z", NOW) == "in 10.0 s"
    assert ago(None, NOW) == ""
    assert between("2026-01-31T11:59:50.000Z", None, NOW) == "10.0 s"
    assert between(None, None, NOW) == ""


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert "\x1b" not in clean("a\x1b[2Jb\x9bc")
    assert clean("a\nb\tc") == "a b c"
    assert shorten("abcdef", 4) == "abc…"


@pytest.mark.parametrize(
    ("step", "note"),
    [
        ({"status": "running"}, ""),
        ({"status": "waiting", "waiting_for": "approval"}, "waits for an approval"),
        ({"status": "waiting", "waiting_for": "retry", "due_at": "2026-01-31T12:00:05.000Z",
          "error": "boom"}, "tries again, 5.0 s left (boom)"),
        ({"status": "failed", "error": "boom\x1b"}, "boom\N{REPLACEMENT CHARACTER}"),
        ({"status": "skipped", "skipped_by": "condition"}, "by condition"),
        ({"status": "completed", "output": {"a": 1}}, '{"a": 1}'),
    ],
)  # fmt: skip
def test_what_is_said_of_a_step(step: dict[str, Any], note: str) -> None:
    assert step_note(step, NOW) == note


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"type": "run_ended", "data": {"status": "failed"}, "reason": "x"}, "failed - x"),
        ({"type": "step_started", "attempt": 2}, "started (attempt 2)"),
        ({"type": "step_parked", "data": {"waiting_for": "event"}}, "waits for an event"),
        ({"type": "step_skipped", "data": {"skipped_by": "override"}}, "skipped by override"),
        ({"type": "run_pinned", "data": {"pinned": True}}, "pinned"),
        ({"type": "run_pinned", "data": {"pinned": False}}, "unpinned"),
        ({"type": "something_new"}, "something new"),
    ],
)
def test_history_in_words(item: dict[str, Any], words: str) -> None:
    assert event_words(item) == words


# --- where the server is -------------------------------------------------------------------------


@pytest.fixture
def empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_anything_it_is_the_default_address(empty_place: Path) -> None:
    found = client_settings()
    assert (found.url, found.api_key, found.project) == ("http://127.0.0.1:8080", None, None)


def test_a_development_server_is_found(empty_place: Path) -> None:
    folder = empty_place / ".pilotage"
    folder.mkdir()
    remember_dev_server(folder, "http://127.0.0.1:9999", "plt_dev")
    found = client_settings()
    assert (found.url, found.api_key, found.project) == (
        "http://127.0.0.1:9999", "plt_dev", "default",
    )  # fmt: skip
    assert stat.S_IMODE((folder / "dev-key").stat().st_mode) == 0o600
    forget_dev_server(folder)
    assert client_settings().url == "http://127.0.0.1:8080"


def test_the_development_key_never_leaves_the_machine(empty_place: Path) -> None:
    (empty_place / ".pilotage").mkdir()
    remember_dev_server(empty_place / ".pilotage", "http://127.0.0.1:9999", "plt_dev")
    assert client_settings("https://pilotage.example.com").api_key is None
    assert client_settings("http://localhost:1").api_key == "plt_dev"
    assert client_settings("http://[::1]:1").api_key == "plt_dev"
    assert not is_loopback("http://127.0.0.1.example.com")


def test_what_is_set_wins(empty_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (empty_place / ".pilotage").mkdir()
    remember_dev_server(empty_place / ".pilotage", "http://127.0.0.1:9999", "plt_dev")
    monkeypatch.setenv("PILOTAGE_URL", "http://127.0.0.1:7/")
    monkeypatch.setenv("PILOTAGE_API_KEY", "plt_set")
    found = client_settings()
    # A key that was set may belong to one project: none is guessed for it.
    assert (found.url, found.api_key, found.project) == ("http://127.0.0.1:7", "plt_set", None)
    assert client_settings("http://127.0.0.1:8", "shop").project == "shop"


def test_the_data_directory_of_the_settings(
    empty_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert data_dir() == Path(".pilotage")
    (empty_place / "pilotage.toml").write_text('data_dir = "there"\n')
    assert data_dir() == Path("there")
    (empty_place / "pilotage.toml").write_text("broken =")
    assert data_dir() == Path(".pilotage")
    monkeypatch.setenv("PILOTAGE_DATA_DIR", "elsewhere")
    assert data_dir() == Path("elsewhere")


# --- values on the command line ------------------------------------------------------------------


def test_json_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_json("[1]", "--x") == [1]
    monkeypatch.setattr("sys.stdin", io.StringIO('"from stdin"'))
    assert parse_json("@-", "--x") == "from stdin"
    (tmp_path / "binary").write_bytes(b"\xff")
    for text in ("nope", f"@{tmp_path / 'binary'}", f"@{tmp_path}"):
        with pytest.raises(CommandError, match="--x"):
            parse_json(text, "--x")


def test_pairs() -> None:
    assert key_values(("a=1", "b=x=y", "c="), "--tag") == {"a": "1", "b": "x=y", "c": ""}
    with pytest.raises(CommandError, match="key=value"):
        key_values(("=1",), "--tag")


# --- logs ----------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield root
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(False)


SECRETS = [
    "plt_" + "a" * 43,
    "Bearer abc.def.ghi",
    "redis://user:hunter2@host:6379/0",
    "s3cret-admin-key-of-mine",
]


@pytest.mark.parametrize("log_format", ["pretty", "json"])
@pytest.mark.parametrize("secret", SECRETS)
def test_secrets_are_never_logged(
    root_logger: logging.Logger, log_format: Any, secret: str
) -> None:
    out = io.StringIO()
    set_up_logging(log_format, secrets=["s3cret-admin-key-of-mine", ""], stream=out)
    try:
        int(f"in an error: {secret}")
    except ValueError:
        logging.getLogger("pilotage.x").exception("said %s", secret, extra={"also": secret})
    for part in ("a" * 43, "abc.def", "hunter2", "s3cret"):
        assert part not in out.getvalue()


def test_json_lines_where_nobody_looks_and_pretty_on_a_terminal(
    root_logger: logging.Logger,
) -> None:
    file, terminal = io.StringIO(), Terminal()
    for out in (file, terminal):
        set_up_logging("auto", stream=out)
        logging.getLogger("pilotage.x").info("it is %s", "so", extra={"run": "r1"})
        logging.getLogger("pilotage.x").debug("not said")
    line = json.loads(file.getvalue())
    assert (line["level"], line["logger"], line["message"], line["run"]) == (
        "info", "pilotage.x", "it is so", "r1",
    )  # fmt: skip
    assert "x  it is so  run=r1\n" in terminal.getvalue()


# --- tables --------------------------------------------------------------------------------------


def test_tables_and_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    items: list[dict[str, Any]] = [
        {"id": "1", "status": "failed", "evil": "[red]\x1b[2J"},
        {"id": "2", "tags": {"a": 1}},
    ]
    columns = [Column("ID", key("id")), Column("STATUS", key("status"), "status"),
               Column("EVIL", key("evil")), Column("TAGS", key("tags"))]  # fmt: skip
    Output(as_json=True).rows(items, columns)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == items
    Output(as_json=False).rows(items, columns)
    table = capsys.readouterr().out
    assert table.splitlines()[0].split() == ["ID", "STATUS", "EVIL", "TAGS"]
    assert "[red]" in table, "a value is never markup"
    assert "\x1b" not in table
    Output(as_json=False).rows([], columns, empty="nothing here")
    assert capsys.readouterr().out == "nothing here\n"


def steps_of(count: int) -> list[dict[str, Any]]:
    statuses = ["completed", "running", "waiting", "failed"]
    return [
        {"step_ref": f"step-{i}", "status": statuses[i % 4], "attempt": 1 + i % 2,
         "started_at": "2026-01-31T11:59:50.000Z"}
        for i in range(count)
    ]  # fmt: skip


def test_what_moves_or_failed_is_shown_first_when_there_is_no_room() -> None:
    steps = steps_of(40)
    assert worth_showing(steps, 40) == steps
    shown = worth_showing(steps, 20)
    assert {step["status"] for step in shown} == {"failed", "running"}
    refs = [int(step["step_ref"][5:]) for step in shown]
    assert refs == sorted(refs)


def test_the_live_view_draws_the_run_and_counts_what_does_not_fit() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, height=20, color_system=None)
    progress = LiveProgress(console, "flow")
    progress.items([])
    run = {"status": "running", "started_at": "2026-01-31T11:59:50.000Z"}
    progress.steps(run, steps_of(100))
    progress.close()
    drawn = out.getvalue()
    assert "50/100 steps" in drawn
    assert "25 running" in drawn
    assert "step-3 " in drawn
