"""The server's event loop, which only the end of the server ends.

Inline jobs run on it. One that stops the loop, or lets an exit through in a callback, must not
take the server and all runs along, and the same again after each restart.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

from pilotage.cli.errors import FAILED, CommandError

T = TypeVar("T")

logger = logging.getLogger("pilotage.server")


def run_lasting(main: Coroutine[Any, Any, T]) -> T:
    """Like `asyncio.run`, but the loop goes on until `main` is done.

    Ctrl-C is for `main` to handle; before it does, it ends the program as usual. `CommandError`
    when `main` was cancelled: nobody does that but a job.
    """
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        task = loop.create_task(main, name="main")
        task.add_done_callback(lambda _: loop.stop())
        while not task.done():
            try:
                loop.run_forever()
                how = "stopped"
            except (SystemExit, KeyboardInterrupt) as error:
                if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                    raise
                how = f"left with {type(error).__name__}"
            if not task.done():
                logger.error("the server's loop was %s by an inline job and goes on", how)
        if task.cancelled():
            raise CommandError(
                "the server was cancelled from within, by an inline job that cancels tasks which "
                "are not its own; nothing is lost, mend the job and start the server again",
                FAILED,
            )
        return task.result()
