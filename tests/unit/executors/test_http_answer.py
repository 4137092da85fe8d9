from __future__ import annotations

import json

import pytest

from pilotage.actors.executors.http_answer import Answer, outcome_of_answer, retry_after_secs
from pilotage.actors.executors.port import Accepted, Completed, Failed

NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT


def answer(
    status: int = 200,
    body: bytes = b"",
    media_type: str = "application/json",
    charset: str | None = None,
    retry_after: str | None = None,
) -> Answer:
    return Answer(status, media_type, charset, retry_after, body, len(body))


def failed(given: Answer, transform: str | None = None) -> Failed:
    outcome = outcome_of_answer(given, transform, NOW)
    assert isinstance(outcome, Failed)
    return outcome


@pytest.mark.parametrize(
    ("given", "output"),
    [
        (answer(200, b'{"a": 1}'), b'{"a":1}'),
        (answer(201, b"[1, 2]"), b"[1,2]"),
        (answer(200, b"7", "application/vnd.acme+json"), b"7"),
        (answer(200, b""), None),
        (answer(204, b""), None),
        (answer(200, b" \n"), None),
        (answer(200, b"null"), None),
        (answer(200, b'{"a": 1}', "text/plain"), b'"{\\"a\\": 1}"'),
        (answer(200, b"ok", "text/plain"), b'"ok"'),
        (answer(200, "é".encode(), "text/html"), '"é"'.encode()),
        (answer(200, "é".encode("latin-1"), "text/plain", "latin-1"), '"é"'.encode()),
        (answer(200, b'{"a": 1}', ""), b'{"a":1}'),
        (answer(200, b"plain", ""), b'"plain"'),
    ],
)
def test_a_good_answer_is_the_output(given: Answer, output: bytes | None) -> None:
    assert outcome_of_answer(given, None, NOW) == Completed(output)


def test_202_is_accepted_whatever_it_carries() -> None:
    assert outcome_of_answer(answer(202, b"{broken"), None, NOW) == Accepted()


@pytest.mark.parametrize(
    "given",
    [
        answer(200, b"{broken"),
        answer(200, b"\xff\xfe", "application/json"),
        answer(200, b"[" * 200_000),
        answer(200, b"\xff\xfe", "application/octet-stream"),
        answer(200, b"\xff\xfe", "text/plain", "no-such-charset"),
        answer(200, b"x", "text/plain", "rot13"),
        answer(200, b"x", "text/plain", "undefined"),
        answer(200, b"x", "text/plain", "punycode"),
        answer(200, b"x", "text/plain", "IDNA"),
        answer(200, b"x", "text/plain", "\x00"),
        answer(200, b"\xff\xfe", ""),
    ],
)
def test_an_answer_that_cannot_be_read_is_final(given: Answer) -> None:
    outcome = failed(given)
    assert outcome.final
    assert outcome.error_class == "bad_answer"


def test_an_answer_that_is_too_large_is_final_and_says_by_how_much() -> None:
    given = answer()._replace(size=5_000_000)
    assert failed(given).final
    assert failed(given).error == "output is 5000000 bytes; at most 1048576 are kept"
    assert "over 1048576 bytes" in failed(given._replace(size=None)).error


def test_text_that_grows_too_large_as_json_is_final() -> None:
    given = answer(200, b"\x01" * 400_000, "text/plain")
    assert failed(given).error_class == "output_too_large"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 413, 422, 451])
def test_what_the_client_did_wrong_is_final(status: int) -> None:
    assert failed(answer(status)).final


@pytest.mark.parametrize("status", [101, 408, 409, 425, 429, 500, 502, 503, 504, 599, 700])
def test_what_may_pass_is_retryable(status: int) -> None:
    assert not failed(answer(status)).final


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
def test_redirects_are_final(status: int) -> None:
    assert failed(answer(status)).final
    assert "redirects are not followed" in failed(answer(status)).error


def test_a_failure_shows_the_beginning_of_the_answer() -> None:
    outcome = failed(answer(500, b"database on fire\n" + b"x" * 10_000, "text/plain"))
    assert outcome.error.startswith("the endpoint answered 500: database on fire")
    assert len(outcome.error) < 1000
    assert outcome.error_class == "http_500"


def test_bytes_that_are_no_text_do_not_spoil_the_error() -> None:
    json.dumps(failed(answer(500, b"\xff\x00\xfe")).error).encode()


@pytest.mark.parametrize(
    ("value", "secs"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        ("Tue, 14 Nov 2023 22:15:20 GMT", 120.0),
        ("Tue, 14 Nov 2023 22:00:00 GMT", 0.0),
        ("Tuesday, 14-Nov-23 22:15:20 GMT", 120.0),
        ("-5", None),
        ("soon", None),
        ("", None),
        ("nan", None),
        ("1e5", None),
        ("²", None),
        ("9" * 400, None),
    ],
)
def test_retry_after_has_two_forms(value: str, secs: float | None) -> None:
    assert retry_after_secs(value, NOW) == secs


@pytest.mark.parametrize(("status", "secs"), [(429, 30.0), (503, 30.0), (500, None), (408, None)])
def test_retry_after_counts_where_it_is_defined(status: int, secs: float | None) -> None:
    assert failed(answer(status, retry_after="30")).retry_after_secs == secs


def test_the_transform_is_applied() -> None:
    given = answer(200, b'{"items": [{"id": 1}, {"id": 2}]}')
    assert outcome_of_answer(given, "items[].id", NOW) == Completed(b"[1,2]")


def test_a_transform_of_an_empty_answer_sees_null() -> None:
    assert outcome_of_answer(answer(), "@", NOW) == Completed(None)


@pytest.mark.parametrize("transform", ["items[", "no_such_function(@)", "length(`1`)"])
def test_a_transform_that_fails_is_final(transform: str) -> None:
    outcome = failed(answer(200, b"{}"), transform)
    assert outcome.final
    assert outcome.error_class == "output_transform"
    assert outcome.error.startswith("output_transform: ")
