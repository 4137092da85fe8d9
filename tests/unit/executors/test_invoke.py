from __future__ import annotations

import asyncio
import math
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from pilotage.actors.executors.invoke import bounded_error, call, call_async, failure_of
from pilotage.actors.executors.job_context import Fail, JobContext, Retry
from pilotage.actors.executors.port import Attempt, Completed, Failed, Report
from pilotage.actors.executors.python_jobs import JobRegistry


def attempt(data: bytes = b"{}", transform: str | None = None) -> Attempt:
    return Attempt(
        project_id="p",
        run_id="r",
        step=0,
        step_ref="charge",
        attempt=1,
        job="job",
        job_run_id="j",
        input=data,
        timeout_secs=1,
        output_transform=transform,
    )


def done(function: Any, data: bytes = b"{}", transform: str | None = None) -> Completed | Failed:
    reports: list[Report] = []
    order = attempt(data, transform)
    job = JobRegistry().register(function, name="job")
    return call(job, order, JobContext(order, reports.append))


def failed(function: Any, data: bytes = b"{}", transform: str | None = None) -> Failed:
    outcome = done(function, data, transform)
    assert isinstance(outcome, Failed), outcome
    return outcome


class Item(msgspec.Struct):
    count: int


class Order(msgspec.Struct):
    items: list[Item]


def raising(error: BaseException) -> Any:
    def job() -> None:
        raise error

    return job


# --- outputs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "output"),
    [
        (None, None),
        (Item(count=1), b'{"count":1}'),
        ({"a": [1, 2.5, "x", None]}, b'{"a":[1,2.5,"x",null]}'),
        (timedelta(seconds=5), b'"PT5S"'),
        (False, b"false"),
        (0, b"0"),
    ],
)
def test_what_a_job_returns_is_its_output(value: Any, output: bytes | None) -> None:
    assert done(lambda: value) == Completed(output)


def test_an_output_of_exactly_the_limit_is_kept_and_one_byte_more_is_not() -> None:
    assert isinstance(done(lambda: "x" * (1_048_576 - 2)), Completed)
    outcome = failed(lambda: "x" * (1_048_576 - 1))
    assert outcome.final
    assert outcome.error == "output is 1048577 bytes; at most 1048576 are kept"


@pytest.mark.parametrize("value", [object(), "\ud800", {(1, 2): 3}, lambda: None])
def test_what_is_no_json_is_a_final_failure(value: Any) -> None:
    outcome = failed(lambda: value)
    assert outcome.final
    assert outcome.error.startswith("output cannot be written as JSON")


def test_an_output_within_itself_is_a_final_failure() -> None:
    ring: list[Any] = []
    ring.append(ring)
    assert failed(lambda: ring).final


def test_the_transform_sees_the_output_as_json() -> None:
    outcome = done(lambda: Order(items=[Item(count=1), Item(count=2)]), transform="items[].count")
    assert outcome == Completed(b"[1,2]")


def test_a_large_value_may_be_made_small_by_the_transform() -> None:
    assert done(lambda: ["x" * 2_000_000, 1], transform="[1]") == Completed(b"1")


def test_a_transform_that_fails_is_final() -> None:
    assert failed(lambda: 1, transform="keys(@)").final


# --- failures -------------------------------------------------------------------------------------


def test_an_exception_is_retryable_and_named() -> None:
    outcome = failed(raising(ValueError("no such card")))
    assert outcome == Failed("ValueError: no such card", "ValueError")


def test_an_exception_without_a_message_is_its_name() -> None:
    assert failed(raising(KeyError())).error == "KeyError"


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_not_even_an_exit_escapes(error: BaseException) -> None:
    assert failed(raising(error)).error_class == type(error).__name__


def test_retry_says_when() -> None:
    outcome = failed(raising(Retry("busy", after=12.5)))
    assert outcome == Failed("busy", "Retry", retry_after_secs=12.5)
    assert failed(raising(Retry(after=timedelta(minutes=1)))).retry_after_secs == 60
    assert failed(raising(Retry())).retry_after_secs is None
    assert failed(raising(Retry())).error


@pytest.mark.parametrize("after", [math.nan, math.inf, "soon"])
def test_a_senseless_delay_leaves_it_to_the_policy(after: Any) -> None:
    assert failed(raising(Retry("busy", after=after))).retry_after_secs is None


def test_a_negative_delay_is_none_at_all() -> None:
    assert failed(raising(Retry("busy", after=-3))).retry_after_secs == 0


def test_fail_is_final() -> None:
    assert failed(raising(Fail("card stolen"))) == Failed("card stolen", "Fail", final=True)


def test_an_error_is_cut_at_two_thousand_bytes() -> None:
    outcome = failed(raising(ValueError("é" * 5_000)))
    assert 1_990 <= len(outcome.error.encode()) <= 2_000
    assert outcome.error.endswith("…")


def test_an_error_that_utf8_cannot_carry_is_mended() -> None:
    assert bounded_error("a\ud800b") == "a?b"


def test_an_error_whose_text_raises_is_still_reported() -> None:
    class SilentError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert "cannot be shown: RuntimeError" in failure_of(SilentError()).error


# --- inputs ---------------------------------------------------------------------------------------


def test_an_input_that_does_not_fit_is_final_and_names_the_place() -> None:
    def job(order: Order) -> None: ...

    outcome = failed(job, b'{"items":[{"count":1},{"count":"two"}]}')
    assert outcome.final
    assert outcome.error_class == "input_mismatch"
    assert "job 'job'" in outcome.error
    assert "`$.items[1].count`" in outcome.error


def test_a_check_of_the_users_own_that_fails_is_final() -> None:
    class Checked(msgspec.Struct):
        count: int

        def __post_init__(self) -> None:
            raise LookupError("never")

    def job(data: Checked) -> Checked:
        return Checked(data.count)

    assert failed(job, b'{"count":1}').final


def test_input_nested_beyond_all_measure_is_final() -> None:
    def job(data: Any) -> None: ...

    assert failed(job, b"[" * 100_000).final


# --- coroutines -----------------------------------------------------------------------------------


def test_a_coroutine_function_runs_where_there_is_no_loop() -> None:
    async def job() -> int:
        await asyncio.sleep(0)
        return 5

    assert done(job) == Completed(b"5")


async def test_a_job_that_cancels_itself_has_failed() -> None:
    async def job() -> None:
        raise asyncio.CancelledError

    order = attempt()
    context = JobContext(order, print)
    registered = JobRegistry().register(job)
    assert await call_async(registered, order, context) == Failed(
        "the job was cancelled, by itself or by another on its loop", "CancelledError"
    )
    context.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call_async(registered, order, context)


async def test_a_coroutine_whose_input_does_not_fit_is_not_begun() -> None:
    async def job(order: Order) -> None:
        raise AssertionError

    order = attempt(b"[]")
    outcome = await call_async(JobRegistry().register(job), order, JobContext(order, print))
    assert isinstance(outcome, Failed)
    assert outcome.final
