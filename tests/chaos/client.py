"""A client that insists: a request is repeated until its answer is definite."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import aiohttp

PAUSE_SECS = 0.1
MAX_PAUSE_SECS = 1.0
REQUEST_SECS = 15.0


class Client:
    """`url` says where the server is now; it changes when another one takes over."""

    def __init__(
        self, url: Callable[[], str], *, key: str, project: str, problem: Callable[[str], None]
    ) -> None:
        self._url = url
        self._key = key
        self._project = project
        self._problem = problem
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=REQUEST_SECS),
            connector=aiohttp.TCPConnector(limit=0),
        )
        self._dice = random.Random(0)
        self.statuses: Counter[str] = Counter()
        self.words: Counter[str] = Counter()
        """What 503 answers said."""

    async def close(self) -> None:
        await self._session.close()

    async def once(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        key: str | None = None,
    ) -> tuple[int, Any]:
        """The answer; status 0 when there was none."""
        headers = {"Authorization": f"Bearer {token or self._key}", "X-Project-Id": self._project}
        if key is not None:
            headers["Idempotency-Key"] = key
        url = self._url()
        if not url:
            return 0, "no server"
        try:
            async with self._session.request(
                method, url + path, json=body, headers=headers
            ) as answer:
                text = await answer.text()
                if answer.status == 503:
                    self._look_at_refusal(method, path, answer, text)
                return answer.status, json.loads(text) if text else None
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return 0, repr(error)

    async def text(self, path: str) -> tuple[int, str]:
        """The answer to a GET, whatever it is made of."""
        headers = {"Authorization": f"Bearer {self._key}"}
        async with self._session.get(self._url() + path, headers=headers) as answer:
            return answer.status, await answer.text()

    async def insist(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        key: str | None = None,
        allowed: Collection[int] = (),
    ) -> tuple[int, Any]:
        """The first definite answer: success, or a status in `allowed`. Others are problems."""
        pause = PAUSE_SECS
        while True:
            status, answer = await self.once(method, path, body, token=token, key=key)
            self.statuses[str(status or "none")] += 1
            if 200 <= status < 300 or status in allowed:
                if status != 409 or not _in_progress(answer):
                    return status, answer
            elif status not in {0, 409, 503} or (status == 409 and not _in_progress(answer)):
                self._problem(f"{method} {path}: {status} {str(answer)[:300]}")
                return status, answer
            await asyncio.sleep(pause * (0.5 + self._dice.random()))
            pause = min(pause * 2, MAX_PAUSE_SECS)

    def _look_at_refusal(
        self, method: str, path: str, answer: aiohttp.ClientResponse, text: str
    ) -> None:
        if "Retry-After" not in answer.headers:
            self._problem(f"{method} {path}: 503 without Retry-After: {text[:200]}")
        try:
            said = json.loads(text).get("message", "not ready")
        except ValueError:
            self._problem(f"{method} {path}: 503 without JSON: {text[:200]}")
            return
        self.words[said] += 1


def _in_progress(answer: Any) -> bool:
    return "progress" in str(answer) and "dempotency" in str(answer)
