"""Whether a series grows: for what must stay flat while the same load goes on and on."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import combinations
from typing import TypeVar

T = TypeVar("T")

WARM_UP = 0.25
"""Share of the series that is left out: caches and pools fill in the beginning."""


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Rise of y a unit of x: the median of the slopes between all pairs (Theil and Sen), which a
    few wild values do not move.
    """
    points = list(zip(xs, ys, strict=True))
    return statistics.median(
        (y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points, 2) if x2 != x1
    )


def settled(series: Sequence[T]) -> Sequence[T]:
    """The series after warming up."""
    return series[int(len(series) * WARM_UP) :]


def grows(done: Sequence[float], kept: Sequence[float], noise: float) -> bool:
    """Whether `kept` (objects, bytes) rises with `done` by more than `noise` in all, and is still
    rising at the end: the last third lies above the third before it.
    """
    done, kept = settled(done), settled(kept)
    third = max(1, len(kept) // 3)
    still = statistics.median(kept[-third:]) > statistics.median(kept[-2 * third : -third])
    return still and slope(done, kept) * (done[-1] - done[0]) > noise
