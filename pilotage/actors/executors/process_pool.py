"""Worker processes for jobs that must be killable: one attempt at a time each.

A process is started when an attempt needs one and none is idle, and stays for the next. When an
attempt is stopped, its process and all that it has started are killed at once; a process that dies
by itself fails its attempt, retryable. All bookkeeping is on the actors' loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections import OrderedDict

import msgspec

from pilotage.actors.executors.port import Completed, Failed
from pilotage.actors.executors.process_wire import (
    LENGTH_BYTES,
    MAX_NEWS_BYTES,
    ProcessNews,
    decode_news,
    frame,
    order_of,
)
from pilotage.actors.executors.running import Running

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from pilotage.actors.executors.process_worker import main; main(int(sys.argv[1]))"
)


class _Worker:
    """A process and the server's end of its socket."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.process = process
        self.reader = reader
        self.writer = writer
        self.running: Running | None = None

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    async def read(self) -> ProcessNews:
        """Raises when the process is gone or sends what is no message."""
        size = int.from_bytes(await self.reader.readexactly(LENGTH_BYTES))
        if size > MAX_NEWS_BYTES:
            raise ValueError(f"a message of {size} bytes")
        return decode_news.decode(await self.reader.readexactly(size))


class ProcessPool:
    """At most `max_processes` attempts at a time; the others wait in order."""

    def __init__(self, *, max_processes: int | None = None) -> None:
        self._max_processes = max_processes or min(os.cpu_count() or 1, 16)
        self._queue: OrderedDict[Running, None] = OrderedDict()
        self._idle: list[_Worker] = []
        self._busy: dict[Running, _Worker] = {}
        self._starting = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def start(self, running: Running) -> None:
        self._queue[running] = None
        self._dispatch()
        running.queued = running not in self._busy

    def stop(self, running: Running) -> None:
        self._queue.pop(running, None)
        worker = self._busy.pop(running, None)
        if worker is not None:
            worker.kill()
            self._dispatch()

    def why_waiting(self, running: Running) -> str | None:
        if running in self._busy or running.over:
            return None
        if len(self._busy) < self._max_processes:
            return "its worker process is starting"
        return f"all {self._max_processes} worker processes are busy"

    async def aclose(self) -> None:
        """Kill all processes and wait until they are gone."""
        self._closed = True
        self._queue.clear()
        for worker in [*self._idle, *self._busy.values()]:
            worker.kill()
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))

    # --- bookkeeping ----------------------------------------------------------------------------

    def _dispatch(self) -> None:
        while self._queue and self._idle:
            running, _ = self._queue.popitem(last=False)
            self._give(self._idle.pop(), running)
        room = self._max_processes - len(self._busy) - len(self._idle) - self._starting
        for _ in range(min(room, len(self._queue) - self._starting)):
            self._starting += 1
            task = asyncio.get_running_loop().create_task(self._serve())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _give(self, worker: _Worker, running: Running) -> None:
        self._busy[running] = worker
        worker.running = running
        running.leave_queue()
        job = running.job
        worker.writer.write(frame(order_of(running.attempt, job.name, job.function)))

    async def _serve(self) -> None:
        """The life of one worker process, from its start to its reaping."""
        try:
            worker = await self._spawn()
        except (OSError, RuntimeError) as error:  # no process, descriptors or threads left
            self._starting -= 1
            if self._queue:
                running, _ = self._queue.popitem(last=False)
                running.emit(Failed(f"no worker process can be started: {error}", "no_resources"))
            self._dispatch()
            return
        self._starting -= 1
        try:
            await self._converse(worker)
        finally:
            worker.kill()
            worker.writer.close()
        status = await asyncio.get_running_loop().run_in_executor(None, worker.process.wait)
        self._lost(worker, status)

    async def _converse(self, worker: _Worker) -> None:
        self._rest(worker)
        with contextlib.suppress(EOFError, OSError, ValueError, msgspec.MsgspecError):
            while not self._closed:
                news = await worker.read()
                running = worker.running
                if running is None:
                    return  # it talks without having been asked
                running.emit(news)
                if isinstance(news, (Completed, Failed)):
                    worker.running = None
                    if self._busy.pop(running, None) is None:
                        return  # stopped meanwhile: the process has been killed
                    self._rest(worker)

    def _rest(self, worker: _Worker) -> None:
        self._idle.append(worker)
        self._dispatch()

    def _lost(self, worker: _Worker, status: int) -> None:
        if worker in self._idle:
            self._idle.remove(worker)
        running = worker.running
        if running is not None and self._busy.pop(running, None) is not None:
            running.emit(Failed(f"the worker process died: {_describe(status)}", "worker_process"))
        if not self._closed:
            self._dispatch()

    async def _spawn(self) -> _Worker:
        ours, theirs = socket.socketpair(socket.AF_UNIX)
        try:
            process = await asyncio.get_running_loop().run_in_executor(None, _start, theirs)
        except (OSError, RuntimeError):
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        return _Worker(process, reader, writer)


def _start(link: socket.socket) -> subprocess.Popen[bytes]:
    """In a session of its own: Ctrl-C in the terminal is the server's, and a kill takes all."""
    number = link.fileno()
    path = json.dumps([entry or os.getcwd() for entry in sys.path])  # noqa: PTH109 - as Python does
    return subprocess.Popen(  # noqa: S603 - our own interpreter and arguments
        [sys.executable, "-c", _BOOT, str(number), path],
        stdin=subprocess.DEVNULL,
        pass_fds=(number,),
        start_new_session=True,
    )


def _describe(status: int) -> str:
    if status >= 0:
        return f"it ended with status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
