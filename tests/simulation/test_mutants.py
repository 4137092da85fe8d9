"""The simulation finds bugs: each planted one within a thousand seeds, the plainest at once."""

from __future__ import annotations

import pytest

from tests.simulation.mutants import MUTANTS, planted
from tests.simulation.world import play

LONGEST_SEARCH = 1_000
SHORT_SEARCH = 300
PLAIN = ("effect_before_write", "missing_fence_check", "counter_not_derived", "lost_timer")


def first_to_find(name: str, seeds: int) -> int | None:
    with planted(name):
        return next((seed for seed in range(seeds) if play(seed).violations), None)


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_bug_is_found_at_once(name: str) -> None:
    assert first_to_find(name, SHORT_SEARCH) is not None


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", MUTANTS)
def test_every_planted_bug_is_found(name: str) -> None:
    seed = first_to_find(name, LONGEST_SEARCH)
    assert seed is not None, MUTANTS[name].__doc__
    assert not play(seed).violations, "the bug is the mutant's, and it is taken back"
