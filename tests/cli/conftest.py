"""One server process for all tests of the verbs; commands run in the test's own process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pilotage.cli.root import invoke
from tests.cli.server import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("cli"))
    server.start()
    yield server
    assert server.stop() == 0


class Said(NamedTuple):
    """What a command printed, and how it ended."""

    status: int
    out: str
    err: str

    @property
    def items(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def item(self) -> dict[str, Any]:
        (only,) = self.items
        return only


Cli = Callable[..., Said]


@pytest.fixture
def cli(server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command against the server; `status` is the exit status it must have."""
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)

    def run(*args: str, status: int = 0) -> Said:
        capsys.readouterr()
        ended = invoke(args)
        captured = capsys.readouterr()
        said = Said(ended, captured.out, captured.err)
        assert ended == status, said
        assert "Traceback" not in said.err
        return said

    return run


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file that the job `gated` waits for; it is there when the test has ended."""
    path = tmp_path / "gate"
    yield path
    path.touch()
