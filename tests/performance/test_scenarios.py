"""Every benchmark runs at its smoke size and gives the figures that goals and readers need."""

from __future__ import annotations

import pytest

from benchmarks import _goals
from benchmarks.__main__ import discover, measure_apart
from benchmarks._growth import grows, slope
from benchmarks.soak import Window, figures_of

SCENARIOS = discover("benchmarks")


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_gives_its_figures_at_the_smoke_size(name: str) -> None:
    figures = measure_apart(SCENARIOS[name], "smoke")
    missing = [metric for metric in _goals.REQUIRED.get(name, ()) if metric not in figures]
    assert not missing
    for goal in _goals.GOALS:
        if goal.scenario == name:
            assert goal.met(figures) is not None, f"{goal.metric} or what it is measured against"


def test_every_scenario_with_a_goal_or_required_figures_exists() -> None:
    assert {goal.scenario for goal in _goals.GOALS} | set(_goals.REQUIRED) <= set(SCENARIOS)
    assert _goals.missing({}) == [f"{s}.{m}" for s, ms in _goals.REQUIRED.items() for m in ms]


def test_the_table_shows_goal_figure_and_verdict() -> None:
    figures = {"chain_40": {"median_ms": 15.0, "floor_ms": 7.0}, "recovery": {"runs_per_s": 9e3}}
    chain, recovery = _goals.table(figures, {"chain_40": "full"}).splitlines()[1:]
    assert "2.3 x floor_ms = 16.1" in chain
    assert chain.endswith("yes")
    assert "NO (smoke size" in recovery


def windows(objects_per_run: float, resident_per_run: float = 0.0) -> list[Window]:
    """30 windows of 1,000 runs; what is kept varies a little from one to the next."""
    return [
        Window(
            n * 1_000,
            round(50_000 + n * 1_000 * objects_per_run + n * 7 % 5 * 20),
            round(90e6 + n * 1_000 * resident_per_run + n * 7 % 5 * 100_000),
            [1.0, 2.0],
        )
        for n in range(1, 31)
    ]


def test_the_soak_notices_what_a_run_leaves_behind() -> None:
    assert figures_of(windows(0))["grows"] == 0
    one_object = figures_of(windows(1))
    assert one_object["grows"] == 1
    assert one_object["objects_per_run"] == pytest.approx(1, abs=0.05)
    assert figures_of(windows(0, resident_per_run=500))["grows"] == 1


def test_what_comes_to_rest_has_not_grown() -> None:
    done = [float(n) for n in range(30)]
    filled = [float(min(n, 15)) * 1_000 for n in range(30)]
    assert not grows(done, filled, 100)
    assert grows(done, [n * 1_000 for n in done], 100)
    assert slope([0, 1, 2, 3], [0, 2, 4, 900]) == pytest.approx(2, abs=300)
