"""Run tokens: how a remote job proves that it may report on one attempt.

A token is `v1.<job run id>.<expiry, Unix seconds>.<signature>`. The job run's id encodes run, step
and attempt, so nothing needs to be stored, and the same attempt delivered again after a crash is
as good with the old token as with the new one. The signature is HMAC-SHA256 over the three parts.
"""

from __future__ import annotations

import base64
import hashlib
import hmac

SECRET_BYTES = 32
MAX_TOKEN_CHARS = 256
AFTER_TIMEOUT_SECS = 3600
"""A token is good until the attempt's timeout and this much longer."""

_VERSION = "v1"


class RunTokens:
    """Signs and checks; `secret` is 32 random bytes that all servers of an installation share."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        if len(secret) != SECRET_BYTES:
            raise ValueError(f"the secret must have {SECRET_BYTES} bytes, not {len(secret)}")
        self._secret = secret

    def sign(self, job_run_id: str, now_ms: int, timeout_secs: float) -> str:
        expires = now_ms // 1000 + int(timeout_secs) + AFTER_TIMEOUT_SECS
        text = f"{_VERSION}.{job_run_id}.{expires}"
        return f"{text}.{self._signature(text)}"

    def verify(self, token: str, job_run_id: str, now_ms: int) -> bool:
        """Whether the token is one of ours, for this job run, and not expired."""
        if len(token) > MAX_TOKEN_CHARS or not token.isascii():
            return False
        text, _, signature = token.rpartition(".")
        # Nothing in the text is believed before its signature holds.
        if not hmac.compare_digest(self._signature(text), signature):
            return False
        version, bound_to, expires = text.split(".")
        return version == _VERSION and bound_to == job_run_id and now_ms // 1000 < int(expires)

    def signed(self, token: str, job_run_id: str) -> bool:
        """Whether the token is one of ours, for this job run, be it expired or not."""
        return self.verify(token, job_run_id, 0)

    def _signature(self, text: str) -> str:
        digest = hmac.digest(self._secret, text.encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
