"""Random runs under random commands and reports: the invariants hold, and no run hangs."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, note, strategies as st

from tests.property.runtime.play import finish, new_world, play

SEEDS = st.integers(min_value=0, max_value=2**32)


def run_seed(seed: int, moves: int) -> None:
    """One run from a seed; a failure tells the seed and the whole story."""
    rnd = Random(seed)
    world = new_world(rnd)
    try:
        play(world, rnd, moves)
        finish(world)
    except Exception:
        note(f"seed {seed}, {moves} moves")
        for line in world.log:
            note(line)
        raise


@given(seed=SEEDS, moves=st.integers(0, 60))
def test_invariants_hold_after_every_transition_and_every_run_can_end(
    seed: int, moves: int
) -> None:
    run_seed(seed, moves)


@pytest.mark.parametrize("block", range(8))
def test_invariants_hold_for_the_seeds_that_are_always_run(block: int) -> None:
    for seed in range(block * 50, block * 50 + 50):
        run_seed(seed, 50)


@given(rnd=st.randoms(use_true_random=False), moves=st.integers(0, 15))
def test_small_runs_that_hypothesis_can_shrink(rnd: Random, moves: int) -> None:
    world = new_world(rnd)
    try:
        play(world, rnd, moves)
        finish(world)
    except Exception:
        for line in world.log:
            note(line)
        raise
