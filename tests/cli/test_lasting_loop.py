"""The server's loop, and what inline jobs may do to it."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pilotage.cli.errors import CommandError
from pilotage.cli.lasting_loop import run_lasting


@pytest.fixture
def handled() -> Iterator[None]:
    """Ctrl-C is handled, as it is while a server runs."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    raise KeyboardInterrupt


def stop() -> None:
    asyncio.get_running_loop().stop()


@pytest.mark.usefixtures("handled")
@pytest.mark.parametrize("what", [stop, sys.exit, interrupt], ids=["stop", "exit", "interrupt"])
def test_the_loop_goes_on_until_the_server_is_done(
    what: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> int:
        asyncio.get_running_loop().call_soon(what)
        for _ in range(3):
            await asyncio.sleep(0)
        return 7

    assert run_lasting(main()) == 7
    assert caplog.text.count("by an inline job and goes on") == 1


def test_an_error_of_the_server_comes_out() -> None:
    async def main() -> None:
        raise CommandError("the port is taken", 1)

    with pytest.raises(CommandError, match="the port is taken"):
        run_lasting(main())


def test_before_the_server_handles_it_ctrl_c_ends_the_program() -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_soon(interrupt)
        await asyncio.Event().wait()

    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        run_lasting(main())


def test_a_server_that_an_inline_job_cancels_says_so() -> None:
    async def main() -> None:
        for task in asyncio.all_tasks():
            task.cancel()
        await asyncio.sleep(0)

    with pytest.raises(CommandError, match="cancelled from within, by an inline job"):
        run_lasting(main())
