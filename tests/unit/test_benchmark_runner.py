"""The benchmark runner: what it finds, what it keeps, how it fails."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.__main__ import Results, discover, load, main, measure, shown, store, table

GOOD = """
import os
NAME = "good"
def run(size):
    return {"size_bytes": 1 if size == "smoke" else 2, "pid": os.getpid()}
"""
BROKEN = """
NAME = "broken"
def run(size):
    raise OSError("no luck")
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a package of scenarios, in place of ours."""
    folder = tmp_path / "some_scenarios"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "good.py").write_text(GOOD)
    (folder / "helper.py").write_text("def run(size): ...\n")
    (folder / "_hidden.py").write_text("raise AssertionError('never imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder.name
    for name in [name for name in sys.modules if name.partition(".")[0] == folder.name]:
        del sys.modules[name]


def add(package: str, name: str, text: str) -> None:
    (Path(sys.path[0]) / package / f"{name}.py").write_text(text)


def test_only_modules_with_a_name_and_a_run_are_scenarios(package: str) -> None:
    assert discover(package) == {"good": f"{package}.good"}


def test_two_scenarios_of_one_name_are_refused(package: str) -> None:
    add(package, "other", GOOD)
    with pytest.raises(SystemExit, match="two scenarios are called good"):
        discover(package)


def test_our_own_scenarios_can_be_found() -> None:
    assert all(module.startswith("benchmarks.") for module in discover("benchmarks").values())


def test_a_run_prints_and_keeps_its_figures(
    package: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results" / "latest.json"
    assert main(["--size", "full"], package=package, path=path) == 0
    kept = json.loads(path.read_text())
    assert kept["scenarios"]["good"]["size_bytes"] == 2
    assert kept["sizes"] == {"good": "full"}
    assert kept["versions"]["pilotage"]
    assert kept["machine"]["cores"] == os.cpu_count()
    assert "size_bytes" in capsys.readouterr().out


def test_a_scenario_runs_in_a_process_of_its_own(package: str, tmp_path: Path) -> None:
    path = tmp_path / "latest.json"
    main([], package=package, path=path)
    assert load(path).scenarios["good"]["pid"] != os.getpid()


def test_other_scenarios_keep_their_figures(package: str, tmp_path: Path) -> None:
    path = tmp_path / "latest.json"
    store(path, Results(scenarios={"old": {"x": 1.5}, "good": {"gone": 1}}, sizes={"old": "full"}))
    assert main(["--scenario", "good"], package=package, path=path) == 0
    kept = load(path)
    assert kept.scenarios["old"] == {"x": 1.5}
    assert "gone" not in kept.scenarios["good"]
    assert kept.sizes == {"old": "full", "good": "smoke"}


def test_a_failing_scenario_is_told_and_does_not_hide_the_others(
    package: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(package, "broken", BROKEN)
    path = tmp_path / "latest.json"
    assert main([], package=package, path=path) == 1
    shown_text = capsys.readouterr()
    assert "failed: OSError: no luck" in shown_text.err
    assert "1 measured, 1 failed" in shown_text.out
    assert list(load(path).scenarios) == ["good"]


def test_an_unknown_scenario_is_refused_with_those_that_are(
    package: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--scenario", "godo"], package=package, path=tmp_path / "x.json")
    assert ended.value.code == 2
    assert "no such scenario: godo; there are: good" in capsys.readouterr().err


def test_list_names_them_and_measures_nothing(
    package: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--list"], package=package, path=tmp_path / "x.json") == 0
    assert capsys.readouterr().out == "good\n"
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize("returned", ["{}", "{'Bad Name': 1}", "{'x': float('nan')}"])
def test_metrics_that_cannot_be_compared_are_refused(package: str, returned: str) -> None:
    add(package, "odd", f"NAME = 'odd'\ndef run(size):\n    return {returned}\n")
    with pytest.raises(ValueError, match="metrics need names"):
        measure(f"{package}.odd", "smoke")


def test_a_result_file_that_is_not_ours_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "latest.json"
    assert load(path) == Results()
    path.write_text("not json")
    assert load(path) == Results()
    path.write_text('{"scenarios": 1}')
    assert load(path) == Results()


def test_numbers_are_shown_for_people() -> None:
    assert [shown(v) for v in (1234567.0, 12345.678, 3.0, 0.123456)] == [
        "1,234,567",
        "12,346",
        "3",
        "0.1235",
    ]
    assert table({"a": 1, "long_name": 2.5}).splitlines()[1] == "  long_name             2.5"
