"""Job servers that fail, stall, answer late, twice or garbage: every attempt comes to a right end.

Final: trying again is of no use. Retryable: the next attempt goes out and is the one that counts.
"""

from __future__ import annotations

import gzip
import threading
import zlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.blackbox.api import Api, approval, job
from tests.blackbox.rawserver import (
    Line,
    RawEndpoint,
    RawServer,
    Script,
    answer,
    resets,
    says,
    says_and_holds,
    says_for_ever,
)
from tests.support.waiting import wait_until_sync

GOOD = answer(b'"good"', "Connection: close")
MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def raw() -> Iterator[RawServer]:
    with RawServer() as server:
        yield server


def start(api: Api, endpoint: RawEndpoint, payload: Any = None, **fields: Any) -> str:
    """A run of one step `a`: two attempts, without a pause between them."""
    body = {
        "project_id": api.project,
        "slug": endpoint.path[1:],
        "endpoint_url": endpoint.url,
        "max_attempts": 2,
        "retry_initial_delay_secs": 0,
        **fields,
    }
    api.post("/v1/jobs", body, 201)
    return api.start(job("a", endpoint.path[1:]), payload=payload)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def chunked(*parts: bytes) -> bytes:
    return answer(b"".join(map(chunk, parts)) + b"0\r\n\r\n", "Transfer-Encoding: chunked")


def drips(line: Line) -> None:
    """The answer byte by byte."""
    line.read_body()
    for byte in answer(b'{"slow": true}', "Connection: close"):
        line.say(bytes([byte]))


def answers_before_reading(line: Line) -> None:
    line.say(GOOD)
    line.read_body()


COMPLETED: list[tuple[str, Script, Any]] = [
    ("100 first", says(b"HTTP/1.1 100 Continue\r\n\r\n", GOOD), "good"),
    ("102 and 103 first", says(b"HTTP/1.1 102 Processing\r\n\r\n" * 9
                              + b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", GOOD), "good"),
    ("byte by byte", drips, {"slow": True}),
    ("chunks", says(chunked(b"[1", b",", b"2]")), [1, 2]),
    ("chunk extensions and trailers", says(answer(
        b'2;x="y"\r\n[]\r\n0\r\nX-T: 1\r\n\r\n', "Transfer-Encoding: chunked")), []),
    ("until the end of the connection", says(b"HTTP/1.1 200 OK\r\n\r\n[1]"), [1]),
    ("HTTP/1.0", says(b'HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{"v": 0}'),
     {"v": 0}),
    ("no reason phrase", says(b"HTTP/1.1 200\r\nContent-Length: 1\r\n\r\n7"), 7),
    ("before the request was read", answers_before_reading, "good"),
    ("gzip", says(answer(gzip.compress(b"[1]"), "Content-Encoding: gzip")), [1]),
    ("deflate", says(answer(zlib.compress(b"[2]"), "Content-Encoding: deflate")), [2]),
    ("204 with a length", says(answer(b"", "Content-Length: 5", status="204 No Content")), None),
    ("205", says(answer(b"", status="205 Reset Content")), None),
    ("only blanks", says(answer(b" \r\n\t ")), None),
    ("no content type, no JSON", says(answer(b"hello", media=None)), "hello"),
    ("JSON that calls itself HTML", says(answer(b'{"a": 1}', media="text/html")), '{"a": 1}'),
    ("a content type that is none", says(answer(b"x", media=";;;=,")), "x"),
    ("latin-1", says(answer(b"caf\xe9", media="text/plain; charset=latin-1")), "café"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("script", "output"), [case[1:] for case in COMPLETED], ids=[case[0] for case in COMPLETED]
)
def test_odd_answers_that_are_answers(
    api: Api, raw: RawServer, script: Script, output: Any
) -> None:
    endpoint = raw.endpoint(script)
    run_id = start(api, endpoint)
    api.until(run_id, "completed")
    assert endpoint.attempts == [1]
    assert api.step(run_id, "a").get("output") == output


FINAL: list[tuple[str, Script, str]] = [
    ("JSON that breaks off", says(answer(b'{"a": 1')), "JSON"),
    ("HTML that calls itself JSON", says(answer(b"<html>")), "JSON"),
    ("NaN", says(answer(b'{"a": NaN}')), "JSON"),
    ("two documents", says(answer(b"{}{}")), "JSON"),
    ("half a surrogate", says(answer(b'"\\ud800"')), "JSON"),
    ("a number without end", says(answer(b"9" * 5000)), "JSON"),
    ("UTF-16", says(answer("[1]".encode("utf-16"), media="application/json; charset=utf-16")),
     "JSON"),
    ("bytes that are no text", says(answer(b"\xff\xfe\x00", media="text/plain")), "text"),
    ("an unknown charset", says(answer(b"x", media="text/plain; charset=klingon")), "text"),
    ("a charset that is none", says(answer(b"x", media="text/plain; charset=rot13")), "text"),
    ("a charset that never decodes", says(answer(b"x", media="text/plain; charset=undefined")),
     "text"),
    ("an idna of nonsense", says(answer(b"xn--" + b"\xff" * 99, media="text/plain; charset=idna")),
     "text"),
    ("a size announced over 1 MiB", says_and_holds(answer(b"", "Content-Length: 9999999999")),
     "1048576"),
    ("chunks without end", says_for_ever(answer(b"", "Transfer-Encoding: chunked"),
                                        chunk(b"x" * 65536)), "1048576"),
    ("a body without end", says_for_ever(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536), "1048576"),
    ("a bomb", says(answer(gzip.compress(b" " * (64 * MEBIBYTE)), "Content-Encoding: gzip")),
     "1048576"),
    ("a redirect to itself", says(answer(b"", "Location: /", status="302 Found")), "redirects"),
    ("a redirect without a place", says(answer(b"", status="301 Moved")), "redirects"),
    ("300", says(answer(b"", status="300 Multiple Choices")), "300"),
    ("an error page without end", says_for_ever(b"HTTP/1.1 404 No\r\n\r\n", b"x" * 65536), "404"),
    ("an error page in pieces", says(b"HTTP/1.1 400 No\r\nContent-Length: 9\r\n\r\nhalf"), "400"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("script", "words"), [case[1:] for case in FINAL], ids=[case[0] for case in FINAL]
)
def test_answers_that_no_other_attempt_would_mend(
    api: Api, raw: RawServer, script: Script, words: str
) -> None:
    endpoint = raw.endpoint(script)
    run_id = start(api, endpoint)
    ended = api.until(run_id, "failed")
    assert endpoint.attempts == [1]
    assert words in api.step(run_id, "a")["error"]
    assert len(ended["error"]) < 5000
    wait_until_sync(lambda: endpoint.over == 1, "the connection was closed")


RETRYABLE: list[tuple[str, Script]] = [
    ("hangs up", says()),
    ("hangs up before reading", lambda _line: None),
    ("resets", resets),
    ("hangs up in the status line", says(b"HTTP/1.1 20")),
    ("hangs up in the headers", says(b"HTTP/1.1 200 OK\r\nContent-Le")),
    ("hangs up in the body", says(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[1")),
    ("hangs up in a chunk", says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n[1")),
    ("hangs up between chunks", says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                                     b"2\r\n[]\r\n")),
    ("no HTTP", says(b"SSH-2.0-OpenSSH_9.6\r\n")),
    ("noise", says(bytes(range(256)) * 64)),
    ("HTTP/0.9", says(b"<html>hello</html>")),
    ("HTTP/2", says(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")),
    ("a status that is no number", says(b"HTTP/1.1 OK 200\r\n\r\n")),
    ("a status of two digits", says(b"HTTP/1.1 20 OK\r\n\r\n")),
    ("a length that is no number", says(answer(b"[]", "Content-Length: two"))),
    ("a negative length", says(answer(b"[]", "Content-Length: -2"))),
    ("two lengths", says(answer(b"[]", "Content-Length: 2", "Content-Length: 1"))),
    ("a chunk size that is none", says(answer(b"zz\r\n[]\r\n", "Transfer-Encoding: chunked"))),
    ("gzip that is none", says(answer(b"not gzip", "Content-Encoding: gzip"))),
    ("a header without end", says_for_ever(b"HTTP/1.1 200 OK\r\nX: ", b"y" * 65536)),
    ("headers without end", says_for_ever(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 1000)),
    ("101", says(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")),
    ("599", says(answer(b"", status="599 Odd"))),
    ("a 503 that breaks off", says(b"HTTP/1.1 503 No\r\nContent-Length: 9\r\n\r\nha")),
]  # fmt: skip


@pytest.mark.parametrize(
    "script", [case[1] for case in RETRYABLE], ids=[case[0] for case in RETRYABLE]
)
def test_answers_after_which_another_attempt_is_made(
    api: Api, raw: RawServer, script: Script
) -> None:
    endpoint = raw.endpoint(script, says(GOOD))
    run_id = start(api, endpoint)
    api.until(run_id, "completed")
    assert endpoint.attempts == [1, 2]
    assert api.step(run_id, "a")["output"] == "good"
    assert api.attempts(run_id, "a")[0]["error"]


STALLING: list[tuple[str, Script]] = [
    ("says nothing", says_and_holds()),
    ("does not even read", lambda line: line.until_hung_up()),
    ("stops in the headers", says_and_holds(b"HTTP/1.1 200 OK\r\n")),
    ("stops in the body", says_and_holds(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[1")),
    ("drips", says_for_ever(b"HTTP/1.1 200 OK\r\n\r\n", b" ", 0.02)),
    ("drips chunks", says_for_ever(answer(b"", "Transfer-Encoding: chunked"), b"1\r\n \r\n", 0.02)),
    ("drips headers", says_for_ever(b"HTTP/1.1 200 OK\r\nX: ", b"y", 0.02)),
    ("100 without end", says_for_ever(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.02)),
    ("a 202 that never ends", says_for_ever(b"HTTP/1.1 202 OK\r\n\r\n", b" ", 0.02)),
    ("an error that never ends", says_for_ever(b"HTTP/1.1 500 No\r\n\r\n", b" ", 0.02)),
]  # fmt: skip


def test_the_timeout_holds_whatever_is_said_meanwhile(api: Api, raw: RawServer) -> None:
    stalled = {name: raw.endpoint(script, says(GOOD)) for name, script in STALLING}
    runs = {name: start(api, endpoint, timeout_secs=2) for name, endpoint in stalled.items()}
    for name, run_id in runs.items():
        api.until(run_id, "completed")
        [first, second] = api.attempts(run_id, "a")
        assert (first["status"], first["error"]) == ("timed_out", "timed out after 2 s"), name
        assert second["result"] == "good", name
    for name, endpoint in stalled.items():
        wait_until_sync(lambda: endpoint.over == len(endpoint.lines), f"{name}: it was closed")  # noqa: B023


def test_100_in_a_flood_ends_too(api: Api, raw: RawServer) -> None:
    endpoint = raw.endpoint(says_for_ever(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 500), says(GOOD))
    run_id = start(api, endpoint, timeout_secs=1)
    api.until(run_id, "completed", within_secs=20)
    assert endpoint.attempts[-1] == 2


@pytest.mark.parametrize("pause_secs", [0.0, 0.1], ids=["at once", "a little later"])
def test_a_second_answer_is_not_taken_for_that_of_the_next_attempt(
    api: Api, raw: RawServer, pause_secs: float
) -> None:
    kept = answer(b'"first"', "Connection: keep-alive")
    second_said = threading.Event()

    def twice(line: Line) -> None:
        line.read_body()
        if not pause_secs:
            line.say(kept + answer(b'"smuggled"'))
        else:
            line.say(kept)
            line.waits(pause_secs)
            line.say(answer(b'"smuggled"'))
        second_said.set()
        line.until_hung_up()

    endpoint = raw.endpoint(twice, says(answer(b'"second"', "Connection: close")))
    run_id = start(api, endpoint)
    first = api.until(run_id, "completed")
    assert second_said.wait(10)
    api.on(run_id, "a", "retry", expect=200)
    api.until_step(run_id, "a", lambda step: step["attempt"] == 2)
    api.until(run_id, "completed")
    assert first["status"] == "completed"
    assert [record["result"] for record in api.attempts(run_id, "a")] == ["first", "second"]


def test_an_answer_after_the_timeout_is_ignored(api: Api, raw: RawServer) -> None:
    let = threading.Event()

    def late(line: Line) -> None:
        line.read_body()
        let.wait(10)
        line.say(answer(b'"late"'))

    endpoint = raw.endpoint(late)
    run_id = start(api, endpoint, timeout_secs=1, retry_initial_delay_secs=600)
    api.until_step(run_id, "a", "waiting/retry")
    let.set()
    wait_until_sync(lambda: endpoint.over == len(endpoint.lines), "the late answer was given")
    step = api.step(run_id, "a")
    assert (step["status"], step["waiting_for"]) == ("waiting", "retry")
    assert "output" not in api.step(run_id, "a")


def test_a_large_request_that_nobody_reads_ends_at_the_timeout(api: Api, raw: RawServer) -> None:
    endpoint = raw.endpoint(lambda line: line.until_hung_up(), says(GOOD))
    run_id = start(api, endpoint, {"large": "x" * (MEBIBYTE - 100)}, timeout_secs=1)
    api.until(run_id, "completed")
    assert endpoint.attempts[-1] == 2


def test_a_refusal_that_comes_before_the_request_was_read(api: Api, raw: RawServer) -> None:
    def refuses(line: Line) -> None:
        line.say(answer(b"too large", "Connection: close", status="413 Too Large"))
        line.until_hung_up()

    endpoint = raw.endpoint(refuses)
    run_id = start(api, endpoint, {"large": "x" * (MEBIBYTE - 100)})
    api.until(run_id, "failed")
    assert "413" in api.step(run_id, "a")["error"]
    assert endpoint.attempts == [1]


def test_a_host_that_hangs_up_has_been_reached(api: Api, raw: RawServer) -> None:
    """One job that crashes its server holds back no other job of the same host."""
    endpoint = raw.endpoint(says())
    run_id = start(api, endpoint, max_attempts=12)
    api.until(run_id, "failed")
    assert endpoint.attempts == list(range(1, 13))
    fine = raw.endpoint(says(GOOD))
    api.until(start(api, fine), "completed")


def test_a_hostile_server_delays_nobody_else(api: Api, raw: RawServer) -> None:
    floods = [
        start(api, raw.endpoint(script), timeout_secs=5, max_attempts=1)
        for script in (
            says_for_ever(answer(b"", "Transfer-Encoding: chunked"), b"1\r\n \r\n", 0.001),
            says_for_ever(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.001),
            says_and_holds(),
        )
    ]
    for _ in range(5):
        api.until(api.start(approval("x", approval_timeout_secs=0.01)), "failed", within_secs=3)
    for run_id in floods:
        api.cancel(run_id)
        assert api.run(run_id)["status"] == "canceled"
