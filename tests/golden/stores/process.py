"""The server of the golden stores as a process: this release, or another tree of it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Self, cast

from tests.blackbox.api import Api, ServerProcess
from tests.golden.stores.server import ADMIN_KEY

ROOT = Path(__file__).resolve().parents[3]
START_SECS = 60


class GoldenServer:
    """`tree` is the folder with `pilotage` and `tests`. `refused`: why it did not start."""

    def __init__(
        self, url: str, mode: str, log: Path, *, now_ms: int = 0, tree: Path = ROOT
    ) -> None:
        with log.open("a", encoding="utf-8") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.golden.stores.server", url, mode, str(now_ms)],
                cwd=tree,
                env={**os.environ, "PYTHONPATH": str(tree)},
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        assert self._process.stdout is not None
        watchdog = threading.Timer(START_SECS, self._process.kill)
        watchdog.start()
        line = self._process.stdout.readline().rstrip("\n")
        watchdog.cancel()
        word, _, rest = line.partition(" ")
        assert word in {"up", "refused:"}, f"it did not start:\n{log.read_text()[-4000:]}"
        self.refused = rest if word == "refused:" else None
        self.url = f"http://127.0.0.1:{rest}"
        self.key = ADMIN_KEY

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def api(self, project: str) -> Api:
        """A client of it; of a server it asks nothing but the URL."""
        return Api(cast("ServerProcess", self), project=project, key=self.key)

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        self._process.terminate()
        return self._end()

    def kill(self) -> None:
        self._process.kill()
        self._end()

    def _end(self) -> int:
        try:
            code = self._process.wait(timeout=20) if self._process.poll() is None else 0
        except subprocess.TimeoutExpired:
            self._process.kill()
        code = self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        return code
