"""`python -m tests.chaos`: attack server and store for a while, then judge. See `drive`.

The seed fixes what is done, not when: a failure may need several runs of its seed to come back.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.drive import JUDGE, Plan, chaos

FORMS = ("embedded", "own")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--secs", type=float, default=120.0, help="of attack, for each form")
    parser.add_argument("--seed", type=int, help="default: drawn, and printed")
    parser.add_argument("--runs", type=int, default=80, help="at the same time")
    parser.add_argument("--form", choices=FORMS, action="append", help="default: both")
    parser.add_argument(
        "--judge", action="store_true", help="50 kill -9 of the server, 20 of the store"
    )
    asked = parser.parse_args()
    seed = asked.seed if asked.seed is not None else random.SystemRandom().randrange(10**6)
    say(f"seed {seed}")
    failed = False
    for form in asked.form or FORMS:
        folder = Path(tempfile.mkdtemp(prefix="pilotage-chaos-"))
        exactly = JUDGE if asked.judge else None
        plan = Plan(
            form=form, seed=seed, secs=asked.secs, runs=asked.runs, folder=folder, exactly=exactly
        )
        report = asyncio.run(chaos(plan))
        say(report.text())
        if report.ok:
            shutil.rmtree(folder)
        else:
            failed = True
            say(f"  logs: {folder}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
