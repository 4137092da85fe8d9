"""`pilotage serve` as a process, for tests: started, read, stopped or killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from tests.support.waiting import wait_until_sync

ROOT = Path(__file__).resolve().parents[2]
ADMIN_KEY = "plt_" + "t" * 43
START_SECS = 30


class CliProcess:
    """A `pilotage` command that runs until it is stopped. Its output is collected."""

    def __init__(
        self, *args: str, cwd: Path = ROOT, env: dict[str, str] | None = None, log: Path
    ) -> None:
        self.log = log
        with log.open("a", encoding="utf-8") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pilotage.cli", *args],
                cwd=cwd,
                env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )
        self.lines: list[str] = []

    def read_until(self, text: str) -> str:
        """The first line of standard output that contains `text`."""
        watchdog = threading.Timer(START_SECS, self.process.kill)
        watchdog.start()
        try:
            assert self.process.stdout is not None
            for line in self.process.stdout:
                self.lines.append(line.rstrip("\n"))
                if text in line:
                    return self.lines[-1]
        finally:
            watchdog.cancel()
        said = "\n".join(self.lines)
        raise AssertionError(f"{text!r} was not said:\n{said}\n{self.log.read_text()[-4000:]}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal it and wait for its end; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        assert self.process.stdout is not None
        with self.process.stdout as rest:
            self.lines += rest.read().splitlines()
        return self.process.wait(START_SECS)


class Server:
    """`pilotage serve` with the app of `flows.py` on a free port."""

    def __init__(self, folder: Path, *more: str) -> None:
        self._more = more
        self.data_dir = folder / "data"
        self.log = folder / "server.log"
        self.url = ""
        self._running: CliProcess | None = None

    @property
    def env(self) -> dict[str, str]:
        """What a client on this server sets."""
        return {
            "PILOTAGE_URL": self.url,
            "PILOTAGE_API_KEY": ADMIN_KEY,
            "PILOTAGE_PROJECT": "default",
        }

    def start(self, port: str = "0") -> None:
        self._running = CliProcess(
            "serve", "--port", port, "--data-dir", str(self.data_dir),
            "--app", "tests.cli.flows:app", *self._more,
            env={"PILOTAGE_ADMIN_KEY": ADMIN_KEY}, log=self.log,
        )  # fmt: skip
        self.url = self._running.read_until("listening on ").split()[-1]

    @property
    def running(self) -> bool:
        return self._running is not None and self._running.process.poll() is None

    @property
    def lines(self) -> list[str]:
        assert self._running is not None
        return self._running.lines

    def send(self, number: signal.Signals) -> None:
        assert self._running is not None
        self._running.process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self._running is not None
        return self._running.stop(number)

    # --- asking, by the command line in a process of its own -------------------------------------

    def ask_all(self, *args: str) -> list[dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "-m", "pilotage.cli", *args],
            cwd=ROOT,
            env={**os.environ, **self.env},
            capture_output=True,
            text=True,
            check=False,
            timeout=START_SECS,
        )
        assert done.returncode == 0, done
        return [json.loads(line) for line in done.stdout.splitlines()]

    def ask(self, *args: str) -> dict[str, Any]:
        (only,) = self.ask_all(*args)
        return only

    def trigger(self, workflow: str, **payload: Any) -> str:
        return str(self.ask("trigger", workflow, "--payload", json.dumps(payload))["id"])

    def step(self, run_id: str, ref: str) -> dict[str, Any]:
        steps: list[dict[str, Any]] = self.ask("runs", "show", run_id)["steps"]
        return next(step for step in steps if step["step_ref"] == ref)

    def wait_for(self, run_id: str, status: str) -> None:
        wait_until_sync(
            lambda: self.ask("runs", "show", run_id)["status"] == status, f"{run_id} is {status}"
        )
