"""What a caller of the runtime may be told: application failures, with data.

`http` maps each class to one status; the message says what was found, what is allowed and what
to do next. Anything else that is raised is a bug and is logged as one.
"""

from __future__ import annotations

from collections.abc import Sequence

from pilotage.runtime.errors import PilotageError


class ApplicationError(PilotageError):
    """Root of what a caller can cause. `details` lists every single problem."""

    def __init__(self, message: str, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.details: tuple[str, ...] = tuple(details)


class NotFoundError(ApplicationError):
    """It does not exist, or not for this caller."""


class ConflictError(ApplicationError):
    """The state does not allow it."""


class ForbiddenError(ApplicationError):
    """The caller may not do it."""


class InvalidError(ApplicationError):
    """The input is wrong; `details` has all problems, each with its path."""


class UnavailableError(ApplicationError):
    """Not now: the store is away, a queue is full, the server stops. Try again later."""

    def __init__(self, message: str, retry_after_secs: int = 1) -> None:
        super().__init__(message)
        self.retry_after_secs = retry_after_secs


class UnauthenticatedError(ApplicationError):
    """The credential is missing, malformed, unknown, expired or revoked."""


class GoneError(ApplicationError):
    """What this is about is over and takes no more reports."""
