"""The garbage collector, as a process with very many live runs needs it.

Nothing on the hot path leaves cycles (tests/performance), so there is next to nothing to collect,
and to look for it costs: with Python's own thresholds 31 % of the processor time in which 20,000
runs came into memory went into full collections, each holding the loop for up to 0.25 s, and for
0.9 s at 100,000 runs. So young objects are looked at after 10,000 more of them instead of 700, and
all objects twenty times twenty times less often: cycles that jobs and libraries make still go.
"""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

PYTHONS_OWN: Final = (700, 10, 10)
"""Until 3.13; a program that has set others, or a Python that has, knows why: they stay."""
THRESHOLDS: Final = (10_000, 20, 20)


@contextmanager
def without_collection() -> Generator[None]:
    """For recovery, which makes much and drops nothing. What is there afterwards is not looked at
    again: it lives as long as its run, and is freed with it all the same.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.collect()
        gc.freeze()
        if gc.get_threshold() == PYTHONS_OWN:
            gc.set_threshold(*THRESHOLDS)
        gc.enable()
