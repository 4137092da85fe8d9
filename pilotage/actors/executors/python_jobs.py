"""Python jobs: functions registered under a name, their signatures read once.

The first parameter takes the input, checked against its type hint (msgspec Struct, dataclass,
TypedDict, or anything else msgspec can decode); a parameter annotated `JobContext`, or a bare one
called `ctx` or `context`, takes the context. Everything wrong with a registration is reported at
once, when it is made, not when the job first runs.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from types import SimpleNamespace
from typing import Any, TypeVar, get_args, get_type_hints, overload

import msgspec

from pilotage.actors.executors.job_context import JobContext
from pilotage.runtime.definition import (
    DEFAULT_MAX_ATTEMPTS,
    DEFAULT_RETRY_INITIAL_DELAY_SECS,
    DEFAULT_RETRY_MAX_DELAY_SECS,
    DEFAULT_TIMEOUT_SECS,
    JobPolicy,
    JobSpec,
)
from pilotage.runtime.errors import DefinitionError
from pilotage.runtime.status import Backoff, ExecutionMode

MAX_NAME_CHARS = 255
MAX_ATTEMPTS = 100
MAX_TIMEOUT_SECS = 86_400.0

JobFunction = Callable[..., Any]
FunctionT = TypeVar("FunctionT", bound=JobFunction)

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*\Z")
_CONTEXT_NAMES = frozenset({"ctx", "context"})


class JobKind(StrEnum):
    """Where the function runs."""

    ASYNC = "async"
    THREAD = "thread"
    PROCESS = "process"
    INLINE = "inline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """How to call the function: which of its parameters take input and context.

    `decoder` is None when the function takes no input; `context_name` is set when the context
    goes by keyword.
    """

    decoder: msgspec.json.Decoder[Any] | None
    context_first: bool = False
    context_positional: bool = False
    context_name: str | None = None

    def arguments(self, data: bytes, context: JobContext) -> tuple[list[Any], dict[str, Any]]:
        """Raises msgspec.ValidationError or DecodeError if the input does not fit the hint."""
        args = [] if self.decoder is None else [self.decoder.decode(data)]
        if self.context_positional:
            args.insert(0 if self.context_first else len(args), context)
        return args, ({self.context_name: context} if self.context_name else {})

    @property
    def takes_context(self) -> bool:
        return self.context_positional or self.context_name is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonJob:
    """A function with a name, a place to run and a policy. Calling it calls the function."""

    name: str
    function: JobFunction
    kind: JobKind
    is_async: bool
    signature: Signature
    spec: JobSpec

    def policy(self) -> JobPolicy:
        return self.spec.policy()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


class JobRegistry:
    """Name to job. Filled before the runtime starts; read on the actors' loop."""

    def __init__(self) -> None:
        self._jobs: dict[str, PythonJob] = {}

    def register(
        self,
        function: JobFunction,
        *,
        name: str | None = None,
        inline: bool = False,
        process: bool = False,
        **policy: Any,
    ) -> PythonJob:
        """Make `function` a job. `policy`: max_attempts, timeout (seconds), retry_backoff,
        retry_initial_delay, retry_max_delay, max_concurrency.

        Registering the same function under the same name again is without effect. Raises
        `DefinitionError` with every problem found.
        """
        name = _default_name(function) if name is None else name
        spec, problems = _spec(policy)
        is_async = _is_async(function)
        kind, kind_problems = _kind(function, is_async=is_async, inline=inline, process=process)
        signature, signature_problems = read_signature(function)
        problems += [*_name_problems(name), *kind_problems, *signature_problems]
        known = self._jobs.get(name)
        if known is not None and known.function is not function:
            problems.append("name: another function is registered under it; choose another name")
        if problems or signature is None:
            raise DefinitionError([f"job {name!r}: {problem}" for problem in problems])
        job = PythonJob(
            name=name,
            function=function,
            kind=kind,
            is_async=is_async,
            signature=signature,
            spec=spec,
        )
        if known is None or known.kind is not kind or known.spec != spec:
            self._jobs[name] = job
        return self._jobs[name]

    @overload
    def job(self, function: FunctionT, /) -> FunctionT: ...

    @overload
    def job(self, /, **options: Any) -> Callable[[FunctionT], FunctionT]: ...

    def job(
        self, function: FunctionT | None = None, /, **options: Any
    ) -> FunctionT | Callable[[FunctionT], FunctionT]:
        """The decorator: `@registry.job` or `@registry.job(max_attempts=5, timeout=30)`.

        Options are those of `register`. The function stays as it is and can be called directly.
        """

        def decorate(function: FunctionT) -> FunctionT:
            self.register(function, **options)
            return function

        return decorate if function is None else decorate(function)

    def get(self, name: str) -> PythonJob | None:
        return self._jobs.get(name)

    def named(self, function: object) -> str | None:
        """The name that the function is registered under."""
        return next((job.name for job in self if job.function is function), None)

    def __contains__(self, name: object) -> bool:
        return name in self._jobs

    def __iter__(self) -> Iterator[PythonJob]:
        return iter(tuple(self._jobs.values()))

    def __len__(self) -> int:
        return len(self._jobs)


# --- reading a function ---------------------------------------------------------------------------


def read_signature(function: JobFunction) -> tuple[Signature | None, list[str]]:
    """How to call the function, or why it cannot be a job."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        return None, [f"function: its parameters cannot be read: {error}"]
    hints, problem = _hints(function, parameters)
    if problem is not None:
        return None, [problem]
    contexts = [p for p in parameters if _takes_context(p, hints)]
    rest = [p for p in parameters if p not in contexts and p.kind not in _VARIADIC]
    problems = _parameter_problems(contexts, rest)
    decoder, problem = _decoder(rest[0], hints) if rest and not problems else (None, None)
    if problem is not None:
        problems.append(problem)
    if problems:
        return None, problems
    if not contexts:
        return Signature(decoder=decoder), []
    context = contexts[0]
    place = parameters.index(context)
    by_name = place > (decoder is not None) or context.kind is inspect.Parameter.KEYWORD_ONLY
    return Signature(
        decoder=decoder,
        context_first=place == 0,
        context_positional=not by_name,
        context_name=context.name if by_name else None,
    ), []


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _hints(
    function: JobFunction, parameters: list[inspect.Parameter]
) -> tuple[dict[str, Any], str | None]:
    """The parameters' type hints. What is returned is not looked at: msgspec encodes the value."""
    stated = {p.name: p.annotation for p in parameters if p.annotation is not p.empty}
    inner: Any = inspect.unwrap(function)
    inner = getattr(inner, "func", inner)  # functools.partial
    inner = inner if hasattr(inner, "__globals__") else getattr(inner, "__call__", inner)  # noqa: B004
    scope = getattr(inner, "__globals__", {})
    # JobContext is often imported for type checkers only.
    names = {"JobContext": JobContext, **_closure(inner)}
    try:
        hints = get_type_hints(
            SimpleNamespace(__annotations__=stated), scope, names, include_extras=True
        )
    except Exception as error:  # noqa: BLE001 - an annotation is an expression: anything may happen
        return {}, (
            f"type hints: cannot be evaluated: {type(error).__name__}: {error}; "
            "the types must be importable at the top of the function's module"
        )
    return hints, None


def _closure(function: Any) -> dict[str, Any]:
    """Names of an enclosing function that the function itself uses."""
    code = getattr(function, "__code__", None)
    if code is None:
        return {}
    cells = zip(code.co_freevars, getattr(function, "__closure__", None) or (), strict=False)
    found: dict[str, Any] = {}
    for name, cell in cells:
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return found


def _takes_context(parameter: inspect.Parameter, hints: dict[str, Any]) -> bool:
    hint = hints.get(parameter.name)
    if hint is None:
        return parameter.name in _CONTEXT_NAMES and parameter.kind not in _VARIADIC
    return hint is JobContext or JobContext in get_args(hint)


def _parameter_problems(
    contexts: list[inspect.Parameter], rest: list[inspect.Parameter]
) -> list[str]:
    problems: list[str] = []
    if len(contexts) > 1:
        problems.append("function: takes more than one context")
    if rest and rest[0].kind is inspect.Parameter.KEYWORD_ONLY and rest[0].default is rest[0].empty:
        problems.append(f"function: parameter {rest[0].name!r} must not be keyword-only")
    needed = [repr(p.name) for p in rest[1:] if p.default is p.empty]
    if needed:
        problems.append(
            "function: takes the input and, if it wants, a JobContext; "
            f"nothing is passed for {', '.join(needed)}"
        )
    return problems


def _decoder(
    parameter: inspect.Parameter, hints: dict[str, Any]
) -> tuple[msgspec.json.Decoder[Any] | None, str | None]:
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
        return None, None
    try:
        return msgspec.json.Decoder(hints.get(parameter.name, Any)), None
    except Exception as error:  # noqa: BLE001 - TypeError, NameError of an inner annotation, others
        return None, (
            f"parameter {parameter.name!r}: its type cannot be decoded from JSON: {error}; "
            "use a msgspec Struct, a dataclass, a TypedDict or a plain JSON type"
        )


def _is_async(function: JobFunction) -> bool:
    inner = inspect.unwrap(function)
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(
        getattr(inner, "__call__", None)  # noqa: B004 - its kind matters, not whether it exists
    )


def _default_name(function: JobFunction) -> str:
    name = getattr(function, "__name__", "")
    return name if isinstance(name, str) else ""


# --- checking a registration ----------------------------------------------------------------------


def _name_problems(name: str) -> list[str]:
    if not name or name == "<lambda>":
        return ["name: the function has none; give one with name=..."]
    if len(name) > MAX_NAME_CHARS or not _NAME.match(name):
        return [f"name: must match {_NAME.pattern[:-2]} and have at most {MAX_NAME_CHARS} letters"]
    return []


def _kind(
    function: JobFunction, *, is_async: bool, inline: bool, process: bool
) -> tuple[JobKind, list[str]]:
    problems: list[str] = []
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        problems.append("function: is a generator; a job returns one value")
    if inline and process:
        problems.append("inline and process exclude one another")
    if inline:
        return JobKind.INLINE, problems
    if process:
        if not _is_importable(function):
            problems.append(
                "function: runs in another process and so must stand at the top of its module"
            )
        return JobKind.PROCESS, problems
    return (JobKind.ASYNC if is_async else JobKind.THREAD), problems


def _is_importable(function: JobFunction) -> bool:
    name = getattr(function, "__qualname__", "<locals>")
    return "<" not in name and bool(getattr(function, "__module__", None))


class _Policy(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The policy as given; `None` is the default."""

    max_attempts: int | None = None
    timeout: float | None = None
    retry_backoff: Backoff | None = None
    retry_initial_delay: float | None = None
    retry_max_delay: float | None = None
    max_concurrency: int | None = None


def _spec(options: dict[str, Any]) -> tuple[JobSpec, list[str]]:
    known = _Policy.__struct_fields__
    problems = [
        f"{option}: no such option; there are {', '.join(known)}, name, inline, process"
        for option in options
        if option not in known
    ]
    policy = _Policy()
    for option in known:
        try:
            given = msgspec.convert({option: options.get(option)}, _Policy)
        except msgspec.ValidationError as error:
            problems.append(f"{option}: {str(error).split(' - at ')[0]}")
        else:
            setattr(policy, option, getattr(given, option))
    problems += _policy_problems(policy)
    return JobSpec(
        execution_mode=ExecutionMode.PYTHON,
        max_attempts=_or(policy.max_attempts, DEFAULT_MAX_ATTEMPTS),
        timeout_secs=_or(policy.timeout, DEFAULT_TIMEOUT_SECS),
        retry_backoff=policy.retry_backoff or Backoff.EXPONENTIAL,
        retry_initial_delay_secs=_or(policy.retry_initial_delay, DEFAULT_RETRY_INITIAL_DELAY_SECS),
        retry_max_delay_secs=_or(policy.retry_max_delay, DEFAULT_RETRY_MAX_DELAY_SECS),
        max_concurrency=policy.max_concurrency,
    ), problems


NumberT = TypeVar("NumberT", int, float)


def _or(value: NumberT | None, default: NumberT) -> NumberT:
    return default if value is None else value


def _policy_problems(policy: _Policy) -> Iterator[str]:
    if policy.max_attempts is not None and not 1 <= policy.max_attempts <= MAX_ATTEMPTS:
        yield f"max_attempts: must be 1 to {MAX_ATTEMPTS}"
    if policy.timeout is not None and not 0 < policy.timeout <= MAX_TIMEOUT_SECS:
        yield f"timeout: must be more than 0 and at most {MAX_TIMEOUT_SECS:.0f} seconds"
    for name in ("retry_initial_delay", "retry_max_delay"):
        delay: float | None = getattr(policy, name)
        if delay is not None and not 0 <= delay <= MAX_TIMEOUT_SECS:
            yield f"{name}: must be 0 to {MAX_TIMEOUT_SECS:.0f} seconds"
    if policy.max_concurrency is not None and policy.max_concurrency < 1:
        yield "max_concurrency: must be at least 1"
