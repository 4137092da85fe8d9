"""The audit calls only that clean which was looked up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.audit.__main__ import CLEAN, KNOWN, UNANSWERED, main
from tests.support.programs import fake_program

SOUND: dict[str, Any] = {"name": "a", "version": "1", "vulns": []}
WEAK: dict[str, Any] = {
    "name": "b",
    "version": "2",
    "vulns": [{"id": "CVE-1", "fix_versions": ["3", "4"]}],
}
OPEN: dict[str, Any] = {"name": "d", "version": "2", "vulns": [{"id": "CVE-2"}]}
SKIPPED: dict[str, Any] = {"name": "c", "skip_reason": "c is not known there"}


@pytest.mark.parametrize(
    ("packages", "status", "words"),
    [
        ([SOUND, SOUND], CLEAN, "no weakness is known in 2 packages"),
        ([SOUND, WEAK], KNOWN, "b 2: CVE-1, mended in 3, 4"),
        ([OPEN, SKIPPED], KNOWN, "CVE-2, mended in no version yet"),
        ([SOUND, SKIPPED], UNANSWERED, "1 packages could not be looked up, 1 were"),
        ([], UNANSWERED, "nothing was looked up"),
    ],
)
def test_what_the_service_says_is_told(
    packages: list[Any],
    status: int,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = tmp_path / "report"
    report.write_text(json.dumps({"dependencies": packages, "fixes": []}))
    program = fake_program(tmp_path, f"cat {report}")
    assert main([str(program)]) == status
    said = capsys.readouterr().out
    assert words in said
    assert ("NOT known" in said) is (status == UNANSWERED)


def test_a_service_that_cannot_be_reached_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = fake_program(tmp_path, "echo 'ConnectionError: no route' >&2; exit 1")
    assert main([str(program)]) == UNANSWERED
    assert "could not be asked: ConnectionError: no route" in capsys.readouterr().out
