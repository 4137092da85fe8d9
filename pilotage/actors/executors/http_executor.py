"""Attempts of HTTP jobs: one POST each, on the actors' loop, over pooled connections.

Guarantees: redirects are never followed; an answer is read with a bound; no address is reached
that the rules of `addresses` refuse; a host that cannot be reached is left alone for a while and
its attempts are held back, not failed; stopping an attempt closes its connection.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver
from yarl import URL

from pilotage import __version__
from pilotage.actors.executors.addresses import (
    AddressRefusedError,
    GuardedConnector,
    GuardedResolver,
    guarded_socket,
)
from pilotage.actors.executors.connections import Connections, room_for
from pilotage.actors.executors.connector import CleanConnector
from pilotage.actors.executors.host_gate import CallLater, HostGate, Visit
from pilotage.actors.executors.http_answer import Answer, HttpOutcome, outcome_of_answer
from pilotage.actors.executors.invoke import bounded_error
from pilotage.actors.executors.port import (
    MAX_OUTPUT_BYTES,
    Attempt,
    AttemptKey,
    Begun,
    Failed,
    ModeReporter,
)
from pilotage.actors.executors.tokens import RunTokens
from pilotage.actors.kernel.clock import Clock
from pilotage.runtime.definition import JobSpec

SAFETY_SECS = 5.0
"""The run stops an attempt at its timeout; should that stop not come, this ends the request."""
OFF_LOOP_BYTES = 64 << 10
"""A body larger than that is parsed in a thread."""
_CHUNK_BYTES = 64 << 10


class HttpSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`keepalive_secs` is below the five seconds after which common servers hang up."""

    allow_private_endpoints: bool = False
    max_connections: int = 4_096
    max_connections_per_host: int = 2_048
    keepalive_secs: float = 4.0
    connect_timeout_secs: float = 10.0


class HttpExecutor:
    """Made and used on the actors' loop; a `ModeExecutor` for `JobSpec`s with an endpoint.

    `resolver` and `call_later` are the system's unless given.
    """

    def __init__(
        self,
        tokens: RunTokens,
        clock: Clock,
        settings: HttpSettings | None = None,
        *,
        resolver: AbstractResolver | None = None,
        call_later: CallLater | None = None,
    ) -> None:
        self._tokens = tokens
        self._clock = clock
        self._settings = settings or HttpSettings()
        self._loop = asyncio.get_running_loop()
        self._resolver = resolver
        self._gate = HostGate(clock, call_later or self._loop.call_later)
        self._connections = Connections(
            room_for(self._settings.max_connections), self._settings.max_connections_per_host
        )
        self._queued: dict[AttemptKey, str] = {}
        self._tasks: dict[AttemptKey, asyncio.Task[None]] = {}
        self._stopping: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None
        self._threads: ThreadPoolExecutor | None = None

    @property
    def active(self) -> int:
        return len(self._tasks)

    def start(self, attempt: Attempt, job: JobSpec, report: ModeReporter) -> None:
        task = self._loop.create_task(self._do(attempt, job, report), name="http attempt")
        self._tasks[attempt.key] = task

    def stop(self, key: AttemptKey, *, timed_out: bool) -> None:  # noqa: ARG002
        """Close the connection, whatever the reason."""
        task = self._tasks.pop(key, None)
        if task is not None:
            self._stopping.add(task)
            task.add_done_callback(self._stopping.discard)
            task.cancel()

    def why_held(self, key: AttemptKey) -> str | None:
        host = self._queued.get(key)
        return self._gate.why_held(key) if host is None else self._connections.why(host)

    def held_until_ms(self, key: AttemptKey) -> int | None:
        """When its host is tried again."""
        return self._gate.held_until_ms(key)

    async def aclose(self) -> None:
        for key in tuple(self._tasks):
            self.stop(key, timed_out=False)
        if self._stopping:
            await asyncio.wait(tuple(self._stopping))
        if self._session is not None:
            await self._session.close()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    # --- one attempt ------------------------------------------------------------------------------

    async def _do(self, attempt: Attempt, job: JobSpec, report: ModeReporter) -> None:
        try:
            outcome = await self._outcome(attempt, job, report)
        except Exception as error:  # noqa: BLE001 - the attempt must come to an end in any case
            outcome = Failed(
                bounded_error(f"the request failed: {type(error).__name__}: {error}"),
                type(error).__name__,
            )
        if self._tasks.get(attempt.key) is asyncio.current_task():  # else it was stopped
            del self._tasks[attempt.key]
            report(outcome)

    async def _outcome(self, attempt: Attempt, job: JobSpec, report: ModeReporter) -> HttpOutcome:
        try:
            url = URL(job.endpoint_url or "")
            host = f"{url.host}:{url.port}"
        except ValueError as error:
            return _bad_endpoint(str(error))
        if url.scheme not in {"http", "https"} or not url.host:
            return _bad_endpoint("it must be an absolute http or https URL")
        visit = await self._gate.enter(host, attempt.key)
        try:
            waited = await self._take_connection(host, attempt.key)
            try:
                if waited or visit.waited:
                    report(Begun())
                answer = await self._answer(attempt, job, url, visit)
            finally:
                self._connections.give(host)
        finally:
            visit.close()
        if not isinstance(answer, Answer):
            return answer
        return await self._judged(answer, attempt.output_transform)

    async def _take_connection(self, host: str, key: AttemptKey) -> bool:
        """Take one of the connections that may be used at once; whether it had to wait for it."""
        if self._connections.try_take(host):
            return False
        self._queued[key] = host
        try:
            await self._connections.take(host)
        finally:
            del self._queued[key]
        return True

    async def _answer(
        self, attempt: Attempt, job: JobSpec, url: URL, visit: Visit
    ) -> Answer | Failed:
        """What came back, or why nothing did; what that says about the host is told the `visit`."""
        try:
            answer = await self._exchange(attempt, job, url)
        except aiohttp.InvalidURL as error:
            return _bad_endpoint(str(error))
        except TimeoutError as error:
            if isinstance(error, aiohttp.ConnectionTimeoutError):
                visit.unreachable()
                return Failed("the endpoint could not be reached in time", "connect_timeout")
            return Failed(f"timed out after {attempt.timeout_secs:g} s", "timeout")
        except (aiohttp.ClientError, OSError) as error:
            return _not_answered(error, visit)
        visit.answered()
        return answer

    async def _exchange(self, attempt: Attempt, job: JobSpec, url: URL) -> Answer:
        """Post and read. What went out is never sent again, not even if a pooled connection turns
        out to be closed: the job may have begun, and whether to repeat it is the policy's to say.
        Connections are not kept long enough for that to happen with common servers.
        """
        session = self._session or self._open()
        timeout = aiohttp.ClientTimeout(
            total=attempt.timeout_secs + SAFETY_SECS,
            sock_connect=self._settings.connect_timeout_secs,
        )
        async with session.post(
            url,
            data=attempt.input,
            headers=self.headers(attempt, job),
            allow_redirects=False,
            timeout=timeout,
        ) as response:
            return await _read(response)

    async def _judged(self, answer: Answer, transform: str | None) -> HttpOutcome:
        now_secs = self._clock.now_ms() / 1000
        if transform is None and len(answer.body) <= OFF_LOOP_BYTES:
            return outcome_of_answer(answer, None, now_secs)
        if self._threads is None:
            self._threads = ThreadPoolExecutor(2, "pilotage-http")
        return await self._loop.run_in_executor(
            self._threads, outcome_of_answer, answer, transform, now_secs
        )

    def headers(self, attempt: Attempt, job: JobSpec) -> dict[str, str]:
        """What goes with the request (definitions.md), run token and signature included."""
        now_ms = self._clock.now_ms()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"pilotage/{__version__}",
            "X-Run-ID": attempt.job_run_id,
            "X-Workflow-Run-ID": attempt.run_id,
            "X-Step-Ref": attempt.step_ref,
            "X-Job-ID": attempt.job,
            "X-Attempt": str(attempt.attempt),
            "Idempotency-Key": attempt.idempotency_key,
            "X-Run-Token": self._tokens.sign(attempt.job_run_id, now_ms, attempt.timeout_secs),
        }
        if attempt.traceparent is not None:
            headers["traceparent"] = attempt.traceparent
        if job.signing_secret:
            timestamp = str(now_ms // 1000)
            headers["X-Signature-Timestamp"] = timestamp
            headers["X-Signature"] = signature(job.signing_secret, timestamp, attempt.input)
        return headers

    def _open(self) -> aiohttp.ClientSession:
        settings = self._settings
        resolver = self._resolver or aiohttp.ThreadedResolver()
        options: dict[str, Any] = {
            "limit": 0,  # ours come before: who waits there is shown as held back
            "keepalive_timeout": settings.keepalive_secs,
        }
        if settings.allow_private_endpoints:
            connector = CleanConnector(resolver=resolver, **options)
        else:
            connector = GuardedConnector(
                resolver=GuardedResolver(resolver), socket_factory=guarded_socket, **options
            )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),  # no job learns what another was given
            trust_env=False,  # a proxy would do the resolving, past our address rules
        )
        return self._session


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """What `X-Signature` carries: `v1=` and HMAC-SHA256 of `timestamp.body`, in hex."""
    message = timestamp.encode() + b"." + body
    return "v1=" + hmac.new(secret.encode(), message, hashlib.sha256).hexdigest()


async def _read(response: aiohttp.ClientResponse) -> Answer:
    """The answer with a bounded body. A connection that is not read to the end is closed."""
    success = 200 <= response.status < 300 and response.status != 202
    bound = MAX_OUTPUT_BYTES if success else _CHUNK_BYTES
    size = response.content_length
    body = bytearray()
    if success and size is not None and size > bound:
        response.close()
    else:
        try:
            size = await _read_into(body, response, bound)
        except aiohttp.ClientPayloadError:
            if success:
                raise
            size = None  # the status says enough
    return Answer(
        status=response.status,
        media_type=response.content_type if "Content-Type" in response.headers else "",
        charset=response.charset,
        retry_after=response.headers.get("Retry-After"),
        body=bytes(body),
        size=size,
    )


async def _read_into(body: bytearray, response: aiohttp.ClientResponse, bound: int) -> int | None:
    """The size of the whole body; None if it is more than the bound and was not read to its end."""
    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
        body += chunk
        if len(body) > bound:
            response.close()
            return None
    return len(body)


def _bad_endpoint(problem: str) -> Failed:
    return Failed(
        bounded_error(f"the job's endpoint_url cannot be used: {problem}"),
        "bad_endpoint",
        final=True,
    )


def _not_answered(error: aiohttp.ClientError | OSError, visit: Visit) -> Failed:
    """Only a connection that did not come to be counts against the host: what it does with one
    may be the job's fault, and holds back no other job.
    """
    refused = _refused(error)
    if refused is not None:
        return refused
    if isinstance(error, aiohttp.ClientConnectorError):
        visit.unreachable()
        return Failed(
            bounded_error(f"the endpoint could not be reached: {_reason(error)}"), "unreachable"
        )
    visit.answered()
    if isinstance(error, (aiohttp.ClientConnectionError, OSError)):
        text, word = "the connection was lost before the answer", "connection_lost"
    else:
        text, word = "the answer is broken", "broken_answer"
    return Failed(bounded_error(f"{text}: {_reason(error)}"), word)


def _refused(error: BaseException) -> Failed | None:
    # aiohttp wraps it, in one way when resolving or connecting fails and in another after that.
    inner = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error.__cause__
    cause = error if inner is None else inner
    if not isinstance(cause, AddressRefusedError):
        return None
    return Failed(
        f"the endpoint is refused: {cause}; set PILOTAGE_ALLOW_PRIVATE_ENDPOINTS to allow "
        "endpoints that are not on the public internet",
        "address_refused",
        final=True,
    )


def _reason(error: BaseException) -> str:
    """What happened, in the system's words: those of aiohttp name its own objects."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return str(error.os_error) or type(error.os_error).__name__
    return str(error) or type(error).__name__
