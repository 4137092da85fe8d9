from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from pilotage.actors.executors.job_context import JobContext, printable
from pilotage.actors.executors.port import Logged, Progressed, Report
from tests.unit.executors.test_invoke import attempt


def context() -> tuple[JobContext, list[Report]]:
    reports: list[Report] = []
    return JobContext(attempt(), reports.append), reports


def test_it_says_what_is_done() -> None:
    ctx, _ = context()
    assert (ctx.project_id, ctx.run_id, ctx.step_ref, ctx.attempt, ctx.job_run_id) == (
        "p",
        "r",
        "charge",
        1,
        "j",
    )
    assert ctx.idempotency_key == "r/charge/1"


@pytest.mark.parametrize(("given", "shown"), [(50, 50.0), (-1, 0.0), (101, 100.0), (0.5, 0.5)])
def test_progress_is_kept_between_0_and_100(given: float, shown: float) -> None:
    ctx, reports = context()
    ctx.progress(given, "half")
    assert reports == [Progressed(shown, "half")]


@pytest.mark.parametrize("given", [math.nan, math.inf])
def test_progress_must_be_a_number(given: float) -> None:
    with pytest.raises(ValueError, match="progress must be 0 to 100"):
        context()[0].progress(given)


def test_a_log_line_has_level_message_and_data() -> None:
    ctx, reports = context()
    ctx.log("charged", level="warning", amount=5, card=object)
    (line,) = reports
    assert isinstance(line, Logged)
    assert (line.level, line.message) == ("warning", "charged")
    assert line.data is not None
    assert msgspec.json.decode(line.data)["amount"] == 5


def test_a_log_line_without_data_has_none() -> None:
    ctx, reports = context()
    ctx.log("charged")
    assert reports == [Logged("info", "charged", None)]


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="level must be one of debug, info, warning, error"):
        context()[0].log("x", level="loud")


RING: list[Any] = []
RING.append(RING)


@pytest.mark.parametrize("data", [{"big": "x" * 10_000}, {"bad": RING}, {"bad": "\ud800"}])
def test_data_that_cannot_be_kept_is_replaced_by_why(data: dict[str, Any]) -> None:
    ctx, reports = context()
    ctx.log("x", **data)
    (line,) = reports
    assert isinstance(line, Logged)
    assert line.data is not None
    assert len(line.data) < 300
    assert "not_kept" in msgspec.json.decode(line.data)


def test_the_log_is_bounded_and_says_so() -> None:
    ctx, reports = context()
    for i in range(1_500):
        ctx.log(f"line {i}")
    assert len(reports) == 1_000
    assert reports[-1] == Logged("warning", "only 1000 lines are kept", None)


def test_texts_are_cut_and_mended() -> None:
    assert len(printable("x" * 5_000)) == 2_000
    assert printable("a\ud800") == "a?"


def test_cancellation_shows_in_both_forms() -> None:
    ctx, _ = context()
    event = ctx.cancelled_event
    assert not ctx.cancelled
    assert not event.is_set()
    ctx.cancel()
    assert ctx.cancelled
    assert event.is_set()


def test_an_event_asked_for_after_the_cancellation_is_set() -> None:
    ctx, _ = context()
    ctx.cancel()
    assert ctx.cancelled_event.is_set()
