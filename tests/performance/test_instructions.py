"""The hot paths do not become dearer unnoticed: instructions counted, not seconds.

A path that costs more than `DEARER` of the baseline fails and names the functions that grew. When
the growth is meant, or a path has become much cheaper:
`python -m benchmarks.instructions --accept`, and commit tests/performance/instructions.json.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import msgspec
import pytest

from benchmarks.instructions import Baseline, Count, growth, load, python_version

DEARER, CHEAPER = 1.05, 0.85
FEW = 5
"""So many more are nothing to speak of, whatever their share of a short path."""
ROOT = Path(__file__).parents[2]
PATHS = tuple(load().paths)
HOW = "if that is meant: python -m benchmarks.instructions --accept"
SLOWED = """
from pilotage.runtime.draft import Draft
put = Draft.put
def put_and_look_at_every_step(self, i, new):
    for k in range(self.graph.size):
        self.step(k)
    put(self, i, new)
Draft.put = put_and_look_at_every_step
"""
COUNT = """
import sys
from benchmarks.instructions import main
sys.argv = ["instructions", "--json"]
main()
"""


def counted(before: str = "") -> Baseline:
    """In a process of its own: the tests' coverage traces too, and other tests warm things up."""
    out = subprocess.run(
        [sys.executable, "-c", before + COUNT], cwd=ROOT, capture_output=True, check=False
    )
    assert out.returncode == 0, out.stderr.decode()
    return msgspec.json.decode(out.stdout, type=Baseline)


@cache
def counted_now() -> Baseline:
    return counted()


def problem(name: str, before: Count, now: Count) -> str | None:
    """What is wrong with a path that costs `now` what it cost `before`."""
    for unit in ("instructions", "c_calls"):
        was, found = getattr(before, unit), getattr(now, unit)
        if found > was * DEARER + FEW:
            return (
                f"{name} takes {found:,} {unit} instead of {was:,} ({found / was - 1:+.1%}); "
                f"{HOW}. Instructions of its functions:\n{growth(before, now)}"
            )
        if found < was * CHEAPER - FEW:
            return f"{name} has become cheaper: {found:,} {unit} instead of {was:,}; keep it: {HOW}"
    return None


@pytest.mark.slow
@pytest.mark.parametrize("name", PATHS)
def test_a_hot_path_executes_no_more_than_it_did(name: str) -> None:
    baseline = load()
    if baseline.python != python_version():
        pytest.skip(f"the baseline is of {baseline.python}")
    found = problem(name, baseline.paths[name], counted_now().paths[name])
    assert found is None, found


@pytest.mark.slow
def test_work_that_grows_with_the_size_of_the_run_is_noticed_and_named() -> None:
    name = "transition_of_500_wide"
    before, now = counted_now().paths[name], counted(SLOWED).paths[name]
    found = problem(name, before, now)
    assert found is not None
    assert "runtime/draft:Draft.step" in found.splitlines()[1]


def test_a_path_may_vary_a_little_and_neither_grow_nor_shrink_much() -> None:
    before = Count(1_000, 100, {"a:f": 900, "a:g": 100})
    assert problem("path", before, Count(1_040, 104, {})) is None
    assert problem("path", before, Count(900, 90, {})) is None
    dearer = problem("path", before, Count(1_100, 100, {"a:f": 900, "a:h": 200}))
    assert dearer is not None
    assert "+10.0%" in dearer
    assert "+200  a:h" in dearer
    assert "--accept" in dearer
    assert "c_calls" in (problem("path", before, Count(1_000, 120, {})) or "")
    assert "cheaper" in (problem("path", before, Count(800, 100, {})) or "")
    assert problem("path", Count(30, 20, {}), Count(34, 25, {})) is None
