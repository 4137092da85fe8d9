"""The embedded server: a Valkey child process that keeps the data when no Redis URL is given.

What it guarantees:

- **One owner.** An flock on `owner.lock` in the data directory is taken before anything else; a
  second owner is refused with the pid of the first. It is given back when `stop` returns, or a
  `start` that did not come up.
- **One server.** A new server is started only when the server lock is free, and every process of an
  earlier server holds it as long as it lives. An orphan whose parent was killed is given time to
  end by itself (its watcher sees to that), then ended cleanly, then killed.
- **Nothing answered is lost** when the server, or this process, is killed: answers come after the
  write to the append-only file. A crash of the machine costs at most about a second of answers
  with `everysec` (which is ours: see `disk_sync`), none with `always`.
- **It does not outlive its parent for long**: see `server_process`.

In the data directory: `appendonlydir/` (the data), `owner.lock`, `server.lock` (pid and group of
the server), `server.conf`, `server.log` (one older file is kept), `s.sock`.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import signal
import stat
import tempfile
from pathlib import Path
from urllib.parse import quote

from pilotage.persistence.disk_sync import DiskSync
from pilotage.persistence.server_process import (
    EmbeddedServerError,
    ServerExit,
    ServerProcess,
    find_server_binary,
    kill_group,
    server_config,
)
from pilotage.settings import FsyncPolicy

__all__ = ["DataDirInUseError", "EmbeddedServer", "EmbeddedServerError", "ServerExit"]

# A child that was being started when its parent was killed holds the owner's lock until its exec.
OWNER_SECS = 0.5
# A server whose parent was killed ends within 100 ms (measured); this is for a busy machine.
ORPHAN_SECS = 2.0
# What it then gets after each of SIGTERM and SIGKILL.
ORPHAN_END_SECS = 30.0
# A clean end flushes the append-only file, which a slow disk may take its time for.
END_SECS = 30.0
# Until the socket answers at all. Loading data is not counted: a server that loads does answer.
ANSWER_SECS = 30.0
POLL_SECS = 0.01
# sun_path holds 104 bytes on macOS and 108 on Linux, with the closing zero.
MAX_SOCKET_BYTES = 100
MAX_LOG_BYTES = 4 * 1024 * 1024
LOG_LINES_SHOWN = 5


class DataDirInUseError(EmbeddedServerError):
    """Another process owns the data directory. `holder` is its pid, None when it is not known."""

    def __init__(self, data_dir: Path, holder: int | None) -> None:
        who = "another process" if holder is None else f"process {holder}"
        super().__init__(
            f"the data directory {data_dir} is in use by {who} (it holds {data_dir}/owner.lock). "
            "Stop that one first, or name another directory with --data-dir or PILOTAGE_DATA_DIR"
        )
        self.data_dir = data_dir
        self.holder = holder


class EmbeddedServer:
    """A server of our own on a unix socket. Use it from one event loop.

    `start` and `stop` may be called any number of times; `restart` is for a supervisor that has
    seen `wait_died` return. `binary` names a server program instead of the bundled one.
    """

    def __init__(
        self, data_dir: Path, *, fsync: FsyncPolicy = "everysec", binary: Path | None = None
    ) -> None:
        self.data_dir = data_dir.absolute()
        self._fsync: FsyncPolicy = fsync
        self._binary = binary
        self._owner_fd: int | None = None
        self._process: ServerProcess | None = None
        self._sync: DiskSync | None = None
        self._turn = asyncio.Lock()

    @property
    def url(self) -> str:
        """Where the server is reached: `unix://` and the path of its socket."""
        return "unix://" + quote(str(socket_path(self.data_dir)))

    @property
    def pid(self) -> int | None:
        """The server's process id; None when none runs."""
        process = self._process
        return None if process is None or process.exited.done() else process.pid

    async def start(self) -> str:
        """Start the server and wait until it answers, its data loaded. Returns its URL.

        Raises `DataDirInUseError`, or `EmbeddedServerError` with the end of the server's log.
        """
        async with self._turn:
            if self.pid is not None:
                return self.url
            await self._own()
            try:
                await self._launch()
            except BaseException:
                self._let_go()
                raise
            return self.url

    async def stop(self) -> None:
        """End the server cleanly, its file flushed, and give up the data directory.

        Raises `EmbeddedServerError` when the server had to be killed; the data is whole even then.
        """
        async with self._turn:
            try:
                clean = await self._end()
            finally:
                self._let_go()
        if not clean:
            raise EmbeddedServerError(
                f"the embedded server did not end within {END_SECS:g} s and was killed; what it "
                f"had answered is kept. Its log: {self.data_dir}/server.log"
            )

    async def restart(self) -> str:
        """A new server on the same data, dead or alive as the old one may be.

        The data directory stays ours all the while, also when the new server does not come up:
        call again, or `stop`.
        """
        async with self._turn:
            await self._own()
            await self._end()
            await self._launch()
            return self.url

    async def wait_died(self) -> ServerExit:
        """Wait for the end of the server that runs now; `expected` says whether we asked for it."""
        if self._process is None:
            raise EmbeddedServerError("the embedded server has not been started")
        return await asyncio.shield(self._process.exited)

    async def answers(self) -> bool:
        """Whether the server says anything at all, be it busy or loading. One that has ended, or is
        being started, is not silent.
        """
        if self.pid is None or self._turn.locked():
            return True
        return bool(await self._ping())

    def wake(self) -> None:
        """Tell the server to go on, should it have been suspended; harmless otherwise."""
        if self._process is not None:
            self._process.wake()

    def kill(self) -> None:
        """End a server that hangs. What it had answered is kept; `wait_died` tells of its end."""
        if self._process is not None and not self._process.exited.done():
            self._process.kill()

    # ---- the owner of the directory

    async def _own(self) -> None:
        if self._owner_fd is not None:
            return
        try:
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self.data_dir / "owner.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise EmbeddedServerError(
                f"the data directory {self.data_dir} cannot be used: {error.strerror}. "
                "Name another one with --data-dir or PILOTAGE_DATA_DIR"
            ) from error
        owned = False
        try:
            owned = await _lock_within(fd, OWNER_SECS)
            holder = os.read(fd, 32).strip()
        finally:
            if not owned:
                os.close(fd)
        if not owned:
            raise DataDirInUseError(self.data_dir, int(holder) if holder.isdigit() else None)
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, f"{os.getpid()}\n".encode())
        self._owner_fd = fd

    def _let_go(self) -> None:
        """Give up server and directory without waiting; the server lock guards what still ends."""
        self._end_sync()
        if self._process is not None:
            self._process.ask_to_end()
            self._process = None
        if self._owner_fd is not None:
            # Said, not only closed: a process that another thread is just starting has a copy of
            # the descriptor until its exec, and with it the lock.
            fcntl.flock(self._owner_fd, fcntl.LOCK_UN)
            os.close(self._owner_fd)
            self._owner_fd = None

    # ---- the server

    async def _launch(self) -> None:
        """Start a server on the data directory, which is ours, and wait until it answers."""
        binary = await asyncio.to_thread(find_server_binary, self._binary)
        lock_fd = await self._server_lock()
        try:
            log_start = self._prepare_files()
            process = ServerProcess(
                [str(binary), str(self.data_dir / "server.conf")],
                note=self.data_dir / "server.lock",
                log=self.data_dir / "server.log",
                lock_fd=lock_fd,
            )
        finally:
            os.close(lock_fd)
        self._process = process
        if self._fsync == "everysec":
            self._sync = DiskSync(self.data_dir)
        await self._wait_answer(process, log_start)

    def _prepare_files(self) -> int:
        """Configuration, log and socket for a new server; returns where its log begins."""
        socket = socket_path(self.data_dir)
        if socket.parent != self.data_dir:
            _make_private(socket.parent)
        socket.unlink(missing_ok=True)  # of a dead server: we hold the server lock
        config = server_config(self.data_dir, socket, fsync=self._fsync)
        (self.data_dir / "server.conf").write_bytes(config)
        log = self.data_dir / "server.log"
        size = log.stat().st_size if log.exists() else 0
        if size > MAX_LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
            size = 0
        return size

    async def _server_lock(self) -> int:
        """The server lock, once no process of an earlier server is left to hold it."""
        path = self.data_dir / "server.lock"
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            steps: tuple[tuple[float, signal.Signals | None], ...] = (
                (ORPHAN_SECS, signal.SIGTERM),
                (ORPHAN_END_SECS, signal.SIGKILL),
                (ORPHAN_END_SECS, None),
            )
            words: list[str] = []
            for patience_secs, then in steps:
                if await _lock_within(fd, patience_secs):
                    os.ftruncate(fd, 0)  # what it says is of the past
                    return fd
                words = path.read_text().split()
                # The group cannot have been given to others: one of it still holds the lock.
                if then is not None and len(words) == 2:
                    kill_group(int(words[1]), then)
                    kill_group(int(words[1]), signal.SIGCONT)  # a suspended one sees it only then
            raise EmbeddedServerError(  # noqa: TRY301 - the descriptor is closed in one place
                f"an earlier server of {self.data_dir} does not end (process and group: "
                f"{' '.join(words) or 'unknown'}). End it by hand, then start again"
            )
        except BaseException:
            os.close(fd)
            raise

    async def _wait_answer(self, process: ServerProcess, log_start: int) -> None:
        """Wait until the server answers and has loaded its data."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + ANSWER_SECS
        while not process.exited.done():
            answer = await self._ping()
            if answer.startswith(b"+PONG") and process.pid is not None:
                return
            if answer.startswith(b"-LOADING"):
                deadline = clock() + ANSWER_SECS
            elif clock() > deadline:
                process.kill()
                await process.exited
                raise EmbeddedServerError(
                    f"the embedded server did not answer within {ANSWER_SECS:g} s (last answer: "
                    f"{answer!r}).{self._log_tail(log_start)}"
                )
            await asyncio.wait({process.exited}, timeout=POLL_SECS)
        raise EmbeddedServerError(
            f"the embedded server ended at once: {process.exited.result()}."
            f"{self._log_tail(log_start)}"
        )

    async def _ping(self) -> bytes:
        """What the server says to PING; empty when there is no answer."""
        try:
            async with asyncio.timeout(1):
                reader, writer = await asyncio.open_unix_connection(socket_path(self.data_dir))
                try:
                    writer.write(b"PING\r\n")
                    return await reader.readline()
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return b""

    async def _end(self) -> bool:
        """End the server, if one runs, keeping the directory. False when it had to be killed."""
        self._end_sync()
        process = self._process
        if process is None:
            return True
        process.ask_to_end()
        await asyncio.wait({process.exited}, timeout=END_SECS)
        if process.exited.done():
            return True
        process.kill()
        await process.exited
        return False

    def _end_sync(self) -> None:
        """The server forces everything to disk as it ends."""
        if self._sync is not None:
            self._sync.end()
            self._sync = None

    def _log_tail(self, start: int) -> str:
        with (self.data_dir / "server.log").open("rb") as log:
            log.seek(start)
            lines = log.read(MAX_LOG_BYTES).decode(errors="replace").splitlines()
        shown = "".join(f"\n  {line}" for line in lines[-LOG_LINES_SHOWN:])
        return f" Its last words:{shown}" if shown else ""


def socket_path(data_dir: Path) -> Path:
    """`s.sock` in the data directory, or a short stand-in when that path is too long for a socket.

    The stand-in lies in a directory that only this user can enter.
    """
    path = data_dir / "s.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_BYTES:
        return path
    name = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16] + ".sock"
    folder = f"pilotage-{os.geteuid()}"
    path = Path(tempfile.gettempdir(), folder, name)
    if len(os.fsencode(path)) <= MAX_SOCKET_BYTES:
        return path
    return Path("/tmp", folder, name)  # noqa: S108 - checked by _make_private


def _make_private(folder: Path) -> None:
    """`folder` in a shared temporary directory, as a place that only this user can enter."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise EmbeddedServerError(
            f"{folder} is not a directory of this user alone; the path of the data directory is "
            "too long for a socket, so one is needed there. Remove it, or shorten the path"
        )


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def _lock_within(fd: int, patience_secs: float) -> bool:
    """Try for the lock until it is ours or the patience is at its end."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + patience_secs
    while not _try_lock(fd):
        if clock() > deadline:
            return False
        await asyncio.sleep(POLL_SECS)
    return True
