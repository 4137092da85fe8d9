"""`python -m tests.simulation --seeds N --first K`: play seeds on all cores, name those that fail.

`--seed S` plays one and prints all that happens in it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from multiprocessing import get_context

from tests.simulation.world import Result, play

CHUNK = 20
REPORT_SECS = 10.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many (1000)")
    parser.add_argument("--first", type=int, default=0, help="the first one (0)")
    parser.add_argument("--seed", type=int, help="play this one and print its trace")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    if given.seed is not None:
        return show(play(given.seed, keep_lines=True))
    return play_many(given.first, given.seeds, given.workers)


def show(result: Result) -> int:
    print(*result.lines, sep="\n")
    print(f"seed {result.seed}: {result.virtual_secs:.1f} virtual seconds, trace {result.trace}")
    for violation in result.violations:
        print(f"VIOLATION {violation}")
    return 1 if result.violations else 0


def play_many(first: int, count: int, workers: int) -> int:
    begin, reported = time.monotonic(), time.monotonic()
    failed: list[int] = []
    virtual_secs = 0.0
    for n, result in enumerate(results(first, count, workers), 1):
        virtual_secs += result.virtual_secs
        if result.violations:
            failed.append(result.seed)
            print(f"seed {result.seed}: {'; '.join(result.violations)}", flush=True)
            print(f"  replay: {command(result.seed)}", flush=True)
        if time.monotonic() - reported > REPORT_SECS or n == count:
            reported = time.monotonic()
            rate = n / (reported - begin)
            print(f"{n} of {count} seeds, {rate:.0f} a second, {len(failed)} failed", flush=True)
    print(f"{count} seeds from {first}: {virtual_secs / 3600:.1f} virtual hours")
    print(f"failed: {' '.join(map(str, sorted(failed))) or 'none'}")
    return 1 if failed else 0


def results(first: int, count: int, workers: int) -> Iterator[Result]:
    seeds = range(first, first + count)
    if workers <= 1:
        yield from map(play, seeds)
        return
    with get_context("spawn").Pool(workers) as pool:
        yield from pool.imap_unordered(play, seeds, CHUNK)


def command(seed: int) -> str:
    return f"python -m tests.simulation --seed {seed}"


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        # the order of sets of strings must be the same each time
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])
    sys.exit(main())
