"""The short form of the chaos: each fault that matters once, on both kinds of store.

What is asserted does not depend on time: the promises at the end, whenever that is. The long forms
are `make chaos` and, with the number of kills that this is judged by, `make full`.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos.drive import JUDGE, Plan, chaos

EMBEDDED = {
    "kill_server": 2, "kill_store": 1, "kill_both": 1, "fill_store": 1, "stop_and_start": 1,
    "second_server": 1,
}  # fmt: skip
OWN = {
    "kill_server": 1, "kill_store": 1, "kill_both": 1, "cut_replies": 2, "half_open": 1,
    "demote_store": 1, "take_over": 1,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("form", ["embedded", "own"])
async def test_whatever_breaks_nothing_acknowledged_is_lost_and_nothing_hangs(
    form: str, tmp_path: Path
) -> None:
    faults = EMBEDDED if form == "embedded" else OWN
    plan = Plan(form=form, seed=1, secs=0, runs=12, folder=tmp_path, exactly=faults)
    report = await chaos(plan)
    assert report.ok, report.text()
    assert len(report.faults) >= len(faults) - 1, report.text()


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("form", ["embedded", "own"])
async def test_killed_fifty_times_under_load_and_its_store_twenty_times(
    form: str, tmp_path: Path
) -> None:
    plan = Plan(form=form, seed=2, secs=0, runs=200, folder=tmp_path, exactly=JUDGE)
    report = await chaos(plan)
    assert report.ok, report.text()
    assert report.faults == JUDGE


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("form", ["embedded", "own"])
async def test_under_all_faults_for_minutes(form: str, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    report = await chaos(Plan(form=form, seed=seed, secs=180, runs=80, folder=tmp_path))
    assert report.ok, report.text()
