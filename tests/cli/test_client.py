"""The client of the operator's commands, against a real HTTP peer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing
from http.client import HTTPConnection
from typing import Any

import pytest

from pilotage.cli import client as client_module, exchange
from pilotage.cli.client import Client, ClientSettings, segment
from pilotage.cli.connect import client_settings
from pilotage.cli.errors import (
    AWAY,
    FAILED,
    NOT_AUTHORIZED,
    NOT_FOUND,
    USAGE,
    CommandError,
    ForeignAnswerError,
    RefusedError,
    ServerAwayError,
)
from tests.cli.peer import Peer, Reply
from tests.cli.stranger import SCRIPTS, Caller, Stranger, says_for_ever, says_nothing

AnObject = dict[str, Any]
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer() as peer:
        yield peer


def refusal(message: str) -> dict[str, Any]:
    return {"error": {"code": "c", "message": message}, "message": message}


class Pauses:
    """Takes the place of `time.sleep`."""

    def __init__(self) -> None:
        self.secs: list[float] = []

    def __call__(self, secs: float) -> None:
        self.secs.append(secs)


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


@pytest.fixture
def client(peer: Peer, pauses: Pauses) -> Iterator[Client]:
    settings = ClientSettings(url=peer.url, api_key="plt_secret", project="shop")
    client = Client(settings, sleep=pauses)
    yield client
    client.close()


def test_key_and_project_go_with_every_request(client: Client, peer: Peer) -> None:
    peer.replies = [Reply(200, {"id": "x"})]
    assert client.get("/v1/x", AnObject).data == {"id": "x"}
    assert peer.asked[0].headers["authorization"] == "Bearer plt_secret"
    assert peer.asked[0].headers["x-project-id"] == "shop"


def test_a_busy_server_is_asked_again_at_the_pace_it_wants(
    client: Client, peer: Peer, pauses: Pauses
) -> None:
    busy = Reply(503, refusal("starting"), {"Retry-After": "2"})
    peer.replies = [busy, busy, Reply(200, {"ok": True})]
    assert client.post("/v1/x", AnObject, {"a": 1}).data == {"ok": True}
    assert pauses.secs == [2.0, 2.0]
    keys = {asked.headers["idempotency-key"] for asked in peer.asked}
    assert len(peer.asked) == 3
    assert len(keys) == 1, "a repeat must carry the key of the first try"


def test_patience_with_a_busy_server_ends(client: Client, peer: Peer, pauses: Pauses) -> None:
    peer.replies = [Reply(503, refusal("away"), {"Retry-After": "1"})] * 20
    with pytest.raises(RefusedError, match="away") as refused:
        client.get("/v1/x", AnObject)
    assert refused.value.exit_status == AWAY
    assert len(peer.asked) == 5


def test_a_long_retry_after_is_not_waited_for(client: Client, peer: Peer, pauses: Pauses) -> None:
    peer.replies = [Reply(429, refusal("slow down"), {"Retry-After": "3600"})]
    with pytest.raises(RefusedError, match="slow down"):
        client.get("/v1/x", AnObject)
    assert pauses.secs == []


def test_what_must_not_be_repeated_is_tried_once(client: Client, peer: Peer) -> None:
    peer.replies = [Reply(503, refusal("busy"), {"Retry-After": "0"}), Reply(201, {"key": "plt_x"})]
    with pytest.raises(RefusedError):
        client.request("POST", "/v1/api-keys", AnObject, body={}, repeatable=False)
    assert len(peer.asked) == 1


def test_a_kept_connection_that_was_closed_is_made_anew(client: Client, peer: Peer) -> None:
    peer.replies = [Reply(200, 1), Reply(hang_up=True), Reply(200, 2)]
    assert client.get("/v1/x", int).data == 1
    assert client.get("/v1/x", int).data == 2


def test_a_kept_connection_is_made_anew_only_once(client: Client, peer: Peer) -> None:
    peer.replies = [Reply(200, 1), Reply(hang_up=True), Reply(hang_up=True), Reply(200, 2)]
    assert client.get("/v1/x", int).data == 1
    with pytest.raises(ServerAwayError):
        client.get("/v1/x", int)
    assert len(peer.asked) == 3


def test_a_fresh_connection_that_breaks_is_a_server_that_is_away(
    client: Client, peer: Peer
) -> None:
    peer.replies = [Reply(hang_up=True)]
    with pytest.raises(ServerAwayError):
        client.get("/v1/x", AnObject)


def test_no_server_at_all_says_what_to_do() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with pytest.raises(ServerAwayError, match="pilotage serve") as away:
        Client(ClientSettings(url=f"http://127.0.0.1:{port}")).get("/v1/x", AnObject)
    assert away.value.exit_status == AWAY


@pytest.mark.parametrize(
    ("status", "exit_status"),
    [(400, USAGE), (401, NOT_AUTHORIZED), (403, NOT_AUTHORIZED), (404, NOT_FOUND),
     (409, FAILED), (422, USAGE), (500, FAILED)],
)  # fmt: skip
def test_refusals_have_an_exit_status(
    client: Client, peer: Peer, status: int, exit_status: int
) -> None:
    document = {"error": {"code": "c", "message": "so it is", "details": ["a: x", "b: y"]}}
    peer.replies = [Reply(status, document)]
    with pytest.raises(RefusedError, match="so it is") as refused:
        client.get("/v1/x", AnObject)
    assert refused.value.exit_status == exit_status
    assert refused.value.details == ("a: x", "b: y")
    assert refused.value.status == status


@pytest.mark.parametrize("body", [None, "text", ["list"], {"error": "text"}, {"error": {}}])
@pytest.mark.parametrize("status", [404, 500])
def test_an_error_that_is_not_ours_is_the_word_of_somebody_else(
    client: Client, peer: Peer, status: int, body: object
) -> None:
    peer.replies = [Reply(status, body)]
    with pytest.raises(ForeignAnswerError, match=str(status)) as foreign:
        client.get("/v1/x", AnObject)
    assert foreign.value.exit_status == AWAY


def test_pages_are_followed_up_to_the_limit(client: Client, peer: Peer) -> None:
    peer.replies = [
        Reply(200, {"data": [{"n": 1}, {"n": 2}], "has_more": True, "next_cursor": "c2"}),
        Reply(200, {"data": [{"n": 3}, {"n": 4}], "has_more": True, "next_cursor": "c3"}),
    ]
    found = list(client.pages("/v1/x", AnObject, {"status": "failed", "workflow_id": None}, 3))
    assert [item["n"] for item in found] == [1, 2, 3]
    assert peer.asked[0].path == "/v1/x?status=failed&limit=3&cursor="
    assert peer.asked[1].path == "/v1/x?status=failed&limit=1&cursor=c2"


def test_what_is_no_page_is_no_list(client: Client, peer: Peer) -> None:
    peer.replies = [Reply(200, [{"n": 1}])]
    with pytest.raises(ForeignAnswerError, match="Expected `object`, got `array`"):
        list(client.pages("/v1/x", AnObject, {}, 50))


def test_a_list_of_empty_pages_ends(
    client: Client, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "MAX_EMPTY_PAGES", 3)
    peer.replies = [Reply(200, {"data": [], "has_more": True, "next_cursor": "c"})] * 20
    with pytest.raises(ForeignAnswerError, match="without end"):
        list(client.pages("/v1/x", AnObject, {}, 50))


def test_a_repeatable_parameter_is_repeated(client: Client, peer: Peer) -> None:
    peer.replies = [Reply(200, {"data": [], "has_more": False})]
    list(client.pages("/v1/x", AnObject, {"tag": ["a:b", "c:d&e"]}, 50))
    assert peer.asked[0].path == "/v1/x?tag=a%3Ab&tag=c%3Ad%26e&limit=50&cursor="


@pytest.mark.parametrize("url", ["", "localhost:8080", "ftp://x", "http://"])
def test_a_url_that_is_none_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(CommandError, match=r"http://127\.0\.0\.1:8080") as refused:
        Client(ClientSettings(url=url))
    assert refused.value.exit_status == USAGE


def test_an_id_cannot_reach_another_path() -> None:
    assert segment("../keys?x=1") == "..%2Fkeys%3Fx%3D1"
    for nothing in ("", ".", ".."):
        with pytest.raises(CommandError):
            segment(nothing)


@pytest.mark.parametrize("asked", ["nan", "inf", "soon", "-5"])
def test_a_pause_that_is_none_is_replaced(
    client: Client, peer: Peer, pauses: Pauses, asked: str
) -> None:
    peer.replies = [Reply(503, refusal("busy"), {"Retry-After": asked}), Reply(200, {})]
    assert client.get("/v1/x", AnObject).data == {}
    assert 0 < pauses.secs[0] < 5


def test_no_repeat_is_begun_that_could_not_end_in_time(
    client: Client, peer: Peer, pauses: Pauses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "REQUEST_SECS", 20.0)
    peer.replies = [Reply(503, refusal("busy"), {"Retry-After": "25"})]
    with pytest.raises(RefusedError, match="busy"):
        client.get("/v1/x", AnObject)
    assert pauses.secs == []


@pytest.mark.parametrize(
    "url", ["ftp://x", "http://", "127.0.0.1:8080", "http://h:99999", "http://h:x", "http://["]
)
def test_an_address_that_is_none_is_a_mistake_of_the_user(url: str) -> None:
    settings = client_settings(url, None)
    with pytest.raises(CommandError, match="must look like") as wrong:
        Client(settings)
    assert wrong.value.exit_status == USAGE


def test_a_name_that_no_host_can_have_is_a_server_that_is_away() -> None:
    for url in (f"http://{'a' * 70}.test", "http://a..b"):
        with pytest.raises(ServerAwayError, match="this is no name of a host"):
            Client(ClientSettings(url=url)).get("/v1/x", AnObject)


@pytest.mark.parametrize("key", ["two\nlines", "€uro", "tab\t"])
def test_what_no_header_can_carry_is_not_sent(peer: Peer, key: str) -> None:
    client = Client(ClientSettings(url=peer.url, api_key=key))
    with pytest.raises(CommandError, match="Authorization") as wrong:
        client.get("/v1/x", AnObject)
    assert wrong.value.exit_status == USAGE
    assert key not in str(wrong.value)
    assert peer.asked == []


def test_a_body_without_end_is_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exchange, "MAX_BODY_BYTES", 100_000)
    chunks = says_for_ever(CHUNKED, b"1000\r\n" + b"[" * 4096 + b"\r\n", 0.0001)
    with Stranger(chunks) as stranger:
        client = Client(ClientSettings(url=stranger.url))
        with pytest.raises(ForeignAnswerError, match="a body of more than 100000 bytes"):
            client.get("/v1/x", AnObject)


def test_a_line_of_a_stream_without_end_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "MAX_LINE_BYTES", 10_000)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n: hello\n"
    with Stranger(says_for_ever(head, b"x" * 1_000, 0.0001)) as stranger:
        client = Client(ClientSettings(url=stranger.url))
        with closing(client.open_stream("/v1/x")) as stream:
            lines = iter(stream)
            assert next(lines) == b": hello\n"
            with pytest.raises(exchange.TooLongError):
                next(lines)


@pytest.mark.parametrize("name", ["200 HTML", "200 {}", "404 HTML", "redirect", "garbage"])
def test_a_stream_of_somebody_else_is_none(name: str) -> None:
    with Stranger(SCRIPTS[name]) as stranger:
        client = Client(ClientSettings(url=stranger.url))
        with pytest.raises(ForeignAnswerError):
            client.open_stream("/v1/x")


def test_a_stream_that_does_not_begin_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "REQUEST_SECS", 0.05)
    with Stranger(SCRIPTS["dribbles its head"]) as stranger:
        client = Client(ClientSettings(url=stranger.url))
        with pytest.raises(ServerAwayError, match="no whole answer"):
            client.open_stream("/v1/x")


def test_nothing_is_sent_for_somebody_who_has_given_up() -> None:
    """Connecting may end after its time; the request must not go out then."""
    with Stranger(SCRIPTS["200 {}"]) as stranger:
        host, _, port = stranger.url.removeprefix("http://").partition(":")
        line = exchange.Line(HTTPConnection(host, int(port), timeout=30))
        line.cut()
        with pytest.raises(exchange.TooSlowError), closing(line):
            exchange.exchange(line, exchange.Ask("POST", "/v1/x", {}), 30)


def test_ctrl_c_cuts_the_connection_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, cut = threading.Event(), threading.Event()

    def interrupted(*_: object) -> None:
        assert asked.wait(30)
        raise KeyboardInterrupt

    def told(caller: Caller) -> None:
        asked.set()
        says_nothing(caller)
        cut.set()

    with Stranger(told) as stranger:
        client = Client(ClientSettings(url=stranger.url))
        with monkeypatch.context() as patched:
            patched.setattr(Future, "result", interrupted)
            with pytest.raises(KeyboardInterrupt):
                client.get("/v1/x", AnObject)
        assert cut.wait(30)
