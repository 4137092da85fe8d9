"""How a command fails: one line on standard error and an exit status that scripts can rely on.

    0  done                       3  not found
    1  the operation failed       4  not authorized
    2  usage: nothing was done    5  the server is away, too busy, or not Pilotage

Status 2 stands for everything that will be refused again when it is repeated unchanged: a wrong
option, a file that is no definition, a value that the server calls invalid.
"""

from __future__ import annotations

from collections.abc import Sequence

from pilotage.runtime.errors import PilotageError

DONE, FAILED, USAGE, NOT_FOUND, NOT_AUTHORIZED, AWAY = range(6)

_BY_HTTP_STATUS = {
    400: USAGE,
    401: NOT_AUTHORIZED,
    403: NOT_AUTHORIZED,
    404: NOT_FOUND,
    413: USAGE,
    422: USAGE,
    429: AWAY,
    502: AWAY,
    503: AWAY,
    504: AWAY,
}


class CommandError(PilotageError):
    """Ends the command. `details` are shown below the message, one a line."""

    def __init__(
        self, message: str, exit_status: int = FAILED, details: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self.message = message
        self.exit_status = exit_status
        self.details: tuple[str, ...] = tuple(details)


class ServerAwayError(CommandError):
    """No server answers at the address."""

    def __init__(self, url: str, why: str) -> None:
        super().__init__(
            f"no answer from {url} ({why}); start a server with `pilotage serve` "
            "or set PILOTAGE_URL",
            AWAY,
        )


class ForeignAnswerError(CommandError):
    """Something answers at the address, and it is not Pilotage."""

    def __init__(self, url: str, why: str) -> None:
        super().__init__(
            f"{url} does not answer like a Pilotage server ({why}); check the address (--url, "
            "PILOTAGE_URL), its port, and what stands in between",
            AWAY,
        )


class RefusedError(CommandError):
    """The server answered with an error; `status` is the HTTP status, `code` the API's word."""

    def __init__(self, status: int, code: str, message: str, details: Sequence[str] = ()) -> None:
        # A single detail repeats the message in other words; a list of problems does not.
        shown = () if len(details) == 1 and details[0] in message else tuple(details)
        super().__init__(message, _BY_HTTP_STATUS.get(status, FAILED), shown)
        self.status = status
        self.code = code
