"""Every line of docs/threat-model.md names a test, and every test that it names is there."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.architecture.source import ROOT

PAGE = ROOT / "docs" / "threat-model.md"
REFERENCE = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
ROWS = [
    line for line in PAGE.read_text("utf-8").splitlines() if re.match(r"\| (can|cannot) ", line)
]


@cache
def names_in(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    return frozenset(
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    )


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[2].strip()[:60])
def test_a_line_of_the_threat_model_has_a_test(row: str) -> None:
    named = REFERENCE.findall(row)
    assert named, "no test stands for this line"
    for path, name in named:
        assert (ROOT / path).is_file(), path
        assert name in names_in(path), f"{path} has no {name}"


def test_the_threat_model_has_lines() -> None:
    assert len(ROWS) > 40
    heads = re.findall(r"^## (.+)$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(heads) == 7, heads
