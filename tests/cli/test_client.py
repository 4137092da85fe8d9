"""The client of the operator's commands, against a real HTTP peer."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from pilotage.cli.client import Client, ClientSettings, segment
from pilotage.cli.errors import (
    AWAY,
    FAILED,
    NOT_AUTHORIZED,
    NOT_FOUND,
    USAGE,
    CommandError,
    RefusedError,
    ServerAwayError,
)
from tests.cli.peer import Peer, Reply


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer() as peer:
        yield peer


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
    assert client.get("/v1/x").data == {"id": "x"}
    assert peer.asked[0].headers["authorization"] == "Bearer plt_secret"
    assert peer.asked[0].headers["x-project-id"] == "shop"


def test_a_busy_server_is_asked_again_at_the_pace_it_wants(
    client: Client, peer: Peer, pauses: Pauses
) -> None:
    busy = Reply(503, {"error": {"message": "starting"}}, {"Retry-After": "2"})
    peer.replies = [busy, busy, Reply(200, {"ok": True})]
    assert client.post("/v1/x", {"a": 1}).data == {"ok": True}
    assert pauses.secs == [2.0, 2.0]
    keys = {asked.headers["idempotency-key"] for asked in peer.asked}
    assert len(peer.asked) == 3
    assert len(keys) == 1, "a repeat must carry the key of the first try"


def test_patience_with_a_busy_server_ends(client: Client, peer: Peer, pauses: Pauses) -> None:
    peer.replies = [Reply(503, {"error": {"message": "away"}}, {"Retry-After": "1"})] * 20
    with pytest.raises(RefusedError, match="away") as refused:
        client.get("/v1/x")
    assert refused.value.exit_status == AWAY
    assert len(peer.asked) == 5


def test_a_long_retry_after_is_not_waited_for(client: Client, peer: Peer, pauses: Pauses) -> None:
    peer.replies = [Reply(429, {"error": {"message": "slow down"}}, {"Retry-After": "3600"})]
    with pytest.raises(RefusedError, match="slow down"):
        client.get("/v1/x")
    assert pauses.secs == []


def test_what_must_not_be_repeated_is_tried_once(client: Client, peer: Peer) -> None:
    peer.replies = [Reply(503, None, {"Retry-After": "0"}), Reply(201, {"key": "plt_x"})]
    with pytest.raises(RefusedError):
        client.request("POST", "/v1/api-keys", body={}, repeatable=False)
    assert len(peer.asked) == 1


def test_a_kept_connection_that_was_closed_is_made_anew(client: Client, peer: Peer) -> None:
    peer.replies = [Reply(200, 1), Reply(hang_up=True), Reply(200, 2)]
    assert client.get("/v1/x").data == 1
    assert client.get("/v1/x").data == 2


def test_a_fresh_connection_that_breaks_is_a_server_that_is_away(
    client: Client, peer: Peer
) -> None:
    peer.replies = [Reply(hang_up=True)]
    with pytest.raises(ServerAwayError):
        client.get("/v1/x")


def test_no_server_at_all_says_what_to_do() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with pytest.raises(ServerAwayError, match="pilotage serve") as away:
        Client(ClientSettings(url=f"http://127.0.0.1:{port}")).get("/v1/x")
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
        client.get("/v1/x")
    assert refused.value.exit_status == exit_status
    assert refused.value.details == ("a: x", "b: y")
    assert refused.value.status == status


@pytest.mark.parametrize("body", [None, "text", ["list"], {"error": "text"}, {"error": {}}])
def test_an_error_that_is_not_ours_is_still_an_error(
    client: Client, peer: Peer, body: object
) -> None:
    peer.replies = [Reply(500, body)]
    with pytest.raises(RefusedError, match="500"):
        client.get("/v1/x")


def test_pages_are_followed_up_to_the_limit(client: Client, peer: Peer) -> None:
    peer.replies = [
        Reply(200, {"data": [{"n": 1}, {"n": 2}], "has_more": True, "next_cursor": "c2"}),
        Reply(200, {"data": [{"n": 3}, {"n": 4}], "has_more": True, "next_cursor": "c3"}),
    ]
    found = list(client.pages("/v1/x", {"status": "failed", "workflow_id": None}, 3))
    assert [item["n"] for item in found] == [1, 2, 3]
    assert peer.asked[0].path == "/v1/x?status=failed&limit=3&cursor="
    assert peer.asked[1].path == "/v1/x?status=failed&limit=1&cursor=c2"


def test_a_bare_array_is_a_page_too(client: Client, peer: Peer) -> None:
    peer.replies = [Reply(200, [{"n": 1}])]
    assert list(client.pages("/v1/x", {}, 50)) == [{"n": 1}]


def test_a_repeatable_parameter_is_repeated(client: Client, peer: Peer) -> None:
    peer.replies = [Reply(200, [])]
    list(client.pages("/v1/x", {"tag": ["a:b", "c:d&e"]}, 50))
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
