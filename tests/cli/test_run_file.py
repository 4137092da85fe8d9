"""`pilotage run FILE`: one workflow in this process, its outcome as the exit status."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from pilotage.cli.errors import FAILED, USAGE
from pilotage.cli.root import invoke
from tests.cli.server import ROOT, CliProcess
from tests.cli.test_root import run_cli
from tests.support.waiting import wait_until_sync

APP = ("--app", "tests.cli.flows:app")


@pytest.fixture
def flow(tmp_path: Path) -> Path:
    file = tmp_path / "flow.yaml"
    file.write_text(
        "slug: flow\n"
        "steps:\n"
        "  - {step_ref: a, job_id: echo, payload: {say: '{{ payload.word }}'}}\n"
        "  - step_ref: b\n"
        "    job_id: echo\n"
        "    depends_on: [a]\n"
        "    payload: {say: '{{ steps.a.output }}!'}\n"
    )
    return file


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def wfformat(tmp_path: Path, secs: float) -> Path:
    file = tmp_path / "recording.json"
    tasks = [
        {"id": "one", "name": "one", "parents": [], "children": ["two"]},
        {"id": "two", "name": "two", "parents": ["one"], "children": []},
    ]
    recorded = [{"id": task["id"], "runtimeInSeconds": secs} for task in tasks]
    document: dict[str, Any] = {
        "name": "recording",
        "schemaVersion": "1.5",
        "workflow": {"specification": {"tasks": tasks}, "execution": {"tasks": recorded}},
    }
    file.write_text(json.dumps(document))
    return file


def test_a_run_that_completes_is_status_0(flow: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["run", str(flow), *APP, "--payload", '{"word": "hi"}']) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split()[1:3] for line in lines[2:6]] == [
        ["a", "started"], ["a", "completed"], ["b", "started"], ["b", "completed"],
    ]  # fmt: skip
    assert lines[-1].endswith("is completed")
    assert err == ""


def test_json_lines_when_asked(flow: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["run", str(flow), *APP, "--payload", '{"word": "hi"}', "--json"]) == 0
    items = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert items[-1]["data"] == {"status": "completed"}


def test_a_run_that_fails_is_status_1_and_says_why(
    flow: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["run", str(flow), *APP, "--payload", '{"nothing": 1}']) == FAILED
    assert "payload.word" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps: [{step_ref: a, job_id: j}, {step_ref: b, depends_on: [c]}]", ["steps[1]", '"c"']),
        ("steps: [{step_ref: a, job_id: nope}]", ["nope"]),
        ("steps: {", ["line 1"]),
        ("", ["empty"]),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_is_refused(
    tmp_path: Path, text: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    assert invoke(["run", str(file), *APP]) == USAGE
    err = capsys.readouterr().err
    for word in words:
        assert word in err
    assert "Traceback" not in err


def test_a_run_that_waits_for_somebody_outside_says_so(tmp_path: Path) -> None:
    file = tmp_path / "flow.yaml"
    file.write_text(
        "slug: flow\n"
        "steps:\n"
        "  - {step_ref: ask, type: approval}\n"
        "  - {step_ref: then, job_id: echo, depends_on: [ask]}\n"
    )
    log = tmp_path / "log"
    process = CliProcess("run", str(file), *APP, log=log)
    wait_until_sync(lambda: "ask can be decided on a server only" in log.read_text(), "it says so")
    assert process.stop(signal.SIGINT) == 130


def test_jobs_of_the_file_are_taken_and_brought_up_to_date(tmp_path: Path) -> None:
    file = tmp_path / "flow.yaml"
    for attempts in (1, 2, 2):
        file.write_text(
            "slug: flow\n"
            f"jobs: [{{slug: echo, execution_mode: python, max_attempts: {attempts}}}]\n"
            "steps: [{step_ref: a, job_id: echo}]\n"
        )
        assert invoke(["run", str(file), *APP, "--data-dir", str(tmp_path / "data")]) == 0


def test_a_recording_is_replayed_at_scale(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["run", str(wfformat(tmp_path, 3600)), "--time-scale", "0.00001"]) == 0
    out = capsys.readouterr().out
    assert out.index("one  ") < out.index("two  ")


def test_the_private_store_goes_away_or_is_kept(
    flow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    assert invoke(["run", str(flow), *APP, "--payload", '{"word": 1}']) == 0
    assert list(scratch.iterdir()) == []
    assert invoke(["run", str(flow), *APP, "--payload", '{"word": 1}', "--keep"]) == 0
    (kept,) = scratch.iterdir()
    assert str(kept) in capsys.readouterr().err


def test_a_data_directory_keeps_the_runs(flow: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    args = ["run", str(flow), *APP, "--payload", '{"word": "x"}', "--data-dir", str(folder)]
    assert invoke(args) == 0
    assert invoke(args) == 0
    assert (folder / "appendonlydir").is_dir()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_quickly_and_leaves_nothing(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    process = CliProcess(
        "run", str(wfformat(tmp_path, 3600)), "--time-scale", "1",
        env={"TMPDIR": str(scratch)}, log=tmp_path / "log",
    )  # fmt: skip
    process.read_until("one  ")
    assert process.stop(number) == status
    assert list(scratch.iterdir()) == []
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_the_example_of_the_repository_runs() -> None:
    done = run_cli(
        "run", "examples/order_fulfilment.yaml", "--app", "examples.order_fulfilment:app",
        "--payload", '{"order_id": "1", "customer": "c", "country": "DE",'
        ' "lines": [{"sku": "no-such-thing", "quantity": 1}]}',
        cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == FAILED
    assert "not in the catalogue: no-such-thing" in done.stdout
