"""One server process and one job server for all tests; a project of its own for each."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.blackbox.api import Api, ServerProcess
from tests.blackbox.jobserver import JobServer


@pytest.fixture(scope="session")
def jobs() -> Iterator[JobServer]:
    with JobServer(time.monotonic) as server:
        yield server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    process = ServerProcess(tmp_path_factory.mktemp("blackbox") / "data")
    process.start()
    yield process
    process.stop()


@pytest.fixture
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that the test may kill."""
    process = ServerProcess(tmp_path_factory.mktemp("own") / "data")
    process.start()
    yield process
    if process.running:
        process.stop()


@pytest.fixture
def api(server: ServerProcess) -> Iterator[Api]:
    client = Api(server)
    yield client
    client.close()


@pytest.fixture
def own_api(own_server: ServerProcess) -> Iterator[Api]:
    client = Api(own_server)
    yield client
    client.close()


@pytest.fixture
def gate() -> Iterator[Callable[[], threading.Event]]:
    """Makes gates that hold answers back; all are opened when the test ends."""
    gates: list[threading.Event] = []

    def make() -> threading.Event:
        gates.append(threading.Event())
        return gates[-1]

    yield make
    for one in gates:
        one.set()
