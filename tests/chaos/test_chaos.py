"""The short form of the chaos: each fault that matters once, on both kinds of store.

What is asserted does not depend on time: the promises at the end, whenever that is. The long form
is `make chaos`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.drive import Plan, chaos

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
