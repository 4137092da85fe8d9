from __future__ import annotations

import pytest

from pilotage.runtime.validation_cycles import MAX_CYCLES, find_cycles, show_cycle

GRAPHS: list[tuple[list[list[int]], list[list[int]]]] = [
    ([], []),
    ([[]], []),
    ([[], [0], [0, 1]], []),
    ([[1], [0]], [[0, 1]]),
    ([[2], [0], [1]], [[0, 1, 2]]),
    # A tail before and a tail behind the knot are not shown.
    ([[], [0, 3], [1], [2], [3]], [[1, 2, 3]]),
    # Two knots, one hanging on the other.
    ([[1], [0], [1, 3], [2]], [[0, 1], [2, 3]]),
    ([[1], [0], [3, 0, 1], [2]], [[0, 1], [2, 3]]),
    # Of one knot the shortest cycle through its first node: 0 → 3 → 0, not 0 → 1 → 2 → 3 → 0.
    ([[3], [0], [1], [2, 0]], [[0, 3]]),
    # The first node of the knot is not on the first cycle that a search meets.
    ([[2], [2], [1, 0]], [[0, 2]]),
]


@pytest.mark.parametrize(("dependencies", "cycles"), GRAPHS)
def test_each_knot_shows_a_cycle_in_the_order_of_execution(
    dependencies: list[list[int]], cycles: list[list[int]]
) -> None:
    assert find_cycles(dependencies) == cycles


def test_the_number_of_cycles_is_bounded() -> None:
    pairs = [[i ^ 1] for i in range(200)]
    assert len(find_cycles(pairs)) == MAX_CYCLES


def test_a_large_knot_is_found_without_recursion() -> None:
    size = 50_000
    assert find_cycles([[(i - 1) % size] for i in range(size)]) == [list(range(size))]


def test_a_dense_knot_is_found() -> None:
    size = 300
    everybody = [[j for j in range(size) if j != i] for i in range(size)]
    assert find_cycles(everybody) == [[0, 1]]


def test_cycles_are_written_with_arrows() -> None:
    assert show_cycle(["a", "b", "c"]) == "a → b → c → a"
    names = [str(i) for i in range(20)]
    assert show_cycle(names) == " → ".join([*names, "0"])
    names = [str(i) for i in range(25)]
    assert show_cycle(names) == " → ".join([*names[:10], "… (5 more)", *names[-10:], "0"])
