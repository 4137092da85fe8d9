"""`kill -9` at any instant: nothing acknowledged is lost, no run is stuck, little is repeated."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

RUNS = 15
KILLS = 5


class Server:
    """The process and what it has said so far."""

    def __init__(self, data_dir: Path, log: Path, runs: int) -> None:
        module = "tests.integration.actors.killed_server"
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, str(data_dir), str(log), str(runs)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def lines(self) -> list[str]:
        """What it says until it ends or says that it is done."""
        assert self.process.stdout is not None
        said: list[str] = []
        for line in self.process.stdout:
            said.append(line.strip())
            if said[-1] == "done":
                break
        return said

    def kill_after(self, lines: int) -> list[str]:
        """What it said; it is killed once it has said that much, but may say more before."""
        assert self.process.stdout is not None
        said: list[str] = []
        for line in self.process.stdout:
            said.append(line.strip())
            if len(said) == lines or said[-1] == "done":
                self.process.kill()
        self.process.wait()
        return said

    def close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.process.wait(timeout=20)


@pytest.mark.slow
def test_killed_again_and_again_every_run_completes_and_no_stored_step_runs_again(
    tmp_path: Path,
) -> None:
    seed = random.SystemRandom().randrange(10**6)  # every assertion names it
    dice = random.Random(seed)
    log = tmp_path / "log"
    log.touch()
    triggered: list[str] = []
    stored: dict[tuple[str, str], int] = {}  # a step's completion -> lines of the log at the kill
    for _ in range(KILLS):
        server = Server(tmp_path / "data", log, RUNS)
        said = server.kill_after(dice.randrange(1, 130))
        server.close()
        mark = len(log.read_text().splitlines())
        for line in said:
            words = line.split()
            if words[0] == "triggered":
                triggered.append(words[1])
            elif words[0] == "stored":
                stored.setdefault((words[1], words[2]), mark)
    server = Server(tmp_path / "data", log, 0)
    watchdog = threading.Timer(45, server.process.kill)
    watchdog.start()
    said = server.lines()
    watchdog.cancel()
    assert said, f"the last server said nothing, {seed=}"
    assert said[-1] == "done", f"{seed=}: some run is stuck"
    assert server.process.stdin is not None
    server.process.stdin.write("".join(f"{run}\n" for run in triggered))
    server.process.stdin.close()
    assert server.process.stdout is not None
    statuses = [line.split() for line in server.process.stdout]
    server.close()
    assert [words[2] for words in statuses] == ["completed"] * len(triggered), seed
    _nothing_stored_ran_again(log.read_text().splitlines(), stored, seed)


def _nothing_stored_ran_again(
    lines: list[str], stored: dict[tuple[str, str], int], seed: int
) -> None:
    last: dict[tuple[str, str], int] = {}
    for n, line in enumerate(lines, 1):
        run, step, attempt = line.split()
        assert attempt == "1", f"{seed=}: {line}"
        last[run, step] = n
    for (run, step), mark in stored.items():
        ran = last.get((run, step), 0)
        assert ran <= mark, f"{seed=}: {run} {step} ran again after it was stored"
