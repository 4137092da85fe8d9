"""Processor time against processor time, measured in turns in one process, bounds wide.

What counting instructions cannot see is work done in C: copying a large container, say.
"""

from __future__ import annotations

import time

import pytest

from benchmarks.core_transition import chain, head, us_per_transition, wide

ROUNDS = 5
TEN_STEPS_TO_LOOP = 1.1
"""Most that a transition may cost, in thousands of turns of a small loop: 0.46 were measured."""
LARGE_TO_SMALL = 1.8
"""A transition in 5,000 steps against one in 100: 1.2 were measured."""


def us_per_thousand_turns() -> float:
    """What this processor takes for plain Python, at this moment."""
    turns = 200_000
    started = time.process_time()
    total = 0
    for n in range(turns):
        total += n & 7
    return (time.process_time() - started) / turns * 1e9


@pytest.mark.slow
def test_a_transition_costs_what_so_much_plain_python_costs() -> None:
    graph = chain(10)
    pairs = [
        (us_per_transition(graph, head(), 500), us_per_thousand_turns()) for _ in range(ROUNDS)
    ]
    least = min(ours for ours, _ in pairs) / min(loop for _, loop in pairs)
    assert least < TEN_STEPS_TO_LOOP, f"{least:.2f} thousand turns of a small loop"


@pytest.mark.slow
def test_a_transition_costs_the_same_in_a_large_run() -> None:
    small, large = wide(100), wide(5_000)
    pairs = [
        (us_per_transition(small, head(10), 500), us_per_transition(large, head(10), 500))
        for _ in range(ROUNDS)
    ]
    ratio = min(b for _, b in pairs) / min(a for a, _ in pairs)
    assert ratio < LARGE_TO_SMALL, f"{ratio:.2f} times as much"
