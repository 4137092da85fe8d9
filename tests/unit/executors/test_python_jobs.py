from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import msgspec
import pytest

from pilotage.actors.executors.job_context import JobContext
from pilotage.actors.executors.python_jobs import JobKind, JobRegistry, PythonJob
from pilotage.runtime.definition import JobSpec
from pilotage.runtime.errors import DefinitionError
from pilotage.runtime.status import Backoff, ExecutionMode

if TYPE_CHECKING:
    from decimal import Decimal


class Order(msgspec.Struct):
    order_id: int
    note: str = ""


@dataclass
class Line:
    sku: str
    count: int


class Parcel(TypedDict):
    weight: float


Positive = Annotated[int, msgspec.Meta(gt=0)]


def one(data: Any) -> Any:
    return data


def problems(function: Any, **options: Any) -> str:
    with pytest.raises(DefinitionError) as raised:
        JobRegistry().register(function, **options)
    return "\n".join(raised.value.problems)


def called(job: PythonJob, data: bytes, context: Any) -> Any:
    args, kwargs = job.signature.arguments(data, context)
    return job.function(*args, **kwargs)


# --- what is registered ---------------------------------------------------------------------------


def test_a_function_is_registered_under_its_own_name() -> None:
    registry = JobRegistry()
    job = registry.register(one)
    assert registry.get("one") is job
    assert "one" in registry
    assert [each.name for each in registry] == ["one"]
    assert len(registry) == 1
    assert registry.named(one) == "one"
    assert registry.named(problems) is None


def test_the_decorator_leaves_the_function_as_it_is() -> None:
    registry = JobRegistry()

    @registry.job
    def plain(data: int) -> int:
        return data + 1

    @registry.job(name="other", max_attempts=5, timeout=30)
    async def awaited(data: int) -> int:
        return data

    assert plain(1) == 2
    assert {job.name for job in registry} == {"plain", "other"}
    found = registry.get("other")
    assert found is not None
    assert found.policy().max_attempts == 5
    assert found.policy().timeout_secs == 30


def test_a_job_can_be_called_like_its_function() -> None:
    assert JobRegistry().register(one)(5) == 5


def test_the_policy_is_a_job_spec_with_the_defaults_of_the_api() -> None:
    assert JobRegistry().register(one).spec == JobSpec(execution_mode=ExecutionMode.PYTHON)
    spec = (
        JobRegistry()
        .register(
            one,
            max_attempts=7,
            timeout=1.5,
            retry_backoff="linear",
            retry_initial_delay=0,
            retry_max_delay=9,
            max_concurrency=2,
        )
        .spec
    )
    assert spec == JobSpec(
        execution_mode=ExecutionMode.PYTHON,
        max_attempts=7,
        timeout_secs=1.5,
        retry_backoff=Backoff.LINEAR,
        retry_initial_delay_secs=0,
        retry_max_delay_secs=9,
        max_concurrency=2,
    )
    assert spec.policy().limited


async def awaited() -> None: ...


class CallMe:
    async def __call__(self, data: Any) -> None: ...


@pytest.mark.parametrize(
    ("function", "options", "kind", "is_async"),
    [
        (one, {}, JobKind.THREAD, False),
        (awaited, {}, JobKind.ASYNC, True),
        (one, {"inline": True}, JobKind.INLINE, False),
        (awaited, {"inline": True}, JobKind.INLINE, True),
        (one, {"process": True}, JobKind.PROCESS, False),
        (awaited, {"process": True}, JobKind.PROCESS, True),
        (CallMe(), {"name": "callable"}, JobKind.ASYNC, True),
        (functools.partial(one), {"name": "partial"}, JobKind.THREAD, False),
    ],
)
def test_the_function_and_its_options_say_where_it_runs(
    function: Any, options: dict[str, Any], kind: JobKind, is_async: bool
) -> None:
    job = JobRegistry().register(function, **options)
    assert (job.kind, job.is_async) == (kind, is_async)


def test_the_same_function_may_be_registered_again_and_another_may_not() -> None:
    registry = JobRegistry()
    first = registry.register(one)
    assert registry.register(one) is first
    assert registry.register(one, timeout=5).spec.timeout_secs == 5
    with pytest.raises(DefinitionError, match="another function is registered under it"):
        registry.register(awaited, name="one")


# --- how it is called -----------------------------------------------------------------------------


def takes_struct(order: Order) -> Any:
    return order


def takes_dataclass(line: Line) -> Any:
    return line


def takes_typed_dict(parcel: Parcel) -> Any:
    return parcel


def takes_nothing() -> Any:
    return "nothing"


def takes_anything(data: Any) -> Any:
    return data


takes_anything.__annotations__.clear()


def takes_defaults(data: dict[str, Any], times: int = 2) -> Any:
    return data, times


def takes_rest(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


CALLS: list[tuple[Any, bytes, Any]] = [
    (takes_struct, b'{"order_id":1,"parent_outputs":{}}', Order(order_id=1)),
    (takes_dataclass, b'{"sku":"a","count":2}', Line("a", 2)),
    (takes_typed_dict, b'{"weight":1.5}', {"weight": 1.5}),
    (takes_nothing, b"{}", "nothing"),
    (takes_anything, b'{"a":[1]}', {"a": [1]}),
    (takes_defaults, b"{}", ({}, 2)),
    (takes_rest, b"{}", ((), {})),
]


@pytest.mark.parametrize(("function", "data", "result"), CALLS)
def test_the_input_is_decoded_as_the_type_hint_says(
    function: Any, data: bytes, result: Any
) -> None:
    assert called(JobRegistry().register(function), data, None) == result


def context_second(data: Any, ctx: JobContext) -> Any:
    return data, ctx


def context_first(ctx: JobContext, data: Any) -> Any:
    return data, ctx


def context_alone(ctx: JobContext) -> Any:
    return None, ctx


def context_by_keyword(data: Any, *, somewhere: JobContext) -> Any:
    return data, somewhere


def context_by_name(data: Any, ctx: Any) -> Any:
    return data, ctx


context_by_name.__annotations__.clear()


def context_optional(data: Any, ctx: JobContext | None = None) -> Any:
    return data, ctx


def context_third(data: Any, times: int = 2, *, ctx: JobContext) -> Any:
    assert times == 2
    return data, ctx


def context_after_default(data: Any, times: int = 2, ctx: JobContext | None = None) -> Any:
    assert times == 2
    return data, ctx


@pytest.mark.parametrize(
    "function",
    [
        context_second,
        context_first,
        context_alone,
        context_by_keyword,
        context_by_name,
        context_optional,
        context_third,
        context_after_default,
    ],
)
def test_the_context_goes_where_it_is_asked_for(function: Any) -> None:
    context = object()
    result = called(JobRegistry().register(function), b"1", context)
    assert result == (None if function is context_alone else 1, context)
    assert JobRegistry().register(function).signature.takes_context


def test_types_of_the_enclosing_function_are_found_when_the_job_uses_them() -> None:
    class Local(msgspec.Struct):
        value: int

    def job(data: Local) -> Any:
        return Local(value=data.value + 1)

    assert called(JobRegistry().register(job), b'{"value":1}', None).value == 2


# --- what is refused ------------------------------------------------------------------------------


def too_many(data: Any, extra: int, more: int) -> None: ...


def two_contexts(a: JobContext, b: JobContext) -> None: ...


def keyword_only(*, data: Any) -> None: ...


def unknown_type(data: Decimal) -> None: ...


def not_json(data: Iterator[int] | AsyncIterator[int]) -> None: ...


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("function", "options", "problem"),
    [
        (too_many, {}, "nothing is passed for 'extra', 'more'"),
        (two_contexts, {}, "more than one context"),
        (keyword_only, {}, "'data' must not be keyword-only"),
        (unknown_type, {}, "type hints: cannot be evaluated: NameError: name 'Decimal'"),
        (not_json, {}, "parameter 'data': its type cannot be decoded from JSON"),
        (generator, {}, "is a generator"),
        (async_generator, {}, "is a generator"),
        (lambda: None, {}, "give one with name="),
        (one, {"name": "a b"}, "name: must match"),
        (one, {"name": "x" * 256}, "at most 255"),
        (one, {"inline": True, "process": True}, "exclude one another"),
        (lambda: None, {"name": "x", "process": True}, "must stand at the top of its module"),
        (one, {"max_attempts": 0}, "max_attempts: must be 1 to 100"),
        (one, {"max_attempts": "many"}, "max_attempts: Expected `int | null`, got `str`"),
        (one, {"timeout": 0}, "timeout: must be more than 0"),
        (one, {"timeout": 90_000}, "at most 86400"),
        (one, {"retry_backoff": "wild"}, "retry_backoff: Invalid enum value 'wild'"),
        (one, {"retry_initial_delay": -1}, "retry_initial_delay: must be 0 to 86400"),
        (one, {"max_concurrency": 0}, "max_concurrency: must be at least 1"),
        (one, {"max_atempts": 1}, "max_atempts: no such option; there are max_attempts, timeout"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_registered(
    function: Any, options: dict[str, Any], problem: str
) -> None:
    assert problem in problems(function, **options)


def test_all_problems_are_reported_at_once() -> None:
    found = problems(too_many, name="a b", timeout=-1, max_attempts=1000, nonsense=1)
    assert len(found.splitlines()) == 5


def test_a_signature_that_cannot_be_read_is_refused() -> None:
    assert "its parameters cannot be read" in problems(5, name="five")


def test_inputs_are_checked_with_their_constraints() -> None:
    def positive(data: Positive) -> int:
        return data

    job = JobRegistry().register(positive)
    with pytest.raises(msgspec.ValidationError):
        called(job, b"0", None)
