"""One call of a Python job, wherever it runs: input in, function called, one report out.

Nothing escapes: whatever the function raises or returns becomes `Completed` or `Failed`. The only
exceptions let through are cancellation and the end of the coroutine, which belong to the caller.
"""

from __future__ import annotations

import asyncio
import math
from functools import lru_cache
from typing import Any

import msgspec

from pilotage.actors.executors.faithful import TOO_DEEP, faithful_json
from pilotage.actors.executors.job_context import Fail, JobContext, Retry, printable
from pilotage.actors.executors.port import MAX_OUTPUT_BYTES, Attempt, Completed, Failed
from pilotage.actors.executors.python_jobs import PythonJob
from pilotage.runtime.transforms import Transform, TransformError, compile_transform

MAX_ERROR_BYTES = 2_000

Outcome = Completed | Failed


def bounded_error(text: str) -> str:
    """At most 2,000 bytes of UTF-8."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= MAX_ERROR_BYTES:
        return encoded.decode()
    return encoded[: MAX_ERROR_BYTES - 3].decode("utf-8", "ignore") + "…"


def arguments_of(
    job: PythonJob, attempt: Attempt, context: JobContext
) -> tuple[list[Any], dict[str, Any]] | Failed:
    """What to call the function with, or why the input does not fit it (final)."""
    try:
        return job.signature.arguments(attempt.input, context)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        # msgspec names the place: `... - at `$.order.amount``.
        return Failed(
            bounded_error(f"the input does not fit job {job.name!r}: {error}"),
            "input_mismatch",
            final=True,
        )
    except BaseException as error:  # noqa: BLE001 - a Struct's __post_init__ may raise anything
        failed = failure_of(error)
        return Failed(failed.error, failed.error_class, final=True)


def call(job: PythonJob, attempt: Attempt, context: JobContext) -> Outcome:
    """Run a plain function (or, where there is no loop, a coroutine) in the thread at hand."""
    arguments = arguments_of(job, attempt, context)
    if isinstance(arguments, Failed):
        return arguments
    args, kwargs = arguments
    try:
        value = job.function(*args, **kwargs)
        if job.is_async:
            value = asyncio.run(value)
    except BaseException as error:  # noqa: BLE001 - SystemExit of a job must not end the server
        return failure_of(error)
    return outcome_of(value, attempt.output_transform)


async def call_async(job: PythonJob, attempt: Attempt, context: JobContext) -> Outcome:
    """Run a coroutine function on the loop at hand. Cancellation goes through."""
    arguments = arguments_of(job, attempt, context)
    if isinstance(arguments, Failed):
        return arguments
    args, kwargs = arguments
    try:
        value = await job.function(*args, **kwargs)
    except asyncio.CancelledError:
        if context.cancelled:
            raise
        return Failed(
            "the job was cancelled, by itself or by another on its loop", "CancelledError"
        )
    except GeneratorExit:
        raise
    except BaseException as error:  # noqa: BLE001 - SystemExit of a job must not end the loop
        return failure_of(error)
    return outcome_of(value, attempt.output_transform)


def failure_of(error: BaseException) -> Failed:
    """The report of what a job raised: `Retry` and `Fail` as they say, all else retryable."""
    if isinstance(error, Retry):
        return Failed(_text(error), "Retry", retry_after_secs=_delay(error.after_secs))
    if isinstance(error, Fail):
        return Failed(_text(error), "Fail", final=True)
    name = type(error).__name__
    text = _text(error)
    return Failed(bounded_error(f"{name}: {text}" if text else name), printable(name, 128))


def _text(error: BaseException) -> str:
    try:
        return bounded_error(str(error))
    except BaseException as failed:  # noqa: BLE001 - a __str__ of the user's
        return f"(its message cannot be shown: {type(failed).__name__})"


def _delay(secs: object) -> float | None:
    """Only what a timer can be set to; anything else leaves the delay to the policy."""
    if not isinstance(secs, (int, float)) or not math.isfinite(secs):
        return None
    return max(0.0, float(secs))


def outcome_of(value: Any, transform: str | None) -> Outcome:
    """The value as JSON text within the bounds, after the transform; final if impossible."""
    if value is None and transform is None:
        return Completed(None)
    try:
        output = faithful_json(value)
    except RecursionError:
        return Failed(f"{TOO_DEEP}; or it contains itself", "bad_output", final=True)
    except BaseException as error:  # noqa: BLE001 - depends on the types in the value
        return Failed(
            bounded_error(f"output cannot be written as JSON: {_text(error)}"),
            "bad_output",
            final=True,
        )
    if transform is not None:
        transformed = transformed_output(output, transform)
        if isinstance(transformed, Failed):
            return transformed
        output = transformed
    if len(output) > MAX_OUTPUT_BYTES:
        return too_large(len(output))
    return Completed(None if output == b"null" else output)


def transformed_output(output: bytes, transform: str) -> bytes | Failed:
    """The output after its JMESPath expression; an error is final."""
    try:
        return _compiled(transform).apply_json(output)
    except TransformError as error:
        return Failed(bounded_error(str(error)), "output_transform", final=True)


@lru_cache(maxsize=1_000)
def _compiled(transform: str) -> Transform:
    try:
        return compile_transform(transform)
    except TransformError as error:
        raise TransformError(f"output_transform: {error}") from None


def too_large(size: int | None) -> Failed:
    """`size` None: more than could be kept, it was not read to the end."""
    found = f"over {MAX_OUTPUT_BYTES}" if size is None else str(size)
    return Failed(
        f"output is {found} bytes; at most {MAX_OUTPUT_BYTES} are kept",
        "output_too_large",
        final=True,
    )
