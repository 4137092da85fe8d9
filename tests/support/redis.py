"""A real Valkey server for tests: in memory, on a unix socket, gone with the test process."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

from pilotage.persistence.server_process import WATCHER, find_server_binary
from tests.support.waiting import wait_until_sync


class ValkeyForTests:
    """A server without persistence, started on entering and ended on leaving the context."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "v.sock"
        self.url = f"unix://{self.socket}"
        self._folder = folder
        self._popen: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        command = [str(find_server_binary()), "--port", "0", "--unixsocket", str(self.socket)]
        command += ["--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"]
        note, log = self._folder / "note", self._folder / "log"
        self._popen = subprocess.Popen(
            ["/bin/sh", "-c", WATCHER, "test-watch", str(note), str(log), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd=self._folder,
            start_new_session=True,
        )
        wait_until_sync(self._answers, f"the test server answers; its log is {log}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._popen is not None
        assert self._popen.stdin is not None
        self._popen.stdin.close()
        self._popen.wait(timeout=20)

    def flush(self) -> None:
        """Remove every key."""
        with redis.Redis(unix_socket_path=str(self.socket)) as client:
            client.flushall()

    def _answers(self) -> bool:
        try:
            with redis.Redis(unix_socket_path=str(self.socket)) as client:
                return bool(client.ping())
        except redis.ConnectionError:
            assert self._popen is not None
            assert self._popen.poll() is None, "the test server ended at once; see its log"
            return False
