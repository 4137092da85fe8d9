"""HTTP attempts against real endpoints, well-behaved and otherwise."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import hmac
import socket
import threading
from typing import Any

import pytest
from aiohttp import web

from pilotage import __version__
from pilotage.actors.executors.http_executor import signature
from pilotage.actors.executors.port import Accepted, Completed
from pilotage.runtime.definition import JobSpec
from tests.integration.executors.http_client import TOKENS, Client, answering
from tests.integration.executors.peers import Handler, Peer, RawPeer
from tests.integration.executors.recorder import Recorder, attempt
from tests.support.clock import START_MS
from tests.unit.executors.test_addresses import Names

# --- the request ----------------------------------------------------------------------------------


async def test_the_input_is_posted_with_all_that_identifies_the_attempt(
    client: Client, peer: Peer
) -> None:
    recorder = client.post(
        peer.url,
        job="job-id",
        data=b'{"order_id":42}',
        run_id="the-run",
        attempt=2,
        job_run_id="the-job-run",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )
    assert await recorder.output() == b'{"ok":true}'
    (request,) = peer.requests
    assert (request.method, request.path_qs) == ("POST", "/jobs/charge?x=1")
    assert peer.bodies == [b'{"order_id":42}']
    expected = {
        "Content-Type": "application/json",
        "User-Agent": f"pilotage/{__version__}",
        "X-Run-ID": "the-job-run",
        "X-Workflow-Run-ID": "the-run",
        "X-Step-Ref": "charge",
        "X-Job-ID": "job-id",
        "X-Attempt": "2",
        "Idempotency-Key": "the-run/charge/2",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    assert {name: request.headers.get(name) for name in expected} == expected
    assert TOKENS.verify(request.headers["X-Run-Token"], "the-job-run", START_MS)
    assert "X-Signature" not in request.headers


async def test_without_a_trace_there_is_no_traceparent(client: Client, peer: Peer) -> None:
    await client.post(peer.url).over()
    assert "traceparent" not in peer.requests[0].headers


async def test_with_a_secret_the_request_is_signed(client: Client, peer: Peer) -> None:
    order, recorder = attempt(data=b'{"a":1}'), Recorder()
    spec = JobSpec(endpoint_url=peer.url, signing_secret="s3cret")
    client.executor.start(order, spec, recorder)
    await recorder.over()
    headers = peer.requests[0].headers
    timestamp = headers["X-Signature-Timestamp"]
    assert timestamp == str(START_MS // 1000)
    digest = hmac.new(b"s3cret", timestamp.encode() + b'.{"a":1}', hashlib.sha256).hexdigest()
    assert headers["X-Signature"] == f"v1={digest}" == signature("s3cret", timestamp, b'{"a":1}')


async def test_connections_are_pooled_and_no_cookie_is_kept(client: Client, peer: Peer) -> None:
    async def handler(_request: web.Request) -> web.StreamResponse:
        response = web.json_response({})
        response.set_cookie("session", "of somebody else")
        return response

    peer.handler = handler
    for _ in range(5):
        await client.post(peer.url).over()
    assert len(peer.connections) == 1
    assert all("Cookie" not in request.headers for request in peer.requests)


async def test_many_attempts_at_once_need_no_thread_each(client: Client, peer: Peer) -> None:
    together = asyncio.Event()

    async def handler(_request: web.Request) -> web.StreamResponse:
        if len(peer.requests) == 100:
            together.set()
        await together.wait()
        return web.json_response(1)

    peer.handler = handler
    before = threading.active_count()
    recorders = [client.post(peer.url) for _ in range(100)]
    assert {await recorder.output() for recorder in recorders} == {b"1"}
    assert threading.active_count() - before < 10


# --- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handler", "report"),
    [
        (answering(status=200), Completed(None)),
        (answering(status=204), Completed(None)),
        (answering(status=202, text="later"), Accepted()),
        (answering(text="plain words"), Completed(b'"plain words"')),
        (answering(body=b'{"a": 1}', content_type="application/json"), Completed(b'{"a":1}')),
    ],
)
async def test_good_answers_end_the_attempt(
    client: Client, peer: Peer, handler: Handler, report: Any
) -> None:
    peer.handler = handler
    assert await client.post(peer.url).over() == report


@pytest.mark.parametrize(
    ("status", "final"), [(400, True), (404, True), (408, False), (500, False), (503, False)]
)
async def test_bad_answers_are_final_or_not(
    client: Client, peer: Peer, status: int, final: bool
) -> None:
    peer.handler = answering(status=status, text="sorry")
    failed = await client.post(peer.url).failed()
    assert failed.final is final
    assert failed.error == f"the endpoint answered {status}: sorry"


async def test_429_says_when_to_come_back(client: Client, peer: Peer) -> None:
    peer.handler = answering(status=429, headers={"Retry-After": "17"})
    failed = await client.post(peer.url).failed()
    assert (failed.final, failed.retry_after_secs) == (False, 17)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_never_followed(client: Client, peer: Peer, status: int) -> None:
    async with Peer() as other:
        peer.handler = answering(status=status, headers={"Location": other.url})
        failed = await client.post(peer.url).failed()
        assert failed.final
        assert "redirects are not followed" in failed.error
        assert not other.requests


async def test_json_that_is_broken_is_final(client: Client, peer: Peer) -> None:
    peer.handler = answering(body=b'{"a": ', content_type="application/json")
    failed = await client.post(peer.url).failed()
    assert (failed.final, failed.error_class) == (True, "bad_answer")


async def test_an_answer_that_announces_its_size_is_refused_unread(
    client: Client, peer: Peer
) -> None:
    peer.handler = answering(body=b"x" * 2_000_000)
    failed = await client.post(peer.url).failed()
    assert failed.final
    assert failed.error == "output is 2000000 bytes; at most 1048576 are kept"


async def test_an_answer_without_end_is_read_with_a_bound(client: Client, peer: Peer) -> None:
    hung_up = asyncio.Event()
    sent = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 65_536)
                sent += 65_536
        finally:
            hung_up.set()

    peer.handler = handler
    failed = await client.post(peer.url).failed()
    assert failed.final
    assert failed.error == "output is over 1048576 bytes; at most 1048576 are kept"
    await asyncio.wait_for(hung_up.wait(), 10)
    assert sent < 64 << 20


async def test_a_small_answer_that_unpacks_to_a_large_one_is_read_with_a_bound(
    client: Client, peer: Peer
) -> None:
    packed = gzip.compress(b"x" * 50_000_000)
    peer.handler = answering(body=packed, headers={"Content-Encoding": "gzip"})
    failed = await client.post(peer.url).failed()
    assert (failed.final, failed.error_class) == (True, "output_too_large")


async def test_an_error_page_without_end_is_read_with_a_bound(client: Client, peer: Peer) -> None:
    peer.handler = answering(status=500, body=b"x" * 10_000_000)
    failed = await client.post(peer.url).failed()
    assert not failed.final
    assert len(failed.error) < 1_000


async def test_a_large_answer_within_the_bound_is_kept(client: Client, peer: Peer) -> None:
    peer.handler = answering(text="x" * 1_000_000)
    assert await client.post(peer.url).output() == b'"' + b"x" * 1_000_000 + b'"'


async def test_the_transform_is_applied(client: Client, peer: Peer) -> None:
    assert await client.post(peer.url, output_transform="ok").output() == b"true"
    failed = await client.post(peer.url, output_transform="nope(@)").failed()
    assert (failed.final, failed.error_class) == (True, "output_transform")


# --- failures of the network ----------------------------------------------------------------------


async def test_a_refused_connection_is_retryable(client: Client, peer: Peer) -> None:
    await peer.close()
    failed = await client.post(peer.url).failed()
    assert not failed.final
    assert failed.error.startswith("the endpoint could not be reached: ")
    assert "Connect call failed" in failed.error or "refused" in failed.error


async def test_a_name_that_does_not_exist_is_retryable() -> None:
    client = Client(names=Names(nowhere=[]), allow_private_endpoints=False)
    failed = await client.post("http://nowhere/").failed()
    assert not failed.final
    assert "no address" in failed.error
    await client.executor.aclose()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"\x00\x01\x02\x03\r\n\r\n",
        b"HTTP/1.1 999999 Odd\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: minus one\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_what_is_no_http_is_retryable(client: Client, answer: bytes) -> None:
    async with RawPeer(answer) as peer:
        failed = await client.post(peer.url).failed()
    assert not failed.final
    assert failed.error


async def test_a_request_that_went_out_is_never_sent_again(client: Client) -> None:
    """The endpoint may have charged the card before it died: repeating is the policy's to say."""
    good = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    async with RawPeer(good, b"") as peer:
        assert await client.post(peer.url).output() == b'"ok"'
        failed = await client.post(peer.url).failed()
        assert not failed.final
        assert "Server disconnected" in failed.error
        assert peer.connections == 1


async def test_an_endpoint_that_stalls_is_given_up_on_in_the_end(
    client: Client, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilotage.actors.executors.http_executor.SAFETY_SECS", 0.05)
    stall = asyncio.Event()

    async def handler(_request: web.Request) -> web.StreamResponse:
        await stall.wait()
        return web.Response()

    peer.handler = handler
    failed = await client.post(peer.url, timeout_secs=0.05).failed()
    assert (failed.final, failed.error) == (False, "timed out after 0.05 s")
    stall.set()


async def test_an_endpoint_that_takes_no_connection_counts_as_unreachable() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        callers = [socket.socket() for _ in range(4)]  # more than the backlog takes
        for caller in callers:
            caller.setblocking(False)
            caller.connect_ex(deaf.getsockname())
        client = Client(connect_timeout_secs=0.05)
        failed = await client.post(f"http://127.0.0.1:{deaf.getsockname()[1]}/").failed()
        assert (failed.final, failed.error_class) == (False, "connect_timeout")
        await client.executor.aclose()
        for caller in callers:
            caller.close()


async def test_stopping_closes_the_connection_and_reports_nothing(
    client: Client, peer: Peer
) -> None:
    arrived, disconnected = asyncio.Event(), asyncio.Event()

    async def handler(_request: web.Request) -> web.StreamResponse:
        arrived.set()
        try:
            await asyncio.Event().wait()
        finally:
            disconnected.set()
        raise AssertionError

    peer.handler = handler
    order, recorder = client.begin(peer.url)
    await asyncio.wait_for(arrived.wait(), 10)
    client.executor.stop(order.key, timed_out=True)
    await asyncio.wait_for(disconnected.wait(), 10)
    assert recorder.reports == []
    assert client.executor.active == 0


async def test_stopping_before_the_request_went_out_sends_nothing(
    client: Client, peer: Peer
) -> None:
    order, recorder = client.begin(peer.url)
    client.executor.stop(order.key, timed_out=False)
    await client.post(peer.url).over()
    assert len(peer.requests) == 1
    assert recorder.reports == []


async def test_closing_ends_requests_without_a_report(peer: Peer) -> None:
    arrived = asyncio.Event()

    async def handler(_request: web.Request) -> web.StreamResponse:
        arrived.set()
        await asyncio.Event().wait()
        raise AssertionError

    peer.handler = handler
    client = Client()
    recorder = client.post(peer.url)
    await asyncio.wait_for(arrived.wait(), 10)
    await client.executor.aclose()
    assert recorder.reports == []


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/relative",
        "ftp://example.org/",
        "file:///etc/passwd",
        "http://",
        "http://[::1/",
        "http://host:99999999/",
        "javascript:alert(1)",
    ],
)
async def test_an_endpoint_that_is_no_url_is_final(client: Client, url: str) -> None:
    failed = await client.post(url).failed()
    assert (failed.final, failed.error_class) == (True, "bad_endpoint")


async def test_a_value_that_cannot_be_a_header_does_not_hang_the_attempt(
    client: Client, peer: Peer
) -> None:
    failed = await client.post(peer.url, job="a\r\nX-Evil: 1").failed()
    assert "header" in failed.error.lower()
    assert not peer.requests
