"""The whole system, some hundred seeds of it: every promise of runs.md §9 under every fault.

A failing seed is named; `python -m tests.simulation --seed N` plays it again, step by step.
"""

from __future__ import annotations

import pytest

from tests.simulation.world import play

SEEDS = 800
GROUP = 50


@pytest.mark.parametrize("first", range(0, SEEDS, GROUP))
def test_no_promise_is_broken(first: int) -> None:
    for seed in range(first, first + GROUP):
        result = play(seed)
        assert not result.violations, f"python -m tests.simulation --seed {seed}"


@pytest.mark.parametrize("seed", [0, 9, 52])
def test_a_seed_is_the_same_story_each_time(seed: int) -> None:
    once, again = play(seed, keep_lines=True), play(seed, keep_lines=True)
    assert once.lines == again.lines
    assert once.trace == again.trace
    assert len(once.lines) > 10
