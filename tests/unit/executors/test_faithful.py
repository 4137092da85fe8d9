"""What a job gives is kept as it is, or refused with a reason: nothing in between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from pilotage.actors.executors.http_answer import Answer, outcome_of_answer
from pilotage.actors.executors.invoke import failure_of, outcome_of
from pilotage.actors.executors.port import Completed, Failed
from pilotage.runtime.jsonvalues import repeated_key


@dataclass
class Point:
    x: Any


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": [None, 1.5]}, b'{"a":[null,1.5]}'),
        (Point(None), b'{"x":null}'),
        (2**64, b"18446744073709551616"),
        (-(10**40), b"-1" + b"0" * 40),
        ("a\0b", b'"a\\u0000b"'),
        ('null \\ud800 "1": é', b'"null \\\\ud800 \\"1\\": \xc3\xa9"'),
        ({1: "one", "two": 2}, b'{"1":"one","two":2}'),
        (msgspec.Raw(b'{"a":null}'), b'{"a":null}'),
        ([msgspec.Raw(b"null"), None], b"[null,null]"),
        (b"\xff", b'"/w=="'),
        ({7}, b"[7]"),
    ],
)
def test_what_json_can_say_is_kept(value: Any, text: bytes) -> None:
    assert outcome_of(value, None) == Completed(text)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), "JSON has no number nan"),
        ({"a": [None, float("-inf")]}, "JSON has no number -inf"),
        (Point(float("inf")), "JSON has no number inf"),
        ([msgspec.Raw(b"null"), float("nan")], "JSON has no number nan"),
        ({1: "one", "1": "uno"}, 'the key "1" is there twice'),
        ("\ud800", "surrogates not allowed"),
        ({"\ud800": 1}, "surrogates not allowed"),
        (10**5000, "4300 digits"),
        (object(), "objects of type object"),
        (Unshowable(), "objects of type Unshowable"),
        ({None: 1}, "Only dicts with str-like"),
        ((each for each in "ab"), "objects of type generator"),
        (msgspec.Raw(b"garbage"), "malformed"),
        (msgspec.Raw(b"1e999"), "out of range"),
        (msgspec.Raw(b"9" * 5000), "out of range"),
        (msgspec.Raw(b'"\\ud800x"'), "truncated"),
        (msgspec.Raw(b'"\xff"'), "invalid start byte"),
        (nested(100_000), "nested more than 500 deep"),
        (itself(), "contains itself"),
        ("x" * 2_000_000, "output is 2000002 bytes"),
    ],
    ids=range(20),
)
def test_what_json_cannot_say_is_refused_for_good(value: Any, reason: str) -> None:
    outcome = outcome_of(value, None)
    assert isinstance(outcome, Failed)
    assert outcome.final
    assert reason in outcome.error
    outcome.error.encode()


@pytest.mark.parametrize("leaves", [RuntimeError, SystemExit, KeyboardInterrupt])
def test_an_error_that_cannot_be_shown_is_named(leaves: type[BaseException]) -> None:
    class UnshownError(Exception):
        def __str__(self) -> str:
            raise leaves

    assert failure_of(UnshownError()) == Failed(
        f"UnshownError: (its message cannot be shown: {leaves.__name__})", "UnshownError"
    )


@pytest.mark.parametrize("text", ["\ud800", "x" * 1_000_000, "€" * 5_000, "a\0b"])
def test_the_text_of_an_error_is_bounded_and_can_be_stored(text: str) -> None:
    error = failure_of(ValueError(text)).error
    assert len(error.encode()) <= 2_000
    assert error.startswith("ValueError: ")


# --- answers of endpoints -------------------------------------------------------------------------


def answered(body: bytes, media_type: str = "application/json") -> Any:
    return outcome_of_answer(Answer(200, media_type, None, None, body, len(body)), None, 0.0)


@pytest.mark.parametrize(
    "body",
    [
        b"18446744073709551616",
        b"-9223372036854775809",
        b'{"n":123456789012345678901234567890}',
        b'{"a":{"x":1},"b":{"x":2},"c":":"}',
        b"1" * 4_300,
    ],
)
def test_an_answer_is_kept_as_it_was_given(body: bytes) -> None:
    assert answered(body) == Completed(body)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"a":1,"a":2}', 'the key "a" is there twice in one object'),
        (b'[{"b":{"c":1,"\\u0063":2}}]', 'the key "c" is there twice in one object'),
        (b"1" * 4_301, "out of range"),
        (b"1e400", "out of range"),
        (b'"\\ud800"', "JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "nested more than 500 deep"),
    ],
)
def test_an_answer_that_would_change_is_refused_for_good(body: bytes, reason: str) -> None:
    outcome = answered(body)
    assert isinstance(outcome, Failed)
    assert (outcome.error_class, outcome.final) == ("bad_answer", True)
    assert reason in outcome.error


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (b'"a: b"', None),
        (b'["a: b"]', None),
        (b'{"a":1,"b":[{"a":1}]}', None),
        (b'{"a":1,"b":[2,{"a":{},"a":1}]}', "a"),
    ],
)
def test_a_key_that_stands_twice_in_one_object_is_found(text: bytes, key: str | None) -> None:
    assert repeated_key(text, msgspec.json.decode(text)) == key
