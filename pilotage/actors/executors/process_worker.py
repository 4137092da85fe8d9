"""The worker process: takes one order after the other from the socket it was born with.

Started by `ProcessPool`, which kills it when an attempt is over before its function is. It ends by
itself, in the middle of whatever it does, when the server's end of the socket closes.
"""

from __future__ import annotations

import importlib
import os
import runpy
import signal
import socket
import sys
import threading
import time
from queue import SimpleQueue
from types import ModuleType
from typing import Any

from pilotage.actors.executors.invoke import call, failure_of
from pilotage.actors.executors.job_context import JobContext
from pilotage.actors.executors.port import Completed, Failed, Logged, Progressed, Report
from pilotage.actors.executors.process_wire import (
    LENGTH_BYTES,
    Order,
    ProcessNews,
    decode_order,
    frame,
)
from pilotage.actors.executors.python_jobs import JobRegistry, PythonJob

PROGRESS_EVERY_SECS = 0.05
_MAIN = "__pilotage_main__"


class Worker:
    """One thread reads orders (and notices the server's end), the main thread does them."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._orders: SimpleQueue[Order] = SimpleQueue()
        self._sending = threading.Lock()
        self._jobs: dict[tuple[str, str, str], PythonJob] = {}
        self._progress_sent = 0.0
        self._progress_held: Progressed | None = None

    def run(self) -> None:
        threading.Thread(target=self._read, name="pilotage-orders", daemon=True).start()
        while True:
            order = self._orders.get()
            outcome = self._do(order)
            if self._progress_held is not None:
                self._send(self._progress_held)
            self._progress_held, self._progress_sent = None, 0.0
            self._send(outcome)

    def _read(self) -> None:
        try:
            with self._link.makefile("rb") as stream:
                while len(header := stream.read(LENGTH_BYTES)) == LENGTH_BYTES:
                    size = int.from_bytes(header)
                    data = stream.read(size)
                    if len(data) < size:
                        break
                    self._orders.put(decode_order(data))
        except OSError:  # a server that is killed before it has read everything: a reset, no end
            pass
        finally:
            _end()

    def _do(self, order: Order) -> Completed | Failed:
        try:
            job = self._job(order)
        except BaseException as error:  # noqa: BLE001 - importing runs code of the user's
            failed = failure_of(error)
            return Failed(
                f"job {order.name!r} cannot be loaded in a worker process: {failed.error}",
                failed.error_class,
                final=True,
            )
        return call(job, order.attempt, JobContext(order.attempt, self._emit))

    def _job(self, order: Order) -> PythonJob:
        place = (order.module, order.qualname, order.name)
        if place not in self._jobs:
            found: Any = _main(order) if order.module == "__main__" else None
            found = found or importlib.import_module(order.module)
            for name in order.qualname.split("."):
                found = getattr(found, name)
            # A decorator may have left something that holds the function.
            function = found if hasattr(found, "__code__") else getattr(found, "function", found)
            self._jobs[place] = JobRegistry().register(function, name=order.name, process=True)
        return self._jobs[place]

    def _emit(self, report: Report) -> None:
        if isinstance(report, Progressed):
            now = time.monotonic()
            if now - self._progress_sent < PROGRESS_EVERY_SECS:
                self._progress_held = report
                return
            self._progress_sent, self._progress_held = now, None
            self._send(report)
        elif isinstance(report, Logged):
            self._send(report)

    def _send(self, news: ProcessNews) -> None:
        with self._sending:
            try:
                self._link.sendall(frame(news))
            except OSError:
                _end()


def _end() -> None:
    """The server is gone: end at once, with all that jobs have started."""
    os.killpg(0, signal.SIGKILL)


def _main(order: Order) -> ModuleType:
    """The server's main module, run under another name so that it does not start a server."""
    if order.main_module is not None:
        namespace = runpy.run_module(order.main_module, run_name=_MAIN, alter_sys=True)
    elif order.main_file is not None:
        namespace = runpy.run_path(order.main_file, run_name=_MAIN)
    else:
        raise ImportError("the program has no file to load it from; put the job in a module")
    module = ModuleType(_MAIN)
    module.__dict__.update(namespace)
    sys.modules["__main__"] = module
    return module


def main(descriptor: int) -> None:
    Worker(socket.socket(fileno=descriptor)).run()
